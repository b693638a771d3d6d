# Owns what a verdict looks like: severities, confidences, rule ids, the Finding and its JSON form.
# Must not judge, symbolize or print; addresses stay run-time numbers, the renderer adds file:line.
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

from probes.abi import RegState
from probes.events import Moment

SCHEMA = 1
"""Version of Finding.to_dict(); raised when a field changes its meaning or goes away."""


class BadFindingError(ValueError):
    """A JSON value is not a finding of this schema."""


class Severity(IntEnum):
    """Ordered: info < warning < high < critical. In JSON the lower-case name."""

    INFO = 0
    WARNING = 1
    HIGH = 2
    CRITICAL = 3

    @property
    def label(self) -> str:
        return self.name.lower()

    def __str__(self) -> str:
        return self.label

    @classmethod
    def parse(cls, text: str) -> Severity:
        """The severity of a label as `label` gives it. Raises BadFindingError."""
        for severity in cls:
            if severity.label == text:
                return severity
        raise BadFindingError(f"unknown severity {text!r}")


class Confidence(StrEnum):
    CONFIRMED = "confirmed"  # fdinfo or the slot's memory agrees
    OBSERVED = "observed"  # every event of the chain was seen
    INFERRED = "inferred"  # something predates the attach and comes from /proc
    UNCERTAIN = "uncertain"  # records were lost, an instance could not be probed, or two causes fit

    def __str__(self) -> str:
        return self.value

    @property
    def rank(self) -> int:
        return _CONFIDENCE_RANK[self]


_CONFIDENCE_RANK = {
    Confidence.UNCERTAIN: 0,
    Confidence.INFERRED: 1,
    Confidence.OBSERVED: 2,
    Confidence.CONFIRMED: 3,
}


class RuleId(StrEnum):
    """The rules of DESIGN section 4, in its order."""

    STALE_DELIVERY = "stale-delivery"
    RECYCLED_DELIVERY = "recycled-delivery"
    STALE_DISPATCH = "stale-dispatch"
    DOUBLE_DESTROY = "double-destroy"
    ALIASED_SLOT = "aliased-slot"
    FREED_WHILE_REGISTERED = "freed-while-registered"
    FREED_IN_OPEN_BATCH = "freed-in-open-batch"
    DESCRIPTION_OUTLIVES_CLOSE = "description-outlives-close"
    FAILED_REMOVAL = "failed-removal"
    BAD_CLOSE = "bad-close"
    IMPLICIT_REMOVAL = "implicit-removal"
    DELIVERY_AFTER_CLOSE = "delivery-after-close"
    CLOSE_IN_OPEN_BATCH = "close-in-open-batch"
    HOT_REDELIVERY = "hot-redelivery"
    LEAKED_SLOT = "leaked-slot"

    def __str__(self) -> str:
        return self.value


ROLES = frozenset(
    {
        "created",
        "refused",
        "registered",
        "modified",
        "duplicated",
        "removed",
        "closed",
        "destroyed",
        "delivered",
        "dispatched",
    }
)
"""What an actor can have done."""


class Actor(NamedTuple):
    """One step of the evidence chain. moment.ts == 0: the step must have happened and was not seen."""

    role: str  # of ROLES
    moment: Moment
    gap_ns: int | None = None  # from the previous seen actor's ts to this one's
    concurrent: bool = False  # this call's interval overlaps the previous actor's, on another thread
    note: str = ""  # "EPOLL_CTL_DEL returned -ENOENT", "generation 3"

    def to_dict(self) -> dict[str, Any]:
        return {
            "role": self.role,
            "seen": self.moment.seen,
            "ts": self.moment.ts,
            "enter": self.moment.enter,
            "tid": self.moment.tid,
            "ip": hex(self.moment.ip),
            "stack": self.moment.stack,
            "gap_ns": self.gap_ns,
            "concurrent": self.concurrent,
            "note": self.note,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Actor:
        return cls(
            role=str(value["role"]),
            moment=Moment(
                int(value["enter"]),
                int(value["ts"]),
                int(value["ip"], 16),
                int(value["tid"]),
                int(value["stack"]),
            ),
            gap_ns=_optional_int(value["gap_ns"]),
            concurrent=bool(value["concurrent"]),
            note=str(value["note"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A registration that can have caused an ambiguous delivery."""

    role: str  # "older": survived its slot's generation; "current": of the generation that lives
    generation: int
    epfd: int
    fd: int
    events: int  # EPOLL* mask
    state: RegState
    added: Moment

    def to_dict(self) -> dict[str, Any]:
        return {
            "role": self.role,
            "generation": self.generation,
            "epfd": self.epfd,
            "fd": self.fd,
            "events": self.events,
            "state": self.state.name.lower(),
            "added": Actor(role="registered", moment=self.added).to_dict(),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Candidate:
        return cls(
            role=str(value["role"]),
            generation=int(value["generation"]),
            epfd=int(value["epfd"]),
            fd=int(value["fd"]),
            events=int(value["events"]),
            state=RegState[str(value["state"]).upper()],
            added=Actor.from_dict(value["added"]).moment,
        )


MOST_TARGETS = 64
"""Processes whose part in one group is counted; later ones are in the group's count only."""
MOST_SLOTS = 256
"""Slots that are told apart in one group."""


class CallSite(NamedTuple):
    """Where an actor of the group stood: the same in every process of the image (correlator/places.py)."""

    role: str
    address: int  # in the image or module, its load bias taken off; 0: anywhere in it
    module: str = ""  # another module than the plan's image: its identity, "libc", or "?" for no known file

    def to_dict(self) -> dict[str, Any]:
        value = {"role": self.role, "address": hex(self.address)}
        return value | {"module": self.module} if self.module else value

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> CallSite:
        return cls(
            role=str(value["role"]), address=int(value["address"], 16), module=str(value.get("module", ""))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A rule that fired, for one group of (rule, severity, call sites). Times: CLOCK_MONOTONIC ns."""

    rule: RuleId
    severity: Severity
    confidence: Confidence
    reasons: tuple[str, ...]  # sentences: why this confidence
    title: str  # one sentence for an operator
    advice: tuple[str, ...]  # what to do next
    tgid: int
    sub_class: str = ""  # "later-batch", "concurrent", "null-object", ...
    slot: int = 0  # address; 0 unknown
    generation: int = 0
    fd: int = -1
    epfd: int = -1
    batch: int = 0
    comm: str = ""  # of the triggering thread; untrusted text
    actors: tuple[Actor, ...] = ()  # in time order
    candidates: tuple[Candidate, ...] = ()  # both registrations when the cause is ambiguous
    memory: bytes = b""  # the slot's first bytes at the trigger
    window_ns: int | None = None  # width of the race window (close to destroy, destroy to delivery, ...)
    margin_ns: int | None = None  # what stood between this near miss and a use after free
    rate: float | None = None  # events per second, where the rule has one
    share: float | None = None  # of all lifetimes, for the rules over lifetimes
    sites: tuple[CallSite, ...] = ()
    group: str = ""  # stable short id of the group; empty until grouped
    chain: str = ""  # group of the finding this one follows from (same slot, same batch)
    count: int = 1  # occurrences in the group, in units of `unit`
    at_least: bool = False  # there may have been more than `count`
    unit: str = "events"  # deliveries, dispatches, destroys, calls, lifetimes, slots, ...
    sub_classes: Mapping[str, int] = field(default_factory=dict)  # occurrences by sub-class
    # pid -> its part of `count`, 0 where that is not known by process; the first MOST_TARGETS of them
    by_target: Mapping[int, int] = field(default_factory=dict)
    slots: int = 0  # that `count` is the sum over, MOST_SLOTS or more of them at MOST_SLOTS; 0 not counted
    first_ts: int = 0
    last_ts: int = 0
    update: bool = False  # the count of an already reported group changed

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, keys always in this order; addresses as hex strings, times as integers (ns)."""
        return {
            "schema": SCHEMA,
            "type": "finding",
            "rule": self.rule.value,
            "severity": self.severity.label,
            "confidence": self.confidence.value,
            "reasons": list(self.reasons),
            "title": self.title,
            "sub_class": self.sub_class,
            "group": self.group,
            "chain": self.chain,
            "update": self.update,
            "count": self.count,
            "at_least": self.at_least,
            "unit": self.unit,
            "sub_classes": {key: self.sub_classes[key] for key in sorted(self.sub_classes)},
            "slots": self.slots,
            "targets": len(self.by_target),
            "by_target": [{"pid": pid, "count": count or None} for pid, count in self.by_target.items()],
            "first_ts": self.first_ts,
            "last_ts": self.last_ts,
            "rate": self.rate,
            "share": self.share,
            "tgid": self.tgid,
            "comm": self.comm,
            "slot": hex(self.slot),
            "generation": self.generation,
            "fd": self.fd,
            "epfd": self.epfd,
            "batch": self.batch,
            "window_ns": self.window_ns,
            "margin_ns": self.margin_ns,
            "actors": [actor.to_dict() for actor in self.actors],
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "sites": [site.to_dict() for site in self.sites],
            "memory": self.memory.hex(),
            "advice": list(self.advice),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Finding:
        """The inverse of to_dict. Raises BadFindingError when schema, keys or value types do not fit."""
        if value.get("schema") != SCHEMA or value.get("type") != "finding":
            raise BadFindingError(
                f"not a finding of schema {SCHEMA}: {value.get('type')} {value.get('schema')}"
            )
        try:
            return _finding(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadFindingError(f"malformed finding: {error!r}") from error


def _finding(value: Mapping[str, Any]) -> Finding:
    return Finding(
        rule=RuleId(value["rule"]),
        severity=Severity.parse(value["severity"]),
        confidence=Confidence(value["confidence"]),
        reasons=tuple(str(reason) for reason in value["reasons"]),
        title=str(value["title"]),
        advice=tuple(str(line) for line in value["advice"]),
        tgid=int(value["tgid"]),
        sub_class=str(value["sub_class"]),
        slot=int(value["slot"], 16),
        generation=int(value["generation"]),
        fd=int(value["fd"]),
        epfd=int(value["epfd"]),
        batch=int(value["batch"]),
        comm=str(value["comm"]),
        actors=tuple(Actor.from_dict(actor) for actor in value["actors"]),
        candidates=tuple(Candidate.from_dict(candidate) for candidate in value["candidates"]),
        memory=bytes.fromhex(value["memory"]),
        window_ns=_optional_int(value["window_ns"]),
        margin_ns=_optional_int(value["margin_ns"]),
        rate=None if value["rate"] is None else float(value["rate"]),
        share=None if value["share"] is None else float(value["share"]),
        sites=tuple(CallSite.from_dict(site) for site in value["sites"]),
        group=str(value["group"]),
        chain=str(value["chain"]),
        count=int(value["count"]),
        at_least=bool(value.get("at_least", False)),  # of later versions only
        unit=str(value["unit"]),
        sub_classes={str(key): int(n) for key, n in value["sub_classes"].items()},
        slots=int(value.get("slots", 0)),  # this and the next: of later versions only
        by_target={int(row["pid"]): int(row["count"] or 0) for row in value.get("by_target", ())},
        first_ts=int(value["first_ts"]),
        last_ts=int(value["last_ts"]),
        update=bool(value["update"]),
    )


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)
