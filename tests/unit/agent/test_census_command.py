"""What the census says to people."""

from __future__ import annotations

from agent.commands.census import _begun, _beside, _hazards, _lines, _spread
from agent.correlator.census import Census
from agent.correlator.findings import RuleId, Severity
from agent.correlator.histogram import Histogram
from agent.text import plain
from probes.abi import Signature
from probes.events import LifetimesCounted
from tests.unit.agent.scenario import finding


def _measured(*widths: int) -> Histogram:
    histogram = Histogram()
    for width in widths:
        histogram.add(width)
    return histogram


def test_a_maximum_needs_every_lifetime() -> None:
    assert "max" in _spread(_measured(2000, 9000), 2)
    assert _spread(_measured(2000), 4000).endswith("(1 example)")
    assert _spread(_measured(2000, 9000), 4000).endswith("(2 examples)")
    assert _spread(Histogram(), 4000) == ""
    assert _spread(_measured(2000), 1) == "2 µs", "one is no spread"


def test_every_hazard_of_a_row_is_named_and_what_was_lost_is_said() -> None:
    census = Census()
    both = Signature.ADD | Signature.CLOSE | Signature.CLOSE_OTHER | Signature.CLOSE_IN_BATCH
    census.add(LifetimesCounted(ts=1, counts={int(both): 40, int(Signature.ADD): 60}))
    text = plain(_lines(census))
    assert "implicit-removal, close-in-open-batch" in text
    assert "40 of 100 lifetimes (40.00%) carry a hazard" in text
    assert "LOST" not in text
    short = plain(_lines(census, lost=7))
    assert "LOST 7" in short
    assert "at least 40 of 100 lifetimes that were counted" in short
    more = _beside(
        [finding(rule=RuleId.FREED_IN_OPEN_BATCH, severity=Severity.HIGH, count=3, unit="destroys")] * 2
    )
    assert "freed-in-open-batch (6 destroys)" in plain(_lines(census, 0, more))
    assert _beside([finding(rule=RuleId.FAILED_REMOVAL, severity=Severity.HIGH)]) == [], "a row says it"
    assert _hazards(("a", "b", "c", "d")) == "a, b, 2 more"


def test_it_says_when_it_begins() -> None:
    assert _begun(1, 30.0) == (
        "afterfree: counting the lifetimes of 1 process from now on. "
        "After 30 s, or at Ctrl-C, it ends and prints the census."
    )
    assert "of 2 processes from now on. Ctrl-C ends it and prints" in _begun(2, None)
    assert "of the first process to come" in _begun(0, None)
