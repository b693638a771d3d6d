# Owns the rules over single calls: a close that leaves a registration behind, failed removal, bad close.
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
from agent.correlator.findings import RuleId
from probes.abi import Kind, RegFlag
from probes.events import SuspicionRaised

_EBADF = -9
_ENOENT = -2
_ERRNO = {_EBADF: "EBADF", _ENOENT: "ENOENT"}


def outlives_close(evidence: SuspicionRaised, context: Context) -> Draft | Dropped:
    """close(fd) of a registered fd whose description lives on in a dup."""
    slot, trigger, reg = evidence.slot, evidence.trigger, evidence.reg
    doubts = Doubts(context=context)
    if reg is None:
        doubts.doubt("the registration is not known")
    else:
        present = doubts.registered(reg, trigger.ts)
        if reg.flags & RegFlag.NOT_ASKED and not present:
            return Dropped("refuted-by-fdinfo" if present is False else "not-confirmed")
        doubts.exists(reg, "after the close")
        doubts.kept_open(evidence, reg)
        if present is False:
            doubts.note("it was gone when /proc/PID/fdinfo was read: the duplicate was closed soon after")
    doubts.lost(slot, (reg,), trigger.ts)
    doubts.predates(slot, reg)
    ends = (*((reg.end,) if reg else ()), *((slot.close,) if slot else ()))
    finding = draft(
        RuleId.DESCRIPTION_OUTLIVES_CLOSE,
        doubts,
        slot=slot,
        reg=reg,
        ts=trigger.ts,
        tgid=trigger.tgid,
        actors=(
            actor("registered", steps.added(slot, reg)),
            *duplicated(reg),
            actor("closed", precise(trigger_moment(trigger), *ends)),
        ),
        site_roles=("registered", "closed"),
        fd=trigger.fd,
        generation=reg.gen if reg is not None else None,
    )
    return of_suspicion(finding, evidence)


def failed_removal(evidence: SuspicionRaised, context: Context) -> Draft | Dropped:
    """EPOLL_CTL_DEL or MOD that returned ENOENT or EBADF; the return value alone is proof."""
    slot, trigger, reg = evidence.slot, evidence.trigger, evidence.reg
    if trigger.ret not in _ERRNO or trigger.kind not in (Kind.REMOVED, Kind.MODIFIED):
        return Dropped("removal-did-not-fail")
    doubts = Doubts(context=context)
    doubts.predates(slot, reg)
    twice = reg is not None and reg.flags & (RegFlag.BY_DEL | RegFlag.BY_CLOSE) == RegFlag.BY_DEL
    name = "EPOLL_CTL_DEL" if trigger.kind == Kind.REMOVED else "EPOLL_CTL_MOD"
    if trigger.ret == _EBADF:
        sub_class = "bad-descriptor"
    elif twice:
        sub_class = "removed-twice"
    elif reg is not None and reg.end.seen:
        sub_class = "after-close"
    elif reg is not None:
        sub_class = "ended-elsewhere"
        doubts.note(
            "no call of this process that was seen ended it: another process that shares the instance or the "
            "table did, or io_uring"
        )
    else:
        sub_class = "not-registered"
        doubts.note("no registration of this fd was seen: it may never have had one")
    own = (*((slot.removed,) if slot else ()), *((reg.mod,) if reg else ()))
    end = reg.end if reg is not None and reg.end.ts <= trigger.ts else None
    finding = draft(
        RuleId.FAILED_REMOVAL,
        doubts,
        slot=slot,
        reg=reg,
        ts=trigger.ts,
        tgid=trigger.tgid,
        actors=(
            *seen("registered", steps.added(slot, reg)),
            *seen("removed" if twice else "closed", end),
            actor(
                "removed" if trigger.kind == Kind.REMOVED else "modified",
                precise(trigger_moment(trigger), *own),
                f"{name} returned -{_ERRNO[trigger.ret]}",
            ),
        ),
        site_roles=("closed", "removed", "modified"),
        sub_class=sub_class,
        fd=trigger.fd,
        epfd=trigger.epfd,
        window_ns=trigger.ts - end.ts if end is not None and end.seen else None,
    )
    return of_suspicion(finding, evidence)


def bad_close(evidence: SuspicionRaised, context: Context) -> Draft | Dropped:
    """close() that returned EBADF. close of a negative number closes nobody's connection: no finding."""
    slot, trigger, reg = evidence.slot, evidence.trigger, evidence.reg
    if trigger.ret != _EBADF or trigger.kind != Kind.CLOSED:
        return Dropped("close-did-not-fail")
    if trigger.fd < 0:
        return Dropped("close-of-a-negative-number")
    doubts = Doubts(context=context)
    doubts.predates(slot, reg)
    refused = steps.is_refused(reg)
    before = reg.end if reg is not None and reg.end.seen else None
    if before is None and not refused and steps.own(slot, reg) and slot is not None:
        before = slot.close
    if before is not None and before.ts >= trigger.ts:
        before = None
    actors = (
        *steps.refused(reg, doubts),
        *(() if refused else seen("registered", steps.added(slot, reg))),
        *seen("closed", before, "first"),
        actor("closed", trigger_moment(trigger), "returned -EBADF"),
    )
    if before is None or not before.seen:
        doubts.note("the close before this one was not seen")
    finding = draft(
        RuleId.BAD_CLOSE,
        doubts,
        slot=slot,
        reg=reg,
        ts=trigger.ts,
        tgid=trigger.tgid,
        actors=actors,
        site_roles=("closed",),
        fd=trigger.fd,
        window_ns=trigger.ts - before.ts if before is not None and before.seen else None,
    )
    if refused:  # nothing ever watched it
        finding.epfd, finding.remedies = -1, steps.remedy(reg)
    return of_suspicion(finding, evidence)
