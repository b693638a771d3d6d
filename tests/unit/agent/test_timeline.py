from __future__ import annotations

from dataclasses import replace

import pytest

from agent.scene import Scene
from agent.text import plain
from agent.timeline import TimelineModel, event_mask, header, timeline_lines
from probes.abi import Kind, RecordFlag, Suspect
from probes.events import Event, Lost, RecordsRead, TargetGone, Tick
from probes.leftovers import not_judged
from tests.unit.agent.correlator.playbook import life
from tests.unit.agent.scenario import ATTACHED, PID, PLAN, SECOND, SLOT, WITNESSES

LOOP, WORKER = 4711, 4713


def record(kind: Kind, ms: float, tid: int, **changes: int) -> tuple[int, ...]:
    values = {
        "seq": 1, "kind": int(kind), "flags": 0, "ts": 100 * SECOND + int(ms * 1e6), "enter": 0, "addr": SLOT,
        "tgid": PID, "tid": tid, "gen": 3, "fd": 23, "epfd": 5, "ret": 0, "arg": 0, "stack": -1,
    }  # fmt: skip
    values.update(changes)
    return tuple(values.values())


def model(*events: Event, per_second: int = 200) -> TimelineModel:
    scene = Scene()
    made = TimelineModel(scene, per_second=per_second)
    for event in (*WITNESSES, *events):
        scene.feed(event)
        made.update(event)
    return made


RACE = RecordsRead(
    records=(
        record(Kind.ADDED, 1, LOOP, arg=0x2001),
        record(Kind.WAITER_SEEN, 2, LOOP, addr=0, fd=-1, arg=912, ret=1),
        record(Kind.DELIVERED, 2, LOOP, arg=0x1, fd=0, stack=912),
        record(Kind.CLOSE_BEGUN, 2.4, WORKER),
        record(Kind.CLOSED, 2.5, WORKER),
        record(Kind.BATCH_CLOSED, 3, LOOP, addr=0, arg=912),
        record(Kind.DESTROYED, 3.25, LOOP, fd=-1),
        record(Kind.REMOVED, 3.5, LOOP, ret=-9),
    )
)

EXPECTED = """\
      time s  thread                        what                                 slot                               fd       gap  batch
    0.000000                                4711 attached poolserver
    0.001000  loop   4711 srv-loop          ADD IN|RDHUP                         S1 0x7f12a4c31040 g3               23
    0.002000  loop   4711 srv-loop          first wait here
    0.002000  loop   4711 srv-loop          deliver IN                           S1 0x7f12a4c31040 g3               23  +1 ms  │912
    0.002500  worker 4713 srv\\x1b[31m-w0    CLOSE                                S1 0x7f12a4c31040 g3               23   +500 µs  │912
    0.003250  loop   4711 srv-loop          DESTROY                              S1 0x7f12a4c31040 g3                    +750 µs
    0.003500  loop   4711 srv-loop          DEL failed (-9)                      S1 0x7f12a4c31040 g3               23   +250 µs
"""  # noqa: E501


def test_a_race_as_lines() -> None:
    lines = [header(), *timeline_lines(model(RACE).take())]
    text = plain(lines)
    assert [row.split() for row in text.splitlines()] == [row.split() for row in EXPECTED.splitlines()]


def test_what_is_left_out_is_counted() -> None:
    many = RecordsRead(records=tuple(record(Kind.DELIVERED, 1 + n / 1000, LOOP) for n in range(1234 + 10)))
    taken = model(many, per_second=10).take()
    assert len(taken.rows) == 11  # ten and the attach
    assert taken.left_out == 1234
    last = plain(timeline_lines(taken)).splitlines()[-1]
    assert last.endswith("… 1,234 more events left out from 0.001010 to 0.002243 s (1,234 deliver)")


def test_what_is_left_out_adds_up() -> None:
    kinds = (Kind.CLOSED, Kind.DESTROYED, Kind.CREATED, Kind.MODIFIED, Kind.REMOVED, Kind.ADDED)
    records = [record(kind, n, LOOP) for n, kind in enumerate([Kind.DELIVERED] * 3 + [*kinds, *kinds[:3]])]
    (shown,) = timeline_lines(replace(model(RecordsRead(records=records), per_second=1).take(), rows=()))
    assert plain([shown]).strip() == (
        "… 11 more events left out from 0.001000 to 0.011000 s "
        "(2 CLOSE, 2 DESTROY, 2 create, 2 deliver and 3 others)"
    )
    one = RecordsRead(records=records[:2])
    (shown,) = timeline_lines(replace(model(one, per_second=1).take(), rows=()))
    assert plain([shown]).strip() == "… 1 more event left out at 0.001000 s (1 deliver)"


def test_the_next_second_has_its_own_lines() -> None:
    rows = RecordsRead(records=tuple(record(Kind.DELIVERED, 1 + n, LOOP) for n in range(3000)))
    taken = model(rows, per_second=5).take()
    assert len(taken.rows) == 1 + 3 * 5 + 1  # the attach, three whole seconds, the first event of the fourth


def test_losses_and_ends_are_always_shown() -> None:
    taken = model(
        RecordsRead(records=tuple(record(Kind.DELIVERED, 1, LOOP) for _ in range(50))),
        Lost(ts=101 * SECOND, what="recorder", count=77, since=0),
        TargetGone(ts=101 * SECOND, tgid=PID, reason="killed by signal 11"),
        per_second=1,
    ).take()
    text = plain(timeline_lines(taken))
    assert "lost 77 recorder" in text
    assert "gone: killed by signal 11" in text


def test_memory_is_bounded_without_a_reader() -> None:
    made = model(per_second=200)
    for n in range(200):
        made.update(
            RecordsRead(
                records=tuple(
                    record(Kind.CREATED, n * 1000 + i, LOOP, addr=n * 64 + i * 8) for i in range(200)
                )
            )
        )
    assert len(made.take().rows) <= 2000
    assert len(made.recent) <= 2000
    assert len(made._slots) <= 8192


def test_taking_twice_gives_nothing_new() -> None:
    made = model(RACE)
    assert made.take().rows
    assert not made.take().rows


def test_event_masks() -> None:
    assert event_mask(0x2019) == "IN|ERR|HUP|RDHUP"
    assert event_mask(0x80000001) == "IN|ET"
    assert event_mask(0) == "0x0"


def test_a_delivery_that_was_noticed_is_shown_with_the_registrations_fd() -> None:
    """What stands in the record's `fd` field there is a count."""
    story = life(fd=9).created(10).added(20).destroyed(40)
    stale = story.stale_delivery(70, fd=4711)
    known = [row for row in model(stale).take().rows if "stale delivery" in row.what]
    alone = [row for row in model(replace(stale, reg=None)).take().rows if "stale delivery" in row.what]
    assert [row.fd for row in (*known, *alone)] == [9, 9]


def test_what_is_noticed_is_shown_among_the_records_of_its_time() -> None:
    """A suspicion is read at once, records of the same time some milliseconds later."""
    story = life(fd=9).created(10).added(20).destroyed(40)
    stale = story.stale_delivery(70)
    of = {"tgid": stale.trigger.tgid, "addr": stale.trigger.addr, "gen": 1, "fd": 9}
    noticed = (
        record(Kind.ADDED, 0, LOOP, ts=20, **of),
        record(Kind.DESTROYED, 0, LOOP, ts=40, **of),
        record(Kind.DELIVERED, 0, LOOP, ts=70, **of),
    )
    made = model()
    made.update(stale)
    assert not [row for row in made.take(waiting=True).rows if row.style == "critical"]
    made.update(RecordsRead(records=(*noticed, record(Kind.REMOVED, 0, LOOP, ts=80, **of))))
    rows = made.take(waiting=True).rows
    assert [row.what for row in rows] == ["ADD", "DESTROY", "deliver", "!! stale delivery", "DEL"]
    assert [row.gap_ns for row in rows] == [None, 20, 30, 0, 10]


def test_what_was_noticed_waits_no_longer_than_for_the_next_tick() -> None:
    made = model()
    made.update(life(fd=9).created(10).added(20).destroyed(40).stale_delivery(70))
    made.update(Lost(ts=75, what="recorder", count=7, since=0))
    made.update(Tick(ts=90))
    assert [row.ts for row in made.take(waiting=True).rows] == [100 * SECOND]
    made.update(Tick(ts=SECOND))
    assert [row.ts for row in made.take(waiting=True).rows] == [70, 75]


def test_a_replay_keeps_rows_back_for_what_comes_late() -> None:
    made = TimelineModel(Scene(), patience_ns=SECOND // 4)
    stale = life(fd=9).created(10).added(20).destroyed(40).stale_delivery(70)
    made.update(
        RecordsRead(records=(record(Kind.ADDED, 0, LOOP, ts=20), record(Kind.REMOVED, 0, LOOP, ts=80)))
    )
    shown = list(made.take(waiting=True).rows)
    assert not shown
    made.update(stale)
    made.update(RecordsRead(records=(record(Kind.CLOSED, 0, LOOP, ts=SECOND),)))
    shown += made.take(waiting=True).rows
    assert [row.what for row in shown] == ["ADD", "!! stale delivery", "DEL"]
    assert [row.what for row in made.take().rows] == ["CLOSE"]


def test_what_a_replay_keeps_back_is_bounded() -> None:
    made = TimelineModel(Scene(), patience_ns=SECOND // 10)
    stale = life(fd=9).created(10).added(20).destroyed(40).stale_delivery(70)
    for ts in range(12_000):
        made.update(replace(stale, trigger=stale.trigger._replace(ts=ts)))
    assert len(made.take(waiting=True).rows) > 8_000  # all that is there: it is too much
    assert not made.take(waiting=True).rows
    for ts in range(12_000, 30_000):
        made.update(replace(stale, trigger=stale.trigger._replace(ts=ts)))
    shown = made.take()
    assert len(shown.rows) <= 16_000
    assert shown.left_out_by.keys() == {"!! stale delivery"}


def test_a_replay_tells_what_is_left_out_after_the_rows_of_that_time() -> None:
    made = TimelineModel(Scene(), per_second=5, patience_ns=SECOND // 10)
    told: list[str] = []
    for ms in range(0, 900, 10):
        made.update(RecordsRead(records=(record(Kind.DELIVERED, ms, LOOP),) * 10))
        taken = made.take(waiting=True)
        told += ["row"] * len(taken.rows) + ["left out"] * bool(taken.left_out)
    assert told[:5] == ["row"] * 5
    assert set(told[5:]) == {"left out"}


def test_no_gap_is_negative() -> None:
    """Whatever comes too late for its place."""
    story = life(fd=9).created(10).added(20).destroyed(40)
    stale = story.stale_delivery(70)
    of = {"tgid": stale.trigger.tgid, "addr": stale.trigger.addr}
    made = model(RecordsRead(records=(record(Kind.CLOSED, 0, LOOP, ts=395, **of),)))
    made.take()
    made.update(stale)
    made.update(RecordsRead(records=(record(Kind.DESTROYED, 0, LOOP, ts=400, **of),)))
    shown = made.take()
    assert [(row.ts, row.gap_ns) for row in shown.rows] == [(70, None), (400, 5)]
    late = replace(shown, rows=(replace(shown.rows[1], gap_ns=-325),), start=0)
    assert "-" not in plain(timeline_lines(late))


def test_what_concerns_no_slot_says_what_it_concerns() -> None:
    counts = next(iter(not_judged(PID, 212)))
    bad = replace(
        counts,
        suspect=Suspect.BAD_CLOSE,
        rest=False,
        trigger=counts.trigger._replace(kind=Kind.CLOSED, flags=0, tid=WORKER, fd=31),
    )
    none = replace(bad, suspect=Suspect.ALIASED_SLOT, trigger=bad.trigger._replace(fd=-1))
    text = plain(timeline_lines(model(counts, bad, none).take()))
    assert "!! freed in batch 212 frees in process 4711 so far, not judged" in text
    assert "!! bad close fd 31, process 4711" in text
    assert "!! aliased slot slot not known, process 4711" in text


def test_a_rest_of_a_count_is_told_when_it_comes() -> None:
    """Its last occurrence was long ago: time does not run backwards for it."""
    rest = replace(life(fd=9).created(10).added(20).destroyed(40).stale_delivery(70), rest=True)
    made = model(RACE)
    made.take()
    made.update(replace(rest, trigger=rest.trigger._replace(ts=100 * SECOND + 2_000_000)))
    text = plain(timeline_lines(made.take()))
    assert text.split()[:7] == ["0.003500", "worker", "4001", "!!", "stale", "delivery", "last"]
    assert "last at 0.002000 s" in text
    assert "+" not in text


def lives(userdata: int, second: int) -> RecordsRead:
    """Two lives of one slot; the second registration carries other userdata and another descriptor."""
    records = []
    for gen, (data, fd, base) in enumerate(((userdata, 23, 0), (second, 42, 10)), 3):
        of = {"gen": gen, "fd": fd}
        records += [
            record(Kind.CREATED, base + 1, LOOP, gen=gen, fd=-1),
            record(Kind.ADDED, base + 2, LOOP, addr=data, arg=1, **of),
            record(Kind.DELIVERED, base + 3, LOOP, arg=1, gen=gen, fd=0, stack=912 + gen),
            record(Kind.MODIFIED, base + 4, LOOP, addr=data, arg=4, **of),
            record(Kind.REMOVED, base + 5, WORKER, addr=data, **of),
            record(Kind.CLOSED, base + 6, WORKER, addr=data, **of),
            record(Kind.DESTROYED, base + 7, LOOP, gen=gen, fd=-1),
        ]
    return RecordsRead(records=tuple(records))


@pytest.mark.parametrize(
    ("userdata", "slot", "first", "second"),
    [
        ({"mask": 0xFFFF_FFFF_FFFF_FFFE}, {}, SLOT, SLOT | 1),
        ({"mask": 0xFFFF_FFFF_FFFF, "offset": 16}, {}, SLOT + 16 | 7 << 48, SLOT + 16 | 8 << 48),
        ({}, {"embedded": [8, 24]}, SLOT + 24, SLOT + 8),
    ],
    ids=["tag", "tag-and-offset", "embedded"],
)
def test_tagged_userdata_is_one_slot_with_the_fd_of_its_life(
    userdata: dict[str, int], slot: dict[str, object], first: int, second: int
) -> None:
    plan = PLAN | {"userdata": {"kind": "pointer", **userdata}, "slot": PLAN["slot"] | slot}
    events = lives(first, second)
    rows = model(replace(ATTACHED, plan=plan), events).take().rows[2:]
    assert len(rows) == 14
    assert {(row.alias, row.addr) for row in rows} == {("S1", SLOT)}
    assert [row.fd for row in rows if row.what == "deliver"] == [23, 42]
    assert [row.gap_ns for row in rows[1:]] == [*[1_000_000] * 6, 4_000_000, *[1_000_000] * 6]


def test_a_delivery_does_not_show_the_fd_of_an_earlier_life() -> None:
    events = lives(SLOT, SLOT)
    kept = tuple(one for one in events.records if not (one[1] in (Kind.ADDED, Kind.MODIFIED) and one[8] == 4))
    rows = model(RecordsRead(records=kept)).take().rows
    assert [row.fd for row in rows if row.what == "deliver"] == [23, -1]


def test_a_plan_that_says_nonsense_about_userdata_is_taken_as_none() -> None:
    plan = PLAN | {"userdata": {"mask": "all", "offset": -3}, "slot": {"embedded": [None, "x"]}}
    rows = model(replace(ATTACHED, plan=plan), RACE).take().rows
    assert {row.addr for row in rows if row.alias} == {SLOT}


def test_repeats_that_were_only_counted_are_named_at_the_next_delivery() -> None:
    """The kernel side numbers the deliveries of a run, and from the 64th on records those at doublings."""
    counts = [*range(65), 128, 256, 0, 1, 5]
    records = [record(Kind.DELIVERED, n, LOOP, arg=1, fd=count) for n, count in enumerate(counts)]
    records.append(record(Kind.DELIVERED, 100, LOOP, arg=1, fd=2, gen=4))
    records.append(record(Kind.DELIVERED, 101, LOOP, arg=1, fd=2, gen=4, flags=int(RecordFlag.AGAIN)))
    events = RecordsRead(records=tuple(records))
    shown = [row.detail for row in model(events).take().rows if row.what == "deliver"]
    assert [detail for detail in shown if detail != "IN"] == [
        "IN (+63 not recorded)",
        "IN (+127 not recorded)",
        "IN (+3 not recorded)",
        "IN (+2 not recorded)",
    ]
    text = plain(timeline_lines(model(events, per_second=66).take()))
    assert "deliver IN (+63 not recorded)" in text
    assert text.endswith("(6 deliver); 132 repeated deliveries not recorded\n")


def test_where_the_run_began_before_watching_nothing_is_said_of_it() -> None:
    rows = model(RecordsRead(records=(record(Kind.DELIVERED, 1, LOOP, arg=1, fd=4096),))).take().rows
    assert rows[-1].detail == "IN"
