"""What the census says to people."""

from __future__ import annotations

from agent.commands.census import _begun, _spread
from agent.correlator.histogram import Histogram


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


def test_it_says_when_it_begins() -> None:
    assert _begun(1, 30.0) == (
        "afterfree: counting the lifetimes of 1 process from now on. "
        "After 30 s, or at Ctrl-C, it ends and prints the census."
    )
    assert "of 2 processes from now on. Ctrl-C ends it and prints" in _begun(2, None)
    assert "of the first process to come" in _begun(0, None)
