# Owns the way from evidence to verdict: which rule judges which suspicion.
# Pure functions over evidence and context; the rules themselves live in rules_*.py.
from __future__ import annotations

from collections.abc import Callable

from agent.correlator.chain import Draft, Dropped
from agent.correlator.context import Context
from agent.correlator.rules_calls import bad_close, failed_removal, outlives_close
from agent.correlator.rules_delivery import hot_redelivery, recycled_delivery, stale_delivery, stale_dispatch
from agent.correlator.rules_lifetime import judge_lifetime, judge_lingering
from agent.correlator.rules_slot import aliased_slot, double_destroy, freed_in_batch, freed_registered
from probes.abi import Suspect
from probes.events import SuspicionRaised

__all__ = ["judge_lifetime", "judge_lingering", "judge_suspicion"]

Rule = Callable[[SuspicionRaised, Context], Draft | Dropped]

_RULES: dict[Suspect, Rule] = {
    Suspect.STALE_DELIVERY: stale_delivery,
    Suspect.RECYCLED_DELIVERY: recycled_delivery,
    Suspect.STALE_DISPATCH: stale_dispatch,
    Suspect.DOUBLE_DESTROY: double_destroy,
    Suspect.ALIASED_SLOT: aliased_slot,
    Suspect.FREED_REGISTERED: freed_registered,
    Suspect.FREED_IN_BATCH: freed_in_batch,
    Suspect.OUTLIVES_CLOSE: outlives_close,
    Suspect.FAILED_REMOVAL: failed_removal,
    Suspect.BAD_CLOSE: bad_close,
    Suspect.HOT: hot_redelivery,
}


def judge_suspicion(evidence: SuspicionRaised, context: Context) -> Draft | Dropped:
    """A draft of count 1 (the correlator sets counts and groups), or why the evidence is none."""
    rule = _RULES.get(evidence.suspect)
    if rule is None:
        return Dropped("unknown-suspicion")
    return rule(evidence, context)
