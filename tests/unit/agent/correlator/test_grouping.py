# Groups: one alert and a counter per (rule, severity, call sites); exact counts; bounded; stable ids.
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.correlator import Confidence, Correlator, CorrelatorOptions, Finding, RuleId, Severity
from agent.correlator.findings import Actor, CallSite
from agent.correlator.grouping import Groups
from agent.report import update
from agent.text import plain as as_text
from probes.abi import Kind, RecordFlag, Suspect
from probes.events import Moment, SuspicionRaised
from tests.unit.agent.correlator.playbook import (
    BIAS,
    SLOT,
    TGID,
    WORKER,
    Playbook,
    attached,
    critical,
    freed_bytes,
    life,
    nothing,
    plan,
    warning,
)


def finding(site: int = 1, **changes: Any) -> Finding:
    values: dict[str, Any] = {
        "rule": RuleId.BAD_CLOSE,
        "severity": Severity.HIGH,
        "confidence": Confidence.OBSERVED,
        "reasons": (),
        "title": "t",
        "advice": (),
        "tgid": 1,
        "sites": (CallSite(role="closed", address=site),),
        "actors": (Actor(role="closed", moment=Moment(1, 1, 1, 1, 1)),),
        "first_ts": 10,
        "last_ts": 10,
    }
    return Finding(**values | changes)


def test_reported_at_the_first_and_at_each_doubling() -> None:
    groups = Groups(8)
    shown = [groups.add(finding(first_ts=n, last_ts=n), "image") for n in range(1, 101)]
    counts = [f.count for f in shown if f is not None]
    assert counts == [1, 2, 4, 8, 16, 32, 64]
    assert [f.update for f in shown if f is not None] == [False] + [True] * 6
    (group,) = groups.current()
    assert (group.count, group.first_ts, group.last_ts, group.update) == (100, 1, 100, False)


def test_a_group_of_two_processes_says_whose_counts_it_is_the_sum_of() -> None:
    groups = Groups(8)
    groups.add(finding(tgid=25361, count=14), "image")
    assert groups.add(finding(tgid=25362, count=7), "image") is None  # not doubled yet
    (told,) = groups.unreported()
    assert groups.unreported() == ()
    assert told.by_target == {25361: 14, 25362: 7}
    assert as_text(update(told)).endswith("goes on: 21 events in 2 processes (25361, 25362)\n")
    value = told.to_dict()
    assert value["targets"] == 2
    assert value["by_target"] == [{"pid": 25361, "count": 14}, {"pid": 25362, "count": 7}]
    assert Finding.from_dict(value) == told


def test_lifetimes_are_counted_for_all_processes_and_a_new_one_is_reported() -> None:
    groups = Groups(8)
    groups.add(finding(tgid=1, unit="lifetimes", count=10), "image")
    groups.add(finding(tgid=2, unit="lifetimes", count=0), "image")  # evidence alone
    (told,) = groups.unreported()
    assert told.to_dict()["by_target"] == [{"pid": 1, "count": None}, {"pid": 2, "count": None}]
    assert Finding.from_dict(told.to_dict()) == told


def test_the_processes_of_a_group_are_bounded_and_their_names_few() -> None:
    groups = Groups(8)
    for pid in range(1, 1001):
        groups.add(finding(tgid=pid), "image")
    (group,) = groups.current()
    assert (group.count, len(group.by_target)) == (1000, 64)
    assert as_text(update(group)).endswith("1,000 events in at least 64 processes (1, 2, 3, 4, …)\n")


def test_a_jump_over_several_doublings_is_one_report() -> None:
    groups = Groups(8)
    groups.add(finding(), "image")
    shown = groups.add(finding(count=1000), "image")
    assert shown is not None
    assert shown.count == 1001
    assert groups.add(finding(count=1000), "image") is None


def test_call_sites_tell_groups_apart_and_addresses_of_slots_do_not(play: Playbook) -> None:
    (
        play
        >> attached()
        >> life().destroyed(50).stale_delivery(70)
        << critical("stale-delivery", "confirmed", count=1)
    )
    (
        play
        >> life(SLOT + 64, fd=8).destroyed(51).stale_delivery(72)
        << critical("stale-delivery", "confirmed", count=2)
    )
    play >> life().closed(40).destroyed(50).stale_delivery(74, stale=2)
    play << critical("stale-delivery", "observed", count=1, update=False)
    assert [f.count for f in play.correlator.findings()] == [2, 1]


def test_the_id_does_not_depend_on_the_load_address() -> None:
    def group(bias: int, the_plan: dict[str, Any]) -> str:
        correlator = Correlator()
        correlator.feed(attached(the_plan, bias=bias))
        (found,) = correlator.feed(life(bias=bias).destroyed(50).stale_delivery(70))
        return found.group

    assert group(BIAS, plan()) == group(0x7777_0000, plan())
    assert group(BIAS, plan()) != group(BIAS, plan() | {"identity": "build-id:beef"})


def test_uncertain_and_certain_never_share_a_group(play: Playbook) -> None:
    story = life().destroyed(50)
    play >> attached() >> story.destroy_again(60) << critical("double-destroy")
    play >> attached(plan(create=0)) >> story.destroy_again(70) << warning("double-destroy", "uncertain")
    assert [(f.severity, f.count) for f in play.correlator.findings()] == [
        (Severity.CRITICAL, 1),
        (Severity.WARNING, 1),
    ]


def test_stronger_evidence_replaces_weaker_and_is_reported_at_once(play: Playbook) -> None:
    play >> attached()
    for n in range(3):
        # the kernel does not confirm
        play.correlator.feed(life(SLOT + 64 * n).closed(40).destroyed(50).stale_delivery(70))
    assert play.correlator.findings()[0].confidence is Confidence.OBSERVED
    play.finish()
    play >> life(SLOT + 640).closed(40).destroyed(80).stale_delivery(90, memory=freed_bytes())
    play << critical("stale-delivery", "confirmed", count=4, slot=SLOT + 640)
    play >> life(SLOT + 704).closed(40).destroyed(80).stale_delivery(95) << nothing
    assert play.correlator.findings()[0].confidence is Confidence.CONFIRMED


def test_running_totals_are_counted_once(play: Playbook) -> None:
    story = life().destroyed(50)
    (
        play
        >> attached()
        >> story.stale_delivery(70, stale=3)
        << critical("stale-delivery", "confirmed", count=3)
    )
    play >> story.stale_delivery(71, stale=3) << nothing
    play >> story.stale_delivery(80, stale=64) << critical("stale-delivery", "confirmed", count=64)
    again = life(gen=2).destroyed(90)
    play >> again.stale_delivery(95, stale=64) << critical("stale-delivery", "confirmed", count=128)


def test_a_new_process_of_the_same_number_starts_at_zero(play: Playbook) -> None:
    (
        play
        >> attached()
        >> life().destroyed(50).stale_delivery(70, stale=5)
        << critical("stale-delivery", "confirmed")
    )
    play >> attached(ts=100) >> life().destroyed(150).stale_delivery(170, stale=5)
    play << critical("stale-delivery", "confirmed", count=10)


def test_sub_classes_are_counted(play: Playbook) -> None:
    (
        play
        >> attached()
        >> life().destroyed(50).stale_delivery(70, wait=60)
        << critical("stale-delivery", "confirmed")
    )
    (
        play
        >> life(gen=2).destroyed(66).stale_delivery(70, wait=60, stale=4)
        << critical("stale-delivery", "confirmed")
    )
    assert play.last is not None
    assert play.last.sub_classes == {"later-batch": 1, "concurrent": 4}


def test_more_call_sites_than_places_are_counted_in_one_group_per_rule() -> None:
    groups = Groups(3)
    for site in range(100):
        groups.add(finding(site), "image")
    assert len(groups) == 4
    assert groups.overflowed == 97
    assert sum(f.count for f in groups.current()) == 100


def test_the_summary_is_sorted_and_stable() -> None:
    groups = Groups(8)
    groups.add(finding(1, severity=Severity.WARNING, first_ts=1), "image")
    groups.add(finding(2, first_ts=9), "image")
    groups.add(finding(3, first_ts=5), "image")
    groups.add(finding(4, severity=Severity.CRITICAL, first_ts=20), "image")
    order = [f.sites[0].address for f in groups.current()]
    assert order == [4, 3, 2, 1]
    assert groups.current() == groups.current()


def test_forgotten_totals_count_once_and_say_so() -> None:
    correlator = Correlator(CorrelatorOptions(max_slots=2))
    correlator.feed(attached())
    for n in range(4):
        correlator.feed(life(SLOT + 64 * n).destroyed(50).stale_delivery(70, stale=1))
    correlator.feed(life(SLOT).destroyed(50).stale_delivery(90, stale=7))
    assert sum(f.count for f in correlator.findings()) == 5
    assert correlator.to_dict()["inexact_counts"] == 1


def test_by_worker_or_loop_is_one_group_because_sites_decide(play: Playbook) -> None:
    (
        play
        >> attached()
        >> life().destroyed(50, WORKER).stale_delivery(70)
        << critical("stale-delivery", "confirmed")
    )
    play >> life(gen=2).destroyed(50).stale_delivery(70) << critical("stale-delivery", "confirmed", count=2)


def _rest(event: SuspicionRaised, **slot: int) -> SuspicionRaised:
    """What probes/leftovers.py makes of the slot as it stands: of no call, with no registration."""
    assert event.slot is not None
    trigger = event.trigger._replace(enter=0, addr=event.slot.addr, arg=0, stack=-1)
    return replace(
        event, trigger=trigger, slot=replace(event.slot, **slot), reg=None, other=None, memory=b"", rest=True
    )


@pytest.mark.parametrize("kind", ["stale", "recycled", "stale_dispatches"])
def test_the_rest_of_a_run_is_counted_where_the_run_was(kind: str) -> None:
    """Sent at 1, 2, 4; it was 7 in the end. The slot's newer fd must not make another group of it."""
    story = life(fd=9).created(10).added(20).closed(30, shared=True).delivered(35).destroyed(40)
    correlator = Correlator()
    correlator.feed(attached())
    if kind == "recycled":
        story.reborn(50)
    for count in (1, 2, 4):
        story.has(**{kind: count})
        if kind == "stale":
            event = story.stale_delivery(70, stale=count)
        elif kind == "recycled":
            event = story.recycled_delivery(70, n=count)
        else:
            event = story.stale_dispatch(70)
        correlator.feed(event)
    before = correlator.findings()
    story.has(fd=12)
    correlator.feed(_rest(event, **{kind: 7}))
    correlator.feed(_rest(event, **{kind: 7}))
    (group,) = correlator.findings()
    assert group.group == before[0].group
    assert (group.count, group.severity, group.confidence) == (7, before[0].severity, before[0].confidence)
    assert sum(group.sub_classes.values()) in (0, 7)
    (told,) = correlator.last_words()
    assert (told.count, told.update) == (7, True)


def test_a_rest_of_what_was_never_told_makes_no_finding() -> None:
    story = life().created(10).added(20).destroyed(40).reborn(50)
    correlator = Correlator()
    correlator.feed(attached())
    assert correlator.feed(_rest(story.recycled_delivery(70, n=3))) == ()
    assert correlator.findings() == ()
    assert correlator.stats.dropped == {"rest-of-what-was-not-told": 1}


def test_frees_that_were_not_judged_are_counted_to_the_last() -> None:
    story = life().created(10).added(20).delivered(30).destroyed(40)
    correlator = Correlator()
    correlator.feed(attached(plan(dispatch=0)))
    for total in (1, 2, 4):
        event = story.suspicion(
            Suspect.FREED_IN_BATCH, Kind.DESTROYED, 40, flags=RecordFlag.NOT_JUDGED, arg=total
        )
        correlator.feed(event)
    correlator.feed(replace(_rest(event), slot=None, trigger=event.trigger._replace(arg=7)))
    (group,) = correlator.findings()
    assert (group.count, group.severity) == (7, Severity.INFO)


def test_the_same_deed_in_two_processes_is_one_group_that_names_both(play: Playbook) -> None:
    def of(event: Any) -> Any:
        """The same in the other process."""
        return replace(
            event,
            trigger=event.trigger._replace(tgid=TGID + 1),
            slot=replace(event.slot, tgid=TGID + 1),
            reg=event.reg and replace(event.reg, tgid=TGID + 1),
        )

    play >> attached() >> replace(attached(), tgid=TGID + 1)
    play >> life().destroyed(50).stale_delivery(70, stale=14) << critical("stale-delivery", "confirmed")
    play >> of(life().destroyed(50).stale_delivery(75, stale=7))
    (told,) = play.correlator.last_words()
    assert (told.count, told.by_target, told.tgid) == (21, {TGID: 14, TGID + 1: 7}, TGID)
