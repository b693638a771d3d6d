# Owns the explanation of a crash: evidence and what its examination found -> statements, each with what it
# rests on and how sure it is. Pure: no I/O, no clock; what is not known is said to be unknown.
from __future__ import annotations

import signal as signals
from collections.abc import Iterator

from agent.correlator.catalog import RULES
from agent.correlator.chain import duplicated, order
from agent.correlator.chain import seen as seen_actor
from agent.correlator.findings import Actor, RuleId
from agent.forensics.diagnosis import diagnose
from agent.forensics.evidence import CrashEvidence, Ended
from agent.forensics.exclusions import alternatives
from agent.forensics.explanation import (
    Cause,
    Certainty,
    Evidence,
    Explanation,
    Statement,
    Step,
    Topic,
)
from agent.forensics.facts import CodePlace, Examination, Fault
from agent.forensics.past import Diagnosis, Past, past_of
from agent.forensics.sequel import began_with, ended_by, further_steps
from agent.forensics.statements import (
    about_connections,
    about_delivery,
    about_fault,
    about_free_list,
    about_origin,
    about_slot,
    field_name,
    own_frame,
    place_text,
)
from probes.events import Moment, SlotLife

_MOST_STACK = 12


def explain(evidence: CrashEvidence, seen: Examination) -> Explanation:
    """The explanation, as far as the evidence goes. Never raises."""
    slot = seen.slot.address if seen.slot is not None else 0
    found, past = diagnose(evidence, seen, past_of(evidence.history, slot))
    life, fault, crashed = past.life, seen.fault, evidence.crashed
    same = life is None or life.addr == slot
    statements = (
        *about_fault(evidence, seen),
        *_ended(evidence, seen),
        *about_origin(seen),
        *about_slot(seen, life if same else None),
        *about_free_list(seen),
        *about_delivery(evidence, seen),
        *_judgement(found, past),
        *about_connections(evidence, seen),
    )
    steps = _steps(evidence, seen, past)
    place = own_frame(fault)
    crashed_itself = evidence.ended is Ended.CRASHED
    return Explanation(
        source=str(evidence.source),
        pid=evidence.target.tgid,
        exe=evidence.target.exe,
        comm=evidence.target.comm,
        identity=evidence.target.identity,
        signal=evidence.signal,
        tid=crashed.tid if crashed is not None else 0,
        thread=evidence.thread_name(crashed.tid) if crashed is not None else "",
        headline=_headline(evidence, seen, found),
        cause=found.cause,
        rule=str(found.rule) if found.rule is not None else "",
        certainty=found.certainty,
        slot=life.addr if life is not None else slot,
        generation=life.gen if life is not None else 0,
        field=field_name(fault),
        offset=fault.offset if fault is not None else 0,
        function=place.function if place is not None else "",
        slot_field=seen.slot.field if seen.slot is not None and same else "",
        closer=life.close.tid if life is not None else 0,
        destroyer=life.destroy.tid if life is not None else 0,
        fix_kind=found.fix_kind,
        statements=statements,
        steps=steps,
        alternatives=alternatives(seen, past, found) if seen.slot is not None or crashed_itself else (),
        stack=_stack(fault) if fault is not None else (),
        memory=seen.slot.lines if seen.slot is not None and same else (),
        unknown=tuple(_unknown(evidence, seen, past, found)),
    )


# -- life and judgement ----------------------------------------------------------------------------


def _steps(evidence: CrashEvidence, seen: Examination, past: Past) -> tuple[Step, ...]:
    life, history = past.life, evidence.history
    if life is None or history is None:
        return ()
    places = {(ip, stack): found for ip, stack, found in seen.calls}
    again = [f for f in past.findings if f.rule is RuleId.DOUBLE_DESTROY]
    actors = [
        *seen_actor("created", life.create),
        *seen_actor("registered", life.add, f"fd {life.fd}" if life.fd >= 0 else ""),
        *_deliveries(life),
        *duplicated(past.surviving),
        *seen_actor("removed", life.removed),
        *seen_actor("closed", life.close),
        *seen_actor("destroyed", life.destroy),
    ]
    known = {(actor.role, actor.moment.ts) for actor in actors}
    actors += [one for one in further_steps(evidence, past) if (one.role, one.moment.ts) not in known]
    known |= {(actor.role, actor.moment.ts) for actor in actors}
    for finding in again:
        for actor in finding.actors:
            late = actor.moment.ts > life.destroy.ts > 0 and (actor.role, actor.moment.ts) not in known
            if late and actor.role == "destroyed":
                known.add((actor.role, actor.moment.ts))
                actors.append(actor)
    if evidence.ts:
        tid = evidence.crashed.tid if evidence.crashed is not None else 0
        actors += seen_actor("crashed", Moment(evidence.ts, evidence.ts, 0, tid, -1))
    return tuple(
        Step(
            role=actor.role,
            ts=actor.moment.ts,
            tid=actor.moment.tid,
            comm=evidence.thread_name(actor.moment.tid),
            place=_where(places.get((actor.moment.ip, actor.moment.stack), ())),
            gap_ns=actor.gap_ns,
            concurrent=actor.concurrent,
            note=actor.note,
        )
        for actor in order(actors)
    )


def _deliveries(life: SlotLife) -> Iterator[Actor]:
    """The first and the last one; the thread is only kept of the last."""
    if life.first_delivery and life.first_delivery != life.last_delivery:
        yield from seen_actor("delivered", Moment(0, life.first_delivery, 0, life.waiter, -1), "the first")
    after = life.last_delivery > life.destroy.ts > 0
    note = "after the destroy" if after else f"the last of {life.deliveries}" if life.deliveries > 1 else ""
    last = Moment(life.last_delivery_enter, life.last_delivery, 0, life.last_tid, -1)
    yield from seen_actor("delivered", last, note)


def _stack(fault: Fault) -> tuple[str, ...]:
    return tuple(place_text(frame) for frame in (*fault.frames, *fault.callers)[:_MOST_STACK])


def _where(places: tuple[CodePlace, ...]) -> str:
    """`function (file:line) < caller`."""
    if not places:
        return ""
    caller = f" < {places[1].function.rpartition('.')[2]}" if len(places) > 1 else ""
    return place_text(places[0]) + caller


def _ended(evidence: CrashEvidence, seen: Examination) -> Iterator[Statement]:
    """A checked build makes a panic of a failed close: the crash's own cause, whatever came before."""
    last = ended_by(evidence)
    if last is None or seen.fault is None or not seen.fault.aborted:
        return
    places = next((found for _ip, stack, found in seen.calls if stack == last.moment.stack), ())
    where = f" in {place_text(places[0])}" if places else ""
    yield Statement(
        topic=Topic.FAULT,
        text=(
            f"what ended it is a bad close: the last thing that the thread did before was close(fd {last.fd})"
            f"{where}, which returned EBADF: that number was closed already"
        ),
        certainty=Certainty.OBSERVED,
        evidence=(Evidence("events", f"close(fd {last.fd}) = -EBADF, then the signal"),),
    )


def _judgement(found: Diagnosis, past: Past) -> Iterator[Statement]:
    if found.rule is not None:
        yield Statement(
            topic=Topic.RULE,
            text=f"{found.rule}: {RULES[found.rule].title}",
            certainty=found.certainty,
            evidence=found.evidence,
        )
    sure = found.order or found.certainty
    began, remedy = began_with(past)
    missing = f"it began with {began}. Then: {found.missing}" if began else found.missing
    yield Statement(topic=Topic.ORDER, text=missing, certainty=sure, evidence=found.evidence)
    if remedy and found.fix:
        yield Statement(topic=Topic.FIX, text=remedy, certainty=sure)
    if found.fix:
        yield Statement(topic=Topic.FIX, text=found.fix, certainty=sure)


def _headline(evidence: CrashEvidence, seen: Examination, found: Diagnosis) -> str:
    fault, slot = seen.fault, seen.slot
    try:
        name = signals.Signals(evidence.signal).name
    except ValueError:
        name = f"signal {evidence.signal}" if evidence.signal else "no signal"
    place = own_frame(fault)
    where = f" in {place.function.rpartition('.')[2]}" if place is not None else ""
    if fault is not None and fault.address is not None:
        # with a handler of its own the program dies of what the handler raises
        name = (
            f"fault at {fault.address:#x}, then {name},"
            if fault.in_handler
            else f"{name} at {fault.address:#x}"
        )
    if fault is None and evidence.ended is Ended.LIVING:
        name = "no crash, a core of a living process"
    elif fault is None and evidence.ended is Ended.SENT:
        name = f"no crash, {name} was sent to the process"
    freed = found.cause not in (Cause.NOT_A_SLOT, Cause.UNKNOWN, Cause.LIST_BROKEN, Cause.RECYCLED)
    kind = (
        seen.slot_type.rpartition(".")[2] if "(" not in seen.slot_type else seen.slot_type.partition("(")[0]
    )
    kind = kind.rpartition(".")[2] or "slot"
    if slot is not None and freed and not slot.tied:
        return f"{name}{where}: in a batch with an event for a {kind} that was already destroyed"
    if slot is not None and freed:
        twice = (
            "had been destroyed twice" if found.cause is Cause.DESTROYED_TWICE else "was already destroyed"
        )
        if ended_by(evidence) is not None and fault is not None and fault.aborted:
            return f"{name}{where}: a bad close, after the server used a {kind} that {twice}"
        return f"{name}{where}: the server used a {kind} that {twice}"
    if found.cause is Cause.RECYCLED:
        return f"{name}{where}: an old connection's event reached the {kind} of another one"
    if found.cause in (Cause.LIST_BROKEN, Cause.DESTROYED_TWICE):
        return f"{name}{where}: the free list of the {kind} pool is broken"
    if fault is None and evidence.ended is not Ended.CRASHED:
        return name
    return f"{name}{where}: nothing connects it with a freed {kind}"


def _unknown(evidence: CrashEvidence, seen: Examination, past: Past, found: Diagnosis) -> Iterator[str]:
    if evidence.history is None and evidence.ended is not Ended.LIVING:
        yield (
            "nothing was watching before the crash: who registered, closed and destroyed the slot, when, on "
            "which thread, and how often it had been delivered"
        )
    elif past.life is None and seen.slot is not None:
        yield "the slot's life: no event of it was kept"
    elif past.life is not None:
        life = past.life
        if life.state != 0 and not life.destroy.seen and found.cause is not Cause.RECYCLED:
            yield "who destroyed the slot: no destroy of it was seen"
        if not life.close.seen and not life.add.seen:
            yield "who closed the connection: its fd was not registered, so no close can be tied to the slot"
        if not life.create.seen:
            yield "when the slot was created: before the attach, or at a place that cannot be probed"
    if evidence.history is not None and evidence.history.lost:
        yield f"{evidence.history.lost} events of the history were lost"
    if seen.free_list is None or seen.free_list.partial:
        yield f"whether the slot is on the pool's free list: {seen.free_list_reason or 'not found'}"
    yield from seen.notes
