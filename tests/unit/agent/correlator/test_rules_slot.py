# double-destroy, aliased-slot, freed-while-registered, freed-in-open-batch.
from __future__ import annotations

from dataclasses import replace

import pytest

from probes.abi import RecordFlag, RegFlag, RegState, SlotFlag, SlotState
from probes.events import FdinfoChecked, Lost
from tests.unit.agent.correlator.playbook import (
    EPFD,
    FILE,
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


def reasons(play: Playbook) -> str:
    assert play.last is not None
    return "; ".join(play.last.reasons)


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

    def test_a_slot_used_between_the_destroys_may_be_reference_counted(self, play: Playbook) -> None:
        story = life().destroyed(50)
        play >> attached() >> story.destroy_again(60, flags=RecordFlag.REFCOUNT)
        play << warning("double-destroy", "uncertain")
        assert "the profile's `count` tells which call frees" in reasons(play)

    def test_a_destroy_that_counts_down_may_have_freed_nothing(self, play: Playbook) -> None:
        play >> attached(plan(counting=True)) >> life().destroyed(50).destroy_again(60)
        play << warning("double-destroy", "uncertain")
        assert "the destroying function counts references down" in reasons(play)

    def test_where_the_profile_names_the_count_the_kernel_side_has_judged_it(self, play: Playbook) -> None:
        play >> attached(plan(counting=True, count_offset=16)) >> life().destroyed(50).destroy_again(60)
        play << critical("double-destroy")

    @pytest.mark.parametrize(
        ("the_plan", "flags"), [(plan(), RecordFlag.REFCOUNT), (plan(counting=True), RecordFlag(0))]
    )
    def test_freed_memory_outweighs_a_count(
        self, play: Playbook, the_plan: dict[str, object], flags: RecordFlag
    ) -> None:
        story = life().destroyed(50)
        play >> attached(the_plan) >> story.destroy_again(60, flags=flags, memory=freed_bytes())
        play << critical("double-destroy", "confirmed")


class TestAliasedSlot:
    def twice(self) -> Life:
        """Given out twice with no destroy in between; the first owner is registered as fd 9."""
        return life().given_out_again(50)

    def test_given_out_twice_and_both_owners_register_it(self, play: Playbook) -> None:
        play >> attached() >> self.twice().flagged(SlotFlag.DOUBLED).aliased_by(60)
        play << critical("aliased-slot", "confirmed", fd=12, sub_class="created-twice")
        assert play.last is not None
        assert [(a.role, a.moment.ts, a.note) for a in play.last.actors] == [
            ("registered", 20, "fd 9"),
            ("created", 50, ""),
            ("registered", 60, "fd 12"),
        ]
        assert "when the slot's second owner registered it" in reasons(play)

    def test_a_create_that_is_a_look_up(self, play: Playbook) -> None:
        """Nothing broke the pool: one owner asks for its object a second time, and registers a second fd."""
        play >> attached() >> self.twice().aliased_by(60) << warning("aliased-slot", "uncertain")
        assert "`create` may be a look-up" in reasons(play)

    def test_one_owner_may_register_several_files(self, play: Playbook) -> None:
        play >> attached() >> life().aliased_by(60) << nothing
        assert play.correlator.stats.dropped == {"one-owner-with-several-registrations": 1}

    def test_a_life_that_was_not_given_out_twice_has_one_owner(self, play: Playbook) -> None:
        """The generation grew (an ADD after a destroy), but create did not hand it out again."""
        story = self.twice()
        play >> attached() >> story.has(flags=SlotFlag.CREATE_SEEN).aliased_by(60) << nothing
        assert play.correlator.stats.dropped == {"one-owner-with-several-registrations": 1}

    @pytest.mark.parametrize(
        ("other", "reason"),
        [
            ({"state": RegState.ENDED}, "other-registration-ended"),
            ({"gen": 0}, "survivor-of-an-older-generation"),
            ({"gen": 2}, "one-owner-with-several-registrations"),
            ({"file": FILE + 12}, "same-connection-registered-twice"),  # a dup, or in a second instance
        ],
    )
    def test_does_not_fire(self, play: Playbook, other: dict[str, int], reason: str) -> None:
        play >> attached() >> self.twice().aliased_by(60, **other) << nothing
        assert play.correlator.stats.dropped == {reason: 1}

    def test_a_reused_number_is_another_connection(self, play: Playbook) -> None:
        story = self.twice().flagged(SlotFlag.DOUBLED)
        play >> attached() >> story.aliased_by(60, fd=9, state=RegState.ORPHAN, file=FILE + 99)
        play << critical("aliased-slot", "confirmed")

    def test_without_btf_nothing_was_asked(self, play: Playbook) -> None:
        story = self.twice().flagged(SlotFlag.DOUBLED)
        play >> attached() >> story.aliased_by(60, flags=RegFlag.NOT_ASKED)
        play << critical("aliased-slot", "inferred")

    def test_a_destroy_that_may_have_been_missed(self, play: Playbook) -> None:
        play >> attached(plan(unprobed=("destroy",))) >> self.twice().aliased_by(60)
        play << warning("aliased-slot", "uncertain")

    def test_a_create_that_may_have_been_missed(self, play: Playbook) -> None:
        """It may have been what gave the slot out in between, after a destroy that was seen."""
        play >> attached(plan(unprobed=("create",))) >> self.twice().aliased_by(60)
        play << warning("aliased-slot", "uncertain")

    def test_uncertain_without_the_other(self, play: Playbook) -> None:
        play >> attached() >> replace(self.twice().aliased_by(60), other=None)
        play << warning("aliased-slot", "uncertain")


class TestFreedWhileRegistered:
    def test_no_del_and_no_close(self, play: Playbook) -> None:
        play >> attached() >> life().freed_registered(50)
        play << high("freed-while-registered", "confirmed", sub_class="never-closed")
        assert "the kernel had the registration of fd 9 with instance 5 when the destroying" in reasons(play)

    def test_closed_but_shared(self, play: Playbook) -> None:
        play >> attached() >> life().closed(40, shared=True).freed_registered(50)
        play << high("freed-while-registered", "confirmed", sub_class="closed-but-shared")
        assert play.last is not None
        assert [a.role for a in play.last.actors] == ["registered", "closed", "destroyed"]

    def test_who_made_the_duplicate_is_one_of_the_actors(self, play: Playbook) -> None:
        story = life().dupped(30, fd=12, by=WORKER).closed(40, shared=True)
        play >> attached() >> story.freed_registered(50) << high("freed-while-registered", "confirmed")
        assert play.last is not None
        assert [(a.role, a.moment.tid, a.note) for a in play.last.actors] == [
            ("registered", LOOP, ""),
            ("duplicated", WORKER, "fd 12"),
            ("closed", LOOP, ""),
            ("destroyed", LOOP, ""),
        ]
        assert "kept open by fd 12, its duplicate" in reasons(play)

    def test_a_duplicate_of_what_is_still_open_keeps_nothing(self, play: Playbook) -> None:
        play >> attached() >> life().dupped(30).freed_registered(50)
        play << high("freed-while-registered", "confirmed", sub_class="never-closed")
        assert play.last is not None
        assert [a.role for a in play.last.actors] == ["registered", "destroyed"]

    def test_registered_after_its_destroy(self, play: Playbook) -> None:
        story = life().destroyed(50).added(60)
        play >> attached() >> story.freed_registered(70)
        play << high("freed-while-registered", "confirmed", sub_class="registered-after")
        assert play.last is not None
        assert [a.role for a in play.last.actors][:1] == ["registered"]

    def test_fdinfo_is_one_more_witness(self, play: Playbook) -> None:
        play >> attached() >> fdinfo(True) >> life().freed_registered(50)
        play << high("freed-while-registered", "confirmed")
        assert f"/proc/{TGID}/fdinfo/{EPFD} lists the registration (tfd 9)" in reasons(play)

    def test_gone_when_fdinfo_was_read_is_still_what_the_kernel_answered(self, play: Playbook) -> None:
        play >> attached() >> fdinfo(False) >> life().freed_registered(50)
        play << high("freed-while-registered", "confirmed")
        assert "it was gone when /proc/PID/fdinfo was read" in reasons(play)

    def test_an_answer_from_before_the_destroy_does_not_count(self, play: Playbook) -> None:
        story = life().registration(flags=RegFlag.NOT_ASKED)
        play >> attached() >> fdinfo(True, ts=45) >> story.freed_registered(50)
        play << high("freed-while-registered", "inferred")

    @pytest.mark.parametrize("present", [None, True])
    def test_where_the_kernel_cannot_be_asked_it_is_inferred(
        self, play: Playbook, present: bool | None
    ) -> None:
        story = life().registration(flags=RegFlag.NOT_ASKED)
        play >> attached() >> fdinfo(present) >> story.freed_registered(50)
        play << high("freed-while-registered", "inferred")
        assert "the kernel could not be asked" in reasons(play)
        assert ("/fdinfo/" in reasons(play)) is bool(present)

    def test_where_the_kernel_cannot_be_asked_fdinfo_refutes(self, play: Playbook) -> None:
        story = life().registration(flags=RegFlag.NOT_ASKED)
        play >> attached() >> fdinfo(False) >> story.freed_registered(50) << nothing
        assert play.correlator.stats.dropped == {"refuted-by-fdinfo": 1}

    @pytest.mark.parametrize(
        ("story", "reason"),
        [
            (life().registration(state=RegState.ENDED), "registration-ended"),
            (life(gen=3).registration(gen=2), "registration-of-another-generation"),
        ],
    )
    def test_does_not_fire(self, play: Playbook, story: Life, reason: str) -> None:
        play >> attached() >> story.freed_registered(50) << nothing
        assert play.correlator.stats.dropped == {reason: 1}

    def test_an_older_generation_of_the_same_undestroyed_life_counts(self, play: Playbook) -> None:
        story = life(gen=3).registration(gen=2).has(live_from=2)
        play >> attached() >> story.freed_registered(50) << high("freed-while-registered", "confirmed")

    def test_one_from_before_the_attach_exists_all_the_same(self, play: Playbook) -> None:
        story = life().registration(flags=RegFlag.INFERRED)
        play >> attached() >> story.freed_registered(50) << high("freed-while-registered", "confirmed")
        assert "the registration predates the attach: who made it was not seen" in reasons(play)

    def test_a_loss_makes_it_uncertain(self, play: Playbook) -> None:
        play >> attached() >> Lost(ts=30, what="registrations-map-full", count=1, since=25)
        play >> life().freed_registered(50) << warning("freed-while-registered", "uncertain")

    def test_a_guarded_program(self, play: Playbook) -> None:
        play >> attached(plan(guard="deferred free")) >> life().freed_registered(50)
        play << info("freed-while-registered", "confirmed")

    def test_uncertain_without_a_registration(self, play: Playbook) -> None:
        play >> attached() >> replace(life().freed_registered(50), reg=None)
        play << warning("freed-while-registered", "uncertain")


class TestFreedInOpenBatch:
    def test_by_the_thread_that_holds_the_batch(self, play: Playbook) -> None:
        play >> attached() >> life().delivered(40).has(last_index=3).freed_in_batch(50)
        play << warning("freed-in-open-batch", "uncertain", sub_class="same-thread", window_ns=10)
        assert "no handler has been called for it since" in reasons(play)
        assert "entry 3 of the batch in user memory still names the slot" in reasons(play)

    def test_by_another_thread(self, play: Playbook) -> None:
        play >> attached() >> life().delivered(40).freed_in_batch(50, WORKER)
        play << warning("freed-in-open-batch", "uncertain", sub_class="other-thread")

    def test_the_loop_came_to_it_afterwards(self, play: Playbook) -> None:
        play >> attached() >> life().delivered(40).freed_in_batch(50, flags=RecordFlag.PROVEN)
        play << high("freed-in-open-batch", sub_class="same-thread", window_ns=10)
        assert "the loop came to the delivery afterwards" in reasons(play)

    @pytest.mark.parametrize("by", [LOOP, WORKER])
    def test_without_a_usable_dispatch_it_is_counted_and_never_an_alarm(
        self, play: Playbook, by: int
    ) -> None:
        event = life().delivered(40).freed_in_batch(50, by, flags=RecordFlag.NOT_JUDGED)
        play >> attached(plan(dispatch=0)) >> event
        play << info("freed-in-open-batch", "uncertain", sub_class="not-judged", sites=())
        assert "name the handler as `dispatch` in the profile" in reasons(play)
        assert "still names the slot" not in reasons(play)

    def test_events_that_other_functions_answer_are_not_judged(self, play: Playbook) -> None:
        event = life().delivered(40).freed_in_batch(50, flags=RecordFlag.NOT_JUDGED)
        play >> attached() >> event << info("freed-in-open-batch", "uncertain", sub_class="not-judged")
        assert "by other functions than the profile's `dispatch`" in reasons(play)

    def test_what_was_not_judged_is_counted_by_the_total_that_it_carries(self, play: Playbook) -> None:
        """The kernel side tells at each doubling how many there were of the target so far, in `arg`."""
        play >> attached(plan(dispatch=0))
        for total, by in ((1, LOOP), (2, WORKER), (4, LOOP), (4, LOOP), (64, LOOP)):
            story = life(SLOT + 64 * total).delivered(40)
            play.correlator.feed(story.freed_in_batch(50, by, flags=RecordFlag.NOT_JUDGED, arg=total))
        (group,) = play.correlator.findings()
        assert (group.count, group.sub_classes) == (64, {"not-judged": 64})
        play >> attached(plan(dispatch=0), ts=100)  # another program under the same number
        again = life().delivered(140).freed_in_batch(150, flags=RecordFlag.NOT_JUDGED, arg=64)
        play.correlator.feed(again)
        assert play.correlator.findings()[0].count == 128

    def test_uncertain_after_a_wait_on_another_instance(self, play: Playbook) -> None:
        event = life().delivered(40).freed_in_batch(50, flags=RecordFlag.NESTED)
        play >> attached() >> event << warning("freed-in-open-batch", "uncertain")
        assert "the thread has waited on another instance since" in reasons(play)

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
