"""Which totals are lower bounds."""

from __future__ import annotations

import pytest

from agent.correlator.findings import RuleId
from agent.correlator.floors import lower_bound
from tests.unit.agent.scenario import finding


@pytest.mark.parametrize("rule", [RuleId.BAD_CLOSE, RuleId.FAILED_REMOVAL, RuleId.STALE_DELIVERY])
def test_a_running_total_that_found_no_room_is_one(rule: RuleId) -> None:
    assert lower_bound(finding(rule=rule), {}, forgotten=1)
    assert not lower_bound(finding(rule=rule), {}, forgotten=0)
    assert not lower_bound(finding(rule=RuleId.DOUBLE_DESTROY), {}, forgotten=1), "each is told"


def test_lost_lifetimes_concern_what_counts_lifetimes() -> None:
    of_lifetimes = finding(rule=RuleId.IMPLICIT_REMOVAL, unit="lifetimes")
    assert lower_bound(of_lifetimes, {"lifetimes": 3}, 0)
    assert not lower_bound(of_lifetimes, {"urgent": 3}, 0)
    assert not lower_bound(finding(rule=RuleId.DOUBLE_DESTROY), {"lifetimes": 3}, 0)
