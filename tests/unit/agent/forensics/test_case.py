"""What is kept before a crash, and the case that is made of it."""

from __future__ import annotations

from dataclasses import replace

from agent.forensics.case import CaseKeeper
from agent.forensics.from_events import evidence, gather
from agent.forensics.redact import redacted
from probes.events import (
    CrashSeen,
    ModulesMapped,
    ProcessCaptured,
    RecordsRead,
    StackSeen,
    SuspicionRaised,
    TargetAttached,
    TargetGone,
    Tick,
)
from tests.unit.agent.correlator.playbook import LOOP, SLOT, TGID, life
from tests.unit.agent.forensics.cases import CODE, SECRET, STACK_AT, case, crash, history, words


def test_a_case_holds_what_a_replay_needs_in_order() -> None:
    kinds = [type(event) for event in case().events]
    assert kinds[:2] == [TargetAttached, ModulesMapped]
    assert kinds[-1] is CrashSeen
    assert kinds.index(StackSeen) < kinds.index(RecordsRead) < kinds.index(SuspicionRaised)
    assert kinds.index(ProcessCaptured) < kinds.index(CrashSeen)


def test_only_stacks_that_something_refers_to_are_in_it() -> None:
    assert [event.id for event in case().events if isinstance(event, StackSeen)] == [4]


def test_the_stack_of_who_made_a_duplicate_is_kept() -> None:
    """Who keeps the description open is the best line of the explanation."""
    story = life().dupped(25, fd=12).closed(30, shared=True).destroyed(50)
    assert story.reg is not None
    by = story.reg.dup._replace(stack=50)
    event = story.registration(dup=by).stale_delivery(70)
    held = replace(crash().slots[0], reg=replace(story.reg, dup=by._replace(stack=51)))
    keeper = CaseKeeper()
    frames = tuple(StackSeen(tgid=TGID, id=number, pcs=(CODE[0] + 0x20,)) for number in (50, 51, 52))
    for told in (*history(), *frames, event, crash(slots=(held,))):
        keeper.feed(told)
    keeper.feed(TargetGone(ts=1100, tgid=TGID, reason="killed by signal 11"))
    (kept,) = keeper.take()
    assert {told.id for told in kept.events if isinstance(told, StackSeen)} == {4, 50, 51}


def test_it_waits_for_the_end_of_the_process() -> None:
    keeper = CaseKeeper()
    for event in [*history(), crash(ts=1000)]:
        keeper.feed(event)
    assert keeper.open
    assert list(keeper.take()) == []
    keeper.feed(crash(ts=9_000_000_000))  # the handler aborts
    assert list(keeper.take()) == []
    keeper.feed(TargetGone(ts=9_000_000_001, tgid=TGID, reason="killed by signal 6"))
    assert [len([e for e in one.events if isinstance(e, CrashSeen)]) for one in keeper.take()] == [2]
    assert not keeper.open


def test_a_process_that_lives_on_is_not_waited_for() -> None:
    keeper = CaseKeeper()
    for event in [*history(), crash(ts=1000)]:
        keeper.feed(event)
    keeper.feed(Tick(ts=1000))
    assert list(keeper.take()) == []
    keeper.feed(crash(ts=13_000_000_000))
    assert [one.alive for one in keeper.take()] == [True]
    assert list(keeper.take(everything=True)) == []


def test_it_waits_for_a_mini_core_that_is_being_written() -> None:
    keeper = CaseKeeper()
    for event in [*history(), crash(), TargetGone(ts=1100, tgid=TGID, reason="killed by signal 11")]:
        keeper.feed(event)
    assert list(keeper.take(waiting=frozenset({TGID}))) == []
    keeper.core(TGID, "/run/core", "")
    assert [one.core for one in keeper.take()] == ["/run/core"]


def test_it_waits_no_longer_than_a_minute() -> None:
    keeper = CaseKeeper()
    for event in [*history(), crash(), TargetGone(ts=1100, tgid=TGID, reason="killed by signal 11")]:
        keeper.feed(event)
    keeper.feed(Tick(ts=50_000_000_000))
    assert list(keeper.take(waiting=frozenset({TGID}))) == []
    keeper.feed(Tick(ts=61_000_000_000))
    (made,) = keeper.take(waiting=frozenset({TGID}))
    assert "did not come" in made.notes[-1]


def test_a_handler_that_executes_the_program_again_hides_no_crash() -> None:
    keeper = CaseKeeper()
    for event in [*history(), crash(), TargetGone(ts=1100, tgid=TGID, reason="executed another program")]:
        keeper.feed(event)
    keeper.feed(history()[0])
    (made,) = keeper.take()
    assert made.crash == crash()
    assert not made.alive
    assert not keeper.open
    assert list(keeper.take(everything=True)) == []


def test_what_a_process_executes_is_watched_as_well() -> None:
    keeper = CaseKeeper()
    for event in [*history(), TargetGone(ts=1100, tgid=TGID, reason="executed another program"), *history()]:
        keeper.feed(event)
    assert list(keeper.take()) == []
    keeper.feed(crash())
    keeper.feed(TargetGone(ts=1200, tgid=TGID, reason="killed by signal 11"))
    assert len(list(keeper.take())) == 1


def test_a_target_that_ends_in_peace_makes_no_case() -> None:
    keeper = CaseKeeper()
    for event in [*history(), TargetGone(ts=1100, tgid=TGID, reason="exited")]:
        keeper.feed(event)
    assert list(keeper.take(everything=True)) == []
    keeper.feed(crash())
    assert not keeper.open


def test_memory_is_bounded_and_what_went_is_counted() -> None:
    keeper = CaseKeeper()
    for event in history():
        keeper.feed(event)
    suspicion = next(event for event in history() if isinstance(event, SuspicionRaised))
    for _ in range(1000):
        keeper.feed(suspicion)
        keeper.finding(TGID, "{}")
    keeper.feed(crash())
    keeper.feed(TargetGone(ts=1100, tgid=TGID, reason="killed by signal 11"))
    made = next(keeper.take())
    assert sum(isinstance(event, SuspicionRaised) for event in made.events) == 256
    assert len(made.findings) == 256
    assert "1489 older suspicions and findings are not in it" in made.notes


def test_crashes_at_one_place_have_one_key() -> None:
    one = case()
    assert one.key == case().key
    elsewhere = case()
    elsewhere.crash = crash(fault_addr=0x300)
    assert elsewhere.key != one.key
    far, other = case(), case()
    far.crash, other.crash = crash(fault_addr=0x7F0000001234), crash(fault_addr=0x7F0000005678)
    assert far.key == other.key


def test_redaction_keeps_return_addresses_and_frame_pointers_only() -> None:
    made = case(redact=redacted)
    seen = next(event for event in made.events if isinstance(event, CrashSeen))
    assert seen.stack == words(CODE[0] + 0x40, 0, STACK_AT + 64, 0)
    assert seen.near == {}
    assert seen.slots[0].memory
    stack = next(event for event in made.events if isinstance(event, StackSeen))
    assert stack.memory == words(0, CODE[0])
    assert not any(SECRET in repr(event).encode() for event in made.events)


def test_the_evidence_reads_captured_memory_and_nothing_else() -> None:
    made = case()
    found = evidence(gather(made.events))
    assert found is not None
    assert found.fault_addr == 0x2F8
    assert found.memory.read(SLOT, 8) == bytes(8)
    assert found.memory.read(STACK_AT, 8) == words(CODE[0] + 0x40)
    assert found.memory.read(SLOT + 4096, 1) is None
    assert [batch.deliveries for batch in found.batches] == [((SLOT, 1),)]
    assert found.history is not None
    assert {life.addr for life in found.history.lives} == {SLOT}
    assert LOOP in found.history.waiters
    assert [region.path for region in found.regions] == ["/srv/server"]


def test_another_process_has_no_part_in_the_evidence() -> None:
    """Its slots may be at addresses of this one's."""
    other = life(addr=SLOT + 0x100).added(10).destroyed(50).stale_delivery(60)
    other = replace(other, trigger=other.trigger._replace(tgid=TGID + 1))
    found = evidence(gather([*case().events, other]))
    assert found is not None
    assert found.history is not None
    assert {life.addr for life in found.history.lives} == {SLOT}


def test_no_crash_is_no_evidence() -> None:
    assert evidence(gather(history())) is None
