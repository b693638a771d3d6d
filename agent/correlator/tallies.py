# Owns exact counts from cumulative ones: the kernel side sends a slot's running total, not every event.
# Must not judge.
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from agent.correlator.bounded import BoundedMap
from agent.correlator.chain import Draft
from agent.correlator.findings import RuleId
from agent.correlator.rules_delivery import repeat_count
from probes.abi import RecordFlag
from probes.events import SlotLife, SlotLingering, SuspicionRaised

Key = tuple[int, ...]

# The rules whose evidence carries a running total of the slot's current generation.
_TOTALS: dict[RuleId, tuple[int, Callable[[SlotLife], int]]] = {
    RuleId.STALE_DELIVERY: (0, attrgetter("stale")),
    RuleId.RECYCLED_DELIVERY: (1, attrgetter("recycled")),
    RuleId.STALE_DISPATCH: (2, attrgetter("stale_dispatches")),
}
_NOT_JUDGED = 3
_OF_SITE = 4
_OF_SITES = (RuleId.BAD_CLOSE, RuleId.FAILED_REMOVAL)
_REMOVALS = (
    "bad-descriptor",
    "removed-twice",
    "after-close",
    "ended-elsewhere",
)  # each has a total of its own


@dataclass(frozen=True, slots=True)
class _Run:
    """The last report of one registration's run of consecutive deliveries."""

    ts: int
    repeats: int
    rate: float | None


@dataclass(frozen=True, slots=True)
class Leak:
    """How many slots of one target lingered, and whether their number grows: over scans, not in one burst."""

    counted: int = 0
    first: int = 0  # ts of the first scan that counted them
    last: int = 0

    def grows(self, event: SlotLingering) -> bool:
        return bool(self.first) and event.ts > self.first and event.total > self.counted

    def seen(self, event: SlotLingering) -> Leak:
        return Leak(max(self.counted, event.total), self.first or event.ts, event.ts)


class Tallies:
    """Remembers, in bounded memory, how much of each running total has been counted."""

    def __init__(self, limit: int) -> None:
        self._totals: BoundedMap[Key, int] = BoundedMap(limit)
        self._runs: BoundedMap[Key, _Run] = BoundedMap(limit)
        self.inexact = 0  # totals whose earlier part was forgotten: counted as one

    def __len__(self) -> int:
        return len(self._totals) + len(self._runs)

    def settle(self, finding: Draft, evidence: SuspicionRaised, epoch: int) -> bool:
        """Gives `finding` what is new in its count, since when, and its rate; False when nothing is.

        `epoch` tells apart two programs that had the same tgid.
        """
        if finding.rule in _TOTALS:
            count = self._increment(finding.rule, evidence, epoch)
        elif finding.rule is RuleId.FREED_IN_OPEN_BATCH and evidence.trigger.flags & RecordFlag.NOT_JUDGED:
            count = self._not_judged(evidence, epoch)
        elif finding.rule in _OF_SITES and evidence.trigger.arg:
            count = self._of_site(finding, evidence, epoch)
        elif finding.rule is RuleId.HOT_REDELIVERY:
            count, finding.rate, since = self._run(evidence, epoch)
            if 0 < since < finding.first_ts:
                finding.first_ts = since
        else:
            return True
        finding.count = count
        return count > 0

    def _not_judged(self, evidence: SuspicionRaised, epoch: int) -> int:
        """Frees within a batch that were not judged are told at doublings of their target's total."""
        total = max(1, evidence.trigger.arg)
        key = (_NOT_JUDGED, evidence.trigger.tgid, epoch)
        before = self._totals.get(key) or 0
        self._totals.put(key, max(total, before))
        return total - before

    def _of_site(self, finding: Draft, evidence: SuspicionRaised, epoch: int) -> int:
        """Those of one call site are sent each at first, later at doublings of their total."""
        trigger = evidence.trigger
        key: Key = (_OF_SITE, _OF_SITES.index(finding.rule), trigger.tgid, epoch, trigger.stack)
        if finding.sub_class in _REMOVALS:
            key = (*key, _REMOVALS.index(finding.sub_class))
        before = self._totals.get(key)
        if before is None and trigger.arg > 1 and self._totals.evicted:
            self.inexact += 1
            before = trigger.arg - 1
        self._totals.put(key, max(trigger.arg, before or 0))
        return trigger.arg - (before or 0)

    def _increment(self, rule: RuleId, evidence: SuspicionRaised, epoch: int) -> int:
        slot = evidence.slot
        if slot is None:
            return 1
        which, total_of = _TOTALS[rule]
        total = total_of(slot)
        if total <= 0:
            return 1
        key = (which, slot.tgid, epoch, slot.addr, slot.gen)
        before = self._totals.get(key)
        if before is None and total > 1 and self._totals.evicted:
            self.inexact += 1
            before = total - 1
        self._totals.put(key, max(total, before or 0))
        return total - (before or 0)

    def _run(self, evidence: SuspicionRaised, epoch: int) -> tuple[int, float | None, int]:
        """How many deliveries are new, how many there are a second, and since when (ts) they came, or 0."""
        slot, ts = evidence.slot, evidence.trigger.ts
        key: Key = (evidence.trigger.tgid, epoch)
        # a run ends with progress, and the next one is counted from its own beginning
        key += (slot.addr, slot.gen, slot.idle_since) if slot is not None else (0, 0, 0)
        repeats = max(1, repeat_count(evidence))
        before = self._runs.get(key)
        rate: float | None = None
        count, since = repeats, slot.idle_since if slot is not None else 0
        if before is not None and repeats >= before.repeats:
            since = before.ts
            count = repeats - before.repeats
            rate = _rate(count, ts - before.ts) or before.rate
        elif slot is not None and slot.idle_since:
            rate = _rate(repeats, ts - slot.idle_since)
        self._runs.put(key, _Run(ts, repeats, rate))
        return count, rate, since


def _rate(count: int, nanoseconds: int) -> float | None:
    return round(count * 1e9 / nanoseconds, 1) if count > 0 and nanoseconds > 0 else None
