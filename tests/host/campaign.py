# Owns trying orders: every one of the written programs (scenarios.py), then of programs made at random, until
# a budget is used up.
from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.host.machine import Machine, Scenario, Search, orders, smaller, story
from tests.host.programs import program
from tests.host.scenarios import SCENARIOS


@dataclass(slots=True)
class Tally:
    """What was tried. `sampled`: programs with more orders than the limit, of which that many were drawn."""

    orders: int = 0
    programs: int = 0
    sampled: int = 0


def tried(machine: Machine, scenario: Scenario, limit: int, seed: int, tally: Tally) -> Search:
    """Every order where there are no more than `limit`; else `limit` of them at random."""
    tally.programs += 1
    if orders(scenario) <= limit:
        search = machine.every_order(scenario, limit)
    else:
        tally.sampled += 1
        search = machine.some_orders(scenario, limit, seed)
    tally.orders += search.tried
    return search


def random_programs(seed: int) -> Iterator[Scenario]:
    source = random.Random(seed)
    while True:
        threads = source.choice((1, 2, 2, 2, 3))
        yield program(source.choice, threads, source.randint(1, 6 if threads < 3 else 4))


def failures(machine: Machine, programs: Iterable[Scenario], limit: int, tally: Tally) -> list[str]:
    """The story of each program in which the oracle disagrees, made as small as it goes."""
    found = []
    for number, scenario in enumerate(programs):
        search = tried(machine, scenario, limit, number + 1, tally)
        if search.violations:
            least, again = smaller(machine, scenario, search.verdict)
            found.append(
                f"{machine.shape}: {scenario.name or 'a random program'}: {again.verdict.words()} in "
                f"{search.violations} of {search.tried} orders, for instance\n{story(least, again.schedule)}"
            )
        if len(found) >= 5:
            break
    return found


def written(machine: Machine, limit: int, tally: Tally) -> list[str]:
    return failures(machine, SCENARIOS, limit, tally)


def at_random(machine: Machine, seed: int, seconds: float, most: int, limit: int, tally: Tally) -> list[str]:
    """Programs made at random, `most` at most, for at most so long."""
    end = time.monotonic() + seconds

    def until_then() -> Iterator[Scenario]:
        for number, scenario in enumerate(random_programs(seed)):
            if number >= most or time.monotonic() > end:
                return
            yield scenario

    return failures(machine, until_then(), limit, tally)
