# Owns the rules over deliveries and dispatches: stale, recycled, stale dispatch, hot.
# Pure; counts and rates of repeated evidence belong to tallies.py.
from __future__ import annotations

from agent.correlator import steps
from agent.correlator.chain import (
    Doubts,
    Draft,
    Dropped,
    actor,
    candidate,
    draft,
    duplicated,
    of_suspicion,
    seen,
    trigger_moment,
)
from agent.correlator.context import Context
from agent.correlator.findings import Actor, RuleId, Severity
from probes.abi import RecordFlag, RegFlag, RegState, SlotFlag, SlotState
from probes.events import Moment, Registration, SlotLife, SuspicionRaised
from symbols.plan import Role

_ALWAYS = 0x008 | 0x010  # EPOLLERR | EPOLLHUP: reported whatever the mask says, epoll_ctl(2)
# EPOLLET | EPOLLONESHOT | EPOLLWAKEUP | EPOLLEXCLUSIVE: modes, not events (EP_PRIVATE_BITS, fs/eventpoll.c)
_PAGE = 4096
_MINUTE_NS = 60_000_000_000
_PRIVATE = (1 << 31) | (1 << 30) | (1 << 29) | (1 << 28)


def stale_delivery(evidence: SuspicionRaised, context: Context) -> Draft | Dropped:
    """Delivery for a free slot. later-batch: destroyed before the wait began; concurrent: inside it."""
    slot, trigger = evidence.slot, evidence.trigger
    doubts = Doubts(context=context)
    destroyed = slot.destroy if slot is not None else Moment()
    entered = evidence.wait_enter or trigger.enter
    sub_class, free = "", None
    if slot is None or not destroyed.seen:
        doubts.doubt("the destroy of the slot was not seen")
    elif slot.state is not SlotState.FREE:
        doubts.doubt("the slot was not free when the evidence was taken")
    elif destroyed.ts > trigger.ts:
        doubts.doubt("the destroy is later than the delivery: an impossible order")
    else:
        sub_class = "later-batch" if destroyed.ts < entered else "concurrent"
    if slot is not None:
        free = context.freed_memory(slot, evidence.memory)
        doubts.confirm(free)
        if destroyed.seen:
            doubts.registered(evidence.reg, destroyed.ts)
    if evidence.reg is not None:
        doubts.exists(evidence.reg, "when it was delivered")
        doubts.kept_open(evidence, evidence.reg)
        if slot is not None and not free and _over(evidence.reg, slot, entered):
            doubts.doubt(
                "the registration that is known was over before the wait began: another one, which was not "
                "seen, caused this event, perhaps for another object in the same memory"
            )
    elif slot is not None and not free and not slot.add.seen and not slot.flags & SlotFlag.INFERRED:
        # Made through io_uring, say, or by another process: perhaps with the same memory as another object.
        doubts.doubt(
            "no registration of this slot was seen in the life that ended: the event may be another object's"
        )
    doubts.lost(slot, (evidence.reg,), trigger.ts)
    doubts.predates(slot, evidence.reg)
    finding = draft(
        RuleId.STALE_DELIVERY,
        doubts,
        slot=slot,
        reg=evidence.reg,
        ts=trigger.ts,
        tgid=trigger.tgid,
        actors=(
            *_history(slot, evidence.reg),
            *duplicated(evidence.reg),
            *_freed(slot, evidence.reg),
            actor("destroyed", destroyed, _life(slot, evidence.reg)),
            _delivered(evidence),
        ),
        site_roles=("registered", "closed", "destroyed"),
        sub_class=sub_class,
        epfd=trigger.epfd,
        window_ns=trigger.ts - destroyed.ts if destroyed.seen and destroyed.ts <= trigger.ts else None,
    )
    return of_suspicion(finding, evidence)


def _over(reg: Registration, slot: SlotLife, entered: int) -> bool:
    """It was removed, so that nothing comes of it any more, and it is the only one that the slot had."""
    removed = reg.flags & (RegFlag.BY_DEL | RegFlag.NOT_ASKED) == RegFlag.BY_DEL
    followed = not slot.flags & SlotFlag.LINKS_FULL
    return removed and followed and reg.state is RegState.ENDED and 0 < reg.end.ts < entered


def recycled_delivery(evidence: SuspicionRaised, context: Context) -> Draft | Dropped:
    """Delivery for a live slot that has an older live registration: critical only without another cause."""
    slot, trigger, old, current = evidence.slot, evidence.trigger, evidence.reg, evidence.other
    doubts = Doubts(context=context)
    entered = evidence.wait_enter or trigger.enter
    if slot is None or old is None:
        doubts.doubt("the older registration is not known")
    else:
        if old.gen >= slot.gen:
            doubts.doubt("the registration is not older than the slot's generation")
        innocent = _excluded(old, trigger.epfd, trigger.arg, entered)
        excluded = _current_excluded(slot, current, trigger.epfd, trigger.arg, entered)
        if excluded is None and innocent is None and context.earlier_in_batch and slot.batch_count > 1:
            # ep_send_events takes every ready item off the list once: one event per registration and wait.
            excluded = f"it gives one event a batch, and this batch brought {slot.batch_count}"
        if innocent is not None and excluded is None:
            return Dropped("explained-by-current-registration")
        if innocent is not None:
            doubts.doubt(f"the older registration cannot have caused it: {innocent}")
        if excluded is None:
            doubts.doubt(
                "both registrations carry this userdata and either can have caused the delivery; "
                "that the older one survived its slot is certain"
            )
        else:
            doubts.note(f"no registration of the living generation can have caused it: {excluded}")
        doubts.registered(old, slot.prev_destroy.ts)
        doubts.exists(old, "when it was delivered")
        doubts.kept_open(evidence, old)
    doubts.lost(slot, (old, current), trigger.ts)
    doubts.predates(slot, old)
    finding = draft(
        RuleId.RECYCLED_DELIVERY,
        doubts,
        slot=slot,
        reg=old,
        ts=trigger.ts,
        tgid=trigger.tgid,
        actors=(
            actor("registered", old.add if old else None, _generation(old)),
            *seen("closed", old.end if old else None, _generation(old)),
            *seen("destroyed", slot.prev_destroy if slot else None),
            *seen("created", slot.create if slot else None, f"generation {slot.gen}" if slot else ""),
            *seen("registered", current.add if current else None, _generation(current)),
            actor("delivered", trigger_moment(trigger), f"events {trigger.arg:#x}"),
        ),
        site_roles=("registered", "closed", "destroyed"),
        epfd=trigger.epfd,
        candidates=tuple(
            candidate(role, reg) for role, reg in (("older", old), ("current", current)) if reg is not None
        ),
        window_ns=_since(slot.prev_destroy if slot else None, trigger.ts),
    )
    return of_suspicion(finding, evidence)


def stale_dispatch(evidence: SuspicionRaised, context: Context) -> Draft | Dropped:
    """The handler started with a null inner object, or with the object of a free slot."""
    slot, trigger = evidence.slot, evidence.trigger
    doubts = Doubts(context=context)
    kind = _object_kind(trigger.addr)
    if slot is None:
        doubts.doubt("the slot of the object is not known")
    if kind != "null-object":
        if slot is not None and slot.state is not SlotState.FREE:
            doubts.doubt("the slot was not free when the evidence was taken")
        # An unseen create would make the object a new connection's.
        doubts.needs(Role.CREATE)
        doubts.lost(slot, (evidence.reg,), trigger.ts)
    doubts.predates(slot, evidence.reg)
    if slot is not None and slot.state is SlotState.FREE:
        doubts.confirm(context.freed_memory(slot, evidence.memory))
    delivered = Moment()
    if slot is not None:
        delivered = Moment(slot.last_delivery_enter, slot.last_delivery, 0, slot.last_tid)
    finding = draft(
        RuleId.STALE_DISPATCH,
        doubts,
        slot=slot,
        reg=evidence.reg,
        ts=trigger.ts,
        tgid=trigger.tgid,
        actors=(
            *_history(slot, evidence.reg),
            *_freed(slot, evidence.reg),
            *seen("destroyed", slot.destroy if slot else None, _life(slot, evidence.reg)),
            *seen("delivered", delivered),
            actor("dispatched", trigger_moment(trigger), f"object {trigger.addr:#x}"),
        ),
        site_roles=("destroyed", "dispatched"),
        sub_class=kind,
        window_ns=_since(slot.destroy if slot else None, trigger.ts),
    )
    return of_suspicion(finding, evidence)


def _object_kind(address: int) -> str:
    """Null: in the page that is never mapped. Garbage: not canonical on x86-64 (0xaa fill, for one)."""
    if address < _PAGE:
        return "null-object"
    return "garbage-object" if address >> 47 else "freed-object"


def hot_redelivery(evidence: SuspicionRaised, context: Context) -> Draft | Dropped:
    """A level-triggered registration delivered again and again, with no progress on its file.

    The kernel side counts deliveries since the last progress, whatever else rotates through the batches. A
    minute of it is high.
    """
    slot, trigger, reg = evidence.slot, evidence.trigger, evidence.reg
    if reg is not None and reg.events & (_PRIVATE & ~(7 << 28)):  # EPOLLET
        return Dropped("hot-but-not-level-triggered")
    doubts = Doubts(context=context)
    if slot is None and reg is None:
        doubts.doubt("neither the slot nor the registration is known")
    doubts.predates(slot, reg)
    if (slot is not None and slot.flags & SlotFlag.INFERRED) or doubts.inferred:
        doubts.note("it predates the attach: since when it spins cannot be known")
    lasted = trigger.ts - slot.idle_since if slot is not None and 0 < slot.idle_since <= trigger.ts else 0
    doubts.note(
        f"delivered {repeat_count(evidence)} times in {lasted / 1e9:.1f} s without progress on its file"
    )
    shut = slot is not None and bool(slot.flags & SlotFlag.CLOSED)
    closed = slot is not None and slot.close.seen and shut
    if trigger.flags & RecordFlag.HOPELESS:
        before = "" if closed else ", since before the attach"
        doubts.note(
            f"no call can make progress on it: its fd is closed{before}"
            if shut
            else "no call can make progress on it: only EPOLLHUP or EPOLLERR is reported"
        )
    if slot is not None and slot.flags & SlotFlag.INFERRED and context.freed_memory(slot, evidence.memory):
        doubts.note(
            "the slot's bytes are those that destroy leaves: it may have been destroyed before the attach, "
            "and each of these deliveries be a stale one"
        )
    if reg is not None:
        doubts.kept_open(evidence, reg)
    first = slot.first_delivery if slot is not None else 0
    finding = draft(
        RuleId.HOT_REDELIVERY,
        doubts,
        slot=slot,
        reg=reg,
        ts=trigger.ts,
        tgid=trigger.tgid,
        actors=(
            actor("registered", steps.added(slot, reg)),
            *duplicated(reg),
            *seen("closed", steps.closed(slot, reg) if closed else None),
            *seen("delivered", Moment(first, first, 0, trigger.tid), "first"),
            actor("delivered", trigger_moment(trigger), f"last, events {trigger.arg:#x}"),
        ),
        site_roles=("registered",),
        severity=Severity.HIGH if lasted >= _MINUTE_NS else None,
        epfd=trigger.epfd,
    )
    return of_suspicion(finding, evidence)


def repeat_count(evidence: SuspicionRaised) -> int:
    """Deliveries of this registration since the last progress on its file."""
    return evidence.slot.idle if evidence.slot is not None else 0


def _excluded(reg: Registration, epfd: int, events: int, entered: int) -> str | None:
    """Why `reg` cannot have caused a delivery of `events` by a wait on epfd entered at `entered`, or None.

    A call that returned only after the wait began is concurrent with it and excludes nothing. A consumed
    one-shot has only mode bits left in its mask (ep_send_events, fs/eventpoll.c).
    """
    if epfd >= 0 and reg.epfd >= 0 and reg.epfd != epfd:
        return "it belongs to another epoll instance"
    if reg.state is RegState.ENDED and not (reg.end.seen and reg.end.ts >= entered):
        return "it had ended"
    if reg.state is RegState.NONE:
        return "there is none"
    if reg.mod.seen and reg.mod.ts >= entered:
        return None
    if not reg.events & ~_PRIVATE:
        return "it is disarmed"
    if events & ~_PRIVATE & ~(reg.events | _ALWAYS):
        return "its mask cannot produce these events"
    return None


def _current_excluded(
    slot: SlotLife, current: Registration | None, epfd: int, events: int, entered: int
) -> str | None:
    if current is not None:
        return _excluded(current, epfd, events, entered)
    # No live one. Had this generation one that was ending while the wait ran, it may be the cause.
    if not (slot.add.seen or slot.add.enter):
        return "it has none yet"
    removed = slot.removed.seen and slot.flags & SlotFlag.DELETED and slot.removed.ts < entered
    closed = slot.close.seen and slot.flags & SlotFlag.CLOSED and slot.close.ts < entered
    return "it had ended" if removed or closed else None


def _history(slot: SlotLife | None, reg: Registration | None) -> tuple[Actor, ...]:
    return steps.history(slot, reg, slot is not None and not slot.flags & SlotFlag.DELETED)


def _freed(slot: SlotLife | None, reg: Registration | None) -> tuple[Actor, ...]:
    """The destroy of the registration's own life, where it was seen and is not the slot's last."""
    if slot is None or reg is None or reg.gen != slot.gen - 1:
        return ()
    return seen("destroyed", slot.prev_destroy, f"generation {reg.gen}")


def _life(slot: SlotLife | None, reg: Registration | None) -> str:
    """Which generation a step of the slot is of, where the registration's is another."""
    return f"generation {slot.gen}" if slot is not None and steps.generation(slot, reg) else ""


def _delivered(evidence: SuspicionRaised) -> Actor:
    """What a run of deliveries still owed is sent by whoever gives the slot its next life."""
    slot, trigger = evidence.slot, evidence.trigger
    moment = trigger_moment(trigger)
    if slot is not None and not evidence.wait_exit and slot.last_tid != trigger.tid:
        return actor("delivered", moment._replace(tid=slot.last_tid, stack=-1), "last of several")
    return actor("delivered", moment, f"events {trigger.arg:#x}")


def _generation(reg: Registration | None) -> str:
    return f"generation {reg.gen}" if reg is not None else ""


def _since(moment: Moment | None, ts: int) -> int | None:
    return ts - moment.ts if moment is not None and moment.seen and moment.ts <= ts else None
