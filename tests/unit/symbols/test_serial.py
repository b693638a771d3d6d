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


def test_plans_of_older_recordings_are_read(plan: ProbePlan) -> None:
    """Version 2 did not know where object, userdata and count lie to the slot, nor a site's code."""
    data = plan_to_json(plan) | {"version": 2}
    del data["userdata"]["offset"]
    for key in (
        "object_is_slot",
        "object_delta",
        "embedded",
        "count_field",
        "count_offset",
        "count_size",
        "frees_at",
    ):
        del data["slot"][key]
    for site in data["sites"]:
        for key in ("at_entry", "ranges", "counts", "counts_at", "stands_for", "when"):
            del site[key]
    old = plan_from_json(json.loads(json.dumps(data)))
    assert [(site.address, site.source) for site in old.sites] == [(s.address, s.source) for s in plan.sites]
    assert not any(site.at_entry or site.ranges or site.counts for site in old.sites)
    assert (old.userdata.offset, old.slot.object_is_slot, old.slot.count_offset) == (0, False, None)
    assert old.slot.object_offset == plan.slot.object_offset


def test_a_condition_that_no_jump_has_is_refused(plan: ProbePlan) -> None:
    data = plan_to_json(plan)
    data["sites"][0]["when"] = "nne"
    with pytest.raises(BadPlan) as caught:
        plan_from_json(data)
    assert caught.value.key.endswith("when")


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("slot", "embedded", [0]),
        ("slot", "embedded", list(range(1, 18))),
        ("slot", "count_size", 3),
        ("slot", "count_offset", 8),
        ("slot", "object_is_slot", 1),
        ("slot", "frees_at", -1),
        ("userdata", "offset", -8),
        ("userdata", "offset", "w"),
    ],
)
def test_what_no_plan_says(plan: ProbePlan, where: str, key: str, value: object) -> None:
    data = plan_to_json(plan)
    data[where] = data[where] | {key: value}
    with pytest.raises(BadPlan) as caught:
        plan_from_json(data)
    assert caught.value.key.startswith(f"plan.{where}.")


@pytest.mark.parametrize("ranges", [[[2, 1]], [[1]], [1], [[0, 1]] * 9, "x"])
def test_ranges_of_a_site_are_checked(plan: ProbePlan, ranges: object) -> None:
    data = plan_to_json(plan)
    data["sites"][0]["ranges"] = ranges
    with pytest.raises(BadPlan):
        plan_from_json(data)


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
