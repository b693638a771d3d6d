# Owns the census: lifetimes by signature, with counts, share, hazard and window widths.
# Counting only; the warnings over lifetimes are rules_lifetime.py.
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.correlator.findings import RuleId
from agent.correlator.histogram import Histogram
from agent.correlator.rules_lifetime import signature_rules
from probes.abi import Signature, SlotFlag
from probes.events import LifetimeEnded, LifetimesCounted

SCHEMA = 1


def describe(signature: int) -> str:
    """The steps in order, each with its thread: `ADD@loop · deliver · CLOSE@worker · DESTROY@loop`.

    "loop" is the thread that waits on the epoll instance, "worker" any other; "?" when nobody is known to
    wait, or several threads do.
    """
    known = bool(signature & Signature.WAITER_KNOWN)

    def step(name: str, other: int) -> str:
        return f"{name}@{('worker' if signature & other else 'loop') if known else '?'}"

    steps: list[str] = []
    if signature & Signature.INFERRED:
        steps.append("(before attach)")
    if signature & (Signature.ADD | Signature.ADD_OTHER):
        steps.append(step("ADD", Signature.ADD_OTHER))
    if signature & Signature.DELIVERED:
        steps.append("deliver")
    ends: list[str] = []
    if signature & (Signature.DEL | Signature.DEL_OTHER | Signature.DEL_AFTER_CLOSE):
        failed = " (failed)" if signature & Signature.DEL_AFTER_CLOSE else ""
        ends.append(step("DEL", Signature.DEL_OTHER) + failed)
    if signature & (Signature.CLOSE | Signature.CLOSE_OTHER):
        close = step("CLOSE", Signature.CLOSE_OTHER)
        notes = [
            text
            for bit, text in (
                (Signature.CLOSE_IN_BATCH, "in open batch"),
                (Signature.ORPHANED, "description lives on"),
            )
            if signature & bit
        ]
        ends.append(f"{close} ({', '.join(notes)})" if notes else close)
    if signature & Signature.DEL_AFTER_CLOSE:
        ends.reverse()
    after = signature & Signature.ENDED_AFTER
    steps += [] if after else ends
    if signature & Signature.AFTER_CLOSE:
        steps.append("deliver-after-close")
    destroy = step("DESTROY", Signature.DESTROY_OTHER)
    said = [
        text
        for bit, text in (
            (Signature.REGISTERED, "registered"),
            (Signature.NOT_JUDGED, "in a batch, not judged"),
        )
        if signature & bit
    ]
    steps.append(f"{destroy} ({', '.join(said)})" if said else destroy)
    steps += ends if after else []
    return " · ".join(steps)


IN_SIGNATURES = frozenset(
    {
        RuleId.FREED_WHILE_REGISTERED,
        RuleId.DESCRIPTION_OUTLIVES_CLOSE,
        RuleId.FAILED_REMOVAL,
        RuleId.DELIVERY_AFTER_CLOSE,
        RuleId.IMPLICIT_REMOVAL,
        RuleId.CLOSE_IN_OPEN_BATCH,
    }
)
"""The rules of which a lifetime's signature tells."""


def hazards(signature: int) -> tuple[str, ...]:
    """Rule ids whose hazard a lifetime of this signature carries, worst first; empty when none."""
    found: list[RuleId] = []
    if signature & Signature.REGISTERED:
        found.append(RuleId.FREED_WHILE_REGISTERED)
    if signature & Signature.ORPHANED:
        found.append(RuleId.DESCRIPTION_OUTLIVES_CLOSE)
    if signature & Signature.DEL_AFTER_CLOSE:
        found.append(RuleId.FAILED_REMOVAL)
    found += signature_rules(signature)
    return tuple(rule.value for rule in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class CensusRow:
    signature: int  # probes.abi.Signature bits
    steps: str
    hazards: tuple[str, ...]  # rule ids, worst first
    count: int  # lifetimes
    share: float  # of all lifetimes, 0 to 1
    examples: int  # decoded lifetimes the fields below come from
    deliveries: tuple[int, int] | None  # fewest, most
    close_to_destroy: Histogram  # ns
    margin: Histogram  # ns from the last delivery after the close to the destroy
    example: LifetimeEnded | None

    @property
    def hazard(self) -> str:
        """In one word for a table: the worst hazard, or "none"."""
        return self.hazards[0] if self.hazards else "none"

    def to_dict(self) -> dict[str, Any]:
        return {
            "signature": self.signature,
            "steps": self.steps,
            "hazard": self.hazard,
            "hazards": list(self.hazards),
            "count": self.count,
            "share": round(self.share, 6),
            "examples": self.examples,
            "deliveries": list(self.deliveries) if self.deliveries is not None else None,
            "close_to_destroy_ns": self.close_to_destroy.to_dict(),
            "margin_ns": self.margin.to_dict(),
        }


class _Tally:
    __slots__ = ("close_to_destroy", "counted", "decoded", "example", "margin", "most", "fewest")  # noqa: RUF023

    def __init__(self) -> None:
        self.counted = 0
        self.decoded = 0
        self.fewest = 0
        self.most = 0
        self.close_to_destroy = Histogram()
        self.margin = Histogram()
        self.example: LifetimeEnded | None = None


class Census:
    """At most `limit` signatures; lifetimes of any other count under `other`.

    A source either sends every lifetime decoded, or counts by signature and a few decoded examples. Once
    a count has been seen, the numbers come from counts only, so that no example is counted twice.
    """

    def __init__(self, limit: int = 1024) -> None:
        self._limit = max(1, limit)
        self._tallies: dict[int, _Tally] = {}
        self.counting = False
        self._other_counted = 0
        self._other_decoded = 0

    def __len__(self) -> int:
        return len(self._tallies)

    def add(self, event: LifetimeEnded | LifetimesCounted) -> None:
        if isinstance(event, LifetimesCounted):
            self.counting = True
            for signature, count in event.counts.items():
                tally = self._tally(signature)
                if tally is None:
                    self._other_counted += max(0, count)
                else:
                    tally.counted += max(0, count)
            return
        tally = self._tally(event.signature)
        if tally is None:
            self._other_decoded += 1
            return
        slot = event.slot
        tally.fewest = slot.deliveries if not tally.decoded else min(tally.fewest, slot.deliveries)
        tally.most = max(tally.most, slot.deliveries)
        tally.decoded += 1
        if tally.example is None:
            tally.example = event
        if slot.close.seen and slot.destroy.seen and slot.close.ts <= slot.destroy.ts:
            tally.close_to_destroy.add(slot.destroy.ts - slot.close.ts)
        if slot.last_after_close and slot.destroy.seen and slot.flags & SlotFlag.CLOSED:
            tally.margin.add(slot.destroy.ts - slot.last_after_close)

    @property
    def total(self) -> int:
        return sum(self._count(tally) for tally in self._tallies.values()) + self.other

    @property
    def other(self) -> int:
        """Lifetimes whose signature found no place."""
        return self._other_counted if self.counting else self._other_decoded

    def rows(self) -> tuple[CensusRow, ...]:
        """Most frequent first, then by signature."""
        total = self.total
        rows = [
            CensusRow(
                signature=signature,
                steps=describe(signature),
                hazards=hazards(signature),
                count=self._count(tally),
                share=self._count(tally) / total if total else 0.0,
                examples=tally.decoded,
                deliveries=(tally.fewest, tally.most) if tally.decoded else None,
                close_to_destroy=tally.close_to_destroy,
                margin=tally.margin,
                example=tally.example,
            )
            for signature, tally in self._tallies.items()
        ]
        return tuple(sorted(rows, key=lambda row: (-row.count, row.signature)))

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "type": "census",
            "total": self.total,
            "other": self.other,
            "rows": [row.to_dict() for row in self.rows()],
        }

    def _count(self, tally: _Tally) -> int:
        return tally.counted if self.counting else tally.decoded

    def _tally(self, signature: int) -> _Tally | None:
        tally = self._tallies.get(signature)
        if tally is None and len(self._tallies) < self._limit:
            tally = self._tallies[signature] = _Tally()
        return tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One signature in two censuses."""

    signature: int
    steps: str
    hazard: str
    before: int
    after: int
    before_share: float
    after_share: float
    change: str  # "gone", "new", "kept"

    def to_dict(self) -> dict[str, Any]:
        return {
            "signature": self.signature,
            "steps": self.steps,
            "hazard": self.hazard,
            "before": self.before,
            "after": self.after,
            "before_share": round(self.before_share, 6),
            "after_share": round(self.after_share, 6),
            "change": self.change,
        }


def compare(
    before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]]
) -> tuple[Comparison, ...]:
    """Rows of two censuses (`to_dict()["rows"]`) side by side: hazards first, then by the larger share."""
    old = {int(row["signature"]): row for row in before if int(row["count"]) > 0}
    new = {int(row["signature"]): row for row in after if int(row["count"]) > 0}
    rows: list[Comparison] = []
    for signature in old.keys() | new.keys():
        was, now = old.get(signature), new.get(signature)
        rows.append(
            Comparison(
                signature=signature,
                steps=describe(signature),
                hazard=next(iter(hazards(signature)), "none"),
                before=int(was["count"]) if was else 0,
                after=int(now["count"]) if now else 0,
                before_share=float(was["share"]) if was else 0.0,
                after_share=float(now["share"]) if now else 0.0,
                change="gone" if now is None else "new" if was is None else "kept",
            )
        )
    return tuple(
        sorted(
            rows,
            key=lambda r: (r.hazard == "none", -max(r.before_share, r.after_share), r.signature),
        )
    )
