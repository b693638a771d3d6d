# Owns what the history says about one crash's slot, and the shape of a judgement on it. Pure values; must not
# judge.
from __future__ import annotations

from dataclasses import dataclass

from agent.correlator.findings import Finding, RuleId
from agent.forensics.evidence import History
from agent.forensics.explanation import Cause, Certainty, Evidence
from probes.abi import RegState
from probes.events import Registration, SlotLife


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """missing: the ordering that was not kept, one sentence; fix: the smallest change that keeps it."""

    cause: Cause
    certainty: Certainty
    rule: RuleId | None
    missing: str
    fix: str
    fix_kind: str
    order: Certainty | None = None  # of `missing`, where it is less sure than the cause
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What the history says about the crash's slot."""

    life: SlotLife | None = None
    registrations: tuple[Registration, ...] = ()  # of this slot
    findings: tuple[Finding, ...] = ()  # about this life; what broke the pool, about any life of this slot

    def found(self, *rules: RuleId) -> Finding | None:
        return next((finding for finding in self.findings if finding.rule in rules), None)

    @property
    def surviving(self) -> Registration | None:
        """The registration of this life, still alive in the kernel although the life is over."""
        alive = (RegState.LIVE, RegState.ORPHAN)
        gen = self.life.gen if self.life is not None else 0
        return next((reg for reg in self.registrations if reg.state in alive and reg.gen == gen), None)


def past_of(history: History | None, slot: int) -> Past:
    """The last life of the crash's slot and all that concerns it."""
    lives = [life for life in history.lives if life.addr == slot] if history is not None and slot else []
    if history is None or not lives:
        return Past()
    return _past(history, max(lives, key=lambda life: life.gen))


def broken_by(history: History | None) -> Past:
    """The life whose second destroy broke the pool, whichever slot the crash itself touched."""
    twice = [f for f in history.findings if f.rule is RuleId.DOUBLE_DESTROY] if history is not None else []
    slots = {finding.slot for finding in twice}
    lives = [life for life in history.lives if life.double_destroys or life.addr in slots] if history else []
    if history is None or not lives:
        return Past()
    return _past(history, max(lives, key=lambda life: (life.double_destroys > 0, -life.destroy.ts)))


_BREAKS_THE_POOL = (RuleId.DOUBLE_DESTROY, RuleId.ALIASED_SLOT)


def _past(history: History, life: SlotLife) -> Past:
    about = (
        finding
        for finding in history.findings
        if finding.slot == life.addr and (finding.generation == life.gen or finding.rule in _BREAKS_THE_POOL)
    )
    return Past(
        life=life,
        registrations=tuple(reg for reg in history.registrations if reg.slot == life.addr),
        findings=tuple(sorted(about, key=lambda finding: -finding.severity)),
    )
