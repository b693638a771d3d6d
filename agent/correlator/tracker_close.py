# Owns the mirror of 50-fds.c and of evidence: what close and dup do to descriptions and registrations.
# Base of tracker.StreamTracker; records are plain tuples in Record order.
from __future__ import annotations

from agent.correlator.tracker_codes import (
    EBADF,
    F_UNKNOWN,
    R_BY_CLOSE,
    R_BY_DEL,
    R_ENDING,
    R_FORK_SHARED,
    R_SHARED,
    S_CLOSE_BY_OTHER,
    S_CLOSE_IN_BATCH,
    S_CLOSED,
    S_DELETED,
    S_FORK_SHARED,
    S_ORPHANED,
    S_WAITER_KNOWN,
)
from agent.correlator.tracker_state import (
    LIVE,
    R_ENDED,
    R_ORPHAN,
    At,
    Closing,
    Fd,
    Process,
    Reg,
    Resolve,
    Slot,
    alive,
    registration,
    slot_life,
)
from probes.abi import Kind, Suspect
from probes.events import LifetimeEnded, LifetimesCounted, Moment, SuspicionRaised, Trigger

Rec = tuple[int, ...]
_MAX_DESCRIPTIONS = 8192
_MAX_CLOSING = 4096


class Closer:
    """What the handlers of StreamTracker share: evidence, close, dup, reuse of fd numbers."""

    def __init__(self, max_slots: int) -> None:
        self._max_slots = max(1, max_slots)
        self._out: list[SuspicionRaised | LifetimeEnded | LifetimesCounted] = []
        self._counts: dict[int, int] = {}
        self.full = 0  # entries that found no place

    def _moment_ip(self, tgid: int, stack: int) -> int:
        raise NotImplementedError

    def _adopt(self, p: Process, r: Rec) -> Reg | None:
        raise NotImplementedError

    def _resolver(self, tgid: int) -> Resolve:
        def resolve(at: At) -> Moment:
            enter, ts, ip, tid, stack = at
            if not ip and stack >= 0:
                ip = self._moment_ip(tgid, stack)
            return Moment(enter, ts, ip, tid, stack)

        return resolve

    def _suspect(
        self,
        p: Process,
        suspect: Suspect,
        r: Rec,
        slot: Slot | None,
        reg: Reg | None = None,
        other: Reg | None = None,
    ) -> None:
        thread = p.threads.get(r[7])
        at = self._resolver(p.tgid)
        trigger = Trigger(*r)
        if r[1] == Kind.DELIVERED:
            trigger = trigger._replace(stack=-1)  # there it is the batch
        self._out.append(
            SuspicionRaised(
                suspect=suspect,
                trigger=trigger,
                wait_enter=thread.wait_enter if thread is not None else 0,
                wait_exit=thread.wait_exit if thread is not None else 0,
                batch=thread.batch if thread is not None else 0,
                batch_open=thread.batch_open if thread is not None else False,
                slot=slot_life(slot, at) if slot is not None else None,
                reg=registration(reg, p.tgid, at),
                other=registration(other, p.tgid, at),
                comm="",
                memory=b"",
            )
        )

    def _close_begun(self, p: Process, r: Rec) -> None:
        fd, epfd = r[9], r[10]
        f = p.fds.pop(fd, None) or Fd(epfd)
        reg = p.regs.get(f.epfd << 32 | fd) if f.epfd >= 0 else None
        if reg is None and f.epfd >= 0 and r[5]:
            reg = self._adopt(p, r)
        if reg is not None and alive(reg):
            reg.flags |= R_ENDING
        if len(p.closing) >= _MAX_CLOSING and r[7] not in p.closing:
            p.closing.pop(next(iter(p.closing)))
            self.full += 1
        p.closing[r[7]] = Closing(fd, f, reg)

    def _closed(self, p: Process, r: Rec) -> None:
        fd, tid = r[9], r[7]
        begun = p.closing.get(tid)
        if begun is not None and begun.fd == fd:
            del p.closing[tid]
        else:
            begun = None
        if r[2] & F_UNKNOWN and r[11] == EBADF:
            if begun is not None and len(p.fds) < self._max_slots:  # its next owner will end it
                p.fds.setdefault(fd, begun.known)
            self._suspect(p, Suspect.BAD_CLOSE, r, None)
            return
        at = (r[4], r[3], 0, tid, r[13])
        if begun is not None:
            self._close_effect(p, fd, begun.known, begun.reg, at)
        elif r[12]:  # of a close_range
            self._close_of(p, fd, at)

    def _close_of(self, p: Process, fd: int, at: At) -> None:
        f = p.fds.pop(fd, None)
        if f is not None:
            self._close_effect(p, fd, f, p.regs.get(f.epfd << 32 | fd) if f.epfd >= 0 else None, at)

    def _accepted(self, p: Process, r: Rec) -> None:
        self._close_of(p, r[11], (0, r[3], 0, 0, -1))

    def _dupped(self, p: Process, r: Rec) -> None:
        old, new, ts = r[9], r[11], r[3]
        self._close_of(p, new, (0, ts, 0, 0, -1))
        if len(p.fds) + 2 > self._max_slots or len(p.descs) >= _MAX_DESCRIPTIONS:
            self.full += 1
            return
        f = p.fds.get(old)
        if f is None:
            f = p.fds[old] = Fd(-1)
        if not f.desc:
            f.desc = ts << 8  # as the kernel side: unique, though two dups may share a nanosecond
            while f.desc in p.descs:
                f.desc += 1
            p.descs[f.desc] = 1
        if f.desc not in p.descs:
            return
        p.descs[f.desc] += 1
        p.fds[new] = Fd(-1, f.desc)
        if f.epfd >= 0:
            reg = p.regs.get(f.epfd << 32 | old)
            if reg is not None and alive(reg):
                reg.flags |= R_SHARED

    def _close_effect(self, p: Process, fd: int, f: Fd, reg: Reg | None, at: At) -> None:
        """f, reg: the number's life that ends; it may have its next one by now."""
        desc, epfd = f.desc, f.epfd
        survives = by_fork = False
        if desc:
            refs = p.descs.get(desc, 0)
            if refs > 1:
                p.descs[desc] = refs - 1
                survives = True
            else:
                self._description_gone(p, desc)
        if not survives and p.forks:
            survives = by_fork = True
            desc = at[1] | 1
        if reg is None:
            return
        slot = p.slots.get(reg.slot)
        current = slot is not None and slot.gen == reg.gen
        if reg.state == R_ENDED:
            if slot is not None and current and reg.flags & R_BY_DEL and not slot.close[1]:
                self._slot_closed(p, slot, epfd, at)
            return
        reg.end = at
        reg.flags &= ~R_ENDING
        if slot is not None and current:
            self._slot_closed(p, slot, epfd, at)
        if not survives:
            reg.state = R_ENDED
            reg.flags |= R_BY_CLOSE
            return
        orphan = self._orphan(p, reg, desc, R_FORK_SHARED if by_fork else R_SHARED)
        reg.flags = orphan.flags | R_BY_CLOSE
        reg.desc = desc
        if slot is not None:
            if current:
                slot.flags |= S_FORK_SHARED if by_fork else S_ORPHANED
            slot.old_fd = fd
            slot.old_epfd = epfd
            slot.old_gen = reg.gen
            slot.old_desc = desc
        if not by_fork:
            trigger = (
                0,
                Kind.CLOSED,
                0,
                at[1],
                at[0],
                reg.slot,
                p.tgid,
                at[3],
                reg.gen,
                fd,
                epfd,
                0,
                0,
                at[4],
            )
            self._suspect(p, Suspect.OUTLIVES_CLOSE, trigger, slot, orphan)
        reg.state = R_ENDED

    @staticmethod
    def _description_gone(p: Process, desc: int) -> None:
        p.descs.pop(desc, None)
        orphan = p.orphans.pop(desc, None)
        slot = p.slots.get(orphan.slot) if orphan is not None else None
        if slot is not None and slot.old_desc == desc:
            slot.old_desc = 0
            slot.old_fd = -1

    def _orphan(self, p: Process, reg: Reg, desc: int, why: int) -> Reg:
        """A copy of `reg` under its description: the number `fd` may be given out again."""
        orphan = Reg(reg.userdata, reg.slot, reg.gen, reg.epfd, reg.fd, reg.events, reg.add)
        orphan.mod = reg.mod
        orphan.end = reg.end
        orphan.desc = desc
        orphan.state = R_ORPHAN
        orphan.flags = reg.flags | why
        if len(p.orphans) < _MAX_DESCRIPTIONS:
            p.orphans[desc] = orphan
        else:
            self.full += 1
        return orphan

    @staticmethod
    def _slot_closed(p: Process, slot: Slot, epfd: int, at: At) -> None:
        tid = at[3]
        slot.close = at
        slot.flags |= S_CLOSED
        waiter = p.waiters.get(epfd, 0)
        if waiter > 0:
            slot.waiter = waiter
            slot.flags |= S_WAITER_KNOWN if waiter == tid else S_WAITER_KNOWN | S_CLOSE_BY_OTHER
        if slot.state == LIVE and not slot.flags & S_DELETED and slot.last_tid and slot.last_tid != tid:
            thread = p.threads.get(slot.last_tid)
            if thread is not None and thread.batch_open and thread.batch == slot.last_batch:
                slot.flags |= S_CLOSE_IN_BATCH
