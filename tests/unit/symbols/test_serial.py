"""Plan <-> JSON: exact, versioned, and closed to anything else."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest

from symbols.errors import BadPlan
from symbols.plan import ProbePlan
from symbols.profile import parse_profile
from symbols.resolve import resolve
from symbols.serial import plan_from_json, plan_to_json
from tests.unit.symbols.builds import C_PROFILE, build_c


@pytest.fixture(scope="module")
def plan() -> ProbePlan:
    profile = C_PROFILE.replace('object = "s"', 'object = "no such parameter"')  # unprobed, with its reason
    return resolve(build_c("-g", "-O2"), parse_profile(profile))


def test_round_trip(plan: ProbePlan) -> None:
    text = json.dumps(plan_to_json(plan))
    assert plan_from_json(json.loads(text)) == plan
    assert plan.unprobed
    assert plan.slot.fields


def test_other_version_is_refused(plan: ProbePlan) -> None:
    data = plan_to_json(plan) | {"version": 1}
    with pytest.raises(BadPlan) as caught:
        plan_from_json(data)
    assert caught.value.key == "version"


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += _places(inner, (*path, index))
    return found


def test_every_mutation_is_a_plan_or_a_bad_plan(plan: ProbePlan) -> None:
    original = plan_to_json(plan)
    values = [None, True, -1, 1 << 70, "", "x", [], {}, [["add", "x"]], 1.5]
    rng = random.Random(7)
    refused = 0
    for path in _places(original):
        data = copy.deepcopy(original)
        at: Any = data
        for key in path[:-1]:
            at = at[key]
        if rng.random() < 0.3 and isinstance(at, dict):
            del at[path[-1]]
        else:
            at[path[-1]] = rng.choice(values)
        try:
            plan_from_json(data)
        except BadPlan:
            refused += 1
    assert refused > 100


def test_site_outside_the_segments_is_refused(plan: ProbePlan) -> None:
    data = plan_to_json(plan)
    data["sites"][0]["file_offset"] += 1
    with pytest.raises(BadPlan):
        plan_from_json(data)


@pytest.mark.parametrize("junk", [None, 3, [], "plan", {}])
def test_junk(junk: object) -> None:
    with pytest.raises(BadPlan):
        plan_from_json(junk)
