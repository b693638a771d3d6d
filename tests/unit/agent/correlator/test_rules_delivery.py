# stale-delivery, recycled-delivery, stale-dispatch, hot-redelivery: fires, does not fire, cannot conclude.
from __future__ import annotations

from dataclasses import replace

import pytest

from agent.correlator.findings import Finding
from agent.report import update
from agent.text import plain as as_text
from probes.abi import RecordFlag, RegFlag, RegState, SlotFlag, SlotState
from probes.events import FdinfoChecked, Lost, Moment
from tests.unit.agent.correlator.playbook import (
    EPFD,
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLONESHOT,
    EPOLLOUT,
    LOOP,
    SITES,
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

SECOND = 1_000_000_000


def reasons(play: Playbook) -> str:
    assert play.last is not None
    return "; ".join(play.last.reasons)


def unasked() -> Life:
    """A destroyed life whose registration nothing is known of: no answer of the kernel confirms anything."""
    story = life().destroyed(50)
    story.reg = None
    return story


class TestStaleDelivery:
    def test_the_kernel_had_the_registration(self, play: Playbook) -> None:
        (
            play
            >> attached()
            >> life().destroyed(50).stale_delivery(70)
            << critical("stale-delivery", "confirmed")
        )
        assert "the kernel had the registration of fd 9 with instance 5 when it was delivered" in reasons(
            play
        )

    def test_who_keeps_a_closed_fd_open_is_said(self, play: Playbook) -> None:
        story = life().dupped(30, fd=12, by=WORKER).closed(40, shared=True).destroyed(50)
        play >> attached() >> story.stale_delivery(70) << critical("stale-delivery", "confirmed")
        assert play.last is not None
        assert [a.role for a in play.last.actors] == [
            "registered",
            "duplicated",
            "closed",
            "destroyed",
            "delivered",
        ]
        assert "kept open by fd 12, its duplicate" in reasons(play)

    def test_without_btf_nothing_is_more_than_inferred(self, play: Playbook) -> None:
        story = life().registration(flags=RegFlag.NOT_ASKED).destroyed(50)
        play >> attached() >> story.stale_delivery(70) << critical("stale-delivery", "inferred")

    def test_an_event_of_a_registration_that_nobody_saw_is_uncertain(self, play: Playbook) -> None:
        """As io_uring makes them: the slot's memory may be another object's by now."""
        never = life().has(add=Moment()).destroyed(50)
        never.reg = None
        play >> attached() >> never.stale_delivery(70, wait=60) << warning("stale-delivery", "uncertain")
        assert "no registration of this slot was seen" in reasons(play)

    def test_a_removed_registration_brings_no_event_of_a_later_wait(self, play: Playbook) -> None:
        story = life().removed(40).destroyed(50)
        play >> attached() >> story.stale_delivery(70, wait=60) << warning("stale-delivery", "uncertain")
        assert "was over before the wait began" in reasons(play)

    def test_but_memory_that_is_still_free_is_nobody_elses(self, play: Playbook) -> None:
        story = life().removed(40).destroyed(50)
        play >> attached() >> story.stale_delivery(70, wait=60, memory=freed_bytes())
        play << critical("stale-delivery", "confirmed")

    def test_destroyed_before_the_wait_is_a_later_batch(self, play: Playbook) -> None:
        play >> attached() << nothing
        play >> life().closed(40, WORKER).destroyed(50).stale_delivery(70, wait=60)
        play << critical("stale-delivery", sub_class="later-batch", window_ns=20, update=False, count=1)

    def test_destroyed_inside_the_wait_is_concurrent(self, play: Playbook) -> None:
        play >> attached() >> life().closed(40, WORKER).destroyed(65).stale_delivery(70, wait=60)
        play << critical("stale-delivery", sub_class="concurrent", window_ns=5)

    def test_the_chain_names_all_four_actors_in_time_order_with_gaps(self, play: Playbook) -> None:
        play >> attached() >> life().closed(40, WORKER).destroyed(50).stale_delivery(70)
        play << critical("stale-delivery")
        assert play.last is not None
        chain = [(a.role, a.moment.ts, a.moment.tid, a.gap_ns) for a in play.last.actors]
        assert chain == [
            ("registered", 20, LOOP, None),
            ("closed", 40, WORKER, 20),
            ("destroyed", 50, LOOP, 10),
            ("delivered", 70, LOOP, 20),
        ]
        assert [(s.role, s.address) for s in play.last.sites] == [
            ("registered", SITES["add"]),
            ("closed", SITES["close"]),
            ("destroyed", SITES["destroy"]),
        ]

    def test_overlapping_calls_of_two_threads_are_called_concurrent(self, play: Playbook) -> None:
        story = life().closed(55, WORKER, began=45).destroyed(50, LOOP)
        play >> attached() >> story.stale_delivery(70)
        play << critical("stale-delivery")
        assert play.last is not None
        assert [(a.role, a.concurrent) for a in play.last.actors] == [
            ("registered", False),
            ("destroyed", False),
            ("closed", True),
            ("delivered", False),
        ]

    def test_memory_that_looks_freed_confirms(self, play: Playbook) -> None:
        play >> attached() >> unasked().stale_delivery(70, memory=freed_bytes())
        play << critical("stale-delivery", "confirmed")

    @pytest.mark.parametrize(
        "memory",
        [
            b"\xaa" * 64,  # created and not yet written: the link is 0xaa too
            freed_bytes()[:63] + b"\0",
            freed_bytes()[:16],  # too little to say anything
            b"\0" * 64,
            b"",
        ],
    )
    def test_other_memory_does_not_confirm(self, play: Playbook, memory: bytes) -> None:
        play >> attached() >> unasked().stale_delivery(70, memory=memory)
        play << critical("stale-delivery", "observed", memory=memory)

    def test_bytes_behind_the_slot_belong_to_a_neighbour(self, play: Playbook) -> None:
        play >> attached() >> unasked().stale_delivery(70, memory=freed_bytes() + b"neighbour")
        play << critical("stale-delivery", "confirmed")

    def test_a_link_to_a_known_slot_confirms_in_a_build_that_does_not_fill(self, play: Playbook) -> None:
        other = life(SLOT + 0x100, fd=8).destroyed(49).ended()
        memory = (SLOT + 0x100).to_bytes(8, "little") + b"\x01" * 56
        play >> attached() >> other << nothing
        (play >> unasked().stale_delivery(70, memory=memory) << critical("stale-delivery", "confirmed"))

    def test_fdinfo_read_after_the_destroy_agrees(self, play: Playbook) -> None:
        check = FdinfoChecked(ts=55, tgid=TGID, epfd=EPFD, fd=9, userdata=SLOT, present=True)
        story = life().registration(flags=RegFlag.NOT_ASKED).destroyed(50)
        play >> attached() >> check >> story.stale_delivery(70)
        play << critical("stale-delivery", "inferred")
        assert play.last is not None
        assert any("fdinfo" in reason for reason in play.last.reasons)

    def test_fdinfo_read_before_the_destroy_says_nothing(self, play: Playbook) -> None:
        check = FdinfoChecked(ts=45, tgid=TGID, epfd=EPFD, fd=9, userdata=SLOT, present=True)
        story = life().registration(flags=RegFlag.NOT_ASKED).destroyed(50)
        play >> attached() >> check >> story.stale_delivery(70)
        play << critical("stale-delivery", "inferred")

    def test_a_slot_from_before_the_attach_is_inferred(self, play: Playbook) -> None:
        play >> attached() >> unasked().flagged(SlotFlag.INFERRED).stale_delivery(70)
        play << critical("stale-delivery", "inferred")

    def test_a_loss_inside_the_chain_makes_it_uncertain(self, play: Playbook) -> None:
        play >> attached() >> Lost(ts=30, what="slots-map-full", count=1, since=25) << nothing
        play >> life().destroyed(50).stale_delivery(70) << warning("stale-delivery", "uncertain")
        assert play.last is not None
        assert play.last.title.startswith("cannot conclude")

    @pytest.mark.parametrize(
        "lost",
        [
            Lost(ts=15, what="slots-map-full", count=1, since=5),  # over before the slot's birth at 18
            Lost(ts=80, what="slots-map-full", count=1, since=71),
            Lost(ts=30, what="recorder", count=9, since=25),  # the kernel side judges from its maps
            Lost(ts=30, what="urgent", count=9, since=25),
            Lost(ts=30, what="progress-not-watched", count=1, since=25),  # a spin may be missed, no more
            Lost(ts=30, what="slots-map-full", count=0, since=25),
        ],
    )
    def test_a_loss_elsewhere_does_not(self, play: Playbook, lost: Lost) -> None:
        story = Life().created(18).added(20).destroyed(50)
        play >> attached() >> lost >> story.stale_delivery(70) << critical("stale-delivery", "confirmed")

    def test_an_unknown_start_of_the_loss_reaches_back_to_the_attach(self, play: Playbook) -> None:
        play >> attached() >> Lost(ts=15, what="registrations-map-full", count=1, since=0)
        play >> life().destroyed(50).stale_delivery(70) << warning("stale-delivery", "uncertain")

    def test_an_unprobed_create_leaves_it_certain(self, play: Playbook) -> None:
        play >> attached(plan(unprobed=("create",))) >> life().destroyed(50).stale_delivery(70)
        play << critical("stale-delivery", "confirmed")

    def test_a_guarded_program_counts_it_as_info(self, play: Playbook) -> None:
        play >> attached(plan(guard="generation bits")) >> life().destroyed(50).stale_delivery(70)
        play << info("stale-delivery", "confirmed")

    @pytest.mark.parametrize(
        "story",
        [
            life(),  # never destroyed
            life().destroyed(50).has(state=SlotState.LIVE),
            life().destroyed(90),  # after the delivery: impossible
        ],
    )
    def test_contradicting_evidence_concludes_nothing(self, play: Playbook, story: Life) -> None:
        play >> attached() >> story.stale_delivery(70) << warning("stale-delivery", "uncertain")

    def test_nothing_known_of_the_slot_concludes_nothing(self, play: Playbook) -> None:
        bare = replace(life().destroyed(50).stale_delivery(70), slot=None, reg=None)
        play >> attached() >> bare << warning("stale-delivery", "uncertain", slot=0)
        assert play.last is not None
        assert [a.moment.seen for a in play.last.actors] == [False, False, True]

    def test_what_a_run_still_owed_names_the_thread_that_got_it(self, play: Playbook) -> None:
        story = life().destroyed(50).has(last_tid=LOOP)
        owed = replace(story.stale_delivery(70, stale=9, by=WORKER), wait_enter=0, wait_exit=0)
        (
            play
            >> attached()
            >> owed
            << critical("stale-delivery", "confirmed", count=9, sub_class="later-batch")
        )
        assert play.last is not None
        assert (play.last.actors[-1].moment.tid, play.last.actors[-1].note) == (LOOP, "last of several")


class TestRecycledDelivery:
    def old_and_new(self, **current: int) -> Life:
        """A registration that survived its slot; the next generation registers as well."""
        return life().closed(30, shared=True).destroyed(40).reborn(50).with_current(60, **current)

    def test_critical_when_the_new_generation_has_no_registration(self, play: Playbook) -> None:
        story = life().closed(30, shared=True).destroyed(40).reborn(50)
        (
            play
            >> attached()
            >> story.recycled_delivery(70)
            << critical("recycled-delivery", "confirmed", generation=2)
        )
        assert play.last is not None
        assert [c.role for c in play.last.candidates] == ["older"]

    def test_who_keeps_the_survivor_alive_is_said(self, play: Playbook) -> None:
        story = life().dupped(25, fd=12).closed(30, shared=True).destroyed(40).reborn(50)
        play >> attached() >> story.recycled_delivery(70, forks=1, last_child=4711)
        play << critical("recycled-delivery", "confirmed")
        assert "kept open by fd 12, its duplicate" in reasons(play)

    def test_uncertain_when_both_can_have_caused_it_and_both_are_named(self, play: Playbook) -> None:
        play >> attached() >> self.old_and_new().recycled_delivery(70)
        play << warning("recycled-delivery", "uncertain")
        assert play.last is not None
        assert [(c.role, c.generation, c.fd) for c in play.last.candidates] == [
            ("older", 1, 9),
            ("current", 2, 12),
        ]

    def test_critical_when_the_new_mask_cannot_produce_the_events(self, play: Playbook) -> None:
        play >> attached() >> self.old_and_new(events=EPOLLOUT).recycled_delivery(70)
        play << critical("recycled-delivery", "confirmed")

    @pytest.mark.parametrize("events", [EPOLLERR, EPOLLHUP])
    def test_error_and_hangup_need_no_mask(self, play: Playbook, events: int) -> None:
        play >> attached() >> self.old_and_new(events=EPOLLOUT).recycled_delivery(70, events=events)
        play << warning("recycled-delivery", "uncertain")

    def test_critical_when_the_new_one_is_a_consumed_one_shot(self, play: Playbook) -> None:
        play >> attached() >> self.old_and_new(events=EPOLLONESHOT).recycled_delivery(70)
        play << critical("recycled-delivery", "confirmed")

    def test_an_armed_one_shot_can_have_caused_it(self, play: Playbook) -> None:
        play >> attached() >> self.old_and_new(events=EPOLLONESHOT | EPOLLIN).recycled_delivery(70)
        play << warning("recycled-delivery", "uncertain")

    def test_critical_when_the_new_one_ended_before_the_wait(self, play: Playbook) -> None:
        story = self.old_and_new()
        story.other = replace(story.other, state=RegState.ENDED, end=Moment(61, 62, 0, LOOP, -1))
        (
            play
            >> attached()
            >> story.recycled_delivery(70, wait=65)
            << critical("recycled-delivery", "confirmed")
        )

    def test_an_end_inside_the_wait_is_concurrent_and_excludes_nothing(self, play: Playbook) -> None:
        story = self.old_and_new()
        story.other = replace(story.other, state=RegState.ENDED, end=Moment(64, 66, 0, WORKER, -1))
        play >> attached() >> story.recycled_delivery(70, wait=65)
        play << warning("recycled-delivery", "uncertain")

    def test_a_mask_changed_inside_the_wait_excludes_nothing(self, play: Playbook) -> None:
        story = self.old_and_new(events=EPOLLOUT)
        story.other = replace(story.other, mod=Moment(64, 66, 0, WORKER, -1))
        play >> attached() >> story.recycled_delivery(70, wait=65)
        play << warning("recycled-delivery", "uncertain")

    def test_critical_when_the_new_one_is_of_another_epoll_instance(self, play: Playbook) -> None:
        story = self.old_and_new()
        story.other = replace(story.other, epfd=EPFD + 1)
        play >> attached() >> story.recycled_delivery(70) << critical("recycled-delivery", "confirmed")

    def test_a_new_one_whose_removal_is_in_flight_may_be_the_cause(self, play: Playbook) -> None:
        story = self.old_and_new()
        story.other = None  # the kernel side names only a registration that is not ending
        play >> attached() >> story.recycled_delivery(70) << warning("recycled-delivery", "uncertain")

    def test_a_new_one_that_was_removed_before_the_wait_is_not(self, play: Playbook) -> None:
        story = self.old_and_new().has(removed=Moment(61, 62, 0, LOOP, -1)).flagged(SlotFlag.DELETED)
        story.other = None
        (
            play
            >> attached()
            >> story.recycled_delivery(70, wait=65)
            << critical("recycled-delivery", "confirmed")
        )

    def test_a_removal_that_failed_removed_nothing(self, play: Playbook) -> None:
        story = self.old_and_new().has(removed=Moment(61, 62, 0, LOOP, -1))
        story.other = None
        play >> attached() >> story.recycled_delivery(70, wait=65)
        play << warning("recycled-delivery", "uncertain")

    def test_a_second_delivery_in_one_batch_is_the_older_ones(self, play: Playbook) -> None:
        story = self.old_and_new().has(batch_count=2)
        play >> attached() >> story.recycled_delivery(70, batch=3)
        play << warning("recycled-delivery", "uncertain")
        (
            play
            >> story.recycled_delivery(70, n=2, batch=3)
            << critical("recycled-delivery", "confirmed", count=1)
        )
        (
            play
            >> story.recycled_delivery(80, n=3, batch=4)
            << warning("recycled-delivery", "uncertain", count=2)
        )

    def test_no_finding_when_only_the_new_one_can_have_caused_it(self, play: Playbook) -> None:
        story = self.old_and_new().registration(events=EPOLLOUT)
        play >> attached() >> story.recycled_delivery(70) << nothing
        assert play.correlator.stats.dropped == {"explained-by-current-registration": 1}

    def test_uncertain_when_neither_can(self, play: Playbook) -> None:
        story = self.old_and_new(events=EPOLLOUT).registration(events=EPOLLOUT)
        play >> attached() >> story.recycled_delivery(70) << warning("recycled-delivery", "uncertain")

    def test_uncertain_when_the_registration_is_not_older(self, play: Playbook) -> None:
        play >> attached() >> life().recycled_delivery(70) << warning("recycled-delivery", "uncertain")

    def test_a_loss_makes_it_uncertain(self, play: Playbook) -> None:
        story = life().closed(30, shared=True).destroyed(40).reborn(50)
        play >> attached() >> Lost(ts=55, what="registrations-map-full", count=1, since=52)
        play >> story.recycled_delivery(70) << warning("recycled-delivery", "uncertain")

    def test_without_btf_the_survivor_is_inferred(self, play: Playbook) -> None:
        story = life().registration(flags=RegFlag.NOT_ASKED).closed(30, shared=True).destroyed(40).reborn(50)
        play >> attached() >> story.recycled_delivery(70) << critical("recycled-delivery", "inferred")

    def test_fdinfo_agrees_with_the_survivor(self, play: Playbook) -> None:
        story = life().registration(flags=RegFlag.NOT_ASKED).closed(30, shared=True).destroyed(40).reborn(50)
        check = FdinfoChecked(ts=45, tgid=TGID, epfd=EPFD, fd=9, userdata=SLOT, present=True)
        play >> attached() >> check >> story.recycled_delivery(70)
        play << critical("recycled-delivery", "inferred")


class TestStaleDispatch:
    def test_a_null_object(self, play: Playbook) -> None:
        play >> attached() >> life().delivered(45).destroyed(50).stale_dispatch(60, 0)
        play << critical("stale-dispatch", sub_class="null-object", window_ns=10)
        assert play.last is not None
        roles = [a.role for a in play.last.actors]
        assert roles == ["registered", "delivered", "destroyed", "dispatched"]

    def test_an_object_of_a_freed_slot(self, play: Playbook) -> None:
        play >> attached() >> life().destroyed(50).stale_dispatch(60, 0x7F00_0000_9000)
        play << critical("stale-dispatch", sub_class="freed-object")

    def test_a_fill_pattern_as_object(self, play: Playbook) -> None:
        play >> attached() >> life().destroyed(50).stale_dispatch(60, 0xAAAA_AAAA_AAAA_AAAA)
        play << critical("stale-dispatch", sub_class="garbage-object")

    def test_uncertain_when_the_slot_lives(self, play: Playbook) -> None:
        play >> attached() >> life().stale_dispatch(60, 0x7F00_0000_9000)
        play << warning("stale-dispatch", "uncertain")

    def test_uncertain_when_a_create_may_have_been_missed(self, play: Playbook) -> None:
        (
            play
            >> attached(plan(unprobed=("create",)))
            >> life().destroyed(50).stale_dispatch(60, 0x7F00_0000_9000)
        )
        play << warning("stale-dispatch", "uncertain")

    def test_a_null_object_is_certain_even_then(self, play: Playbook) -> None:
        play >> attached(plan(unprobed=("create",))) >> life().destroyed(50).stale_dispatch(60, 0)
        play << critical("stale-dispatch")

    def test_a_null_object_with_no_slot_that_was_freed_is_uncertain(self, play: Playbook) -> None:
        play >> attached() >> replace(life().stale_dispatch(60, 0), slot=None, reg=None)
        play << warning("stale-dispatch", "uncertain")

    def test_uncertain_when_an_object_has_no_known_slot(self, play: Playbook) -> None:
        play >> attached() >> replace(life().stale_dispatch(60, 0x7F00_0000_9000), slot=None)
        play << warning("stale-dispatch", "uncertain")

    def test_it_follows_the_stale_delivery_of_the_same_slot_and_batch(self, play: Playbook) -> None:
        (
            play
            >> attached()
            >> life().destroyed(50).stale_delivery(70, batch=3)
            << critical("stale-delivery", "confirmed")
        )
        assert play.last is not None
        group = play.last.group
        play >> life().destroyed(50).stale_dispatch(71, 0, batch=3) << critical("stale-dispatch", chain=group)

    def test_running_totals_are_counted_once(self, play: Playbook) -> None:
        story = life().destroyed(50)
        play >> attached() >> story.has(stale_dispatches=2).stale_dispatch(60, 0)
        play << critical("stale-dispatch", count=2)
        play >> story.has(stale_dispatches=8).stale_dispatch(61, 0) << critical("stale-dispatch", count=8)

    def test_it_does_not_follow_one_of_another_batch(self, play: Playbook) -> None:
        (
            play
            >> attached()
            >> life().destroyed(50).stale_delivery(70, batch=3)
            << critical("stale-delivery", "confirmed")
        )
        play >> life().destroyed(50).stale_dispatch(81, 0, batch=4) << critical("stale-dispatch", chain="")

    def test_a_guard_that_failed_is_no_guard(self, play: Playbook) -> None:
        play >> attached(plan(guard="generation bits")) >> life().destroyed(50).stale_dispatch(60, 0)
        play << critical("stale-dispatch")


class TestHotRedelivery:
    def test_first_report_and_rate_since_the_last_progress(self, play: Playbook) -> None:
        story = life().has(first_delivery=1000, idle_since=2000, deliveries=9000)
        play >> attached() >> story.hot(1_026_000, 1024)
        play << warning("hot-redelivery", count=1024, rate=1_000_000.0, fd=9)
        assert "delivered 1024 times in 0.0 s without progress on its file" in reasons(play)

    def test_rate_from_successive_reports_in_one_group(self, play: Playbook) -> None:
        story = life().has(first_delivery=1000, deliveries=5000)
        play >> attached() >> story.hot(2_000_000, 1024) << warning("hot-redelivery", rate=None)
        play >> story.hot(4_048_000, 2048)
        play << warning("hot-redelivery", count=2048, rate=500_000.0, update=True)
        assert len(play.correlator.findings()) == 1

    def test_a_new_run_of_the_same_registration_counts_from_its_start(self, play: Playbook) -> None:
        story = life().has(deliveries=9000)
        play >> attached() >> story.hot(2_000_000, 2048) << warning("hot-redelivery", count=2048)
        play >> story.hot(9_000_000, 1024) << nothing  # 3072: not doubled yet
        assert play.correlator.findings()[0].count == 3072

    def test_a_new_run_that_gets_as_far_counts_as_well_and_the_total_is_a_lower_bound(
        self, play: Playbook
    ) -> None:
        """Told at doublings: what came after the last one, before the run ended, was told to nobody."""
        story = life().has(deliveries=9000, idle_since=1_000)
        play >> attached() >> story.hot(2_000_000, 1024) << warning("hot-redelivery", at_least=True)
        play >> story.has(idle_since=3_000_000).hot(9_000_000, 1024)
        play << warning("hot-redelivery", count=2048, update=True)
        (found,) = play.correlator.findings()
        assert (found.count, found.at_least) == (2048, True)
        assert Finding.from_dict(found.to_dict()) == found

    def test_a_total_over_slots_says_of_how_many_and_the_rate_of_which(self, play: Playbook) -> None:
        second = 1_000_000_000
        first, other = life().has(idle_since=second), life(SLOT + 64, fd=8).has(idle_since=second)
        play >> attached() >> first.hot(4 * second, 3000)
        play << warning("hot-redelivery", count=3000, rate=1000.0, slots=1, first_ts=second)
        alone = as_text(update(play.correlator.findings()[0]))
        assert alone.endswith("goes on: at least 3,000 deliveries in 3 s, 1,000/s\n")
        play >> other.hot(4 * second, 6000)
        play << warning("hot-redelivery", count=9000, rate=2000.0, slots=2, first_ts=second, update=True)
        (found,) = play.correlator.findings()
        told = as_text(update(found))
        assert "goes on: at least 9,000 deliveries of 2 slots in 3 s, 2,000/s of slot" in told
        assert told.endswith(f"of slot {SLOT + 64:#x} generation 1\n")
        assert Finding.from_dict(found.to_dict()) == found

    def test_no_duration_of_nothing(self, play: Playbook) -> None:
        play >> attached() >> life().hot(2_000_000, 1024) << warning("hot-redelivery", count=1024)
        (found,) = play.correlator.findings()
        assert as_text(update(found)).endswith("goes on: at least 1,024 deliveries\n")

    def test_the_rest_of_a_count_takes_no_evidence_away(self, play: Playbook) -> None:
        """What is read from the maps at the end brings neither the thread's name nor the slot's bytes."""
        story, beside = life(), life(SLOT + 64, fd=8)
        play >> attached() >> story.hot(2_000_000, 1024, memory=b"abc") << warning("hot-redelivery")
        play >> replace(story.hot(9_000_000, 4096), comm="", memory=b"", rest=True)
        play << warning("hot-redelivery", count=4096, comm="loop", memory=b"abc", update=True)
        play >> replace(beside.hot(9_500_000, 8192), comm="", memory=b"", rest=True)
        play << warning("hot-redelivery", count=12288, comm="loop", memory=b"abc", slot=SLOT, update=True)

    @pytest.mark.parametrize(("what", "bounded"), [("urgent", True), ("recorder", False)])
    def test_a_total_is_a_lower_bound_where_messages_of_it_were_lost(
        self, play: Playbook, what: str, bounded: bool
    ) -> None:
        story = life().added(20).closed(25, shared=True).destroyed(30)
        (
            play
            >> attached()
            >> story.stale_delivery(40)
            << critical("stale-delivery", "confirmed", at_least=False)
        )
        play >> Lost(ts=90, what=what, count=3, since=85)
        assert [found.at_least for found in play.correlator.findings()] == [bounded]

    @pytest.mark.parametrize(("seconds", "severe"), [(59.9, False), (60, True), (600, True)])
    def test_a_core_spun_for_a_minute_is_high(self, play: Playbook, seconds: float, severe: bool) -> None:
        story = life().has(idle_since=1000)
        play >> attached() >> story.hot(1000 + int(seconds * SECOND), 1 << 20)
        play << (high if severe else warning)("hot-redelivery", count=1 << 20)
        assert f"in {seconds:.1f} s without progress" in reasons(play)

    def test_only_hang_up_is_reported_and_no_call_can_answer_it(self, play: Playbook) -> None:
        play >> attached() >> life().hot(2_000_000, 1024, flags=RecordFlag.HOPELESS)
        play << warning("hot-redelivery")
        assert "no call can make progress on it: only EPOLLHUP or EPOLLERR is reported" in reasons(play)

    def test_a_closed_fd_that_spins_names_the_close_and_who_keeps_it_open(self, play: Playbook) -> None:
        story = life().dupped(30, fd=12, by=WORKER).closed(40, shared=True)
        play >> attached() >> story.hot(2_000_000, 1024, flags=RecordFlag.HOPELESS)
        play << warning("hot-redelivery")
        assert "no call can make progress on it: its fd is closed" in reasons(play)
        assert "kept open by fd 12, its duplicate" in reasons(play)
        assert play.last is not None
        assert [a.role for a in play.last.actors] == ["registered", "duplicated", "closed", "delivered"]

    def test_of_one_closed_before_the_attach_the_events_are_not_called_hang_ups(self, play: Playbook) -> None:
        """Its bytes are those of a freed slot: nobody saw the destroy, and a live slot they are not."""
        story = life().added(20).flagged(SlotFlag.INFERRED | SlotFlag.CLOSED)
        story.registration(flags=RegFlag.INFERRED)
        spin = story.hot(2_000_000, 1024, flags=RecordFlag.HOPELESS, memory=freed_bytes())
        play >> attached() >> spin << warning("hot-redelivery", "inferred")
        said = reasons(play)
        assert "no call can make progress on it: its fd is closed, since before the attach" in said
        assert "it may have been destroyed before the attach" in said
        assert "alive" not in said
        assert "HUP" not in said

    def test_a_late_attach_says_that_since_when_cannot_be_known(self, play: Playbook) -> None:
        story = life().flagged(SlotFlag.INFERRED).registration(flags=RegFlag.INFERRED)
        play >> attached() >> story.hot(2_000_000, 1024) << warning("hot-redelivery", "inferred")
        assert "since when it spins cannot be known" in reasons(play)

    def test_edge_triggered_does_not_spin(self, play: Playbook) -> None:
        play >> attached() >> life().registration(events=EPOLLIN | 1 << 31).hot(2_000_000, 1024) << nothing

    @pytest.mark.parametrize("mode", [1 << 30, 1 << 29, 1 << 28])
    def test_wakeup_exclusive_and_one_shots_armed_again_are_level_triggered(
        self, play: Playbook, mode: int
    ) -> None:
        play >> attached() >> life().registration(events=EPOLLIN | mode).hot(2_000_000, 1024)
        play << warning("hot-redelivery")

    def test_uncertain_when_nothing_is_known(self, play: Playbook) -> None:
        play >> attached() >> replace(life().hot(2_000_000, 1024), slot=None, reg=None)
        play << warning("hot-redelivery", "uncertain")
