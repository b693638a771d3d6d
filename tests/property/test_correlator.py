# The correlator on arbitrary input: total, never critical when uncertain, bounded, exact counts.
# Profiles `fast` and `deep` are tests/conftest.py's.
from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from typing import Any

from hypothesis import given, seed, settings
from hypothesis import strategies as st

from agent.correlator import Confidence, Correlator, CorrelatorOptions, Finding, RuleId, Severity
from agent.correlator.findings import ROLES, CallSite
from agent.correlator.grouping import Groups
from probes.abi import Kind, RegFlag, RegState, Signature, SlotFlag, SlotState, Suspect
from probes.events import (
    CountersRead,
    CrashSeen,
    FdinfoChecked,
    LifetimeEnded,
    LifetimesCounted,
    Lost,
    Moment,
    ProcessForked,
    RecordsRead,
    Registration,
    SlotLife,
    SlotLingering,
    StackSeen,
    SuspicionRaised,
    TargetAttached,
    TargetGone,
    ThreadSeen,
    Tick,
    Trigger,
)

# Few values, so that keys collide and states meet; now and then the extremes of the field.
times = st.one_of(st.integers(0, 60), st.sampled_from([0, 2**63, 2**64 - 1]))
words = st.one_of(st.sampled_from([0, 64, 128, 4096, 8192]), st.sampled_from([2**64 - 1, 0xAAAAAAAAAAAAAAAA]))
small = st.one_of(st.integers(0, 3), st.sampled_from([2**32 - 1]))
fds = st.one_of(st.integers(-1, 3), st.sampled_from([-(2**31), 2**31 - 1]))
masks = st.sampled_from([0, 1, 4, 8, 16, 0x2001, 1 << 30 | 1, 1 << 31 | 1, 1 << 30])
returns = st.sampled_from([0, -2, -9, -17, 3, 4])
moments = st.one_of(st.just(Moment()), st.builds(Moment, times, times, words, small, fds))
tgids = st.integers(1, 2)


def structs(kind: type, **known: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Any value of a frozen event class: known fields as given, moments and small numbers otherwise."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in dataclasses.fields(kind):
        if field.name in known:
            fields[field.name] = known[field.name]
        elif field.type in (Moment, "Moment"):
            fields[field.name] = moments
        else:
            fields[field.name] = small
    return st.builds(kind, **fields)


slots = structs(
    SlotLife,
    addr=words,
    tgid=tgids,
    state=st.sampled_from(SlotState),
    flags=st.integers(0, 2**22 - 1).map(SlotFlag),
    first_delivery=times,
    last_delivery=times,
    last_delivery_enter=times,
    last_dispatch=times,
    first_after_close=times,
    last_after_close=times,
    object=words,
    fd=fds,
    epfd=fds,
    old_fd=fds,
    old_epfd=fds,
    idle_since=times,
    hup_since=times,
)
registrations = structs(
    Registration,
    userdata=words,
    slot=words,
    tgid=tgids,
    epfd=fds,
    fd=fds,
    events=masks,
    state=st.sampled_from(RegState),
    flags=st.integers(0, 255).map(RegFlag),
    file=st.integers(0, 2),
    dup_fd=fds,
)
records = st.tuples(
    small, st.integers(0, 25), st.integers(0, 511), times, times, words, tgids, small, small, fds, fds,
    returns, masks, fds,
)  # fmt: skip
CALLS = {Suspect.BAD_CLOSE: Kind.CLOSED, Suspect.FAILED_REMOVAL: Kind.REMOVED}


@st.composite
def raise_suspicion(draw: st.DrawFn) -> SuspicionRaised:
    """Random evidence; mostly with a trigger of the kind that the pattern is about."""
    suspect = draw(st.sampled_from(Suspect))
    trigger = Trigger(*draw(records))
    if draw(st.integers(0, 3)):
        trigger = trigger._replace(kind=int(CALLS.get(suspect, Kind.DELIVERED)), ret=-9)
    return SuspicionRaised(
        suspect=suspect,
        trigger=trigger,
        wait_enter=draw(times),
        wait_exit=draw(times),
        batch=draw(small),
        batch_open=draw(st.booleans()),
        slot=draw(st.none() | slots),
        reg=draw(st.none() | registrations),
        other=draw(st.none() | registrations),
        comm=draw(st.text(max_size=16)),
        memory=draw(
            st.sampled_from([b"", b"\0" * 64, b"\1" * 8 + b"\xaa" * 56, b"\xaa" * 64])
            | st.binary(max_size=128)
        ),
        forks=draw(small),
        last_child=draw(small),
        forked_at=draw(times),
    )


suspicions = raise_suspicion()
lingerings = st.builds(
    SlotLingering, ts=st.sampled_from([60, 2**63]), slot=slots, total=st.sampled_from([0, 1, 16, 40, 2**32])
)
lifetimes = st.builds(LifetimeEnded, signature=st.integers(0, 2**17 - 1), slot=slots)
garbage_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
roles = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["create", "destroy", "dispatch", "?"])}, optional={"counts": garbage_json}
    )
)
plans = st.fixed_dictionaries(
    {"sites": roles},
    optional={
        "unprobed": roles | garbage_json,
        "guard": st.none() | st.just("generation"),
        "slot": garbage_json
        | st.just({"freelist_offset": 0, "size": 64})
        | st.just({"freelist_offset": 0, "size": 64, "count_offset": 8}),
        "identity": garbage_json,
    },
)
attaches = st.builds(
    TargetAttached,
    ts=times,
    tgid=tgids,
    start_time=small,
    exe=st.text(max_size=4),
    comm=st.text(max_size=4),
    bias=words,
    plan=plans | st.dictionaries(st.text(max_size=4), garbage_json, max_size=3),
    bootstrapped=small,
    late=st.booleans(),
)
GUARDED = TargetAttached(
    ts=0, tgid=1, start_time=0, exe="", comm="", bias=0, plan={"sites": [], "guard": "generation"},
    bootstrapped=0, late=False,
)  # fmt: skip
counts = st.dictionaries(st.integers(0, 2**17 - 1), st.integers(0, 5), max_size=4)
others = st.one_of(
    attaches,
    attaches,
    lifetimes,
    st.builds(LifetimesCounted, ts=times, counts=counts),
    lingerings,
    st.builds(RecordsRead, records=st.lists(records, max_size=12).map(tuple)),
    st.builds(Lost, ts=times, what=st.sampled_from(["recorder", "x"]), count=small, since=times),
    st.builds(StackSeen, tgid=tgids, id=fds, pcs=st.lists(words, max_size=2).map(tuple)),
    st.builds(ThreadSeen, tgid=tgids, tid=small, comm=st.text(max_size=4)),
    st.builds(TargetGone, ts=times, tgid=tgids, reason=st.text(max_size=4)),
    st.builds(
        ProcessForked,
        ts=times,
        tgid=tgids,
        child=small,
        ended=st.booleans(),
        watched=st.booleans(),
        shares_table=st.booleans(),
    ),
    st.builds(
        FdinfoChecked,
        ts=times,
        tgid=tgids,
        epfd=fds,
        fd=fds,
        userdata=words,
        present=st.none() | st.booleans(),
        holders=st.lists(st.tuples(small, fds, st.text(max_size=4)), max_size=4).map(tuple),
    ),
    st.builds(CountersRead, ts=times, counters=st.just({})),
    st.builds(
        CrashSeen, ts=times, tgid=tgids, tid=small, comm=st.just(""), signal=small, si_code=fds,
        fault_addr=words, ip=words, registers=st.just({}), stack=st.just(b""), batch=small,
    ),
    st.builds(Tick, ts=times),
    st.sampled_from([None, 7, "event", b"", (), RecordsRead(records=((1, 2), ()))]),
)  # fmt: skip
events = st.booleans().flatmap(lambda judged: suspicions if judged else others)
streams = st.lists(events, max_size=20)


def run(stream: list[Any], **options: int) -> tuple[Correlator, list[Finding]]:
    correlator = Correlator(CorrelatorOptions(leak_after_ns=10, **options))
    found = [finding for event in stream for finding in correlator.feed(event)]
    return correlator, found


@given(stream=streams)
def test_any_stream_is_judged_and_no_uncertain_finding_alarms(stream: list[Any]) -> None:
    correlator, found = run(stream)
    assert correlator.stats.events == len(stream)
    for finding in (*found, *correlator.findings()):
        if finding.confidence is Confidence.UNCERTAIN:
            assert finding.severity <= Severity.WARNING
            assert finding.title.startswith("cannot conclude")
        assert finding.count >= 1
        assert finding.group
        assert finding.reasons
        assert Finding.from_dict(json.loads(json.dumps(finding.to_dict()))) == finding


@given(stream=streams)
def test_the_same_stream_gives_the_same_findings(stream: list[Any]) -> None:
    first, found = run(stream)
    second, again = run(stream)
    assert found == again
    assert first.findings() == second.findings()
    assert first.to_dict() == second.to_dict()


@given(stream=streams)
def test_memory_is_bounded(stream: list[Any]) -> None:
    correlator, _ = run(stream, max_groups=3, max_slots=3)
    assert len(correlator._groups) <= 3 + len(RuleId) * len(Severity)
    assert len(correlator._slots) <= 3
    assert len(correlator._tallies) <= 6


@given(stream=streams)
def test_every_actor_chain_is_in_time_order_with_its_gaps(stream: list[Any]) -> None:
    correlator, found = run(stream)
    for finding in (*found, *correlator.findings()):
        seen = [actor for actor in finding.actors if actor.moment.seen]
        assert {actor.role for actor in finding.actors} <= ROLES
        assert [a.moment.ts for a in seen] == sorted(a.moment.ts for a in seen)
        gaps = [b.moment.ts - a.moment.ts for a, b in pairwise(seen)]
        assert [a.gap_ns for a in seen[1:]] == gaps
        assert all(a.gap_ns is None for a in finding.actors if not a.moment.seen)


@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(0, 30)), max_size=60),
    limit=st.integers(1, 8),
)
def test_group_counts_are_exact(steps: list[tuple[int, int, int]], limit: int) -> None:
    groups = Groups(limit)
    reported: dict[str, list[Finding]] = {}
    for site, count, ts in steps:
        shown = groups.add(
            Finding(
                rule=RuleId.BAD_CLOSE,
                severity=Severity.HIGH,
                confidence=Confidence.OBSERVED,
                reasons=("r",),
                title="t",
                advice=(),
                tgid=1,
                sites=(CallSite(role="closed", address=site),),
                count=count,
                first_ts=ts,
                last_ts=ts,
            ),
            "image",
        )
        if shown is not None:
            reported.setdefault(shown.group, []).append(shown)
    current = groups.current()
    assert sum(group.count for group in current) == sum(count for _, count, _ in steps)
    assert len(current) <= limit + 1
    if len({site for site, _, _ in steps}) <= limit:
        wanted = {
            site: (
                sum(n for s, n, _ in steps if s == site),
                min(ts for s, _, ts in steps if s == site),
                max(ts for s, _, ts in steps if s == site),
            )
            for site, _, _ in steps
        }
        assert {g.sites[0].address: (g.count, g.first_ts, g.last_ts) for g in current} == wanted
    for updates in reported.values():
        assert [u.update for u in updates] == [False] + [True] * (len(updates) - 1)
        assert all(b.count >= 2 * a.count for a, b in pairwise(updates))


@given(
    chunks=st.lists(
        st.tuples(st.booleans(), st.sampled_from([96, 97, 224, 0]), st.integers(1, 9)), max_size=30
    )
)
def test_counted_lifetimes_are_counted_once_whatever_the_order(chunks: list[tuple[bool, int, int]]) -> None:
    """Counts with examples before, between and after them: a warning's count is that of its signatures."""
    blank = {f.name: 0 for f in dataclasses.fields(SlotLife)}
    ats = dict.fromkeys(("create", "add", "removed", "close", "destroy", "prev_destroy"), Moment())
    slot = SlotLife(**blank | ats | {"state": SlotState.FREE, "flags": SlotFlag(0)})
    correlator = Correlator()
    totals: dict[int, int] = {}
    examples: set[int] = set()
    for is_example, bits, count in chunks:
        signature = bits | Signature.WAITER_KNOWN
        if is_example and totals.get(signature):  # an example is one of those counted
            examples.add(signature)
            correlator.feed(LifetimeEnded(signature=signature, slot=slot))
        elif not is_example:
            totals[signature] = totals.get(signature, 0) + count
            correlator.feed(LifetimesCounted(ts=1, counts={signature: count}))
    close_other = sum(n for s, n in totals.items() if s & Signature.CLOSE_OTHER)
    after_close = sum(n for s, n in totals.items() if s & Signature.AFTER_CLOSE)
    found: dict[str, int] = {}
    for finding in correlator.findings():
        found[finding.rule.value] = found.get(finding.rule.value, 0) + finding.count
    wanted = {"implicit-removal": close_other, "delivery-after-close": after_close}
    assert found == {rule: n for rule, n in wanted.items() if n}
    assert correlator.census.total == sum(totals.values())


def test_the_strategies_reach_every_rule() -> None:
    """The properties above mean something only when the random evidence makes findings of all kinds."""
    reached: set[RuleId] = set()
    certain: set[Severity] = set()

    def collect(stream: list[Any]) -> None:
        guarded = run([GUARDED, *stream])[0].findings()
        for finding in (*run(stream)[0].findings(), *guarded):
            reached.add(finding.rule)
            certain.add(finding.severity)

    evidence = st.lists(suspicions | lingerings | lifetimes | attaches, max_size=20)
    for round_ in range(8):  # a few seeds: one alone can miss a rare rule when an event class changes
        if reached < set(RuleId) or certain < set(Severity):
            limits = settings(max_examples=150, deadline=None, derandomize=False, database=None)
            limits(seed(round_)(given(stream=evidence)(collect)))()
    assert reached == set(RuleId)
    assert certain == set(Severity)
