# double-destroy, aliased-slot, freed-while-registered, freed-in-open-batch.
from __future__ import annotations

from dataclasses import replace

import pytest

from probes.abi import RegFlag, RegState, SlotFlag, SlotState
from probes.events import FdinfoChecked, Lost
from tests.unit.agent.correlator.playbook import (
    EPFD,
    LOOP,
    SLOT,
    TGID,
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
    plan,
    warning,
)


def fdinfo(present: bool | None, ts: int = 60, fd: int = 9) -> FdinfoChecked:
    return FdinfoChecked(ts=ts, tgid=TGID, epfd=EPFD, fd=fd, userdata=SLOT, present=present)


class TestDoubleDestroy:
    def test_destroy_of_a_free_slot(self, play: Playbook) -> None:
        play >> attached() >> life().destroyed(50, WORKER).destroy_again(60, LOOP)
        play << critical("double-destroy", window_ns=10)
        assert play.last is not None
        assert [(a.role, a.moment.ts, a.note) for a in play.last.actors][-2:] == [
            ("destroyed", 50, "first"),
            ("destroyed", 60, "again"),
        ]

    def test_freed_memory_confirms(self, play: Playbook) -> None:
        play >> attached() >> life().destroyed(50).destroy_again(60, memory=freed_bytes())
        play << critical("double-destroy", "confirmed")

    def test_a_link_to_itself_confirms(self, play: Playbook) -> None:
        play >> attached() >> life().destroyed(50).destroy_again(60, memory=SLOT.to_bytes(8, "little") * 2)
        play << critical("double-destroy", "confirmed")

    @pytest.mark.parametrize("the_plan", [plan(unprobed=("create",)), plan(create=0)])
    def test_a_create_that_may_have_been_missed(self, play: Playbook, the_plan: dict[str, object]) -> None:
        play >> attached(the_plan) >> life().destroyed(50).destroy_again(60, memory=freed_bytes())
        play << warning("double-destroy", "uncertain")

    def test_an_unprobed_destroy_does_not_matter(self, play: Playbook) -> None:
        play >> attached(plan(unprobed=("destroy",))) >> life().destroyed(50).destroy_again(60)
        play << critical("double-destroy")

    def test_an_unknown_plan(self, play: Playbook) -> None:
        play >> life().destroyed(50).destroy_again(60) << warning("double-destroy", "uncertain")

    def test_a_loss_between_the_destroys(self, play: Playbook) -> None:
        play >> attached() >> Lost(ts=56, what="slots-map-full", count=1, since=54)
        play >> life().destroyed(50).destroy_again(60) << warning("double-destroy", "uncertain")

    def test_a_slot_that_lives(self, play: Playbook) -> None:
        play >> attached() >> life().destroy_again(60) << warning("double-destroy", "uncertain")

    def test_evidence_that_holds_only_the_second(self, play: Playbook) -> None:
        (
            play
            >> attached()
            >> life().destroyed(60).destroy_again(60)
            << critical("double-destroy", window_ns=None)
        )
        assert play.last is not None
        assert [a.moment.ts for a in play.last.actors if a.role == "destroyed"] == [0, 60]

    def test_a_guard_does_not_excuse_it(self, play: Playbook) -> None:
        play >> attached(plan(guard="deferred free")) >> life().destroyed(50).destroy_again(60)
        play << critical("double-destroy")


class TestAliasedSlot:
    def test_two_live_registrations_of_one_life(self, play: Playbook) -> None:
        play >> attached() >> life().aliased_by(60) << critical("aliased-slot", fd=12)
        assert play.last is not None
        assert [(a.role, a.note) for a in play.last.actors] == [
            ("created", ""),
            ("registered", "fd 9"),
            ("registered", "fd 12"),
        ]

    def test_created_twice_without_a_destroy(self, play: Playbook) -> None:
        story = life().has(gen=2, live_from=1).flagged(SlotFlag.REBORN_LIVE)
        play >> attached() >> story.aliased_by(60) << critical("aliased-slot", sub_class="created-twice")

    @pytest.mark.parametrize(
        ("other", "reason"),
        [
            ({"state": RegState.ENDED}, "other-registration-ended"),
            ({"gen": 0}, "survivor-of-an-older-generation"),
            ({"fd": 9, "epfd": EPFD + 1}, "same-connection-registered-twice"),
        ],
    )
    def test_does_not_fire(self, play: Playbook, other: dict[str, int], reason: str) -> None:
        play >> attached() >> life().aliased_by(60, **other) << nothing
        assert play.correlator.stats.dropped == {reason: 1}

    def test_a_reused_number_is_another_connection(self, play: Playbook) -> None:
        play >> attached() >> life().aliased_by(60, fd=9, state=RegState.ORPHAN) << critical("aliased-slot")

    def test_does_not_fire_for_a_dup_of_the_same_description(self, play: Playbook) -> None:
        play >> attached() >> life().registration(desc=5).aliased_by(60) << nothing

    @pytest.mark.parametrize("flag", [RegFlag.ENDING, RegFlag.FORK_SHARED])
    def test_uncertain_while_the_other_may_be_gone(self, play: Playbook, flag: RegFlag) -> None:
        play >> attached() >> life().aliased_by(60, flags=flag) << warning("aliased-slot", "uncertain")

    def test_a_destroy_that_may_have_been_missed(self, play: Playbook) -> None:
        play >> attached(plan(unprobed=("destroy",))) >> life().aliased_by(60)
        play << warning("aliased-slot", "uncertain")

    def test_an_unprobed_create_does_not_matter(self, play: Playbook) -> None:
        play >> attached(plan(unprobed=("create",))) >> life().aliased_by(60) << critical("aliased-slot")

    def test_fdinfo_confirms(self, play: Playbook) -> None:
        play >> attached() >> fdinfo(True, ts=61) >> life().aliased_by(60)
        play << critical("aliased-slot", "confirmed")

    def test_uncertain_without_the_other(self, play: Playbook) -> None:
        (
            play
            >> attached()
            >> replace(life().aliased_by(60), other=None)
            << warning("aliased-slot", "uncertain")
        )


class TestFreedWhileRegistered:
    def test_no_del_and_no_close(self, play: Playbook) -> None:
        play >> attached() >> life().freed_registered(50)
        play << high("freed-while-registered", sub_class="never-closed")

    def test_closed_but_shared(self, play: Playbook) -> None:
        play >> attached() >> life().closed(40, shared=True).freed_registered(50)
        play << high("freed-while-registered", sub_class="closed-but-shared")
        assert play.last is not None
        assert [a.role for a in play.last.actors] == ["registered", "closed", "destroyed"]

    def test_fdinfo_confirms(self, play: Playbook) -> None:
        play >> attached() >> fdinfo(True) >> life().freed_registered(50)
        play << high("freed-while-registered", "confirmed")

    def test_gone_when_fdinfo_was_read_is_still_what_was_observed(self, play: Playbook) -> None:
        play >> attached() >> fdinfo(False) >> life().freed_registered(50)
        play << high("freed-while-registered", "observed")

    def test_an_answer_from_before_the_destroy_does_not_count(self, play: Playbook) -> None:
        play >> attached() >> fdinfo(True, ts=45) >> life().freed_registered(50)
        play << high("freed-while-registered", "observed")

    @pytest.mark.parametrize(
        ("present", "reason"),
        [(False, "refuted-by-fdinfo"), (None, "unconfirmed-fork-shared")],
    )
    def test_one_that_only_may_live_needs_fdinfo(
        self, play: Playbook, present: bool | None, reason: str
    ) -> None:
        story = life().closed(40, shared=True).registration(flags=RegFlag.FORK_SHARED)
        play >> attached() >> fdinfo(present) >> story.freed_registered(50) << nothing
        assert play.correlator.stats.dropped == {reason: 1}

    def test_one_that_only_may_live_and_does(self, play: Playbook) -> None:
        story = life().closed(40, shared=True).registration(flags=RegFlag.FORK_SHARED)
        play >> attached() >> fdinfo(True) >> story.freed_registered(50)
        play << high("freed-while-registered", "confirmed")

    def test_a_close_in_flight_is_concurrent(self, play: Playbook) -> None:
        story = life().registration(flags=RegFlag.ENDING).flagged(SlotFlag.CLOSE_PENDING)
        play >> attached() >> story.freed_registered(50)
        play << warning("freed-while-registered", "uncertain", sub_class="concurrent")

    def test_a_close_in_flight_that_fdinfo_saw_take_effect(self, play: Playbook) -> None:
        play >> attached() >> fdinfo(False) >> life().registration(flags=RegFlag.ENDING).freed_registered(50)
        play << nothing

    @pytest.mark.parametrize(
        "story", [life().registration(state=RegState.ENDED), life(gen=3).registration(gen=2)]
    )
    def test_does_not_fire(self, play: Playbook, story: Life) -> None:
        play >> attached() >> story.freed_registered(50) << nothing

    def test_an_older_generation_of_the_same_undestroyed_life_counts(self, play: Playbook) -> None:
        story = life(gen=3).registration(gen=2).has(live_from=2)
        play >> attached() >> story.freed_registered(50) << high("freed-while-registered")

    def test_one_from_before_the_attach_is_inferred(self, play: Playbook) -> None:
        story = life().registration(flags=RegFlag.INFERRED)
        play >> attached() >> story.freed_registered(50) << high("freed-while-registered", "inferred")

    def test_a_loss_makes_it_uncertain(self, play: Playbook) -> None:
        play >> attached() >> Lost(ts=30, what="fds-map-full", count=1, since=25)
        play >> life().freed_registered(50) << warning("freed-while-registered", "uncertain")

    def test_a_guarded_program(self, play: Playbook) -> None:
        play >> attached(plan(guard="deferred free")) >> life().freed_registered(50)
        play << info("freed-while-registered")

    def test_uncertain_without_a_registration(self, play: Playbook) -> None:
        play >> attached() >> replace(life().freed_registered(50), reg=None)
        play << warning("freed-while-registered", "uncertain")


class TestFreedInOpenBatch:
    def test_by_the_thread_that_holds_the_batch(self, play: Playbook) -> None:
        play >> attached() >> life().delivered(40).freed_in_batch(50)
        play << high("freed-in-open-batch", sub_class="same-thread", window_ns=10)

    def test_by_another_thread(self, play: Playbook) -> None:
        play >> attached() >> life().delivered(40).freed_in_batch(50, WORKER)
        play << high("freed-in-open-batch", sub_class="other-thread")

    def test_without_a_dispatch_probe_only_another_thread_counts(self, play: Playbook) -> None:
        play >> attached(plan(dispatch=0)) >> life().delivered(40).freed_in_batch(50, LOOP) << nothing
        play >> life().delivered(40).freed_in_batch(50, WORKER) << high("freed-in-open-batch")

    def test_not_when_it_was_dispatched(self, play: Playbook) -> None:
        story = life().delivered(40).dispatched()
        play >> attached() >> story.freed_in_batch(50) << nothing

    def test_uncertain_when_a_dispatch_may_have_been_missed(self, play: Playbook) -> None:
        play >> attached(plan(unprobed=("dispatch",))) >> life().delivered(40).freed_in_batch(50)
        play << warning("freed-in-open-batch", "uncertain")

    def test_uncertain_without_a_delivery(self, play: Playbook) -> None:
        play >> attached() >> life().freed_in_batch(50) << warning("freed-in-open-batch", "uncertain")

    def test_uncertain_when_the_delivery_is_later(self, play: Playbook) -> None:
        play >> attached() >> life().delivered(55).freed_in_batch(50)
        play << warning("freed-in-open-batch", "uncertain")


def test_a_free_slot_is_what_the_story_says() -> None:
    """The playbook's own steps: a destroyed life is free, a reborn one lives in the next generation."""
    story = life().destroyed(50)
    assert story.slot.state is SlotState.FREE
    assert (story.reborn(60).slot.gen, story.slot.prev_destroy.ts) == (2, 50)
