# Owns the mirror of probes/bpf's state machine over the stream of 64-byte records: same facts, same patterns.
# A change in 30-state.c .. 70-slots.c is a change here. Hot path: records are plain tuples in Record order
# (seq kind flags ts enter addr tgid tid gen fd epfd ret arg stack).
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from agent.correlator.bounded import BoundedMap
from agent.correlator.context import PlanFacts
from agent.correlator.tracker_codes import (
    ET_OR_ONESHOT,
    F_AGAIN,
    F_UNKNOWN,
    HOT_AFTER,
    R_ENDING,
    S_CLOSE_PENDING,
    S_CLOSED,
    S_CREATE_SEEN,
    S_DELETED,
    S_DESTROY_BY_OTHER,
    S_INFERRED,
    S_WAITER_KNOWN,
    SIG_ADD,
    SIG_AFTER_CLOSE,
    SIG_CLOSE,
    SIG_DEL_AFTER_CLOSE,
    SIG_DELIVERED,
    SIG_REGISTERED,
    SIGNATURE_OF,
)
from agent.correlator.tracker_ctl import Registrar
from agent.correlator.tracker_state import (
    FREE,
    LIVE,
    MANY,
    R_ADDING,
    R_LIVE,
    Process,
    Reg,
    Slot,
    Thread,
    slot_life,
)
from probes.abi import Kind, Suspect
from probes.events import LifetimeEnded, LifetimesCounted, SlotLingering, StackSeen, SuspicionRaised

Rec = tuple[int, ...]
Out = SuspicionRaised | LifetimeEnded | LifetimesCounted
Handler = Callable[[Process, Rec], None]

_FIELDS = 14
_LOW = 0xFFFF_FFFF
_MAX_PROCESSES = 256
_MAX_THREADS = 4096
_MAX_SIGNATURES = 4096
_ALL_EXAMPLES = 64  # lifetimes of one signature that are decoded, then one of
_SAMPLE = 64


class StreamTracker(Registrar):
    """Feed it records in time order; it returns what the kernel side would have noticed.

    Every lifetime is counted (LifetimesCounted); the first 64 of a signature and then one of 64 come
    decoded as well. Memory is bounded by `max_slots` per process and 256 processes.
    """

    def __init__(self, max_slots: int = 65536) -> None:
        super().__init__(max_slots)
        self._processes: dict[int, Process] = {}
        self._stacks: BoundedMap[tuple[int, int], int] = BoundedMap(16384)
        self._signatures: dict[int, int] = {}  # lifetimes so far
        self._signature_bits: dict[int, int] = {}  # slot flags -> signature bits
        self.malformed = 0
        self._handlers: dict[int, Handler] = {
            int(Kind.CREATED): self._created,
            int(Kind.DESTROYED): self._destroyed,
            int(Kind.DISPATCHED): self._dispatched,
            int(Kind.ADD_BEGUN): self._add_begun,
            int(Kind.ADDED): self._added,
            int(Kind.MODIFIED): self._modified,
            int(Kind.DEL_BEGUN): self._del_begun,
            int(Kind.REMOVED): self._removed,
            int(Kind.CLOSE_BEGUN): self._close_begun,
            int(Kind.CLOSED): self._closed,
            int(Kind.DUPPED): self._dupped,
            int(Kind.WAITER_SEEN): self._waiter_seen,
            int(Kind.DELIVERED): self._delivered,
            int(Kind.BATCH_CLOSED): self._batch_closed,
            int(Kind.ACCEPTED): self._accepted,
            int(Kind.FORKED): self._forked,
            int(Kind.FORK_ENDED): self._fork_ended,
            int(Kind.EXECED): self._execed,
            int(Kind.EXITED): self._execed,
            int(Kind.READ): self._read,
            int(Kind.EPOLL_CREATED): self._epoll_created,
        }

    def __len__(self) -> int:
        entries = sum(len(process) for process in self._processes.values())
        return entries + len(self._stacks) + len(self._signatures)

    def attach(self, tgid: int, plan: PlanFacts | None, ts: int) -> None:
        """The plan says how userdata maps to slots and what is probed; without one, assume a pointer."""
        if len(self._processes) >= _MAX_PROCESSES and tgid not in self._processes:
            self._processes.pop(next(iter(self._processes)))
        self._processes[tgid] = Process(tgid, plan, ts)

    def stack_seen(self, event: StackSeen) -> None:
        """Stacks give calls their instruction pointer: records carry only the stack's id."""
        if event.pcs:
            self._stacks.put((event.tgid, event.id), event.pcs[0])

    def feed(self, records: Iterable[Rec]) -> list[Out]:
        out: list[Out] = []
        self._out = out
        self._counts: dict[int, int] = {}
        handlers = self._handlers
        processes = self._processes
        tgid = -1
        process: Process | None = None
        ts = 0
        for record in records:
            if len(record) != _FIELDS:
                self.malformed += 1
                continue
            if record[6] != tgid or process is None:
                tgid = record[6]
                process = processes.get(tgid)
                if process is None:
                    if record[1] == Kind.FORK_ENDED:  # written by the child
                        self._fork_ended(None, record)
                        continue
                    self.attach(tgid, None, 0)
                    process = processes[tgid]
            handler = handlers.get(record[1])
            if handler is not None:
                handler(process, record)
                ts = record[3]
                if record[1] == Kind.EXECED or record[1] == Kind.EXITED:
                    process = None
        if self._counts:
            out.append(LifetimesCounted(ts=ts, counts=self._counts))
        return out

    def lingering(self, ts: int, leak_after: int) -> Iterator[SlotLingering]:
        """Slots whose fd has been closed for `leak_after` and that live."""
        for process in self._processes.values():
            at = self._resolver(process.tgid)
            for slot in process.slots.values():
                if slot.state == LIVE and slot.flags & S_CLOSED and slot.close[1] + leak_after <= ts:
                    yield SlotLingering(ts=ts, slot=slot_life(slot, at))

    def _moment_ip(self, tgid: int, stack: int) -> int:
        return self._stacks.get((tgid, stack)) or 0

    # -- slots

    def _created(self, p: Process, r: Rec) -> None:
        slot = p.slots.get(r[5])
        if slot is None:
            slot = self._new_slot(p, r[5], r[8], S_CREATE_SEEN)
            if slot is None:
                return
        else:
            self._reborn(p, slot, S_CREATE_SEEN, r[8])
        slot.create = (r[3], r[3], r[4], r[7], r[13])

    def _destroyed(self, p: Process, r: Rec) -> None:
        addr, tid, ts = r[5], r[7], r[3]
        slot = p.slots.get(addr)
        if slot is None:
            slot = self._new_slot(p, addr, r[8], S_INFERRED)
            if slot is None:
                return
            slot.fd, slot.epfd = r[9], r[10]
        if slot.state == FREE:
            slot.double_destroys += 1
            self._suspect(p, Suspect.DOUBLE_DESTROY, r, slot)
            return
        reg = raw = None
        if slot.fd >= 0:
            raw = p.regs.get(slot.epfd << 32 | slot.fd)
            if raw is not None and raw.slot == addr and raw.gen == slot.gen:
                if raw.flags & R_ENDING:
                    slot.flags |= S_CLOSE_PENDING
                elif raw.state == R_LIVE or raw.state == R_ADDING:
                    reg = raw
        if reg is None and slot.old_fd >= 0 and slot.old_gen >= slot.live_from:
            reg = p.old(slot)
        in_batch = False
        if slot.last_tid:
            thread = p.threads.get(slot.last_tid)
            if thread is not None and thread.batch_open and thread.batch == slot.last_batch:
                # arg bit 0: the slot still held the object it registered with (only the kernel side can see)
                in_batch = (
                    bool(r[12] & 1) and slot.undispatched > 0 if p.have_dispatch else slot.last_tid != tid
                )
        slot.state = FREE
        slot.destroy = (ts, ts, r[4], tid, r[13])
        waiter = p.waiters.get(slot.epfd, 0) if slot.fd >= 0 else 0
        if waiter > 0:
            slot.waiter = waiter
            slot.flags |= S_WAITER_KNOWN if waiter == tid else S_WAITER_KNOWN | S_DESTROY_BY_OTHER
        self._lifetime(p, slot, reg)
        if reg is not None:
            self._suspect(p, Suspect.FREED_REGISTERED, r, slot, reg)
        if in_batch:
            self._suspect(p, Suspect.FREED_IN_BATCH, r, slot, reg)

    def _lifetime(self, p: Process, slot: Slot, reg: Reg | None) -> None:
        flags = slot.flags
        signature = self._signature_bits.get(flags)
        if signature is None:
            signature = sum(bit for flag, bit in SIGNATURE_OF if flags & flag)
            self._signature_bits[flags] = signature  # at most 2 ** 16 combinations of flags
        if slot.add[1]:
            signature |= SIG_ADD
        if slot.deliveries:
            signature |= SIG_DELIVERED
        if slot.removed[1] and not flags & S_DELETED:
            signature |= SIG_DEL_AFTER_CLOSE
        if slot.close[1]:
            signature |= SIG_CLOSE
        if slot.after_close:
            signature |= SIG_AFTER_CLOSE
        if reg is not None:
            signature |= SIG_REGISTERED
        self._counts[signature] = self._counts.get(signature, 0) + 1
        seen = self._signatures.get(signature, 0)
        if not seen and len(self._signatures) >= _MAX_SIGNATURES:
            return
        self._signatures[signature] = seen + 1
        if seen < _ALL_EXAMPLES or not seen % _SAMPLE:
            life = slot_life(slot, self._resolver(p.tgid))
            self._out.append(LifetimeEnded(signature=signature, slot=life))

    def _dispatched(self, p: Process, r: Rec) -> None:
        known = not r[2] & F_UNKNOWN
        slot = p.slots_by_low.get(r[12]) if r[12] else None
        if known and slot is not None and slot.state == LIVE:
            slot.dispatches += 1
            slot.last_dispatch = r[3]
            slot.undispatched = max(0, slot.undispatched - 1)
            return
        obj = r[5]
        garbage = obj < 4096 or obj >> 47 or (not known and obj in p.slots)
        if garbage or (slot is not None and slot.state == FREE):
            reg = None
            if slot is not None:
                total = slot.stale_dispatches = slot.stale_dispatches + 1
                if slot.consecutive > 0 and total & (total - 1):
                    return
                reg = p.regs.get(slot.epfd << 32 | slot.fd) if slot.fd >= 0 else None
            self._suspect(p, Suspect.STALE_DISPATCH, r, slot, reg)

    # -- waits

    def _thread(self, p: Process, tid: int) -> Thread:
        thread = p.threads.get(tid)
        if thread is None:
            if len(p.threads) >= _MAX_THREADS:
                p.threads.pop(next(iter(p.threads)))
            thread = p.threads[tid] = Thread()
        return thread

    def _waits(self, p: Process, epfd: int, tid: int) -> None:
        known = p.waiters.get(epfd)
        if known != tid:
            if known is None and len(p.waiters) >= _MAX_THREADS:
                return
            p.waiters[epfd] = tid if known is None else MANY

    def _waiter_seen(self, p: Process, r: Rec) -> None:
        self._waits(p, r[10], r[7])

    def _batch_closed(self, p: Process, r: Rec) -> None:
        thread = p.threads.get(r[7])
        if thread is not None:
            thread.batch_open = False

    def _delivered(self, p: Process, r: Rec) -> None:  # noqa: C901 - the hottest one: calls cost more
        ts, tid, batch, repeats = r[3], r[7], r[13], r[9]
        if p.waiters.get(r[10]) != tid:
            self._waits(p, r[10], tid)
        thread = p.threads.get(tid) or self._thread(p, tid)
        if thread.batch != batch or not thread.batch_open:
            thread.batch = batch
            thread.batch_open = True
            thread.wait_enter = r[4]
            thread.wait_exit = ts
        if r[2] & F_UNKNOWN:
            return
        slot = p.slots.get(r[5])
        if slot is None:
            slot = self._new_slot(p, r[5], r[8], S_INFERRED)
            if slot is None:
                return
        elif slot.gen != r[8]:
            self._reborn(p, slot, S_INFERRED, r[8])  # its birth was lost
        # Deliveries of a run are recorded at 1, 2, 4, 8, …: the batch numbers say how many there were.
        # A negative count: the run before broke off, and so many of its deliveries went unrecorded.
        count = 1
        if r[2] & F_AGAIN and (slot.last_tid != tid or slot.last_batch != batch):
            self._unrecorded(p, slot, tid, batch)
        if slot.last_tid == tid and slot.last_batch == batch:
            slot.batch_count += 1
            slot.undispatched += 1
            slot.consecutive = max(0, repeats)
            repeats = 0  # another registration's delivery in the same batch: no step of a run
        else:
            if repeats > 0 and slot.last_tid == tid:
                count = max(1, batch - slot.last_batch)
            elif repeats < 0:
                count -= repeats
                repeats = 0
            slot.consecutive = repeats
            slot.batch_count = slot.undispatched = 1
        slot.last_batch = batch
        slot.last_tid = tid
        slot.last_delivery = ts
        slot.last_delivery_enter = r[4]
        if slot.state == FREE:
            self._stale(p, r, slot, count, repeats)
            return
        slot.deliveries += count
        if not slot.first_delivery:
            slot.first_delivery = ts
        if slot.flags & S_CLOSED:
            slot.after_close += count
            if not slot.first_after_close:
                slot.first_after_close = ts
            slot.last_after_close = ts
        if slot.old_fd >= 0 and slot.old_gen < slot.live_from:
            self._recycled(p, r, slot, count, repeats)
        elif repeats >= HOT_AFTER and not repeats & (repeats - 1):
            reg = p.current(slot) or p.regs.get(slot.epfd << 32 | slot.fd)
            if reg is None or not reg.events & ET_OR_ONESHOT:
                slot.stale_reported = slot.stale
                self._suspect(p, Suspect.HOT, r, slot, reg)

    @staticmethod
    def _unrecorded(p: Process, slot: Slot, tid: int, batch: int) -> None:
        """The slot's first delivery of this batch, and others before: steps of a run, nothing was sent."""
        count = max(1, batch - slot.last_batch) if slot.last_tid == tid else 1
        slot.last_tid, slot.last_batch = tid, batch
        slot.batch_count = slot.undispatched = 1
        if slot.state == FREE:
            slot.stale += count if slot.stale else 0
            return
        slot.deliveries += count
        slot.after_close += count if slot.flags & S_CLOSED else 0
        if slot.recycled and p.old(slot) is not None:
            slot.recycled += count

    def _stale(self, p: Process, r: Rec, slot: Slot, count: int, repeats: int) -> None:
        before = slot.stale
        # The first is recorded whatever the run: what went unrecorded before it found the slot live.
        slot.stale = before + count if before else 1
        if not repeats or slot.stale.bit_length() != before.bit_length():
            reg = p.old(slot) or p.current(slot) or p.regs.get(slot.epfd << 32 | slot.fd)
            slot.stale_reported = slot.stale
            self._suspect(p, Suspect.STALE_DELIVERY, r, slot, reg)

    def _recycled(self, p: Process, r: Rec, slot: Slot, count: int, repeats: int) -> None:
        reg = p.old(slot)
        if reg is None:
            return
        before = slot.recycled
        slot.recycled = before + count if before else 1  # as in _stale
        if not repeats or slot.recycled.bit_length() != before.bit_length():
            slot.recycled_reported = slot.recycled
            self._suspect(p, Suspect.RECYCLED_DELIVERY, r, slot, reg, p.current(slot))

    def _read(self, p: Process, r: Rec) -> None:
        slot = p.slots.get(r[5])
        if slot is not None:
            slot.consecutive = 0

    def _epoll_created(self, p: Process, r: Rec) -> None:
        p.waiters.pop(r[11], None)

    # -- processes

    def _forked(self, p: Process, _r: Rec) -> None:
        p.forks += 1

    def _fork_ended(self, _child: Process | None, r: Rec) -> None:
        parent = self._processes.get(r[5])
        if parent is not None and parent.forks:
            parent.forks -= 1

    def _execed(self, p: Process, r: Rec) -> None:
        if r[3] >= p.attached:  # else: of the program that ran under this number before
            self._processes.pop(p.tgid, None)
