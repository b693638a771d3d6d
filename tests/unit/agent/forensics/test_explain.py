"""Hand-made evidence: which ordering failed, what would have prevented it, and what is left unknown."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from typing import Any

import pytest

from agent.correlator import Correlator
from agent.correlator.findings import Finding
from agent.forensics.evidence import (
    CrashEvidence,
    Fragments,
    History,
    OpenBatch,
    Source,
    TargetIdentity,
    ThreadState,
)
from agent.forensics.explain import explain
from agent.forensics.explanation import (
    BadExplanationError,
    Cause,
    Certainty,
    Explanation,
    Outcome,
    Topic,
)
from agent.forensics.facts import CodePlace, Examination, Fault, FreeList, ListEnd, Load, Named, SlotSeen
from agent.forensics.render import text
from agent.text import plain
from probes.abi import Kind, RecordFlag, RegFlag, RegState, SlotFlag
from probes.events import Event, Moment, SuspicionRaised
from tests.unit.agent.correlator.playbook import LOOP, SLOT, TGID, WORKER, Life, attached, freed_bytes, life

FRAMES = (
    CodePlace(
        function="worker.HTTPConn.getState", file="/srv/worker.zig", line=1693, column=40, inlined=True
    ),
    CodePlace(function="worker.NonBlocking.run", file="/srv/worker.zig", line=111),
)
FAULT = Fault(
    tid=LOOP,
    pc=0x1000,
    module="/srv/server",
    frames=FRAMES,
    instruction="movzx eax, byte ptr [rbx + 0x2f8]",
    address=0x2F8,
    base="rbx",
    base_value=0,
    offset=0x2F8,
    variable=Named(name="self", type="*HTTPConn", function="getState", inlined=True, exact=True),
    type="worker.HTTPConn",
    field="_state",
)
LOAD = Load(
    instruction="mov rbx, qword ptr [r14]",
    address=SLOT,
    base="r14",
    base_value=SLOT,
    agrees=True,
    how="loaded from memory",
)
LIST = FreeList(
    head=0x9000, path="the_worker.pool.free", nodes=(SLOT,), length=1, end=ListEnd.NULL, last=0, position=0
)


def _slot(**changes: Any) -> SlotSeen:
    whole = SlotSeen(
        address=SLOT,
        field="protocol.http",
        by=("code", "batch", "free list"),
        data=freed_bytes(0),
        lines=("protocol = .http 0x0",),
        link=0,
        filled=True,
        link_aliases="protocol",
    )
    return replace(whole, **changes)


def _seen(**changes: Any) -> Examination:
    whole = Examination(
        fault=FAULT, loads=(LOAD,), slot=_slot(), slot_type="worker.Conn(void)", slot_size=64, free_list=LIST
    )
    return replace(whole, **changes)


def _evidence(history: History | None, **changes: Any) -> CrashEvidence:
    whole = CrashEvidence(
        source=Source.KERNEL if history is not None else Source.CORE,
        target=TargetIdentity(tgid=TGID, exe="/srv/server", identity="build-id:cafe", bias=0, comm="server"),
        signal=11,
        si_code=1,
        fault_addr=0x2F8,
        ts=1000,
        threads=(ThreadState(tid=LOOP, comm="loop", registers={"rip": 0x1000}, crashed=True),),
        memory=Fragments(()),
        history=history,
    )
    return replace(whole, **changes)


def _findings(*told: Event) -> tuple[Finding, ...]:
    judge = Correlator()
    for event in (attached(), *told):
        judge.feed(event)
    return judge.findings()


def _history(story: Life, *told: Event, **changes: Any) -> History:
    kept = [event.slot for event in told if isinstance(event, SuspicionRaised) and event.slot is not None]
    whole = History(
        attached=1,
        lives=(*kept, story.slot),
        registrations=(story.reg,) if story.reg is not None else (),
        findings=_findings(*told),
        names={LOOP: "loop", WORKER: "worker-1"},
        waiters=(LOOP,),
    )
    return replace(whole, **changes)


def _order(item: Explanation) -> str:
    return next(statement.text for statement in item.statements if statement.topic is Topic.ORDER)


def _outcomes(item: Explanation) -> dict[str, Outcome]:
    return {one.name.split("(")[0].strip(): one.outcome for one in item.alternatives}


def test_a_description_that_survived_its_close() -> None:
    story = life().created(5).added(10).delivered(20).closed(30, shared=True).flagged(SlotFlag.ORPHANED)
    raised = story.destroyed(50).delivered(70).stale_delivery(70)
    item = explain(_evidence(_history(story, raised)), _seen())
    assert (item.cause, item.fix_kind) == (Cause.DESCRIPTION_SURVIVED, "del-before-close")
    assert (item.closer, item.destroyer, item.generation) == (LOOP, LOOP, 1)
    assert "no EPOLL_CTL_DEL came before close(fd 9)" in _order(item)
    assert item.certainty is Certainty.CONFIRMED
    assert [step.role for step in item.steps] == [
        "created", "registered", "delivered", "closed", "destroyed", "delivered", "crashed",
    ]  # fmt: skip
    assert item.steps[4].gap_ns == 20
    assert item.steps[5].note == "after the destroy"
    assert _outcomes(item)["a double destroy"] is Outcome.EXCLUDED


def test_closed_on_a_worker_and_destroyed_on_the_loop() -> None:
    story = life().added(10).closed(30, WORKER, shared=True).flagged(SlotFlag.ORPHANED).destroyed(50)
    item = explain(_evidence(_history(story, story.stale_delivery(70))), _seen())
    assert (item.closer, item.destroyer) == (WORKER, LOOP)
    assert f"thread {WORKER} closed, thread {LOOP} destroyed" in _order(item)
    closed = next(step for step in item.steps if step.role == "closed")
    assert (closed.tid, closed.comm) == (WORKER, "worker-1")


def test_a_close_that_raced_the_wait() -> None:
    story = life().added(10).closed(30, WORKER).destroyed(50)
    item = explain(_evidence(_history(story, story.stale_delivery(52, wait=25))), _seen())
    assert (item.cause, item.fix_kind) == (Cause.CLOSE_RACE, "del-before-close")
    assert "concurrent with the wait" in _order(item)


def test_destroyed_while_registered() -> None:
    story = life().added(10).destroyed(50)
    item = explain(_evidence(_history(story, story.stale_delivery(70))), _seen())
    assert (item.cause, item.closer, item.destroyer) == (Cause.NEVER_REMOVED, 0, LOOP)
    assert "neither DEL nor close came first" in _order(item)


def test_who_made_the_duplicate_is_a_step_and_is_named() -> None:
    story = life().created(5).added(10).dupped(25, fd=12, by=WORKER)
    story.closed(30, shared=True).flagged(SlotFlag.ORPHANED)
    raised = story.destroyed(50).delivered(70).stale_delivery(70)
    item = explain(_evidence(_history(story, raised)), _seen())
    step = next(step for step in item.steps if step.role == "duplicated")
    assert (step.tid, step.comm, step.note) == (WORKER, "worker-1", "fd 12")
    assert f"another descriptor (fd 12, duplicated by thread {WORKER}) keeps" in _order(item)


def test_a_duplicate_of_what_was_never_closed_explains_nothing() -> None:
    story = life().created(5).added(10).dupped(25, fd=12)
    raised = story.destroyed(50).delivered(70).stale_delivery(70)
    item = explain(_evidence(_history(story, raised)), _seen())
    assert item.cause is Cause.NEVER_REMOVED
    assert "duplicated" not in {step.role for step in item.steps}


@pytest.mark.parametrize("told", [True, False])
def test_a_free_within_a_batch_that_was_not_judged_is_no_fact(told: bool) -> None:
    """Without a dispatch nobody knows whether the loop had come to the delivery: not even with a crash."""
    story = life().added(10).delivered(40).removed(42).closed(45).flagged(SlotFlag.NOT_JUDGED)
    raised = story.freed_in_batch(50, flags=RecordFlag.NOT_JUDGED, arg=1)
    item = explain(_evidence(_history(story, *(raised,) * told)), _seen())
    assert (item.cause, item.certainty) == (Cause.FREED_IN_BATCH, Certainty.INFERRED)
    assert "whether the loop had come to it is not known" in _order(item)


def test_freed_in_the_open_batch() -> None:
    story = life().added(10).delivered(40).removed(42).closed(45).destroyed(50).has(last_batch=7)
    item = explain(_evidence(_history(story)), _seen())
    assert (item.cause, item.rule, item.fix_kind) == (
        Cause.FREED_IN_BATCH,
        "freed-in-open-batch",
        "deferred-free",
    )
    assert "open batch 7" in _order(item)


@pytest.mark.parametrize("old", [True, False])
def test_an_older_registration_is_to_blame_for_what_hits_a_slot_freed_in_order(old: bool) -> None:
    """Both were delivered in one batch; the life that the first event ended is not at fault."""
    story = life(gen=3).added(10).delivered(40).has(old_fd=11, old_gen=2, last_batch=7)
    told = [story.recycled_delivery(40)] if old else []
    story = story.removed(42).closed(45).destroyed(50)
    item = explain(_evidence(_history(story, *told)), _seen())
    assert item.cause is (Cause.RECYCLED if old else Cause.FREED_IN_BATCH)
    assert ("generation 2 (fd 11) outlived its slot" in _order(item)) is old


def test_a_recycled_delivery_is_told_with_the_life_that_it_was_meant_for() -> None:
    """The one that was hit lives: no destroy of it is told, and what happened is no alternative."""
    old = life(gen=2, fd=11).added(5).closed(8, shared=True).destroyed(9)
    story = (
        life(gen=3)
        .created(15)
        .added(20)
        .has(old_fd=11, old_gen=2, prev_destroy=old.slot.destroy, last_batch=7)
    )
    assert old.reg is not None
    story.reg = old.reg
    raised = story.recycled_delivery(40)
    alone = _slot(by=("code", "batch"), filled=False)
    free = replace(LIST, position=None, nodes=(), length=0)
    item = explain(_evidence(_history(story, raised)), _seen(slot=alone, free_list=free))
    assert item.cause is Cause.RECYCLED
    told = [(step.role, step.note) for step in item.steps]
    assert told[:3] == [("registered", "generation 2"), ("closed", "generation 2"), ("destroyed", "")]
    assert [role for role, _ in told[3:5]] == ["created", "registered"]
    others = {one.name: one for one in item.alternatives}
    assert others["a recycled slot"].outcome is Outcome.CAUSE
    assert "generation 3 lives" in others["a double destroy"].because
    assert others["a stray write (heap corruption)"].because.startswith("the list is empty")


def test_an_older_registration_is_known_from_the_life_where_the_finding_was_lost() -> None:
    story = life(gen=3).added(10).delivered(40).has(old_fd=11, old_gen=2, last_batch=7, recycled=2)
    item = explain(_evidence(_history(story.removed(42).closed(45).destroyed(50), lost=9)), _seen())
    assert (item.cause, item.rule) == (Cause.RECYCLED, "recycled-delivery")


def test_what_an_earlier_life_suffered_does_not_explain_this_one() -> None:
    earlier = life(gen=2).added(10).closed(15, shared=True).destroyed(20)
    told = earlier.stale_delivery(30)
    story = life(gen=3).added(35).delivered(40).removed(42).closed(45).destroyed(50).has(last_batch=7)
    item = explain(_evidence(_history(story, told)), _seen())
    assert (item.cause, item.generation) == (Cause.FREED_IN_BATCH, 3)


def test_a_removal_before_the_destroy_is_no_race_of_the_close() -> None:
    story = life().added(10).removed(20).closed(30).destroyed(50)
    item = explain(_evidence(_history(story, story.stale_delivery(70))), _seen())
    assert item.cause not in (Cause.CLOSE_RACE, Cause.STALE_LINK)


def test_destroyed_twice() -> None:
    story = life().added(10).removed(20).closed(30).destroyed(50).has(double_destroys=1)
    ring = replace(LIST, end=ListEnd.CYCLE, last=SLOT)
    item = explain(_evidence(_history(story, story.destroy_again(60))), _seen(free_list=ring))
    assert (item.cause, item.rule, item.fix_kind) == (Cause.DESTROYED_TWICE, "double-destroy", "destroy-once")
    assert _outcomes(item)["a double destroy"] is Outcome.CAUSE


@pytest.mark.parametrize("stale", [55, 65], ids=["before", "after"])
def test_what_came_first_is_blamed(stale: int) -> None:
    """A stale event that led to a second destroy is the cause; one that came after it is not."""
    story = life().added(10).closed(30, shared=True).destroyed(50)
    told = [(stale, story.stale_delivery(stale)), (60, story.destroy_again(60))]
    history = _history(story, *(event for _ts, event in sorted(told, key=lambda one: one[0])))
    item = explain(_evidence(history), _seen())
    twice = item.cause is Cause.DESTROYED_TWICE
    assert twice is (stale > 60)
    assert "destroyed again" in _order(item)
    assert item.fix_kind == ("destroy-once" if twice else "del-before-close")


def _refused(story: Life, ts: int) -> Life:
    reg = life().added(1).reg
    assert reg is not None
    changes: dict[str, Any] = {"fd": 44, "state": RegState.ENDED, "flags": RegFlag.ADD_FAILED}
    story.other = replace(reg, **changes, error=errno.ENOSPC, add=Moment(ts - 1, ts, 0, LOOP, -1))
    return story


def _record(ts: int, kind: Kind, tid: int = LOOP, fd: int = -1, ret: int = 0) -> tuple[int, ...]:
    return (1, kind, 0, ts, ts - 1, 0, TGID, tid, 0, fd, -1, ret, 0, 7)


def test_a_chain_is_told_in_its_order() -> None:
    """The ADD failed, its error path destroyed twice and closed twice, and a checked build ended on that."""
    story = _refused(Life(fd=-1).created(10).destroyed(50).has(double_destroys=1), 30)
    bad = story.bad_close(70, fd=44)
    done = ((50, Kind.DESTROYED, -1, 0), (70, Kind.CLOSED, 44, -9), (80, Kind.SIGNALED, -1, 0))
    records = tuple(_record(ts, kind, fd=fd, ret=ret) for ts, kind, fd, ret in done)
    history = _history(story, story.destroy_again(60), bad, records=records)
    fault = replace(FAULT, aborted=True, base="", base_value=None, panic=("debug.panic",))
    item = explain(_evidence(history, signal=6, ts=80), _seen(fault=fault, loads=()))
    assert item.cause is Cause.DESTROYED_TWICE
    assert [(step.role, step.ts) for step in item.steps] == [
        ("created", 10),
        ("refused", 30),
        ("destroyed", 50),
        ("destroyed", 60),
        ("closed", 70),
        ("crashed", 80),
    ]
    assert _order(item).startswith("it began with an EPOLL_CTL_ADD of fd 44 that failed with ENOSPC")
    assert "a bad close, after the server used a Conn that had been destroyed twice" in item.headline
    said = [statement.text for statement in item.statements if statement.topic is Topic.FAULT]
    assert "close(fd 44), which returned EBADF" in said[-1]
    fixes = [statement.text for statement in item.statements if statement.topic is Topic.FIX]
    assert "max_user_watches" in fixes[0]
    assert "one owner" in fixes[1]


@pytest.mark.parametrize("what", ["another thread", "went on", "no panic"])
def test_a_bad_close_that_did_not_end_it_is_not_said_to(what: str) -> None:
    story = life().added(10).removed(20).closed(30).destroyed(50)
    tid = WORKER if what == "another thread" else LOOP
    records = [_record(70, Kind.CLOSED, tid, 9, -9)]
    records += [_record(75, Kind.DELIVERED)] if what == "went on" else []
    fault = replace(FAULT, aborted=what != "no panic")
    item = explain(_evidence(_history(story, records=tuple(records)), ts=80), _seen(fault=fault))
    assert "bad close" not in item.headline
    assert not any("bad close" in statement.text for statement in item.statements)


def test_a_crash_elsewhere_in_a_pool_that_an_earlier_double_destroy_broke() -> None:
    """The crash touches the list's head, not a slot: the second destroy of another slot is the cause."""
    story = life(addr=SLOT + 0x100).added(10).removed(20).closed(30).destroyed(50).has(double_destroys=1)
    head = replace(LIST, length=0, nodes=(), end=ListEnd.MISPLACED, last=0xD74203A74736F48, position=None)
    load = replace(LOAD, address=head.head)
    item = explain(
        _evidence(_history(story, story.destroy_again(60))),
        _seen(slot=None, free_list=head, loads=(load,)),
    )
    assert (item.cause, item.slot) == (Cause.DESTROYED_TWICE, SLOT + 0x100)
    said = [statement.text for statement in item.statements]
    assert any("head of the pool's free list" in sentence for sentence in said)
    assert any("'Host: t\\r'" in sentence for sentence in said)


def test_a_life_that_ended_in_order_is_not_blamed_on_epoll() -> None:
    story = life().added(10).removed(20).closed(30).destroyed(50)
    item = explain(_evidence(_history(story)), _seen())
    assert (item.cause, item.rule, item.fix_kind) == (Cause.STALE_LINK, "", "unlink-first")
    assert "DEL, close and destroy" in _order(item)


def test_without_a_history_the_actors_are_unknown() -> None:
    item = explain(_evidence(None), _seen())
    assert (item.cause, item.closer, item.destroyer, item.steps) == (Cause.FREED_BEFORE_USE, 0, 0, ())
    assert item.certainty is Certainty.CONFIRMED  # that it was freed: list and batch agree
    assert next(s for s in item.statements if s.topic is Topic.ORDER).certainty is Certainty.UNKNOWN
    assert any("nothing was watching" in sentence for sentence in item.unknown)


def test_lost_events_make_it_uncertain() -> None:
    story = life().added(10).destroyed(50)
    item = explain(_evidence(_history(story, story.stale_delivery(70), lost=3)), _seen())
    assert item.certainty is Certainty.UNCERTAIN
    assert "3 events of the history were lost" in item.unknown


@pytest.mark.parametrize(
    ("end", "cause"), [(ListEnd.CYCLE, Cause.DESTROYED_TWICE), (ListEnd.MISPLACED, Cause.LIST_BROKEN)]
)
def test_a_broken_list_without_a_history(end: ListEnd, cause: Cause) -> None:
    item = explain(_evidence(None), _seen(free_list=replace(LIST, end=end, last=SLOT)))
    assert (item.cause, item.certainty) == (cause, Certainty.INFERRED)
    assert "not known without a history" in _order(item)


def test_a_crash_that_has_nothing_to_do_with_a_slot() -> None:
    item = explain(_evidence(None), _seen(slot=None, free_list=LIST, loads=()))
    assert (item.cause, item.rule, item.slot) == (Cause.NOT_A_SLOT, "", 0)
    assert "nothing connects it" in item.headline


def test_nothing_was_captured() -> None:
    empty = CrashEvidence(
        source=Source.KERNEL, target=TargetIdentity(tgid=1, exe="", identity="", bias=0), signal=0
    )
    item = explain(empty, Examination())
    assert item.cause is Cause.UNKNOWN
    assert {statement.certainty for statement in item.statements} == {Certainty.UNKNOWN}
    assert plain(text(item))


def test_a_slot_that_is_not_free_is_called_live() -> None:
    alone = _slot(by=("code", "batch"), filled=False)
    item = explain(_evidence(None), _seen(slot=alone, free_list=replace(LIST, position=None, nodes=())))
    assert any("by memory alone it is a live object" in s.text for s in item.statements)
    assert _outcomes(item)["a recycled slot"] is Outcome.POSSIBLE


@pytest.mark.parametrize("filled", [True, False])
@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("partial", [True, False])
def test_what_destroy_leaves_is_said_in_one_way_only(filled: bool, listed: bool, partial: bool) -> None:
    """The slot's sentence and the test for a stray write speak of the same bytes."""
    story = life().added(10).closed(30).destroyed(50)
    by = ("code", "free list") if listed else ("code",)
    free = replace(LIST, partial=partial, position=0 if listed else None)
    item = explain(
        _evidence(_history(story, story.stale_delivery(70))),
        _seen(slot=_slot(by=by, filled=filled), free_list=free),
    )
    said = " ".join(statement.text for statement in item.statements)
    said += " ".join(one.because for one in item.alternatives)
    assert ("what destroy leaves in this build" in said) is filled
    assert ("leaves a freed slot's bytes as they were" in said) is not filled
    assert ("0xaa throughout" in said) is filled


def test_a_slot_that_only_the_batch_speaks_of_is_inferred() -> None:
    story = life().added(10).closed(30).destroyed(50)
    loads = (replace(LOAD, address=None, base_value=None, agrees=None),)
    item = explain(
        _evidence(_history(story, story.stale_delivery(70))),
        _seen(slot=_slot(by=("finding", "history"), field=""), loads=loads, free_list=None),
    )
    assert item.slot == SLOT
    assert item.certainty is Certainty.INFERRED
    origin = next(statement for statement in item.statements if statement.topic is Topic.ORIGIN)
    assert "is not shown by the code" in origin.text
    assert origin.certainty is Certainty.INFERRED
    assert "in a batch with an event for a Conn that was already destroyed" in item.headline
    assert _outcomes(item)["a bad pointer from elsewhere"] is Outcome.UNLIKELY


def test_a_pointer_read_through_the_free_list_link() -> None:
    """The dispatch took the next free slot for the object, and faulted on what it read there."""
    other = SLOT + 0x28
    item = explain(
        _evidence(None),
        _seen(
            fault=replace(FAULT, base_value=0x6161),
            loads=(replace(LOAD, address=other + 0x10, base_value=other),),
            slot=_slot(link=other, by=("finding",)),
        ),
    )
    origin = next(statement.text for statement in item.statements if statement.topic is Topic.ORIGIN)
    assert f"it was loaded from {other:#x}, the free list's link, which slot {SLOT:#x}" in origin


def test_the_batch_that_the_kernel_saw() -> None:
    batch = OpenBatch(tid=LOOP, batch=4, deliveries=((2, 1), (SLOT, 1)))
    item = explain(_evidence(None, batches=(batch,)), _seen())
    said = [s.text for s in item.statements if s.topic is Topic.DELIVERY]
    assert said == [f"batch 4 of thread {LOOP} carries its address as userdata: delivery 2 of 2"]


def test_every_statement_but_the_unknown_ones_rests_on_something() -> None:
    story = life().added(10).destroyed(50)
    item = explain(_evidence(_history(story, story.stale_delivery(70))), _seen())
    for statement in item.statements:
        if statement.topic not in (Topic.FIX, Topic.CONNECTIONS):
            assert statement.evidence, statement.text


def test_json_and_back() -> None:
    story = life().added(10).destroyed(50)
    item = explain(_evidence(_history(story, story.stale_delivery(70))), _seen())
    value = json.loads(json.dumps(item.to_json()))
    assert Explanation.from_json(value) == item
    for damage in ({"schema": "afterfree.explanation/0"}, {"slot": 5}, {"steps": [{}]}, {"cause": "magic"}):
        with pytest.raises(BadExplanationError):
            Explanation.from_json({**value, **damage})
    with pytest.raises(BadExplanationError):
        Explanation.from_json([])


def test_crashes_of_one_kind_have_one_key() -> None:
    story = life().added(10).destroyed(50)
    first = explain(_evidence(_history(story, story.stale_delivery(70))), _seen())
    moved = _slot(address=SLOT + 0x40)
    assert explain(_evidence(None), _seen()).key == explain(_evidence(None), _seen(slot=moved)).key
    assert explain(_evidence(None), _seen()).key != first.key


def test_the_text_is_one_screen_and_escapes_names() -> None:
    evil = "x\x1b[31m\n" + "y" * 300
    story = life().created(5).added(10).closed(30, WORKER).destroyed(50)
    fault = replace(FAULT, frames=(replace(FRAMES[0], function=evil, file=evil), *FRAMES[1:]))
    told = explain(
        _evidence(_history(story, story.stale_delivery(52, wait=25), names={LOOP: evil, WORKER: evil})),
        _seen(fault=fault, holders=(evil,), notes=(evil,)),
    )
    rows = plain(text(told)).splitlines()
    assert len(rows) < 64
    assert max(map(len, rows)) <= 120
    assert not any(ord(char) < 32 for row in rows for char in row)
