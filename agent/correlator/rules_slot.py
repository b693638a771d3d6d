# Owns the rules over destroy and ADD: double destroy, aliased slot, freed while registered or in a batch.
# Pure functions.
from __future__ import annotations

from agent.correlator.chain import (
    Doubts,
    Dropped,
    actor,
    draft,
    of_suspicion,
    precise,
    seen,
    trigger_moment,
)
from agent.correlator.context import Context
from agent.correlator.findings import Finding, RuleId
from probes.abi import RegFlag, RegState, SlotFlag, SlotState
from probes.events import Moment, SuspicionRaised
from symbols.plan import Role


def double_destroy(evidence: SuspicionRaised, context: Context) -> Finding | Dropped:
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
    doubts.confirm(context.freed_memory(slot, evidence.memory))
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
            *seen("registered", slot.add if slot else None),
            *seen("closed", slot.close if slot else None),
            actor("destroyed", first, "first"),
            actor("destroyed", second, "again"),
        ),
        site_roles=("destroyed",),
        window_ns=trigger.ts - first.ts if first is not None and 0 < first.ts <= trigger.ts else None,
    )
    return of_suspicion(finding, evidence)


def aliased_slot(evidence: SuspicionRaised, context: Context) -> Finding | Dropped:
    """ADD of a slot that carries another live registration of the same undestroyed life."""
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
        fd = mine.fd if mine is not None else trigger.fd
        # An orphan's number may have been given to another connection since.
        same_number = other.fd == fd and other.state is not RegState.ORPHAN
        if same_number or (mine is not None and other.desc and other.desc == mine.desc):
            return Dropped("same-connection-registered-twice")
        if other.flags & RegFlag.ENDING:
            doubts.doubt("the other registration was ending at that moment, on another thread")
        if other.flags & RegFlag.FORK_SHARED:
            doubts.doubt("whether the other registration survived its close depends on a forked child")
        doubts.registered(other, trigger.ts)
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


def freed_registered(evidence: SuspicionRaised, context: Context) -> Finding | Dropped:
    """Destroy while a registration of that generation is alive. One that only may be alive needs fdinfo."""
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
        if reg.flags & RegFlag.FORK_SHARED and not present:
            # Closed while a child was between fork and exec: usually gone with the exec.
            return Dropped("refuted-by-fdinfo" if present is False else "unconfirmed-fork-shared")
        sub_class = "closed-but-shared" if reg.state is RegState.ORPHAN else "never-closed"
        if reg.flags & RegFlag.ENDING or slot.flags & SlotFlag.CLOSE_PENDING:
            sub_class = "concurrent"
            if present is False:
                return Dropped("refuted-by-fdinfo")
            if not present:
                doubts.doubt("its close or DEL was in flight on another thread: concurrent with the destroy")
        elif present is False:
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
            actor("registered", reg.add if reg else (slot.add if slot else None)),
            *seen("closed", slot.close if slot and slot.close.seen else (reg.end if reg else None)),
            actor("destroyed", destroyed),
        ),
        site_roles=("registered", "closed", "destroyed"),
        sub_class=sub_class,
    )
    return of_suspicion(finding, evidence)


def freed_in_batch(evidence: SuspicionRaised, context: Context) -> Finding | Dropped:
    """Destroy while an undispatched delivery for the slot sits in an open batch."""
    slot, trigger = evidence.slot, evidence.trigger
    doubts = Doubts(context=context)
    plan = context.plan
    other_thread = slot is not None and slot.last_tid != trigger.tid
    if slot is None or not slot.last_delivery:
        doubts.doubt("the delivery in the open batch was not seen")
    else:
        if plan is not None and plan.has(Role.DISPATCH):
            if not slot.undispatched:
                return Dropped("delivery-was-dispatched")
            doubts.needs(Role.DISPATCH)
        elif not other_thread:
            return Dropped("same-thread-without-dispatch-probe")
        else:
            doubts.note("no dispatch probe: whether the handler had already taken the delivery was not seen")
        if slot.last_delivery > trigger.ts:
            doubts.doubt("the delivery is later than the destroy: an impossible order")
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
            *seen("registered", slot.add if slot else None),
            *seen("closed", slot.close if slot else None),
            actor("delivered", delivered),
            actor("destroyed", precise(trigger_moment(trigger), *((slot.destroy,) if slot else ()))),
        ),
        site_roles=("closed", "destroyed"),
        sub_class="other-thread" if other_thread else "same-thread",
        window_ns=trigger.ts - slot.last_delivery if slot and 0 < slot.last_delivery <= trigger.ts else None,
    )
    return of_suspicion(finding, evidence)
