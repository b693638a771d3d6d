# Owns the order of things: every event goes in here, findings come out. Total: never raises on any event.
# Pure: no clock, no I/O; memory is bounded by CorrelatorOptions whatever comes in.
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.correlator.bounded import BoundedMap
from agent.correlator.census import Census
from agent.correlator.chain import Draft, Dropped
from agent.correlator.context import Context, FdinfoLog, LossWindows, PlanFacts, Target
from agent.correlator.copies import replace
from agent.correlator.findings import Finding, RuleId
from agent.correlator.floors import lower_bound
from agent.correlator.grouping import Groups
from agent.correlator.lifetimes import LifetimeLedger
from agent.correlator.places import Places
from agent.correlator.rules import judge_lifetime, judge_lingering, judge_suspicion
from agent.correlator.tallies import Leak, Tallies
from probes.abi import RecordFlag, SlotFlag, Suspect
from probes.events import (
    CountersRead,
    CrashSeen,
    Event,
    FdinfoChecked,
    LifetimeEnded,
    LifetimesCounted,
    Lost,
    ModulesMapped,
    RecordsRead,
    SlotLingering,
    StackSeen,
    SuspicionRaised,
    TargetAttached,
    TargetGone,
    Tick,
)

_MAX_TARGETS = 256
_MAX_STACKS = 4096
_MAX_HOMES = 16384
_WITH_RESTS = (
    Suspect.STALE_DELIVERY,
    Suspect.RECYCLED_DELIVERY,
    Suspect.STALE_DISPATCH,
    Suspect.HOT,
    Suspect.FREED_IN_BATCH,
)
_WHOLE_RESTS = (Suspect.STALE_DELIVERY, Suspect.HOT)
"""Rests that tell what happened without what was sent before, which may have been lost."""
_MAX_NAMES = 64  # kinds of loss that are counted by name


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrelatorOptions:
    leak_after_ns: int = 30_000_000_000
    max_groups: int = 1024
    max_slots: int = 65536  # slots whose running totals are remembered


@dataclass(slots=True, kw_only=True)
class Stats:
    """Counters since the start; nothing here decides a verdict."""

    events: int = 0
    unjudged: int = 0  # events that say nothing to a rule, and what is no event at all
    records: int = 0  # of the stream: only counted here, the timeline and bundles read them
    suspicions: int = 0
    lifetimes_decoded: int = 0
    lifetimes_counted: int = 0
    findings: int = 0  # occurrences, before grouping
    updates: int = 0  # findings handed out, updates included
    crashes: int = 0
    targets: int = 0
    lost: dict[str, int] = field(default_factory=dict)  # by what was lost
    dropped: dict[str, int] = field(default_factory=dict)  # evidence that is no finding, by reason
    last_ts: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "events": self.events,
            "unjudged": self.unjudged,
            "records": self.records,
            "suspicions": self.suspicions,
            "lifetimes_decoded": self.lifetimes_decoded,
            "lifetimes_counted": self.lifetimes_counted,
            "findings": self.findings,
            "updates": self.updates,
            "crashes": self.crashes,
            "targets": self.targets,
            "lost": dict(sorted(self.lost.items())),
            "dropped": dict(sorted(self.dropped.items())),
            "last_ts": self.last_ts,
        }


class Correlator:
    """Judges events one by one. `feed` returns what is new; `findings()` the state of every group."""

    def __init__(self, options: CorrelatorOptions | None = None) -> None:
        self.options = options or CorrelatorOptions()
        self.stats = Stats()
        self.census = Census()
        self._targets: BoundedMap[int, Target] = BoundedMap(_MAX_TARGETS)
        self._loss = LossWindows()
        self._fdinfo = FdinfoLog(4096)
        self._places = Places(_MAX_STACKS, _MAX_TARGETS)
        self._slots: BoundedMap[tuple[int, int], None] = BoundedMap(self.options.max_slots)
        self._tallies = Tallies(self.options.max_slots)
        self._groups = Groups(self.options.max_groups)
        self._ledger = LifetimeLedger(self._groups)
        self._leaked: BoundedMap[tuple[int, int, int], Leak] = BoundedMap(_MAX_TARGETS)
        self._recycled: BoundedMap[tuple[int, int], tuple[tuple[int, ...], int]] = BoundedMap(
            self.options.max_slots
        )
        self._homes: BoundedMap[tuple[int, int, int, int], str] = BoundedMap(
            min(_MAX_HOMES, self.options.max_slots)
        )
        self._stale: BoundedMap[tuple[int, int], tuple[int, str]] = BoundedMap(self.options.max_slots)
        self._now: Context | None = None  # that of the last event: most have the same target
        self._handlers: dict[type, Callable[[Any], list[Finding]]] = {
            SuspicionRaised: self._on_suspicion,
            LifetimeEnded: self._on_lifetime,
            LifetimesCounted: self._on_counts,
            SlotLingering: self._on_lingering,
            RecordsRead: self._on_records,
            Lost: self._on_lost,
            FdinfoChecked: self._on_fdinfo,
            StackSeen: self._on_stack,
            ModulesMapped: self._on_modules,
            TargetAttached: self._on_attached,
            TargetGone: self._on_ts,
            CrashSeen: self._on_crash,
            CountersRead: self._on_ts,
            Tick: self._on_tick,
        }

    def feed(self, event: Event) -> tuple[Finding, ...]:
        """New findings and updates of known ones, in order. Never raises, whatever the event says."""
        self.stats.events += 1
        handler = self._handlers.get(type(event))
        if handler is None:
            self.stats.unjudged += 1
            return ()
        found = handler(event)
        self.stats.updates += len(found)
        return self._bounded(found)

    def findings(self) -> tuple[Finding, ...]:
        """Every group as it stands, most severe first; counts without an example included."""
        return self._bounded(self._groups.current(self._ledger.pending(self.stats.last_ts, self._context(0))))

    def last_words(self) -> tuple[Finding, ...]:
        """At the end: updates of the groups whose count has grown since it was handed out last."""
        found = self._groups.unreported()
        self.stats.updates += len(found)
        return self._bounded(found)

    def _bounded(self, found: Sequence[Finding]) -> tuple[Finding, ...]:
        """What may have happened more often says so."""
        lost, forgotten = self.stats.lost, self._tallies.inexact
        return tuple(replace(f, at_least=True) if lower_bound(f, lost, forgotten) else f for f in found)

    def state_size(self) -> int:
        """Entries held in memory, over all tables: bounded by the options, not by the number of events."""
        tables = (
            self._targets,
            self._loss,
            self._fdinfo,
            self._places,
            self._slots,
            self._tallies,
            self._groups,
            self._ledger,
            self._leaked,
            self._homes,
            self._stale,
            self._recycled,
            self.census,
            self.stats.lost,
            self.stats.dropped,
        )
        return sum(len(table) for table in tables)

    def to_dict(self) -> dict[str, Any]:
        """Counters for the summary and for metrics."""
        return {
            **self.stats.to_dict(),
            "groups": len(self._groups),
            "groups_overflowed": self._groups.overflowed,
            "signatures_overflowed": self._ledger.overflowed,
            "inexact_counts": self._tallies.inexact,
        }

    def _on_suspicion(self, evidence: SuspicionRaised) -> list[Finding]:
        self.stats.suspicions += 1
        self._at(evidence.trigger.ts)
        slot = evidence.slot
        context = self._context(evidence.trigger.tgid)
        if evidence.suspect is Suspect.RECYCLED_DELIVERY and slot is not None:
            batch = (evidence.batch, evidence.trigger.tid, slot.gen)
            before = self._recycled.get((slot.tgid, slot.addr))
            earlier = before[1] if before is not None and before[0] == batch else 0
            self._recycled.put((slot.tgid, slot.addr), (batch, earlier + 1))
            if earlier:
                context = replace(context, earlier_in_batch=earlier)
        verdict = judge_suspicion(evidence, context)
        if slot is not None:
            self._slots.put((slot.tgid, slot.addr), None)
        if isinstance(verdict, Dropped):
            return self._drop(verdict)
        if not self._tallies.settle(verdict, evidence, context.target.attached):
            return self._drop(Dropped("already-counted"))
        self._chain(verdict, context.target.image)
        home = self._home(verdict, evidence)
        if evidence.rest and home is None and evidence.suspect not in _WHOLE_RESTS:
            return self._drop(Dropped("rest-of-what-was-not-told"))
        return self._group(verdict, context.target.image, home)

    def _home(self, finding: Draft, evidence: SuspicionRaised) -> str | None:
        """The group of what is only a rest of a count that was begun: it names no registration of its own."""
        slot, tgid = evidence.slot, evidence.trigger.tgid
        key = (evidence.suspect, tgid, *((slot.addr, slot.gen) if slot is not None else (0, 0)))
        if evidence.trigger.flags & RecordFlag.NOT_JUDGED:
            key = (evidence.suspect, tgid, 0, 0)  # counted by process
        if evidence.rest:
            return self._homes.get(key)
        if evidence.suspect in _WITH_RESTS and key not in self._homes:
            self._homes.put(key, self._groups.locate(finding, self._context(tgid).target.image))
        return None

    def _chain(self, finding: Draft, image: str) -> None:
        """A stale dispatch of a slot that this batch delivered stale belongs to that delivery's chain."""
        key = (finding.tgid, finding.slot)
        if finding.rule is RuleId.STALE_DELIVERY:
            self._stale.put(key, (finding.batch, self._groups.locate(finding, image)))
        elif finding.rule is RuleId.STALE_DISPATCH:
            before = self._stale.get(key)
            if before is not None and before[0] == finding.batch:
                finding.chain = before[1]

    def _on_lifetime(self, ended: LifetimeEnded) -> list[Finding]:
        self.stats.lifetimes_decoded += 1
        slot = ended.slot
        self._at(slot.destroy.ts)
        self._slots.put((slot.tgid, slot.addr), None)
        self.census.add(ended)
        context = self._context(slot.tgid)
        verdicts = judge_lifetime(ended, context)
        self.stats.findings += len(verdicts)
        return self._ledger.ended(ended.signature, verdicts, context.target.image)

    def _on_counts(self, event: LifetimesCounted) -> list[Finding]:
        self._at(event.ts)
        self.stats.lifetimes_counted += sum(max(0, count) for count in event.counts.values())
        self.census.add(event)
        return self._ledger.counted(event)

    def _on_lingering(self, event: SlotLingering) -> list[Finding]:
        self._at(event.ts)
        slot = event.slot
        context = self._context(slot.tgid)
        kind = int(bool(slot.flags & SlotFlag.CLOSED))
        key = (slot.tgid, context.target.attached, kind)
        leak = self._leaked.get(key) or Leak()
        verdict = judge_lingering(event, context, grows=leak.grows(event))
        if isinstance(verdict, Dropped):
            return self._drop(verdict)
        verdict.count = event.total - leak.counted
        self._leaked.put(key, leak.seen(event))
        if verdict.count <= 0:
            return self._drop(Dropped("already-counted"))
        return self._group(verdict, context.target.image)

    def _on_records(self, event: RecordsRead) -> list[Finding]:
        self.stats.records += len(event.records)
        return []

    def _on_lost(self, lost: Lost) -> list[Finding]:
        self._at(lost.ts)
        self._loss.add(lost)
        self._count(self.stats.lost, lost.what, max(0, lost.count))
        return []

    def _on_fdinfo(self, check: FdinfoChecked) -> list[Finding]:
        self._at(check.ts)
        self._fdinfo.add(check)
        return []

    def _on_stack(self, event: StackSeen) -> list[Finding]:
        self._places.know_stack(event)
        return []

    def _on_modules(self, event: ModulesMapped) -> list[Finding]:
        self._places.know_modules(event)
        return []

    def _on_attached(self, event: TargetAttached) -> list[Finding]:
        self._at(event.ts)
        self.stats.targets += 1
        identity = event.plan.get("identity") if isinstance(event.plan, Mapping) else None
        self._targets.put(
            event.tgid,
            Target(
                tgid=event.tgid,
                image=str(identity or event.exe),
                bias=event.bias,
                attached=event.ts,
                plan=PlanFacts.from_json(event.plan),
            ),
        )
        self._places.forget_sites()
        return []

    def _on_crash(self, event: CrashSeen) -> list[Finding]:
        self.stats.crashes += 1
        self._at(event.ts)
        return []

    def _on_ts(self, event: TargetGone | CountersRead) -> list[Finding]:
        self._at(event.ts)  # rings are drained after the end of a target: what is known of it stays
        return []

    def _on_tick(self, event: Tick) -> list[Finding]:
        self._at(event.ts)
        return self._ledger.flush(event.ts, self._context(0))

    def _context(self, tgid: int) -> Context:
        target = self._targets.get(tgid)
        if target is None or self._now is None or self._now.target is not target:
            self._now = Context(
                target=target or Target(tgid=tgid),
                loss=self._loss,
                fdinfo=self._fdinfo,
                places=self._places,
                known_slots=self._slots,
                leak_after_ns=self.options.leak_after_ns,
            )
        return self._now

    def _group(self, finding: Draft, image: str, into: str | None = None) -> list[Finding]:
        self.stats.findings += finding.count
        known = self._groups.get(into) if into is not None else None
        if known is None:
            into = None
        elif finding.sub_class not in known.sub_classes:
            finding.sub_class = known.sub_class
        shown = self._groups.add(finding, image, into)
        return [shown] if shown is not None else []

    def _drop(self, dropped: Dropped) -> list[Finding]:
        self._count(self.stats.dropped, dropped.reason, 1)
        return []

    @staticmethod
    def _count(table: dict[str, int], name: str, count: int) -> None:
        if name not in table and len(table) >= _MAX_NAMES:
            name = "other"
        table[name] = table.get(name, 0) + count

    def _at(self, ts: int) -> None:
        if ts > self.stats.last_ts:
            self.stats.last_ts = ts
