# Owns what a report needs besides the finding: targets, thread names and roles, stacks.
# Learns from events only, so that a replay shows what the live run showed. Every table is bounded.
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from agent.snapshots import fingerprint
from probes.abi import Kind
from probes.events import (
    CrashSeen,
    Event,
    LifetimeEnded,
    MappedModule,
    ModulesMapped,
    Moment,
    RecordsRead,
    SlotLingering,
    StackSeen,
    SuspicionRaised,
    TargetAttached,
    ThreadSeen,
)
from probes.records import seen_at

_MOST_TARGETS = 256
_MOST_THREADS = 8192
_MOST_STACKS = 16384

_WAITING = frozenset({int(Kind.WAITER_SEEN), int(Kind.DELIVERED), int(Kind.BATCH_CLOSED)})
"""Records that only a thread which waits on an epoll instance causes."""

_ITS_OWN = frozenset({Kind.ADDED, Kind.MODIFIED, Kind.REMOVED, Kind.CLOSED, Kind.DISPATCHED})
"""Triggers whose suspicion carries the batch of the very thread that it names."""

K = TypeVar("K")
V = TypeVar("V")


class Bounded(OrderedDict[K, V], Generic[K, V]):
    """A dict that forgets its oldest entry beyond `most`."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        if len(self) > self._most:
            self.popitem(last=False)


class PlanSite(NamedTuple):
    """A probed instance as its plan has it. The probe itself may sit before the instance or within it."""

    function: str  # that the profile names
    inlined: bool
    file: str  # of the call site of an inlined instance; "" unknown
    line: int
    column: int
    at_entry: bool  # the return address is part of a stack's id there
    inside: int  # an image address within the instance's own code, the probe's where that is


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One attached process, with what of its plan the reports use."""

    tgid: int
    attached: int  # ts
    exe: str
    comm: str
    bias: int
    image: str
    identity: str
    profile: str
    slot_type: str
    late: bool
    bootstrapped: int
    plan: Mapping[str, Any]

    def image_address(self, ip: int) -> int | None:
        """`ip` as the image's own headers give it; None when it lies outside of its segments."""
        address = ip - self.bias
        for segment in self.plan.get("segments", ()):
            if not isinstance(segment, Mapping) or not segment.get("executable", True):
                continue
            start = int(segment.get("vaddr", 0))
            if start <= address < start + int(segment.get("memsz", 0)):
                return address
        return None

    def site(self, ip: int) -> PlanSite | None:
        """The probed instance whose probe is at run-time address `ip`."""
        address = ip - self.bias
        sites = self.plan.get("sites")
        for site in sites if isinstance(sites, Sequence) else ():
            if not isinstance(site, Mapping):
                continue
            place = site.get("stands_for")  # of a probe on a branch: what its hits are told as
            if address == (site.get("address") if place is None else place):
                return _plan_site(site, address)
        return None


def _plan_site(site: Mapping[str, Any], address: int) -> PlanSite:
    ranges = [
        (pair[0], pair[1])
        for pair in site.get("ranges") or ()
        if isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(end, int) for end in pair)
    ]
    within = not ranges or any(low <= address < high for low, high in ranges)
    call = site.get("call_site")
    call = call if isinstance(call, Mapping) else {}
    line, column = call.get("line"), call.get("column")
    return PlanSite(
        function=str(site.get("function", "?")),
        inlined=site.get("kind") == "inlined",
        file=str(call.get("file", "")),
        line=line if isinstance(line, int) else 0,
        column=column if isinstance(column, int) else 0,
        at_entry=site.get("at_entry") is True,
        inside=address if within else ranges[0][0],
    )


class Scene:
    """What is known about processes and threads so far."""

    def __init__(self, on_target: Callable[[Target], None] = lambda _target: None) -> None:
        self._on_target = on_target
        self.targets: Bounded[int, Target] = Bounded(_MOST_TARGETS)
        self._comms: Bounded[tuple[int, int], str] = Bounded(_MOST_THREADS)
        self._stacks: Bounded[tuple[int, int], tuple[int, ...]] = Bounded(_MOST_STACKS)
        self._kept: Bounded[tuple[int, int], int] = Bounded(_MOST_STACKS)  # fingerprints of kept bytes
        self._modules: Bounded[int, tuple[MappedModule, ...]] = Bounded(_MOST_TARGETS)
        self._waiters: Bounded[tuple[int, int], int] = Bounded(_MOST_THREADS)  # (tgid, tid) -> epfd

    def feed(self, event: Event) -> None:
        """Learn from one event."""
        if isinstance(event, RecordsRead):
            self._records(event)
        elif isinstance(event, StackSeen):
            self._stacks[event.tgid, event.id] = event.pcs
            self._kept[event.tgid, event.id] = fingerprint(event)
        elif isinstance(event, ModulesMapped):
            self._modules[event.tgid] = event.modules
        elif isinstance(event, ThreadSeen):
            self._comms[event.tgid, event.tid] = event.comm
        elif isinstance(event, SuspicionRaised):
            if event.comm:  # empty where another thread told what this one put off
                self._comms[event.trigger.tgid, event.trigger.tid] = event.comm
            if event.slot is not None and event.slot.waiter:
                self._waiters[event.slot.tgid, event.slot.waiter] = event.slot.epfd
            if event.trigger.kind == Kind.DELIVERED:
                self._waiters[event.trigger.tgid, event.trigger.tid] = event.trigger.epfd
            elif event.batch and event.trigger.kind in _ITS_OWN:
                who = (event.trigger.tgid, event.trigger.tid)
                self._waiters[who] = self._waiters.get(who, event.trigger.epfd)
        elif isinstance(event, LifetimeEnded | SlotLingering):
            if event.slot.waiter:
                self._waiters[event.slot.tgid, event.slot.waiter] = event.slot.epfd
        elif isinstance(event, CrashSeen):
            self._comms[event.tgid, event.tid] = event.comm
        elif isinstance(event, TargetAttached):
            target = self.targets[event.tgid] = target_of(event)
            self._on_target(target)

    def forget(self, tgids: Container[int]) -> None:
        """Processes that ended some time ago: their last findings have been told."""
        for held in (self._comms, self._stacks, self._kept, self._waiters):
            for key in [key for key in held if key[0] in tgids]:
                del held[key]
        for tgid in [tgid for tgid in self._modules if tgid in tgids]:
            del self._modules[tgid]

    def _records(self, event: RecordsRead) -> None:
        # Hot in a replay of a whole stream.
        waiting = _WAITING
        waiters = self._waiters
        for kind, tgid, tid, epfd in seen_at(event.records):
            if kind in waiting and (tgid, tid) not in waiters:
                waiters[tgid, tid] = epfd

    def comm(self, tgid: int, tid: int) -> str:
        """The thread's name, "" unknown. Untrusted text."""
        return self._comms.get((tgid, tid), "")

    def role(self, tgid: int, tid: int) -> str:
        """ "loop" for a thread that waits on an epoll instance, "worker" for any other."""
        return "loop" if (tgid, tid) in self._waiters else "worker"

    def thread_role(self, tgid: int, tid: int) -> str:
        """The same, and "thread" where nobody is known to wait in the process: it may be the loop itself."""
        role = self.role(tgid, tid)
        if role == "worker" and not any(key[0] == tgid for key in self._waiters):
            return "thread"
        return role

    def stack(self, tgid: int, moment: Moment) -> tuple[int, ...]:
        """Run-time addresses of the moment, innermost first; at least its ip when that is known."""
        pcs = self._stacks.get((tgid, moment.stack), ()) if moment.stack >= 0 else ()
        if pcs:
            return pcs
        return (moment.ip,) if moment.ip else ()

    def kept(self, tgid: int, moment: Moment) -> int:
        """The fingerprint of the stack bytes that were kept for the moment; 0 when none were."""
        return self._kept.get((tgid, moment.stack), 0) if moment.stack >= 0 else 0

    def module(self, tgid: int, address: int) -> MappedModule | None:
        """The file mapped at a run-time address, as far as it is known."""
        modules = self._modules.get(tgid, ())
        return next((module for module in modules if module.start <= address < module.end), None)


def target_of(event: TargetAttached) -> Target:
    """What the reports keep of an attach event. The plan may come from a file: nothing is trusted."""
    plan = event.plan
    slot = plan.get("slot")
    return Target(
        tgid=event.tgid,
        attached=event.ts,
        exe=event.exe,
        comm=event.comm,
        bias=event.bias,
        image=str(plan.get("image", event.exe)),
        identity=str(plan.get("identity", "")),
        profile=str(plan.get("profile", "")),
        slot_type=str(slot.get("type_name", "")) if isinstance(slot, Mapping) else "",
        late=event.late,
        bootstrapped=event.bootstrapped,
        plan=plan,
    )
