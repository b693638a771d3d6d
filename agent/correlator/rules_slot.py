# Owns the rules over destroy and ADD: double destroy, aliased slot, freed while registered or in a batch.
# Pure functions.
from __future__ import annotations

from agent.correlator import steps
from agent.correlator.chain import (
    Doubts,
    Draft,
    Dropped,
    actor,
    draft,
    duplicated,
    of_suspicion,
    precise,
    seen,
    trigger_moment,
)
from agent.correlator.context import Context
from agent.correlator.findings import RuleId, Severity
from probes.abi import RecordFlag, RegFlag, RegState, SlotFlag, SlotState
from probes.events import Moment, SuspicionRaised
from symbols.plan import Role


def double_destroy(evidence: SuspicionRaised, context: Context) -> Draft | Dropped:
    """Destroy of a free slot. An unseen create in between would make it a normal one."""
    slot, trigger = evidence.slot, evidence.trigger
    doubts = Doubts(context=context)
    if slot is None:
        doubts.doubt("nothing is known of the slot")
    elif slot.state is not SlotState.FREE:
        doubts.doubt("the slot was not free when the evidence was taken")
    doubts.needs(Role.CREATE)
    doubts.lost(slot, (), trigger.ts)
    doubts.predates(slot)
    memory = context.freed_memory(slot, evidence.memory)
    doubts.confirm(memory)
    if memory is None and trigger.flags & RecordFlag.REFCOUNT:
        doubts.doubt(
            "the slot was used as if alive between the two destroys: it may be reference counted "
            "(the profile's `count` tells which call frees)"
        )
    elif memory is None and context.plan is not None and context.plan.counts:
        doubts.doubt(
            "the destroying function counts references down: it may have freed nothing "
            "(the profile's `count` tells which call frees)"
        )
    second = trigger_moment(trigger)
    first = slot.destroy if slot is not None else None
    if first is not None and first.ts == trigger.ts and first.tid == trigger.tid:
        first = None  # the evidence holds only the later one
    finding = draft(
        RuleId.DOUBLE_DESTROY,
        doubts,
        slot=slot,
        reg=evidence.reg,
        ts=trigger.ts,
        tgid=trigger.tgid,
        actors=(
            *seen("created", slot.create if slot else None),
            *seen("registered", steps.added(slot, evidence.reg)),
            *steps.refused(evidence.other, doubts),
            *seen("closed", steps.closed(slot, evidence.reg)),
            actor("destroyed", first, "first"),
            actor("destroyed", second, "again"),
        ),
        site_roles=("destroyed",),
        window_ns=trigger.ts - first.ts if first is not None and 0 < first.ts <= trigger.ts else None,
    )
    finding.remedies = steps.remedy(evidence.other)
    return of_suspicion(finding, evidence)


def aliased_slot(evidence: SuspicionRaised, context: Context) -> Draft | Dropped:
    """ADD of a slot given out twice with no destroy between, while its earlier owner has it registered."""
    slot, trigger, mine, other = evidence.slot, evidence.trigger, evidence.reg, evidence.other
    doubts = Doubts(context=context)
    if slot is None or other is None:
        doubts.doubt("the other registration is not known")
    else:
        if other.state is RegState.ENDED:
            return Dropped("other-registration-ended")
        if other.gen < slot.live_from:
            # It survived a destroy: freed-while-registered has said so, and no connection shares the slot.
            return Dropped("survivor-of-an-older-generation")
        if other.gen == slot.gen or not slot.flags & SlotFlag.REBORN_LIVE:
            return Dropped("one-owner-with-several-registrations")
        if mine is not None and other.file and other.file == mine.file:
            return Dropped("same-connection-registered-twice")
        doubts.exists(other, "when the slot's second owner registered it")
        if not slot.flags & SlotFlag.DOUBLED:
            doubts.doubt(
                "no destroy of a free slot was seen that would make the pool give it out twice: `create` "
                "may be a look-up, which returns what is there already (name the function that takes a slot "
                "from the pool)"
            )
    doubts.needs(Role.CREATE)
    doubts.needs(Role.DESTROY)
    doubts.lost(slot, (mine, other), trigger.ts)
    doubts.predates(slot, mine, other)
    added = precise(trigger_moment(trigger), *((mine.add,) if mine else ()), *((slot.add,) if slot else ()))
    finding = draft(
        RuleId.ALIASED_SLOT,
        doubts,
        slot=slot,
        reg=mine,
        ts=trigger.ts,
        tgid=trigger.tgid,
        actors=(
            *seen("created", slot.create if slot else None),
            actor("registered", other.add if other else None, f"fd {other.fd}" if other else ""),
            actor("registered", added, f"fd {trigger.fd}"),
        ),
        site_roles=("registered",),
        fd=trigger.fd,
        epfd=trigger.epfd,
        sub_class="created-twice" if slot is not None and slot.flags & SlotFlag.REBORN_LIVE else "",
    )
    return of_suspicion(finding, evidence)


def freed_registered(evidence: SuspicionRaised, context: Context) -> Draft | Dropped:
    """A registration of the destroyed life existed when the destroying call was over, said the kernel."""
    slot, trigger, reg = evidence.slot, evidence.trigger, evidence.reg
    doubts = Doubts(context=context)
    sub_class = ""
    if reg is None or slot is None:
        doubts.doubt("the registration is not known")
    else:
        if reg.state is RegState.ENDED:
            return Dropped("registration-ended")
        if reg.gen < slot.live_from:
            return Dropped("registration-of-another-generation")
        present = doubts.registered(reg, trigger.ts)
        if reg.flags & RegFlag.NOT_ASKED and present is False:
            return Dropped("refuted-by-fdinfo")
        doubts.exists(reg, "when the destroying call was over")
        doubts.kept_open(evidence, reg)
        if reg.state is RegState.ORPHAN:
            sub_class = "closed-but-shared"
        elif slot.destroy.seen and reg.add.seen and reg.add.ts > slot.destroy.ts:
            sub_class = "registered-after"
        else:
            sub_class = "never-closed"
        if present is False:
            doubts.note("it was gone when /proc/PID/fdinfo was read: it ended soon after the destroy")
    doubts.lost(slot, (reg,), trigger.ts)
    doubts.predates(slot, reg)
    destroyed = precise(trigger_moment(trigger), *((slot.destroy,) if slot else ()))
    finding = draft(
        RuleId.FREED_WHILE_REGISTERED,
        doubts,
        slot=slot,
        reg=reg,
        ts=trigger.ts,
        tgid=trigger.tgid,
        actors=(
            actor("registered", steps.added(slot, reg)),
            *duplicated(reg),
            *seen("closed", steps.closed(slot, reg)),
            actor("destroyed", destroyed),
        ),
        site_roles=("registered", "closed", "destroyed"),
        sub_class=sub_class,
    )
    return of_suspicion(finding, evidence)


def freed_in_batch(evidence: SuspicionRaised, context: Context) -> Draft | Dropped:
    """Destroy while an undispatched delivery for the slot sits in an open batch that still names it.

    Without a dispatch nobody knows how far the loop was: no alarm then, and not silence either. With one,
    the loop may still skip what was freed, by means of its own: certain is what it came to afterwards.
    """
    slot, trigger = evidence.slot, evidence.trigger
    doubts = Doubts(context=context)
    plan = context.plan
    severity = None
    other_thread = slot is not None and slot.last_tid != trigger.tid
    if slot is None or not slot.last_delivery:
        doubts.doubt("the delivery in the open batch was not seen")
    elif trigger.flags & RecordFlag.NOT_JUDGED:
        severity = Severity.INFO
        if plan is not None and plan.has(Role.DISPATCH):
            why = "events of its kind are answered by other functions than the profile's `dispatch`, too"
        else:
            why = "no dispatch tells (name the handler as `dispatch` in the profile)"
        doubts.doubt(f"whether the loop had already come to this delivery is not known: {why}")
    elif not slot.undispatched and not trigger.flags & RecordFlag.HELD:
        return Dropped("delivery-was-dispatched")
    elif trigger.flags & RecordFlag.PROVEN:
        doubts.note("the loop came to the delivery afterwards, and called the handler for it")
    else:
        if plan is None or plan.has(Role.DISPATCH):
            doubts.needs(Role.DISPATCH)
        doubts.doubt(
            "no handler has been called for it since: the loop may have means of its own to skip what was "
            "freed (if it has not, stale-dispatch says so, or a crash)"
        )
    if slot is not None and slot.last_delivery > trigger.ts:
        doubts.doubt("the delivery is later than the destroy: an impossible order")
    if trigger.flags & RecordFlag.NESTED:
        doubts.doubt(
            "the thread has waited on another instance since: whether it goes on with this batch is not known"
        )
    if trigger.flags & RecordFlag.HELD:
        doubts.note("the loop was entered again within a handler: its outer batch still names the slot")
    elif slot is not None and not trigger.flags & RecordFlag.NOT_JUDGED:
        doubts.note(f"entry {slot.last_index} of the batch in user memory still names the slot")
    doubts.lost(slot, (evidence.reg,), trigger.ts)
    doubts.predates(slot, evidence.reg)
    delivered = (
        Moment(slot.last_delivery_enter, slot.last_delivery, 0, slot.last_tid) if slot is not None else None
    )
    finding = draft(
        RuleId.FREED_IN_OPEN_BATCH,
        doubts,
        slot=slot,
        reg=evidence.reg,
        ts=trigger.ts,
        tgid=trigger.tgid,
        actors=(
            *seen("registered", steps.added(slot, evidence.reg)),
            *seen("closed", steps.closed(slot, evidence.reg)),
            actor("delivered", delivered),
            actor("destroyed", precise(trigger_moment(trigger), *((slot.destroy,) if slot else ()))),
        ),
        site_roles=() if severity is not None else ("closed", "destroyed"),
        severity=severity,
        sub_class="not-judged" if severity is not None else "other-thread" if other_thread else "same-thread",
        window_ns=trigger.ts - slot.last_delivery if slot and 0 < slot.last_delivery <= trigger.ts else None,
    )
    return of_suspicion(finding, evidence)
