# The kernel side's C in every order of small concurrent programs, against an oracle that knows what is so.
from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.build import SHAPES
from tests.host.campaign import Tally, at_random, written
from tests.host.machine import MOST_OPS, Scenario, machine, orders, story
from tests.host.programs import PREPARED, call
from tests.host.scenarios import SCENARIOS

LIMITS = {"complete": 30_000}
OTHERS = 8_000
DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"


@pytest.mark.parametrize("shape", SHAPES)
def test_every_order_of_every_program(shape: str, record_property: Callable[[str, object], None]) -> None:
    tally = Tally()
    found = written(machine(shape), 1_000_000 if DEEP else LIMITS.get(shape, OTHERS), tally)
    record_property("interleavings", tally.orders)
    assert not found, "\n\n".join(found)
    assert tally.orders > 100_000


@pytest.mark.parametrize("shape", SHAPES)
def test_programs_made_at_random(shape: str, record_property: Callable[[str, object], None]) -> None:
    tally = Tally()
    seconds, most = (120, 1 << 30) if DEEP else (20, 400)
    found = at_random(machine(shape), 1, seconds, most, 500, tally)
    record_property("interleavings", tally.orders)
    assert not found, "\n\n".join(found)


_CALLS = st.composite(lambda draw: call(lambda choices: draw(st.sampled_from(choices))))()
_THREADS = st.lists(st.lists(_CALLS, min_size=1, max_size=6), min_size=1, max_size=3)


@given(
    shape=st.sampled_from(sorted(SHAPES)),
    prepare=st.sampled_from(PREPARED),
    threads=_THREADS,
    schedule=st.lists(st.integers(0, 2), max_size=60),
)
def test_one_order_of_any_program(
    shape: str, prepare: str, threads: list[list[str]], schedule: list[int]
) -> None:
    scenario = Scenario(prepare, ["; ".join(calls) for calls in threads])
    order = bytes(thread % len(threads) for thread in schedule)
    verdict = machine(shape).run(scenario, order)
    assert not verdict, f"{shape}: {verdict.words()}\n{story(scenario, order)}"


def test_programs_are_of_the_size_that_was_asked_for() -> None:
    for scenario in SCENARIOS:
        assert 2 <= len(scenario.threads) <= 3, scenario.name
        assert all(1 <= len(scenario.calls(t)) <= 8 for t in range(len(scenario.threads))), scenario.name
        assert len(scenario.prepare.split(";")) <= MOST_OPS
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)


def test_every_order_is_tried_once() -> None:
    scenario = Scenario("epoll e; socket s", ["add e s 0", "dup s d; close s"])
    assert orders(scenario) == 56  # 8 steps, 3 of them of one thread
    assert machine("complete").every_order(scenario, 1000).tried == 56
