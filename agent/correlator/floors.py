# Owns which totals are lower bounds: what was lost, or was never sent, of the events that a rule counts. Must
# not judge.
from __future__ import annotations

from collections.abc import Mapping

from agent.correlator.findings import Finding, RuleId

_SUSPICIONS = frozenset(
    {
        "urgent",
        "suspicions-of-one-batch",
        "deliveries-beyond-limit",
        "tail-call",
        "slots-map-full",
        "registrations-map-full",
        "objects-map-full",
        "threads-map-full",
        "probe-hits-preempted",
    }
)
"""Kinds of loss (events.Lost.what) after which a hazard may have happened without a message of it."""
_LIFETIMES = frozenset({"lifetimes", "slots-map-full", "threads-map-full", "probe-hits-preempted"})
_OF_TOTALS = frozenset(
    {
        RuleId.STALE_DELIVERY,
        RuleId.RECYCLED_DELIVERY,
        RuleId.STALE_DISPATCH,
        RuleId.BAD_CLOSE,
        RuleId.FAILED_REMOVAL,
    }
)


def lower_bound(finding: Finding, lost: Mapping[str, int], forgotten: int) -> bool:
    """Whether there may have been more than `finding.count`. forgotten: running totals that found no room."""
    if finding.rule is RuleId.HOT_REDELIVERY:
        return True  # a run is told at doublings, and ends with the first progress, of which nobody is told
    if finding.rule in _OF_TOTALS and forgotten:
        return True
    return any(lost.get(what) for what in (_LIFETIMES if finding.unit == "lifetimes" else _SUSPICIONS))
