# Owns what the daemon keeps in case a target crashes, and the case it makes of it when one does.
# Bounded per target; must not write, symbolize or judge.
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from probes.abi import Kind
from probes.events import (
    CountersRead,
    CrashSeen,
    Event,
    FdinfoChecked,
    FlightRecorded,
    Lost,
    ModulesMapped,
    Moment,
    ProcessCaptured,
    RecordsRead,
    StackSeen,
    SuspicionRaised,
    TargetAttached,
    TargetGone,
    ThreadSeen,
)
from probes.rings import unpacked

_SUSPICIONS = 256
_FINDINGS = 256
_STACKS = 16384
_THREADS = 8192
_REPLACED = 16  # crashed programs in whose process another one runs by now
_RECORDS_AT_ONCE = 4096
_PATIENCE_NS = 60_000_000_000  # for a mini core, and for the findings' symbols
_SETTLE_NS = 10_000_000_000  # a handler that prints a stack of a debug build takes seconds


@dataclass(slots=True, kw_only=True)
class Case:
    """One crash with its history: the events a replay needs, and the findings as JSON lines."""

    crash: CrashSeen
    target: TargetAttached
    events: list[Event]
    findings: list[str]
    notes: list[str] = field(default_factory=list)
    core: str = ""  # path of the mini core; "" when none was taken
    capture: dict[str, Any] = field(default_factory=dict)  # what the capture says of itself
    alive: bool = False  # it handled the signal, and was still there afterwards
    whole: bool = True  # False: as it was right after the crash, its end and its findings are to come

    @property
    def key(self) -> str:
        """The same for crashes that look the same before they are explained: build, place, address."""
        crash, identity = self.crash, str(self.target.plan.get("identity", ""))
        near_null = crash.accessed if crash.accessed is not None and crash.accessed < 65536 else -1
        return f"{identity}:{crash.ip - self.target.bias:x}:{crash.signal}:{near_null}"


@dataclass(slots=True)
class _Kept:
    """What is remembered of one target."""

    attached: TargetAttached
    modules: ModulesMapped | None = None
    stacks: dict[int, StackSeen] = field(default_factory=dict)
    threads: dict[int, ThreadSeen] = field(default_factory=dict)
    suspicions: deque[Event] = field(default_factory=lambda: deque(maxlen=_SUSPICIONS))
    left_out: int = 0  # suspicions and findings beyond what is kept
    findings: deque[str] = field(default_factory=lambda: deque(maxlen=_FINDINGS))
    lost: deque[Event] = field(default_factory=lambda: deque(maxlen=64))
    flight: FlightRecorded | None = None
    process: ProcessCaptured | None = None
    crashes: list[CrashSeen] = field(default_factory=list)
    since: int = 0  # ts of the first crash
    core: str = ""
    capture: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unsaved: bool = False  # a crash or a mini core has come that `fresh` has not yielded yet
    handled: bool = False  # it lived on after an earlier crash


class CaseKeeper:
    """Feed it every event and every finding's JSON line; take the cases that are complete."""

    def __init__(self, redact: Callable[[Event, Case], Event] | None = None) -> None:
        self._kept: dict[int, _Kept] = {}
        self._counters: CountersRead | None = None
        self._now = 0
        self._redact = redact
        self._gone: set[int] = set()
        self._replaced: deque[_Kept] = deque(maxlen=_REPLACED)

    def feed(self, event: Event) -> None:
        """Learn from one event; a case is complete when its process is gone, or some time after its crash."""
        ts = getattr(event, "ts", 0)
        self._now = max(self._now, ts)
        if isinstance(event, TargetAttached):
            before = self._kept.get(event.tgid)
            if before is not None and before.crashes:
                self._replaced.append(before)  # its handler executed the program again
            self._gone.discard(event.tgid)
            self._kept[event.tgid] = _Kept(event)
            return
        if isinstance(event, Lost):
            for kept in self._kept.values():
                kept.lost.append(event)
            return
        if isinstance(event, CountersRead):
            self._counters = event
            return
        tgid = event.trigger.tgid if isinstance(event, SuspicionRaised) else getattr(event, "tgid", 0)
        target = self._kept.get(tgid)
        if target is not None:
            self._learn(target, event)

    def _learn(self, kept: _Kept, event: Event) -> None:
        if isinstance(event, ModulesMapped):
            kept.modules = event
        elif isinstance(event, StackSeen):
            if len(kept.stacks) < _STACKS:
                kept.stacks[event.id] = event
        elif isinstance(event, ThreadSeen):
            if len(kept.threads) < _THREADS:
                kept.threads[event.tid] = event
        elif isinstance(event, SuspicionRaised | FdinfoChecked):
            kept.left_out += len(kept.suspicions) == _SUSPICIONS
            kept.suspicions.append(event)
        elif isinstance(event, FlightRecorded):
            kept.flight = event
        elif isinstance(event, ProcessCaptured):
            if event.maps or kept.process is None:
                kept.process = event  # an earlier one stays when the crash was too quick
        elif isinstance(event, CrashSeen):
            kept.unsaved = kept.unsaved or not kept.crashes
            kept.crashes.append(event)
            kept.since = kept.since or event.ts
        elif isinstance(event, TargetGone):
            self._gone.add(event.tgid)

    def finding(self, tgid: int, line: str) -> None:
        """One finding of that target as it was shown, a JSON line without newline."""
        kept = self._kept.get(tgid)
        if kept is not None:
            kept.left_out += len(kept.findings) == _FINDINGS
            kept.findings.append(line)

    def core(self, tgid: int, path: str, note: str = "", facts: dict[str, Any] | None = None) -> bool:
        """A mini core of that target was taken (path), or was not (note). False: the target is not known."""
        kept = self._kept.get(tgid)
        if kept is None:
            return False
        kept.core = path or kept.core
        kept.capture = facts or kept.capture
        kept.unsaved = kept.unsaved or bool(path)
        if note:
            kept.notes.append(note)
        return True

    @property
    def open(self) -> bool:
        """A target has crashed and its case is not taken yet."""
        return any(kept.crashes for kept in self._kept.values())

    def fresh(self) -> Iterator[Case]:
        """Cases that are not complete yet, to be kept safe at once: each when its crash was seen, and again
        when its mini core has come. A process that is known to handle its signals is waited for."""
        for kept in self._kept.values():
            if kept.unsaved and kept.crashes and (kept.findings or not kept.handled):
                kept.unsaved = False
                case = self._case(kept)
                case.whole = False
                case.notes.append("afterfree was killed right after the crash: later findings are not in it")
                yield case

    def take(self, *, waiting: frozenset[int] = frozenset(), everything: bool = False) -> Iterator[Case]:
        """The complete cases. waiting: targets whose mini core or findings are still to come."""
        while self._replaced:
            yield self._case(self._replaced.popleft())
        for tgid, kept in list(self._kept.items()):
            ended = tgid in self._gone
            if not kept.crashes:
                if ended:
                    del self._kept[tgid]
                    self._gone.discard(tgid)
                continue
            settled = ended or self._now - kept.since >= _SETTLE_NS
            late = tgid in waiting and self._now - kept.since >= _PATIENCE_NS
            if everything or (settled and (late or tgid not in waiting)):
                case = self._case(kept)
                if late:
                    case.notes.append("its mini core, or symbols of its findings, did not come in a minute")
                case.alive = settled and not ended
                if case.alive:
                    case.notes.append("the process handled the signal and was still there ten seconds later")
                yield case
                self._gone.discard(tgid)
                if ended:
                    del self._kept[tgid]
                else:
                    kept.crashes.clear()
                    kept.since, kept.core, kept.flight, kept.process = 0, "", None, None
                    kept.capture = {}
                    kept.notes.clear()
                    kept.unsaved, kept.handled = False, case.alive

    def _case(self, kept: _Kept) -> Case:
        first = kept.crashes[0]
        events: list[Event] = [kept.attached]
        if kept.modules is not None:
            events.append(kept.modules)
        events += kept.threads.values()
        records = list(unpacked(kept.flight.records)) if kept.flight is not None else []
        wanted = _stack_ids(kept, records)
        events += [stack for number, stack in kept.stacks.items() if number in wanted]
        for at in range(0, len(records), _RECORDS_AT_ONCE):
            events.append(RecordsRead(records=tuple(records[at : at + _RECORDS_AT_ONCE])))
        events += [*kept.lost, *kept.suspicions]
        if self._counters is not None:
            events.append(self._counters)
        if kept.process is not None:
            events.append(kept.process)
        events += kept.crashes
        notes = list(kept.notes)
        if kept.left_out:
            notes.append(f"{kept.left_out} older suspicions and findings are not in it")
        if kept.flight is None:
            notes.append("the recorder's last records were not taken")
        elif kept.flight.overwritten:
            notes.append(f"{kept.flight.overwritten} older records had been overwritten (all targets)")
        if kept.process is None or not kept.process.maps:
            notes.append("the process was gone before its maps and fdinfo could be read")
        elif kept.process.ts < first.ts:
            before = (first.ts - kept.process.ts) / 1e9
            notes.append(f"maps and fdinfo are from {before:.3f} s before the crash")
        case = Case(
            crash=first,
            target=kept.attached,
            events=events,
            findings=list(kept.findings),
            notes=notes,
            core=kept.core,
            capture=dict(kept.capture),
        )
        if self._redact is not None:
            case.events = [self._redact(event, case) for event in case.events]
        return case


def _stack_ids(kept: _Kept, records: list[tuple[int, ...]]) -> set[int]:
    """Ids of the stacks that anything in the case refers to."""
    wanted = {record[13] for record in records if record[1] != Kind.DELIVERED}
    moments: list[Moment] = []
    for crash in kept.crashes:
        wanted.add(crash.stack_id)
        for held in crash.slots:
            life, reg = held.slot, held.reg
            moments += [life.create, life.add, life.removed, life.close, life.destroy, life.prev_destroy]
            if reg is not None:
                moments += [reg.add, reg.mod, reg.end, reg.dup]
    for event in kept.suspicions:
        if isinstance(event, SuspicionRaised):
            wanted.add(event.trigger.stack)
            if event.slot is not None:
                life = event.slot
                moments += [life.create, life.add, life.removed, life.close, life.destroy, life.prev_destroy]
            for found in (event.reg, event.other):
                if found is not None:
                    moments += [found.add, found.mod, found.end, found.dup]
    return wanted | {moment.stack for moment in moments}
