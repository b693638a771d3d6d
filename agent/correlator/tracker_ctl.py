# Owns the mirror of 30-state.c and 40-epoll.c as far as epoll_ctl goes: births of slots and registrations.
# Between tracker_close.Closer and tracker.StreamTracker; records are plain tuples in Record order.
from __future__ import annotations

from agent.correlator.tracker_close import Closer, Rec
from agent.correlator.tracker_codes import (
    EBADF,
    ENOENT,
    F_NO_SLOT,
    R_BY_DEL,
    R_ENDING,
    R_INFERRED,
    S_ADD_BY_OTHER,
    S_ADD_FREED,
    S_CLOSED,
    S_DEL_BY_OTHER,
    S_DELETED,
    S_INFERRED,
    S_REBORN_LIVE,
    S_WAITER_KNOWN,
)
from agent.correlator.tracker_state import (
    FREE,
    LIVE,
    NEVER,
    R_ADDING,
    R_ENDED,
    R_LIVE,
    Fd,
    Process,
    Reg,
    Slot,
    alive,
)
from probes.abi import Kind, Suspect

_LOW = 0xFFFF_FFFF


class Registrar(Closer):
    """Slots come to life, registrations are made, changed and removed."""

    def _new_slot(self, p: Process, addr: int, gen: int, flags: int) -> Slot | None:
        if len(p.slots) >= self._max_slots:
            self.full += 1
            return None
        slot = p.slots[addr] = p.slots_by_low[addr & _LOW] = Slot(p.tgid, addr, gen, flags)
        return slot

    def _reborn(self, p: Process, slot: Slot, flags: int, gen: int) -> None:
        was_live = slot.state == LIVE
        if slot.stale != slot.stale_reported:
            slot.stale_reported = slot.stale
            trigger = (0, Kind.DELIVERED, 0, slot.last_delivery, slot.last_delivery_enter, slot.addr)
            rest = (p.tgid, slot.last_tid, slot.gen, slot.consecutive, slot.epfd, 0, 0, -1)
            self._suspect(p, Suspect.STALE_DELIVERY, trigger + rest, slot, p.old(slot))
        if p.current(slot) is not None:
            slot.old_fd = slot.fd
            slot.old_epfd = slot.epfd
            slot.old_gen = slot.gen
            slot.old_desc = 0
        if slot.old_desc and p.old(slot) is None:  # shared with a child that is gone by now
            p.orphans.pop(slot.old_desc, None)
            slot.old_desc = 0
            slot.old_fd = -1
        slot.prev_destroy = slot.destroy
        slot.gen = gen
        if not was_live:
            slot.live_from = gen
        slot.begin(flags | (S_REBORN_LIVE if was_live else 0))

    def _add_begun(self, p: Process, r: Rec) -> None:
        fd, epfd, enter = r[9], r[10], r[4]
        f = p.fds.get(fd)
        addr = r[5] & p.mask
        slot = p.slots.get(addr)
        if slot is None:
            flags = S_INFERRED if p.have_create else 0
            slot = self._new_slot(p, addr, r[8], flags)
        elif slot.state == FREE:
            self._reborn(p, slot, S_ADD_FREED if p.have_create else 0, r[8])
        if slot is not None and not slot.add[1]:
            slot.add = (enter, 0, 0, 0, -1)
        key = epfd << 32 | fd
        reg = p.regs.get(key)
        if reg is None or not alive(reg):
            if reg is None and len(p.regs) >= self._max_slots:
                self.full += 1
                return
            gen = slot.gen if slot is not None else 0
            p.regs[key] = Reg(r[5], addr, gen, epfd, fd, r[12], (enter, 0, 0, r[7], r[13]))
        if f is not None:
            f.epfd = epfd
        elif len(p.fds) < self._max_slots:
            p.fds[fd] = Fd(epfd)
        else:
            self.full += 1

    def _added(self, p: Process, r: Rec) -> None:
        fd, epfd = r[9], r[10]
        reg = p.regs.get(epfd << 32 | fd)
        if r[2] & F_NO_SLOT or reg is None:
            return
        if r[11] != 0:
            if reg.state == R_ADDING:
                reg.state = R_ENDED
            return
        if reg.state == R_ADDING:
            reg.state = R_LIVE
        at = (r[4], r[3], 0, r[7], r[13])
        reg.add = (reg.add[0], r[3], 0, reg.add[3], reg.add[4])
        slot = p.slots.get(r[5] & p.mask)
        if slot is None:
            return
        other = p.current(slot)
        twin = other is not None and other is not reg and other.gen >= slot.live_from
        if not twin and slot.old_fd >= 0 and slot.live_from <= slot.old_gen != slot.gen:
            other = p.old(slot)
            twin = other is not None and other is not reg
        if twin:
            self._suspect(p, Suspect.ALIASED_SLOT, r, slot, reg, other)
        slot.fd = fd
        slot.epfd = epfd
        slot.add = at
        slot.flags &= ~(S_CLOSED | S_DELETED)
        waiter = p.waiters.get(epfd, 0)
        if waiter > 0:
            slot.waiter = waiter
            slot.flags |= S_WAITER_KNOWN if waiter == r[7] else S_WAITER_KNOWN | S_ADD_BY_OTHER

    def _failed(self, p: Process, r: Rec, reg: Reg | None) -> None:
        """DEL or MOD that returned an error."""
        if r[11] not in (EBADF, ENOENT):
            return
        slot = p.slots.get(reg.slot) if reg is not None else None
        removes = r[1] == Kind.REMOVED and slot is not None and slot.state == LIVE and slot.gen == r[8]
        if removes and slot is not None and not slot.removed[1]:
            slot.removed = (r[4], r[3], 0, r[7], r[13])
        self._suspect(p, Suspect.FAILED_REMOVAL, r, slot, reg)

    def _modified(self, p: Process, r: Rec) -> None:
        if r[2] & F_NO_SLOT:
            return
        reg = p.regs.get(r[10] << 32 | r[9])
        if r[11] != 0:
            self._failed(p, r, reg)
            return
        if reg is None or not alive(reg):
            return
        reg.events = r[12]
        reg.mod = (r[4], r[3], 0, r[7], r[13])
        addr = r[5] & p.mask
        slot = p.slots.get(addr)
        if addr != reg.slot:
            reg.slot = addr
            reg.userdata = r[5]
            if slot is not None:
                reg.gen = slot.gen
                slot.fd = r[9]
                slot.epfd = r[10]
        if slot is not None:
            slot.consecutive = 0

    def _del_begun(self, p: Process, r: Rec) -> None:
        reg = p.regs.get(r[10] << 32 | r[9]) or self._adopt(p, r)
        if reg is not None and alive(reg):
            reg.flags |= R_ENDING

    def _removed(self, p: Process, r: Rec) -> None:
        fd, epfd, tid = r[9], r[10], r[7]
        reg = p.regs.get(epfd << 32 | fd)
        if r[11] != 0:
            if reg is not None:
                reg.flags &= ~R_ENDING
            self._failed(p, r, reg)
            return
        if reg is None or reg.state == R_ENDED:
            return
        at = (r[4], r[3], 0, tid, r[13])
        reg.state = R_ENDED
        reg.flags = reg.flags & ~R_ENDING | R_BY_DEL
        reg.end = at
        slot = p.slots.get(reg.slot)
        if slot is None or slot.gen != reg.gen:
            return
        slot.removed = at
        slot.flags |= S_DELETED
        waiter = p.waiters.get(epfd, 0)
        if waiter > 0 and waiter != tid:
            slot.flags |= S_DEL_BY_OTHER

    def _adopt(self, p: Process, r: Rec) -> Reg | None:
        """A registration that the kernel side knows and this stream does not: it predates the stream."""
        fd, epfd, addr = r[9], r[10], r[5] & p.mask
        if epfd < 0 or fd < 0 or not addr or len(p.regs) >= self._max_slots:
            return None
        slot = p.slots.get(addr) or self._new_slot(p, addr, r[8], S_INFERRED)
        reg = p.regs[epfd << 32 | fd] = Reg(r[5], addr, r[8], epfd, fd, 0, NEVER)
        reg.state = R_LIVE
        reg.flags = R_INFERRED
        if slot is not None and slot.gen == r[8]:
            slot.fd, slot.epfd = fd, epfd
        return reg
