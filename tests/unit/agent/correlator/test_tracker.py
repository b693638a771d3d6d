# The mirror over the raw stream: every pattern from records alone, judged by the same rules.
from __future__ import annotations

import dataclasses

import pytest

from agent.correlator import CorrelatorOptions
from agent.correlator.tracker import StreamTracker
from agent.correlator.tracker_state import Process, Reg, Slot
from probes.abi import Kind, RegState, Signature, SlotFlag, Suspect
from probes.events import LifetimeEnded, LifetimesCounted, Lost, StackSeen, SuspicionRaised, Tick
from tests.unit.agent.correlator.playbook import (
    BIAS,
    EPFD,
    EPOLLIN,
    EPOLLOUT,
    LOOP,
    SITES,
    SLOT,
    TGID,
    WORKER,
    Playbook,
    attached,
    critical,
    high,
    life,
    nothing,
    plan,
    warning,
)
from tests.unit.agent.correlator.tape import Tape

OTHER = SLOT + 0x40


@pytest.fixture
def play() -> Playbook:
    playbook = Playbook(CorrelatorOptions(judge_stream=True))
    playbook.correlator.feed(attached())
    return playbook


def alive(fd: int = 9, slot: int = SLOT) -> Tape:
    return Tape().waits().created(slot).added(fd, slot)


def suspects(tape: Tape) -> list[Suspect]:
    tracker = StreamTracker()
    tracker.attach(TGID, None, 0)
    return [e.suspect for e in tracker.feed(tape.take().records) if isinstance(e, SuspicionRaised)]


class TestRules:
    def test_a_clean_life(self, play: Playbook) -> None:
        play >> alive().delivered().dispatched(0x9000).removed(9).closed(9).destroyed().take() << nothing
        (row,) = play.correlator.census.rows()
        assert (row.steps, row.count) == ("ADD@loop · deliver · DEL@loop · CLOSE@loop · DESTROY@loop", 1)

    def test_stale_delivery_in_a_later_batch(self, play: Playbook) -> None:
        play >> alive().delivered().dispatched(0x9000).closed(9).destroyed().delivered().take()
        play << critical("stale-delivery", sub_class="later-batch", slot=SLOT, generation=1)
        assert play.last is not None
        assert [a.role for a in play.last.actors] == ["registered", "closed", "destroyed", "delivered"]

    def test_stale_delivery_inside_the_wait(self, play: Playbook) -> None:
        tape = alive().delivered().closed(9)
        tape.raw(Kind.BATCH_CLOSED, tid=LOOP, epfd=EPFD, arg=1)
        entered = tape.now
        tape.destroyed(by=WORKER)
        tape.batches[LOOP] = 0
        tape.delivered()._patch(enter=entered, stack=2)
        play >> tape.take() << critical("stale-delivery", sub_class="concurrent")

    def test_recycled_delivery_before_the_new_registration(self, play: Playbook) -> None:
        tape = alive().dup(9, 20).closed(9).destroyed().created().delivered()
        play >> tape.take()
        (
            play
            << high("description-outlives-close")
            << high("freed-while-registered", sub_class="closed-but-shared")
        )
        play << critical("recycled-delivery", generation=2)

    def test_recycled_delivery_that_both_can_have_caused(self, play: Playbook) -> None:
        tape = alive().dup(9, 20).closed(9).destroyed().created().added(12).delivered()
        play >> tape.take() << high("description-outlives-close") << high("freed-while-registered")
        play << warning("recycled-delivery", "uncertain")

    def test_recycled_delivery_that_the_new_mask_excludes(self, play: Playbook) -> None:
        tape = alive().dup(9, 20).closed(9).destroyed().created().added(12, arg=EPOLLOUT).delivered()
        play >> tape.take() << high("description-outlives-close") << high("freed-while-registered")
        play << critical("recycled-delivery")

    def test_two_deliveries_in_one_batch(self, play: Playbook) -> None:
        tape = alive().dup(9, 20).closed(9).destroyed().created().added(12).delivered(SLOT, SLOT)
        play >> tape.take() << high("description-outlives-close") << high("freed-while-registered")
        play << warning("recycled-delivery", "uncertain", count=1) << critical("recycled-delivery", count=1)

    def test_both_deliveries_of_a_batch_want_a_dispatch(self, play: Playbook) -> None:
        tape = alive().delivered(SLOT, SLOT).dispatched(0x9000).closed(9).destroyed()
        play >> tape.take() << high("freed-in-open-batch")
        tape = alive().delivered(SLOT, SLOT).dispatched(0x9000).dispatched(0x9000).closed(9).destroyed()
        play >> tape.take() << nothing

    def test_the_last_close_of_the_description_ends_it(self, play: Playbook) -> None:
        tape = alive().dup(9, 20).closed(9).closed(20).destroyed().created().added(12).delivered()
        play >> tape.take() << high("description-outlives-close") << nothing

    def test_stale_dispatch_follows_the_stale_delivery(self, play: Playbook) -> None:
        tape = alive().closed(9).destroyed().delivered().dispatched(0, known=False)
        play >> tape.take() << critical("stale-delivery")
        assert play.last is not None
        play << critical("stale-dispatch", chain=play.last.group, sub_class="null-object")

    def test_dispatch_of_a_live_slot(self, play: Playbook) -> None:
        play >> alive().delivered().dispatched(0x7F00_0000_9000).take() << nothing

    def test_double_destroy(self, play: Playbook) -> None:
        play >> alive().closed(9).destroyed().destroyed().take() << critical("double-destroy")

    def test_aliased_slot(self, play: Playbook) -> None:
        play >> alive().added(12).take() << critical("aliased-slot", fd=12)

    def test_an_add_that_failed_aliases_nothing(self, play: Playbook) -> None:
        play >> alive().added(12, ret=-17).take() << nothing

    def test_freed_while_registered(self, play: Playbook) -> None:
        play >> alive().destroyed().take() << high("freed-while-registered", sub_class="never-closed")

    def test_a_close_in_flight_is_not_called_registered(self, play: Playbook) -> None:
        play >> alive().closing(9, WORKER).destroyed().take() << nothing

    def test_freed_in_an_open_batch(self, play: Playbook) -> None:
        play >> alive().delivered().closed(9).destroyed().take() << high("freed-in-open-batch")

    def test_not_when_dispatched(self, play: Playbook) -> None:
        play >> alive().delivered().dispatched(0x9000).closed(9).destroyed().take() << nothing

    def test_not_when_the_slot_changed_hands(self, play: Playbook) -> None:
        play >> alive().delivered().closed(9).destroyed(holds_object=False).take() << nothing

    def test_not_when_the_batch_is_over(self, play: Playbook) -> None:
        tape = alive().delivered().delivered(OTHER).closed(9).destroyed()
        play >> tape.take() << nothing

    @pytest.mark.parametrize(("by", "fires"), [(LOOP, False), (WORKER, True)])
    def test_without_a_dispatch_probe_only_another_thread_counts(self, by: int, fires: bool) -> None:
        playbook = Playbook(CorrelatorOptions(judge_stream=True))
        playbook >> attached(plan(dispatch=0)) >> alive().delivered().closed(9).destroyed(by=by).take()
        rules = [f.rule.value for f in playbook.pending]
        assert rules == (["freed-in-open-batch"] if fires else [])

    def test_failed_removal(self, play: Playbook) -> None:
        play >> alive().closed(9).removed(9, ret=-9).take()
        play << high("failed-removal", sub_class="bad-descriptor")

    def test_bad_close(self, play: Playbook) -> None:
        play >> alive().close_fails(9).take() << high("bad-close", fd=9)

    def test_hot_redelivery_and_its_count(self, play: Playbook) -> None:
        tape = alive()
        for n in range(64):
            tape.delivered(repeats=n)
        for n in (64, 128, 256, 512, 1024, 2048):
            tape.batches[LOOP] = n
            tape.delivered(repeats=n)
        play >> tape.take() << warning("hot-redelivery", count=1024) << warning("hot-redelivery", count=2048)

    def test_a_read_ends_the_run(self, play: Playbook) -> None:
        tape = alive()
        tape.delivered(repeats=512).read().delivered(repeats=1)
        play >> tape.take() << nothing

    def test_a_leak_is_found_at_a_tick(self, play: Playbook) -> None:
        play >> alive().closed(9).take() << nothing
        play >> Tick(ts=20_000_000_000) << nothing
        play >> Tick(ts=40_000_000_000) << warning("leaked-slot")

    def test_what_the_kernel_side_says_is_ignored(self, play: Playbook) -> None:
        play >> life().destroyed(50).stale_delivery(70) << nothing
        play >> life().closed(40, WORKER).destroyed(50).ended() << nothing
        play >> LifetimesCounted(ts=1, counts={int(Signature.AFTER_CLOSE): 5}) << nothing
        assert play.correlator.stats.ignored_suspicions == 1

    def test_implicit_removal_and_near_miss(self, play: Playbook) -> None:
        tape = (
            alive().delivered().delivered(OTHER).closed(9, WORKER).delivered().dispatched(0x9000).destroyed()
        )
        play >> tape.take() << warning("delivery-after-close") << warning("implicit-removal")


class TestRunsOfDeliveries:
    """The stream records the 65th and later deliveries of a run at powers of two only."""

    def stale(self, tape: Tape) -> list[int]:
        tracker = StreamTracker()
        tracker.attach(TGID, None, 0)
        noticed = tracker.feed(tape.take().records)
        return [
            e.slot.stale
            for e in noticed
            if isinstance(e, SuspicionRaised) and e.suspect is Suspect.STALE_DELIVERY and e.slot is not None
        ]

    def test_what_was_left_out_is_counted_by_the_batch_numbers(self) -> None:
        tape = alive().closed(9).destroyed()
        for n in range(65):
            tape.delivered(repeats=n)
        tape.batches[LOOP] = 128
        tape.delivered(repeats=128)
        assert self.stale(tape)[-1] == 129

    def test_a_run_that_broke_off_says_how_many_went_unrecorded(self) -> None:
        tape = alive().closed(9).destroyed()
        for n in range(65):
            tape.delivered(repeats=n)
        tape.batches[LOOP] = 300
        tape.delivered(repeats=-35)
        assert self.stale(tape)[-1] == 65 + 35 + 1

    def test_a_slot_that_gets_its_next_life_reports_what_it_owes(self) -> None:
        tape = alive().closed(9).destroyed()
        for n in range(6):
            tape.delivered(repeats=n)
        assert self.stale(tape.created()) == [1, 2, 4, 6]


class TestForks:
    def test_a_close_while_a_child_may_share_is_no_finding_without_fdinfo(self, play: Playbook) -> None:
        play >> alive().forked(5000).closed(9).destroyed().take() << nothing
        assert play.correlator.stats.dropped == {"unconfirmed-fork-shared": 1}

    def test_after_the_exec_a_close_is_a_close(self, play: Playbook) -> None:
        play >> alive().forked(5000).fork_ended(5000).closed(9).destroyed().take() << nothing
        assert play.correlator.stats.dropped == {}

    def test_what_only_a_child_kept_is_forgotten_at_the_next_birth(self) -> None:
        tracker = StreamTracker()
        tape = alive().forked(5000).closed(9).destroyed()
        tracker.feed(tape.take().records)
        assert len(tracker._processes[TGID].orphans) == 1
        tracker.feed(tape.fork_ended(5000).created().take().records)
        assert len(tracker._processes[TGID].orphans) == 0

    def test_the_end_of_an_unknown_child_makes_no_process(self) -> None:
        tracker = StreamTracker()
        tracker.feed(Tape().fork_ended(5000).take().records)
        assert len(tracker._processes) == 0


class TestDescriptorReuse:
    def test_a_close_in_flight_is_the_closers_whoever_gets_the_number(self, play: Playbook) -> None:
        tape = alive().closing(9, WORKER).accepted(9).created(OTHER).added(9, OTHER)
        tape.slot_of[9] = SLOT
        play >> tape.closed(9, WORKER, begun=True).destroyed().take() << warning("implicit-removal")
        (row,) = play.correlator.census.rows()
        assert row.steps == "ADD@loop · CLOSE@worker · DESTROY@loop"

    def test_its_effect_is_on_the_number_s_old_life(self) -> None:
        tape = alive().dup(9, 20).closing(9).dup(30, 9).created(OTHER).added(9, OTHER)
        tape.slot_of[9] = SLOT
        tape.closed(9, begun=True).destroyed().destroyed(OTHER)
        assert suspects(tape) == [Suspect.OUTLIVES_CLOSE, *[Suspect.FREED_REGISTERED] * 2]

    def test_closes_in_flight_are_bounded(self) -> None:
        tracker, tape = StreamTracker(), alive()
        for number in range(5000):
            tape.closing(100 + number, by=WORKER + number)
        tracker.feed(tape.take().records)
        assert len(tracker._processes[TGID].closing) == 4096
        assert tracker.full == 5000 - 4096

    def test_a_close_that_fails_leaves_the_number_to_its_next_owner(self) -> None:
        assert suspects(alive().closing(9).close_fails(9).accepted(9).destroyed()) == [Suspect.BAD_CLOSE]

    def test_dup2_over_a_registered_number_closes_it(self) -> None:
        tape = alive().created(OTHER).added(12, OTHER).closed(9).dup(12, 9).destroyed()
        assert suspects(tape) == []

    def test_close_of_the_duplicate_alone_changes_nothing(self) -> None:
        assert suspects(alive().dup(9, 20).closed(20).destroyed()) == [Suspect.FREED_REGISTERED]


class TestStreamsThatBeginInTheMiddle:
    def test_a_delivery_for_an_unseen_slot(self) -> None:
        tape = Tape().delivered().destroyed().delivered()
        assert suspects(tape) == [Suspect.STALE_DELIVERY]

    def test_a_close_of_an_unseen_registration(self, play: Playbook) -> None:
        tape = Tape().waits()
        tape.slot_of[9] = SLOT
        play >> tape.closed(9, WORKER).destroyed().delivered().take()
        play << warning("implicit-removal", "inferred") << critical("stale-delivery", "inferred")

    def test_a_lost_birth_is_taken_from_the_next_record(self) -> None:
        tape = alive().closed(9).destroyed()
        tape.gens[SLOT] += 1
        assert suspects(tape.delivered()) == []

    def test_a_lost_recorder_window_makes_it_uncertain_here(self, play: Playbook) -> None:
        play >> alive().closed(9).destroyed().take() << nothing
        play >> Lost(ts=1100, what="recorder", count=3, since=1050) << nothing
        tape = Tape(start=1200)
        tape.gens[SLOT] = 1
        play >> tape.delivered().take() << warning("stale-delivery", "uncertain")


class TestRecords:
    def test_stacks_give_calls_their_address(self, play: Playbook) -> None:
        play >> StackSeen(tgid=TGID, id=8, pcs=(SITES["close"] + BIAS, 1)) << nothing
        play >> alive().closed(9).destroyed().delivered().take() << critical("stale-delivery")
        assert play.last is not None
        assert {s.role: s.address for s in play.last.sites}["closed"] == SITES["close"]

    def test_malformed_records_are_counted(self) -> None:
        tracker = StreamTracker()
        assert tracker.feed([(1, 2, 3), ()]) == []
        assert tracker.malformed == 2

    def test_unknown_kinds_are_skipped(self) -> None:
        assert suspects(Tape().raw(200).raw(0)) == []

    def test_exec_forgets_the_process(self) -> None:
        tracker = StreamTracker()
        tracker.attach(TGID, None, 5)
        tracker.feed(alive().raw(Kind.EXECED).take().records)
        assert TGID not in tracker._processes

    def test_an_exec_from_before_the_attach_does_not(self) -> None:
        tracker = StreamTracker()
        tracker.attach(TGID, None, 10**9)
        tracker.feed(alive().raw(Kind.EXECED).take().records)
        assert TGID in tracker._processes

    def test_every_lifetime_is_counted_and_examples_are_sampled(self) -> None:
        tracker = StreamTracker()
        tape = Tape().waits()
        for _ in range(200):
            tape.created().added(9).closed(9).destroyed()
        noticed = tracker.feed(tape.take().records)
        counted = [e for e in noticed if isinstance(e, LifetimesCounted)]
        decoded = [e for e in noticed if isinstance(e, LifetimeEnded)]
        assert [sum(c.counts.values()) for c in counted] == [200]
        assert len(decoded) == 64 + len(range(64, 200, 64))

    def test_tables_are_bounded(self) -> None:
        tracker = StreamTracker(max_slots=10)
        tracker.attach(TGID, None, 0)
        tape = Tape()
        for n in range(100):
            tape.created(SLOT + n * 64).added(100 + n, SLOT + n * 64)
        tracker.feed(tape.take().records)
        assert len(tracker) == 30
        assert tracker.full > 0

    def test_the_mirror_has_every_field_of_the_kernel_side(self) -> None:
        """A field added to struct af_slot or af_reg must be mirrored, or named here with its reason."""
        only_memory = {"object"}  # read from the slot's memory
        slot_fields = {f.name for f in dataclasses.fields(life().slot)}
        assert slot_fields - set(Slot.__slots__) == only_memory
        reg = life().reg
        assert reg is not None
        unused = {"tgid", "consecutive"}  # the process has it; the slot has it
        assert {f.name for f in dataclasses.fields(reg)} - set(Reg.__slots__) == unused

    def test_a_new_process_is_empty(self) -> None:
        assert len(Process(TGID, None, 0)) == 0

    def test_evidence_is_made_of_plain_values(self) -> None:
        tracker = StreamTracker()
        tracker.attach(TGID, None, 0)
        noticed = tracker.feed(alive().destroyed().take().records)
        (raised,) = [e for e in noticed if isinstance(e, SuspicionRaised)]
        assert raised.reg is not None
        assert raised.slot is not None
        assert (raised.reg.state, raised.slot.flags) == (
            RegState.LIVE,
            SlotFlag.CREATE_SEEN | SlotFlag.WAITER_KNOWN,
        )
        assert raised.trigger.arg == EPOLLIN
