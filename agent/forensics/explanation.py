# Owns the shape of an explanation: statements with evidence and certainty, alternatives with their tests,
# and the JSON form. Must not decide what is true, draw or do I/O.
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, NamedTuple

SCHEMA = "afterfree.explanation/1"
"""Version of Explanation.to_json(); raised when a key changes its meaning or goes away."""


class BadExplanationError(ValueError):
    """A JSON value is not an explanation of this schema."""


class Certainty(StrEnum):
    """As a finding's confidence, and one more: what cannot be told is said."""

    CONFIRMED = "confirmed"  # two independent sources say so
    OBSERVED = "observed"  # one source says so directly
    INFERRED = "inferred"  # it follows from what is known; something else could look the same
    UNCERTAIN = "uncertain"  # facts are missing or two causes fit
    UNKNOWN = "unknown"  # the evidence does not say


class Evidence(NamedTuple):
    """What a statement rests on. source: "registers", "instruction", "debug information", "memory", …"""

    source: str
    detail: str


class Topic(StrEnum):
    """What a statement is about, in the order of a report."""

    FAULT = "fault"
    POINTER = "pointer"
    ORIGIN = "origin"
    SLOT = "slot"
    FREE_LIST = "free list"
    DELIVERY = "delivery"
    LIFETIME = "lifetime"
    RULE = "rule"
    ORDER = "missing order"
    FIX = "fix"
    CONNECTIONS = "connections"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One sentence or two. Names in the text are untrusted: escape before printing."""

    topic: Topic
    text: str
    certainty: Certainty
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One event of the slot's life. ts: CLOCK_MONOTONIC ns; 0: it was not seen."""

    role: str  # as correlator.findings.Actor, or "crashed"
    ts: int
    tid: int
    comm: str  # untrusted text
    place: str = ""  # "disown at worker.zig:402"; untrusted text
    gap_ns: int | None = None  # from the previous seen step
    concurrent: bool = False
    note: str = ""


class Outcome(StrEnum):
    EXCLUDED = "excluded"
    UNLIKELY = "nothing points to it"
    POSSIBLE = "not excluded"
    CAUSE = "this is it"
    UNKNOWN = "cannot be tested"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another explanation of the same crash, the test for it, and what came out."""

    name: str
    test: str
    outcome: Outcome
    because: str


class Cause(StrEnum):
    """Which ordering failed."""

    DESTROYED_TWICE = "destroyed-twice"
    FREED_IN_BATCH = "freed-in-open-batch"
    DESCRIPTION_SURVIVED = "description-survived-close"
    NEVER_REMOVED = "destroyed-while-registered"
    CLOSE_RACE = "close-raced-delivery"
    RECYCLED = "recycled-slot"
    STALE_LINK = "stale-link"  # the life ended in order; the program itself kept a way to the slot
    FREED_BEFORE_USE = "freed-before-use"  # memory says so; which ordering let it happen is not known
    LIST_BROKEN = "free-list-broken"  # memory says so; who broke it is not known
    NOT_A_SLOT = "no-freed-slot"  # nothing connects the crash with a freed slot
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a process died, as far as the evidence goes."""

    source: str  # evidence.Source
    pid: int
    exe: str  # untrusted text
    comm: str  # untrusted text
    identity: str
    signal: int
    tid: int  # of the crashed thread; 0 unknown
    thread: str  # its name; untrusted text
    headline: str
    cause: Cause
    rule: str  # correlator.findings.RuleId; "" when none fits
    certainty: Certainty  # of the cause
    slot: int  # address; 0 unknown
    generation: int  # 0 unknown
    field: str  # that the instruction accessed, "worker.HTTPConn._state"
    offset: int
    function: str  # innermost function of the program at the fault
    slot_field: str  # of the slot, from which the pointer came
    closer: int  # thread; 0 unknown
    destroyer: int  # thread; 0 unknown
    fix_kind: str  # "del-before-close", "deferred-free", "destroy-once", "unlink-first", …
    statements: tuple[Statement, ...]
    steps: tuple[Step, ...]
    alternatives: tuple[Alternative, ...]
    stack: tuple[str, ...]  # of the fault, innermost first; untrusted text
    memory: tuple[str, ...]  # the slot's bytes, decoded; untrusted text
    unknown: tuple[str, ...]  # what cannot be told, and why

    @property
    def key(self) -> str:
        """Equal for crashes that one report explains: of one executable, at one place, for one cause."""
        return "|".join((self.identity, self.cause, self.function, self.field, self.slot_field))

    def to_json(self) -> dict[str, Any]:
        """Plain values; addresses as hex strings."""
        value: dict[str, Any] = {"schema": SCHEMA}
        for entry in fields(self):
            value[entry.name] = _plain(getattr(self, entry.name))
        value["slot"] = hex(self.slot) if self.slot else None
        return value

    @classmethod
    def from_json(cls, value: Any) -> Explanation:
        """The inverse of to_json, strict about types. Raises BadExplanationError."""
        if not isinstance(value, Mapping) or value.get("schema") != SCHEMA:
            raise BadExplanationError(f"not an explanation of schema {SCHEMA}")
        try:
            plain = {name: value[name] for name in _TEXTS}
            numbers = {name: value[name] for name in _NUMBERS}
            if not all(isinstance(text, str) for text in plain.values()):
                raise BadExplanationError("a text is not a string")
            if not all(type(number) is int for number in numbers.values()):
                raise BadExplanationError("a number is not an integer")
            return cls(
                **plain,
                **numbers,
                cause=Cause(value["cause"]),
                certainty=Certainty(value["certainty"]),
                slot=int(value["slot"], 16) if value["slot"] is not None else 0,
                statements=tuple(_statement(row) for row in value["statements"]),
                steps=tuple(_step(row) for row in value["steps"]),
                alternatives=tuple(_alternative(row) for row in value["alternatives"]),
                stack=tuple(str(text) for text in value["stack"]),
                memory=tuple(str(text) for text in value["memory"]),
                unknown=tuple(str(text) for text in value["unknown"]),
            )
        except BadExplanationError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise BadExplanationError(f"{type(error).__name__}: {error}") from error


_TEXTS = (
    "source", "exe", "comm", "identity", "thread", "headline", "rule", "field", "function", "slot_field",
    "fix_kind",
)  # fmt: skip
_NUMBERS = ("pid", "signal", "tid", "generation", "offset", "closer", "destroyer")


def _plain(value: Any) -> Any:
    if isinstance(value, Evidence):
        return {"source": value.source, "detail": value.detail}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Statement | Step | Alternative):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    return str(value) if isinstance(value, StrEnum) else value


def _statement(row: Mapping[str, Any]) -> Statement:
    return Statement(
        topic=Topic(row["topic"]),
        text=str(row["text"]),
        certainty=Certainty(row["certainty"]),
        evidence=tuple(Evidence(str(e["source"]), str(e["detail"])) for e in row["evidence"]),
    )


def _step(row: Mapping[str, Any]) -> Step:
    gap = row["gap_ns"]
    return Step(
        role=str(row["role"]),
        ts=int(row["ts"]),
        tid=int(row["tid"]),
        comm=str(row["comm"]),
        place=str(row["place"]),
        gap_ns=int(gap) if gap is not None else None,
        concurrent=bool(row["concurrent"]),
        note=str(row["note"]),
    )


def _alternative(row: Mapping[str, Any]) -> Alternative:
    return Alternative(
        name=str(row["name"]),
        test=str(row["test"]),
        outcome=Outcome(row["outcome"]),
        because=str(row["because"]),
    )
