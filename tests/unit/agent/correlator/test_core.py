# What the correlator does with events that no rule judges.
from __future__ import annotations

from probes.abi import Kind
from probes.events import RecordsRead, ThreadSeen
from tests.unit.agent.correlator.playbook import (
    EPFD,
    EPOLLIN,
    LOOP,
    SLOT,
    TGID,
    Playbook,
    attached,
    critical,
    life,
    nothing,
)


def record(kind: Kind, ts: int) -> tuple[int, ...]:
    return (ts, kind, 0, ts, ts - 1, SLOT, TGID, LOOP, 1, 9, EPFD, 0, EPOLLIN, -1)


def test_records_are_counted_and_change_no_verdict(play: Playbook) -> None:
    """The stream tells of a stale delivery as well; only the kernel side's word for it counts, once."""
    kinds = (Kind.CREATED, Kind.ADDED, Kind.CLOSED, Kind.DESTROYED, Kind.DELIVERED)
    records = tuple(record(kind, 10 + at) for at, kind in enumerate(kinds))
    play >> attached() >> RecordsRead(records=records) << nothing
    play >> life().destroyed(50).stale_delivery(70) << critical("stale-delivery", "confirmed", count=1)
    play >> RecordsRead(records=((1, 2), ())) << nothing
    assert (play.correlator.stats.records, play.correlator.stats.last_ts) == (7, 70)
    assert [f.count for f in play.correlator.findings()] == [1]


def test_what_says_nothing_to_a_rule_is_counted(play: Playbook) -> None:
    play >> attached() >> ThreadSeen(tgid=TGID, tid=8, comm="x") << nothing
    assert play.correlator.stats.unjudged == 1
