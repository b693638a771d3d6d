# Owns the mirror's mutable state: struct af_slot, af_reg, af_fd, af_thread as plain attributes.
# Hot path: __slots__ and moments as tuples (enter, ts, ip, tid, stack); the rules' values are made on demand.
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from agent.correlator.context import ALL_BITS, PlanFacts
from probes.abi import RegFlag, RegState, SlotFlag, SlotState
from probes.events import Moment, Registration, SlotLife
from symbols.plan import Role

At = tuple[int, int, int, int, int]
NEVER: At = (0, 0, 0, 0, -1)
Resolve = Callable[[At], Moment]

UNKNOWN, LIVE, FREE = (int(state) for state in (SlotState.UNKNOWN, SlotState.LIVE, SlotState.FREE))
R_ADDING, R_LIVE, R_ORPHAN, R_ENDED = (
    int(state) for state in (RegState.ADDING, RegState.LIVE, RegState.ORPHAN, RegState.ENDED)
)


class Slot:
    """struct af_slot; `removed` is its `del`."""

    __slots__ = (
        "add", "addr", "after_close", "batch_count", "close", "consecutive", "create", "deliveries",
        "destroy", "dispatches", "double_destroys", "epfd", "fd", "first_after_close", "first_delivery",
        "flags", "gen", "last_after_close", "last_batch", "last_delivery", "last_delivery_enter",
        "last_dispatch", "last_tid", "live_from", "old_desc", "old_epfd", "old_fd", "old_gen",
        "prev_destroy", "recycled", "recycled_reported", "removed", "stale", "stale_dispatches",
        "stale_reported", "state", "tgid", "undispatched", "waiter",
    )  # fmt: skip

    def __init__(self, tgid: int, addr: int, gen: int, flags: int) -> None:
        self.tgid = tgid
        self.addr = addr
        self.gen = gen
        self.live_from = gen
        self.double_destroys = 0
        self.prev_destroy = NEVER
        self.destroy = NEVER
        self.old_fd = -1
        self.old_epfd = -1
        self.old_gen = 0
        self.old_desc = 0
        self.begin(flags)

    def begin(self, flags: int) -> None:
        """A life begins: everything but identity, generation and the older registration is forgotten."""
        self.state = LIVE
        self.flags = flags
        self.create = self.add = self.removed = self.close = self.destroy = NEVER
        self.first_delivery = self.last_delivery = self.last_delivery_enter = self.last_dispatch = 0
        self.first_after_close = self.last_after_close = 0
        self.deliveries = self.dispatches = self.after_close = 0
        self.stale = self.stale_reported = self.double_destroys = 0
        self.last_batch = self.last_tid = self.consecutive = self.waiter = 0
        self.fd = self.epfd = -1
        self.recycled = self.recycled_reported = self.batch_count = self.undispatched = 0
        self.stale_dispatches = 0


class Reg:
    """struct af_reg."""

    __slots__ = (
        "add", "desc", "end", "epfd", "events", "fd", "flags", "gen", "mod", "slot", "state", "userdata",
    )  # fmt: skip

    def __init__(self, userdata: int, slot: int, gen: int, epfd: int, fd: int, events: int, add: At) -> None:
        self.userdata = userdata
        self.slot = slot
        self.desc = 0
        self.gen = gen
        self.epfd = epfd
        self.fd = fd
        self.events = events
        self.state = R_ADDING
        self.flags = 0
        self.add = add
        self.mod = NEVER
        self.end = NEVER


class Fd:
    """struct af_fd."""

    __slots__ = ("desc", "epfd")

    def __init__(self, epfd: int, desc: int = 0) -> None:
        self.epfd = epfd
        self.desc = desc


class Closing(NamedTuple):
    """A close in flight: the number, what was known of it before, and the registration under it."""

    fd: int
    known: Fd
    reg: Reg | None


class Thread:
    """The part of struct af_thread that records tell of."""

    __slots__ = ("batch", "batch_open", "stale_slot", "wait_enter", "wait_exit")

    def __init__(self) -> None:
        self.wait_enter = 0
        self.wait_exit = 0
        self.batch = 0
        self.batch_open = False
        self.stale_slot = 0


MANY = -1  # more than one thread waits on the instance


class Process:
    """All maps of one tgid. Registrations by epfd << 32 | fd."""

    __slots__ = (
        "attached", "closing", "descs", "fds", "forks", "have_create", "have_dispatch", "mask", "orphans",
        "regs", "slots", "slots_by_low", "tgid", "threads", "waiters",
    )  # fmt: skip

    def __init__(self, tgid: int, plan: PlanFacts | None, attached: int) -> None:
        self.tgid = tgid
        self.attached = attached
        self.mask = plan.mask if plan is not None else ALL_BITS
        self.have_create = plan is not None and plan.has(Role.CREATE)
        self.have_dispatch = plan is not None and plan.has(Role.DISPATCH)
        self.forks = 0
        self.slots: dict[int, Slot] = {}
        self.slots_by_low: dict[int, Slot] = {}  # by the low half of the address: DISPATCHED has no more
        self.regs: dict[int, Reg] = {}
        self.fds: dict[int, Fd] = {}
        self.closing: dict[int, Closing] = {}  # by thread
        self.descs: dict[int, int] = {}  # description -> references
        self.orphans: dict[int, Reg] = {}  # description -> registration
        self.threads: dict[int, Thread] = {}
        self.waiters: dict[int, int] = {}  # epfd -> thread, or MANY

    def __len__(self) -> int:
        return (
            len(self.slots)
            + len(self.regs)
            + len(self.fds)
            + len(self.closing)
            + len(self.descs)
            + len(self.orphans)
            + len(self.threads)
            + len(self.waiters)
        )

    def current(self, slot: Slot) -> Reg | None:
        """af_reg_current: the registration of the slot's current generation, alive."""
        if slot.fd < 0:
            return None
        reg = self.regs.get(slot.epfd << 32 | slot.fd)
        if reg is None or not alive(reg) or reg.slot != slot.addr or reg.gen != slot.gen:
            return None
        return reg

    def old(self, slot: Slot) -> Reg | None:
        """af_reg_old: the surviving registration that the slot remembers, alive."""
        if slot.old_desc:
            reg = self.orphans.get(slot.old_desc)
            if reg is None or reg.state != R_ORPHAN or reg.slot != slot.addr:
                return None
            return None if reg.flags & RegFlag.FORK_SHARED and not self.forks else reg
        if slot.old_fd < 0:
            return None
        reg = self.regs.get(slot.old_epfd << 32 | slot.old_fd)
        if reg is None or not alive(reg) or reg.slot != slot.addr or reg.gen != slot.old_gen:
            return None
        return reg


def alive(reg: Reg) -> bool:
    """af_reg_alive"""
    return (reg.state == R_LIVE or reg.state == R_ADDING) and not reg.flags & RegFlag.ENDING


def slot_life(s: Slot, at: Resolve) -> SlotLife:
    return SlotLife(
        addr=s.addr,
        tgid=s.tgid,
        gen=s.gen,
        state=SlotState(s.state),
        flags=SlotFlag(s.flags),
        create=at(s.create),
        add=at(s.add),
        removed=at(s.removed),
        close=at(s.close),
        destroy=at(s.destroy),
        prev_destroy=at(s.prev_destroy),
        first_delivery=s.first_delivery,
        last_delivery=s.last_delivery,
        last_delivery_enter=s.last_delivery_enter,
        last_dispatch=s.last_dispatch,
        first_after_close=s.first_after_close,
        last_after_close=s.last_after_close,
        object=0,
        deliveries=s.deliveries,
        dispatches=s.dispatches,
        after_close=s.after_close,
        stale=s.stale,
        stale_reported=s.stale_reported,
        double_destroys=s.double_destroys,
        last_batch=s.last_batch,
        last_tid=s.last_tid,
        consecutive=s.consecutive,
        live_from=s.live_from,
        waiter=s.waiter,
        fd=s.fd,
        epfd=s.epfd,
        old_fd=s.old_fd,
        old_epfd=s.old_epfd,
        old_gen=s.old_gen,
        old_desc=s.old_desc,
        recycled=s.recycled,
        recycled_reported=s.recycled_reported,
        batch_count=s.batch_count,
        undispatched=s.undispatched,
        stale_dispatches=s.stale_dispatches,
    )


def registration(r: Reg | None, tgid: int, at: Resolve) -> Registration | None:
    if r is None:
        return None
    return Registration(
        userdata=r.userdata,
        slot=r.slot,
        desc=r.desc,
        tgid=tgid,
        gen=r.gen,
        epfd=r.epfd,
        fd=r.fd,
        events=r.events,
        state=RegState(r.state),
        flags=RegFlag(r.flags),
        consecutive=0,
        add=at(r.add),
        mod=at(r.mod),
        end=at(r.end),
    )
