"""What a storm costs: repeats of a known finding are counted, not written out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from agent.correlator import Correlator
from agent.correlator.findings import Finding
from probes.events import Event
from tests.unit.agent.correlator.playbook import SLOT, attached, freed_bytes, life

MANY = 512


def _storm(one: Callable[[int], Event]) -> list[Event]:
    return [one(number) for number in range(MANY)]


def _destroyed(number: int) -> Any:
    at = 100 * number
    return life(SLOT + 64 * number).added(at + 10).closed(at + 20, shared=True).destroyed(at + 50)


STORMS: dict[str, Callable[[int], Event]] = {
    "stale": lambda n: _destroyed(n).stale_delivery(100 * n + 70, memory=freed_bytes()),
    "freed": lambda n: _destroyed(n).freed_registered(100 * n + 60),
    "double": lambda n: _destroyed(n).destroy_again(100 * n + 80),
}


def _calls(correlator: Correlator, events: list[Event]) -> int:
    """Calls of Python functions: what time they take says more of the machine than of us."""
    calls = 0

    def count(_frame: FrameType, what: str, _argument: Any) -> None:
        nonlocal calls
        calls += what == "call"

    sys.setprofile(count)
    try:
        for event in events:
            correlator.feed(event)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("name", STORMS)
def test_a_repeat_takes_few_calls(name: str) -> None:
    correlator, events = Correlator(), _storm(STORMS[name])
    correlator.feed(attached())
    correlator.feed(events[0])
    assert _calls(correlator, events[1:]) / (MANY - 1) < 120
    (group,) = correlator.findings()
    assert group.count == MANY


@pytest.mark.parametrize("name", STORMS)
def test_findings_are_written_where_they_are_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    make = Finding.__init__

    def counted(self: Finding, **fields: Any) -> None:
        nonlocal written
        written += 1
        make(self, **fields)

    monkeypatch.setattr(Finding, "__init__", counted)
    correlator = Correlator()
    correlator.feed(attached())
    shown = [finding for event in _storm(STORMS[name]) for finding in correlator.feed(event)]
    assert [finding.count for finding in shown] == [2**power for power in range(10)]
    assert written == 1
