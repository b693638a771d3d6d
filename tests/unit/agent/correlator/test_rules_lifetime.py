# implicit-removal, delivery-after-close, close-in-open-batch, leaked-slot; decoded, counted, or both.
from __future__ import annotations

import pytest

from agent.correlator import CorrelatorOptions
from agent.correlator.rules_lifetime import FEWEST_LEAKED
from probes.abi import Signature, SlotFlag
from probes.events import LifetimesCounted, Lost, Tick
from tests.unit.agent.correlator.playbook import (
    LOOP,
    WORKER,
    Life,
    Playbook,
    attached,
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


class TestImplicitRemoval:
    def test_closed_by_a_worker_and_then_destroyed(self, play: Playbook) -> None:
        play >> attached() >> life().delivered(30).closed(40, WORKER).destroyed(90).ended()
        play << warning("implicit-removal", window_ns=50, share=1.0, count=1)

    @pytest.mark.parametrize(
        "story",
        [
            life().closed(40, LOOP).destroyed(90),
            life().removed(35).closed(40, WORKER).destroyed(90),
        ],
    )
    def test_does_not_fire(self, play: Playbook, story: Life) -> None:
        play >> attached() >> story.ended() << nothing

    @pytest.mark.parametrize("worse", [Signature.ORPHANED, Signature.REGISTERED])
    def test_not_where_close_removed_nothing(self, play: Playbook, worse: Signature) -> None:
        play >> attached() >> life().closed(40, WORKER).destroyed(90).ended(worse) << nothing

    def test_a_removal_that_failed_after_the_close_does_not_count(self, play: Playbook) -> None:
        story = life().closed(40, WORKER).destroyed(90)
        play >> attached() >> story.ended(Signature.DEL_AFTER_CLOSE) << warning("implicit-removal")

    def test_a_close_that_returned_after_the_destroy_has_no_width(self, play: Playbook) -> None:
        play >> attached() >> life().closed(95, WORKER, began=80).destroyed(90).ended()
        play << warning("implicit-removal", window_ns=0)

    def test_a_guarded_program(self, play: Playbook) -> None:
        play >> attached(plan(guard="deferred free")) >> life().closed(40, WORKER).destroyed(90).ended()
        play << info("implicit-removal")

    def test_a_loss_makes_it_uncertain(self, play: Playbook) -> None:
        play >> attached() >> Lost(ts=30, what="regs-map-full", count=1, since=25)
        play >> life().closed(40, WORKER).destroyed(90).ended() << warning("implicit-removal", "uncertain")


class TestDeliveryAfterClose:
    def test_the_near_miss_and_its_margin(self, play: Playbook) -> None:
        story = life().delivered(30).closed(40).delivered(60).destroyed(90)
        play >> attached() >> story.ended() << warning("delivery-after-close", margin_ns=30, window_ns=50)
        assert play.last is not None
        assert [a.role for a in play.last.actors] == ["registered", "closed", "delivered", "destroyed"]

    def test_the_group_shows_its_smallest_margin(self, play: Playbook) -> None:
        play >> attached()
        for margin in (30, 5, 20):
            play.finish()
            story = life().closed(40).delivered(60).destroyed(60 + margin)
            play.pending = list(play.correlator.feed(story.ended()))[:0]
        group = play.correlator.findings()[0]
        assert (group.count, group.margin_ns) == (3, 5)

    def test_not_without_one(self, play: Playbook) -> None:
        play >> attached() >> life().delivered(30).closed(40).destroyed(90).ended() << nothing


class TestCloseInOpenBatch:
    def test_by_the_signature(self, play: Playbook) -> None:
        story = life().delivered(30).removed(35).closed(40, WORKER).destroyed(90)
        play >> attached() >> story.ended(Signature.CLOSE_IN_BATCH) << warning("close-in-open-batch")

    def test_one_lifetime_can_give_several_warnings(self, play: Playbook) -> None:
        story = life().delivered(30).closed(40, WORKER).delivered(60).destroyed(90)
        play >> attached() >> story.ended(Signature.CLOSE_IN_BATCH)
        (
            play
            << warning("delivery-after-close")
            << warning("implicit-removal")
            << warning("close-in-open-batch")
        )


class TestCountedLifetimes:
    """Cheap mode: LifetimesCounted has every lifetime, LifetimeEnded only examples."""

    hazard = life().closed(40, WORKER).destroyed(90).ended()
    harmless = life().closed(40).destroyed(90).ended()

    def counts(self, hazard: int, harmless: int = 0) -> LifetimesCounted:
        table = {self.hazard.signature: hazard, self.harmless.signature: harmless}
        return LifetimesCounted(ts=100, counts={sig: n for sig, n in table.items() if n})

    def count(self, play: Playbook) -> int:
        groups = [f for f in play.correlator.findings() if f.rule == "implicit-removal"]
        return sum(group.count for group in groups)

    def test_an_example_before_its_count_is_not_counted_twice(self, play: Playbook) -> None:
        play >> attached() >> self.hazard << warning("implicit-removal", count=1)
        play >> self.counts(50, 150) << warning("implicit-removal", count=50, update=True, share=0.25)

    def test_a_count_before_its_example_waits_for_it(self, play: Playbook) -> None:
        play >> attached() >> self.counts(50, 150) << nothing
        play >> self.hazard << warning("implicit-removal", count=50, share=0.25, update=False)

    def test_more_examples_change_no_count(self, play: Playbook) -> None:
        play >> attached() >> self.counts(3) >> self.hazard << warning("implicit-removal", count=3)
        play >> self.hazard << nothing
        play >> self.hazard << nothing
        assert self.count(play) == 3

    def test_examples_of_other_call_sites_share_the_count(self, play: Playbook) -> None:
        elsewhere = life(bias=0x1000).closed(40, WORKER).destroyed(90).ended()
        play >> attached() >> self.counts(3) >> self.hazard << warning("implicit-removal", count=3)
        play >> elsewhere << warning("implicit-removal", count=1)
        play >> self.counts(7) << warning("implicit-removal", count=9, update=True)
        assert self.count(play) == 10

    def test_counts_without_an_example_show_at_the_next_tick(self, play: Playbook) -> None:
        play >> attached() >> self.counts(50) << nothing
        play >> Tick(ts=200) << warning("implicit-removal", count=50, actors=())
        play >> self.hazard << nothing
        group = play.correlator.findings()[0]
        assert (group.count, len(group.actors)) == (50, 3)

    def test_the_summary_has_them_without_a_tick(self, play: Playbook) -> None:
        play >> attached() >> self.counts(50) << nothing
        assert [f.count for f in play.correlator.findings()] == [50]
        assert [f.count for f in play.correlator.findings()] == [50]
        play >> Tick(ts=200) << warning("implicit-removal", count=50)

    def test_harmless_signatures_give_nothing(self, play: Playbook) -> None:
        play >> attached() >> self.counts(0, 1000) >> self.harmless >> Tick(ts=200) << nothing
        assert play.correlator.findings() == ()


class TestLeakedSlot:
    def test_many_closed_at_once_may_wait_to_be_used_again(self, play: Playbook) -> None:
        play >> attached() >> life().closed(40).lingering(40 + 30 * SECOND, total=40)
        play << warning("leaked-slot", "uncertain", window_ns=30 * SECOND, count=40)
        assert "40 slots were closed that long ago or longer, and never destroyed" in reasons(play)
        assert "their number was not seen to grow" in reasons(play)

    def test_a_number_that_grows_from_scan_to_scan_is_a_leak(self, play: Playbook) -> None:
        play >> attached() >> life().closed(40).lingering(40 * SECOND, total=40)
        play << warning("leaked-slot", "uncertain", count=40)
        play >> life(0x9000).closed(50).lingering(45 * SECOND, total=70)
        play << warning("leaked-slot", "observed", count=70, update=True)

    def test_more_named_by_the_same_scan_is_no_growth(self, play: Playbook) -> None:
        """One scan names some of its slots, the oldest first: their totals grow within it."""
        play >> attached() >> life().closed(40).lingering(40 * SECOND, total=20)
        play << warning("leaked-slot", "uncertain", count=20)
        play >> life(0x9000).closed(50).lingering(40 * SECOND, total=60)
        play << warning("leaked-slot", "uncertain", count=60, update=True)

    def test_totals_are_counted_once_and_beyond_what_a_scan_names(self, play: Playbook) -> None:
        play >> attached() >> life().closed(40).lingering(40 * SECOND, total=300)
        play << warning("leaked-slot", "uncertain", count=300)
        play >> life().closed(40).lingering(50 * SECOND, total=300) << nothing
        assert play.correlator.stats.dropped == {"already-counted": 1}
        play >> life(0x9000).closed(40).lingering(55 * SECOND, total=10_000)
        play << warning("leaked-slot", "observed", count=10_000, update=True)

    def test_a_program_that_starts_anew_under_the_same_number_is_counted_anew(self, play: Playbook) -> None:
        play >> attached() >> life().closed(40).lingering(40 * SECOND, total=20)
        play << warning("leaked-slot", "uncertain", count=20)
        play >> attached(ts=50 * SECOND)
        play >> life().closed(51 * SECOND).lingering(90 * SECOND, total=20)
        play << warning("leaked-slot", "uncertain", count=40, update=True)

    def test_few_closed_slots_wait_to_be_used_again(self, play: Playbook) -> None:
        play >> attached() >> life().closed(40).lingering(40 * SECOND, total=FEWEST_LEAKED - 1) << nothing
        assert play.correlator.stats.dropped == {"few-closed-slots-may-wait-to-be-used-again": 1}

    def test_one_that_hangs_up_and_is_never_closed_is_a_leak(self, play: Playbook) -> None:
        story = life().has(hup_since=40, last_tid=LOOP)
        play >> attached() >> story.lingering(40 + 30 * SECOND, total=1)
        play << warning("leaked-slot", sub_class="hung-up", count=1, window_ns=30 * SECOND)
        assert play.last is not None
        assert [(a.role, a.moment.ts, a.note) for a in play.last.actors][-1] == (
            "delivered",
            40,
            "first with EPOLLHUP",
        )

    def test_hung_up_and_closed_are_counted_apart(self, play: Playbook) -> None:
        play >> attached() >> life().closed(40).lingering(40 * SECOND, total=20)
        play << warning("leaked-slot", "uncertain", count=20)
        play >> life(0x9000).has(hup_since=40).lingering(40 * SECOND, total=1)
        play << warning("leaked-slot", sub_class="hung-up", count=1, update=False)

    @pytest.mark.parametrize(
        ("story", "reason"),
        [
            (life().closed(20 * SECOND), "not-lingering-long-enough"),
            (life().has(hup_since=20 * SECOND), "not-lingering-long-enough"),
            (life(), "fd-still-open"),
            (life().closed(40).destroyed(90), "slot-was-destroyed"),
            (life().closed(40).has(flags=SlotFlag(0)), "fd-still-open"),  # registered anew after that close
        ],
    )
    def test_does_not_fire(self, play: Playbook, story: Life, reason: str) -> None:
        play >> attached() >> story.lingering(40 * SECOND, total=40) << nothing
        assert play.correlator.stats.dropped == {reason: 1}

    def test_a_destroy_that_may_have_been_missed(self, play: Playbook) -> None:
        play >> attached(plan(unprobed=("destroy",)))
        play >> life().has(hup_since=40).lingering(40 * SECOND, total=1)
        play << warning("leaked-slot", "uncertain")

    def test_the_time_is_an_option(self) -> None:
        play = Playbook(CorrelatorOptions(leak_after_ns=10))
        play >> attached() >> life().has(hup_since=40).lingering(49) << nothing
        play >> life().has(hup_since=40).lingering(50) << warning("leaked-slot")
