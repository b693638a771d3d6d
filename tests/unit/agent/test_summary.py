"""The end of a run: what was judged, what was not, what was not seen, whether we and the kernel agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

import agent.summary
from agent.summary import Stats, summary
from agent.text import plain
from probes import session
from probes.events import CountersRead, Event, LifetimesCounted, Lost, ProcessForked, TargetAttached
from tests.unit.agent.scenario import ATTACHED, BATCH, PID, finding


def text_of(*events: Event, attached: bool = True, **counters: int) -> str:
    stats = Stats()
    for event in ((ATTACHED,) if attached else ()) + events:
        stats.feed(event)
    stats.feed(CountersRead(ts=200, counters=counters))
    return plain(summary(stats, ()))


def test_a_clean_run_says_nothing_of_what_did_not_happen() -> None:
    text = text_of(
        LifetimesCounted(ts=1, counts={1: 500}), deliveries=1000, adds=500, adds_created=500, hits_create=500
    )
    assert "no finding above warning" in text
    for word in ("nothing", "not judged", "SELF-AUDIT", "io_uring", "CLONE_FILES", "not watched", "LOST"):
        assert word not in text


def test_nothing_tied_is_no_clean_run() -> None:
    text = text_of(deliveries=9, adds=1234, adds_created=0, hits_create=1200)
    assert (
        "no registration carried a slot that create gave out (1,234 made, 1,200 slots created): nothing "
        "could be judged. Does the profile's [userdata] say how userdata leads to a slot (mask, offset)?"
    ) in text


@pytest.mark.parametrize(
    "counters",
    [
        {"adds": 0, "adds_created": 0, "hits_create": 5},  # nobody registered anything
        {"adds": 5, "adds_created": 1, "hits_create": 5},
        {"adds": 5, "adds_created": 0, "hits_create": 0},  # create is not probed, or was not called
    ],
)
def test_something_tied_or_nothing_to_tie(counters: dict[str, int]) -> None:
    assert "nothing could be judged" not in text_of(deliveries=9, **counters)


def test_what_was_not_judged_is_counted() -> None:
    text = text_of(not_judged=212, not_registered=3, bad_closes=20)
    assert (
        "212 frees within a batch not judged: no dispatch tells how far the loop was. Name the handler as "
        "`dispatch` in the profile's [slot] (docs/profiles.md)"
    ) in text
    assert "3 removals failed of what was never seen registered: no harm known" in text
    assert "20 closes failed (EBADF), of one number after the other or of what was never seen" in text


def test_what_no_probe_can_see_is_said() -> None:
    text = text_of(io_uring=1500, shared_tables=2)
    assert "1,500 io_uring requests: who closed by them, and when, was not seen" in text
    assert "2 processes share a target's descriptors (CLONE_FILES): what they closed was not seen" in text


def test_repeats_that_were_not_recorded_are_counted_where_there_is_a_stream() -> None:
    text = text_of(BATCH, deliveries=50_000, repeats=46_000)
    assert "46,000 repeated deliveries were counted, and only those at doublings" in text
    assert "1 repeated delivery was counted" in text_of(BATCH, repeats=1)
    assert "repeated" not in text_of(deliveries=50_000, repeats=46_000)
    assert "repeated" not in text_of(BATCH, deliveries=50_000, repeats=0)


def test_one_of_a_kind_is_singular() -> None:
    kinds = ("deliveries", "not_judged", "adds_freed", "not_registered", "bad_closes", "io_uring", "ranges")
    text = text_of(
        LifetimesCounted(ts=1, counts={1: 1}), BATCH, **dict.fromkeys(kinds, 1), shared_tables=1, links_full=1
    )
    for said in (
        "1 target", "1 delivery", "1 lifetime", "1 stream record", "1 free within", "1 registration where",
        "1 removal failed", "1 close failed", "1 io_uring request:", "1 call of", "1 process shares",
        "1 registration of slots",
    ):  # fmt: skip
        assert said in text
        assert f"{said}s" not in text
    assert "consumed" not in text


def forked(child: int, *, ended: bool = False, watched: bool = False) -> ProcessForked:
    return ProcessForked(ts=1, tgid=PID, child=child, ended=ended, watched=watched)


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ((forked(1),), "1 forked child was not watched: nothing is known of them (use --exe)"),
        ((forked(1), forked(2)), "2 forked children were not watched"),
        ((forked(1), forked(1, ended=True)), "1 forked child was not watched"),
    ],
)
def test_children_that_nobody_watched(events: tuple[ProcessForked, ...], said: str) -> None:
    assert said in text_of(*events)


def test_children_that_are_watched_are_no_blind_spot() -> None:
    stats = Stats()
    for event in (ATTACHED, forked(1, watched=True), forked(1, ended=True)):
        stats.feed(event)
    assert "not watched" not in plain(summary(stats, ()))
    assert stats.to_json()["unwatched_children"] == 0


@pytest.mark.parametrize(
    ("counter", "said"),
    [
        ("audit_add", "SELF-AUDIT 7: ADDs succeeded on what the kernel had said exists; report this"),
        (
            "audit_missing",
            "SELF-AUDIT 7: removals found nothing where the kernel had said there is something",
        ),
        ("audit_unseen", "SELF-AUDIT 7: deliveries came of registrations that were never seen"),
    ],
)
def test_where_we_and_the_kernel_disagree(counter: str, said: str) -> None:
    assert said in text_of(**{counter: 7})


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("objects-map-full", "objects could not be tied to their slots: the map is full"),
        ("registrations-of-one-file-beyond-limit", "a file has more registrations than are looked at"),
        ("nested-waits-beyond-limit", "waits within waits were more than are kept"),
        ("something\x1b[31m-new", "LOST 9: something\\x1b[31m-new"),
    ],
)
def test_losses_are_said_in_words(what: str, said: str) -> None:
    assert said in text_of(Lost(ts=1, what=what, count=9, since=0))


def test_every_loss_that_a_session_can_tell_of_has_words() -> None:
    assert {
        *session._LOSSES.values(),
        "recorder",
        "lifetimes",
        "progress-not-watched",
    } <= agent.summary._LOSSES.keys()


def test_no_process_and_no_event_are_no_clean_run() -> None:
    assert "no process was ever seen: nothing was judged" in text_of(attached=False)
    assert "there was nothing to judge" in text_of(deliveries=0)


def test_findings_are_a_table_with_the_worst_first() -> None:
    stats = Stats()
    stats.feed(ATTACHED)
    text = plain(summary(stats, (finding(), finding(group="b", count=1234)), notes=("a\x1bnote",)))
    assert "2 findings above warning" in text
    assert "1,234" in text
    assert "a\\x1bnote" in text


def test_instances_that_could_not_be_probed_are_said_at_the_end() -> None:
    plan = {
        "identity": "build-id:1",
        "sites": [
            {"role": "destroy", "stands_for": 9},
            {"role": "destroy", "stands_for": 9},
            {"role": "create"},
        ],
        "unprobed": [{"role": "destroy"}, {"role": "disown"}],
    }
    attached = TargetAttached(
        ts=1, tgid=7, start_time=1, exe="/x", comm="x", bias=0, plan=plan, bootstrapped=0, late=True
    )
    said = text_of(attached, attached=False)
    assert "1 of 2 destroy instances could not be probed: destroys may be missed" in said
    assert "create instances" not in said


def test_a_lower_bound_says_so() -> None:
    rows = plain(summary(Stats(), [replace(finding(count=1684), at_least=True)]))
    assert "at least 1,684" in rows
    assert "at least" not in plain(summary(Stats(), [finding(count=1684)]))


@pytest.mark.parametrize(
    ("pids", "said"), [((), f"{PID}"), ((7, 8), "7, 8"), ((7, 8, 9), "7 and 2 more"), (range(64), "more")]
)
def test_the_table_says_whose_counts_a_total_is_the_sum_of(pids: Sequence[int], said: str) -> None:
    found = finding(count=80, by_target=dict.fromkeys(pids, 1))
    text = plain(summary(Stats(), [found]))
    assert said in text
    assert ("at least" in text) == (len(pids) == 64)
