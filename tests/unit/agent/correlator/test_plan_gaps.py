# What a real plan could not probe, from the binary to the finding: resolve, plan_to_json, PlanFacts, a rule.
from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from agent.correlator import Finding
from probes.abi import RecordFlag, SlotFlag
from symbols.plan import Role
from symbols.resolve import resolve
from symbols.serial import plan_to_json
from tests.unit.agent.correlator.playbook import (
    LOOP,
    WORKER,
    Life,
    Playbook,
    attached,
    critical,
    freed_bytes,
    high,
    info,
    life,
    nothing,
    warning,
)
from tests.unit.symbols.matrix import CASES, repeats_case

SECOND = 1_000_000_000
INCOMPLETE = "gcc levels -O3 -DINLINE_NOTES"  # peeled and unrolled: a create and destroys are refused
COMPLETE = "clang++ templates -O2"
SOME_DISPATCHES = "gcc repeats -O2"  # an unrolled dispatch of one object is refused
NO_DISPATCH = "gcc clones -O2"  # scalar replacement took the object away


@cache
def plan_of(case: str) -> str:
    """The plan as recordings and the daemon get it: JSON text."""
    built = repeats_case("gcc", "-O2") if case == SOME_DISPATCHES else CASES[case]
    return json.dumps(plan_to_json(resolve(built.build(), built.profile)))


def watching(play: Playbook, case: str) -> Playbook:
    """The playbook with the case's plan attached."""
    plan: dict[str, Any] = json.loads(plan_of(case))
    return play >> attached(plan)


def left_out(case: str, role: Role) -> list[str]:
    """The functions that hold unprobed instances of a role."""
    return [lost["enclosing"] for lost in json.loads(plan_of(case))["unprobed"] if lost["role"] == role.value]


def sites(case: str, role: Role) -> int:
    return sum(site["role"] == role.value for site in json.loads(plan_of(case))["sites"])


def reasons(finding: Finding | None) -> str:
    assert finding is not None
    return "; ".join(finding.reasons)


def test_the_plans_have_the_gaps_that_are_tested_here() -> None:
    for role in (Role.CREATE, Role.DESTROY):
        assert sites(INCOMPLETE, role)
        assert left_out(INCOMPLETE, role)
    assert sites(SOME_DISPATCHES, Role.DISPATCH)
    assert "same" in left_out(SOME_DISPATCHES, Role.DISPATCH)
    assert not sites(NO_DISPATCH, Role.DISPATCH)
    assert left_out(NO_DISPATCH, Role.DISPATCH)
    assert json.loads(plan_of(COMPLETE))["unprobed"] == []


# (rule, the role that must be complete, the evidence)
NEEDS: tuple[tuple[str, Role, Callable[[Life], Any]], ...] = (
    (
        "double-destroy",
        Role.CREATE,
        lambda story: story.destroyed(50).destroy_again(60, memory=freed_bytes()),
    ),
    ("stale-dispatch", Role.CREATE, lambda story: story.destroyed(50).stale_dispatch(60, 0x7F00_0000_9000)),
    (
        "aliased-slot",
        Role.DESTROY,
        lambda story: story.given_out_again(50).flagged(SlotFlag.DOUBLED).aliased_by(60),
    ),
    ("leaked-slot", Role.DESTROY, lambda story: story.has(hup_since=40).lingering(40 * SECOND)),
)


@pytest.mark.parametrize(("rule", "role", "evidence"), NEEDS, ids=[rule for rule, _role, _evidence in NEEDS])
def test_a_finding_that_an_unprobed_instance_could_explain_is_uncertain(
    play: Playbook, rule: str, role: Role, evidence: Callable[[Life], Any]
) -> None:
    watching(play, INCOMPLETE) >> evidence(life()) << warning(rule, "uncertain")
    text = reasons(play.last)
    assert f"{role.value} instances cannot be probed" in text
    assert left_out(INCOMPLETE, role)[0] in text


@pytest.mark.parametrize(("rule", "role", "evidence"), NEEDS, ids=[rule for rule, _role, _evidence in NEEDS])
def test_the_same_evidence_under_a_complete_plan_is_certain(
    play: Playbook, rule: str, role: Role, evidence: Callable[[Life], Any]
) -> None:
    watching(play, COMPLETE)
    (finding,) = play.correlator.feed(evidence(life()))
    assert (finding.rule.value, finding.confidence.value) in ((rule, "observed"), (rule, "confirmed"))
    assert "cannot be probed" not in reasons(finding)


def test_a_delivery_whose_destroy_was_not_seen_is_no_stale_one(play: Playbook) -> None:
    watching(play, INCOMPLETE) >> life().stale_delivery(70) << warning("stale-delivery", "uncertain")


def test_a_stale_delivery_needs_only_what_was_seen(play: Playbook) -> None:
    """Destroyed and never registered again, which no unprobed create can hide: ADD is a system call."""
    watching(play, INCOMPLETE) >> life().destroyed(50).stale_delivery(70)
    play << critical("stale-delivery", "confirmed")


def test_a_delivery_that_the_unseen_generation_can_have_caused_is_uncertain(play: Playbook) -> None:
    """Its create was not probed: the new generation is known by its ADD, which explains the delivery too."""
    story = life().closed(30, shared=True).destroyed(40).reborn(50).with_current(60)
    watching(play, INCOMPLETE) >> story.recycled_delivery(70) << warning("recycled-delivery", "uncertain")


class TestFreedInOpenBatch:
    def test_some_dispatches_are_not_probed(self, play: Playbook) -> None:
        watching(play, SOME_DISPATCHES) >> life().delivered(40).freed_in_batch(50, LOOP)
        play << warning("freed-in-open-batch", "uncertain")
        assert "dispatch instances cannot be probed (in same" in reasons(play.last)

    def test_a_dispatch_that_was_seen_settles_it(self, play: Playbook) -> None:
        story = life().delivered(40).dispatched()
        watching(play, SOME_DISPATCHES) >> story.freed_in_batch(50, LOOP) << nothing

    @pytest.mark.parametrize("by", [LOOP, WORKER])
    def test_without_a_dispatch_probe_it_is_not_judged(self, play: Playbook, by: int) -> None:
        event = life().delivered(40).freed_in_batch(50, by, flags=RecordFlag.NOT_JUDGED)
        watching(play, NO_DISPATCH) >> event << info("freed-in-open-batch", "uncertain")
        assert "whether the loop had already come to this delivery is not known" in reasons(play.last)

    def test_all_dispatches_are_probed(self, play: Playbook) -> None:
        event = life().delivered(40).freed_in_batch(50, LOOP, flags=RecordFlag.PROVEN)
        watching(play, COMPLETE) >> event << high("freed-in-open-batch")
