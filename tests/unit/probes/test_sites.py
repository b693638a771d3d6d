"""What the kernel side counts of one call site and does not tell: the rest of the total comes at the end."""

from __future__ import annotations

from typing import cast

from agent.correlator.core import Correlator
from probes import abi, decode
from probes.events import SuspicionRaised
from probes.sites import KEY, Sites, rule_of
from probes.sysbpf import Map

TGID, EPOCH, STACK = 4711, 5, 77


class Totals:
    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}

    def count(self, total: int) -> None:
        self.held[KEY.pack(TGID, EPOCH, abi.Suspect.BAD_CLOSE, STACK)] = total.to_bytes(8, "little")

    def get(self, key: bytes) -> bytes | None:
        return self.held.get(key)


def bad_close(total: int, suspect: abi.Suspect = abi.Suspect.BAD_CLOSE) -> SuspicionRaised:
    message = abi.SuspicionMessage()
    message.head.type, message.head.version, message.head.what = 1, abi.ABI_VERSION, suspect
    trigger = message.trigger
    trigger.kind, trigger.ret, trigger.fd, trigger.ts = abi.Kind.CLOSED, -9, 5, 1000 + total
    trigger.tgid, trigger.stack, trigger.arg = TGID, STACK, total
    found = decode.urgent(bytes(message))
    assert isinstance(found, SuspicionRaised)
    return found


def made() -> tuple[Totals, Sites]:
    totals = Totals()
    return totals, Sites(cast("Map", totals), lambda _tgid: EPOCH)


def test_the_total_of_a_site_is_exact_at_every_moment_that_it_is_asked_for() -> None:
    totals, sites = made()
    judge = Correlator()
    for total in [*range(1, 65), 128, 256]:
        message = bad_close(total)
        sites.told(message)
        judge.feed(message)
    totals.count(300)
    for event in sites.untold():
        judge.feed(event)
    assert [finding.count for finding in judge.findings()] == [300]
    (found,) = judge.findings()
    assert found.last_ts > 1000 + 256, "it went on after the last message"
    assert found.actors[-1].moment.ts == 1001, "the example is the first one"
    assert list(sites.untold()) == []
    totals.count(301)
    for event in sites.untold(TGID):
        judge.feed(event)
    assert [finding.count for finding in judge.findings()] == [301]
    assert list(sites.untold(TGID + 1)) == []


def test_what_is_sent_each_counts_one() -> None:
    """A site of which there was no room to count, and a recording of an older version."""
    _, sites = made()
    judge = Correlator()
    for _ in range(3):
        message = bad_close(0)
        sites.told(message)
        judge.feed(message)
    assert [finding.count for finding in judge.findings()] == [3]
    assert list(sites.untold()) == []


def test_a_process_that_is_gone_is_forgotten() -> None:
    totals, sites = made()
    sites.told(bad_close(64))
    totals.count(100)
    sites.forget(TGID)
    assert list(sites.untold()) == []


def test_what_the_ring_still_holds_is_not_told_for_it() -> None:
    """The kernel side counts before it sends: a total that is ahead of what was read says nothing."""
    totals, sites = made()
    sites.told(bad_close(1))
    totals.count(3)  # two messages are in the ring
    seen = sites.totals()
    for total in (2, 3):
        sites.told(bad_close(total))
    totals.count(4)  # and one came while it was read
    assert list(sites.untold(totals=seen)) == []
    assert [event.trigger.arg for event in sites.untold()] == [4]


def test_removals_are_counted_by_why_they_failed() -> None:
    _, sites = made()
    message = bad_close(3, abi.Suspect.FAILED_REMOVAL)
    why = {(-9, 0, 0): 1, (-2, abi.RegFlag.BY_DEL, 7): 2, (-2, abi.RegFlag.BY_CLOSE, 7): 3, (-2, 0, 0): 4}
    for (ret, flags, end), number in why.items():
        raw = abi.SuspicionMessage()
        raw.head.type, raw.head.version, raw.head.what = 1, abi.ABI_VERSION, abi.Suspect.FAILED_REMOVAL
        raw.reg.state, raw.reg.flags, raw.reg.end.ts, raw.trigger.ret = abi.RegState.ENDED, flags, end, ret
        found = decode.urgent(bytes(raw))
        assert isinstance(found, SuspicionRaised)
        assert rule_of(found) == abi.Suspect.FAILED_REMOVAL | number << 16
    sites.told(message)
    assert list(sites.totals()) == [(TGID, int(abi.Suspect.FAILED_REMOVAL), STACK)], (
        "it names no registration"
    )
