# Owns the rules over whole lifetimes and lingering slots, and which hazards a signature carries.
# Pure functions; counting lifetimes is lifetimes.py.
from __future__ import annotations

from functools import lru_cache

from agent.correlator.chain import Doubts, Draft, Dropped, actor, draft, seen
from agent.correlator.context import Context
from agent.correlator.findings import Actor, RuleId
from probes.abi import Signature, SlotFlag, SlotState
from probes.events import LifetimeEnded, Moment, SlotLife, SlotLingering
from symbols.plan import Role

LIFETIME_RULES = (RuleId.DELIVERY_AFTER_CLOSE, RuleId.IMPLICIT_REMOVAL, RuleId.CLOSE_IN_OPEN_BATCH)
_REMOVED = Signature.DEL | Signature.DEL_OTHER


@lru_cache(maxsize=1024)  # asked for every lifetime, and arithmetic with flags is slow
def signature_rules(signature: int) -> tuple[RuleId, ...]:
    """The warnings that a lifetime of this signature gives; the bits alone decide."""
    rules: list[RuleId] = []
    if signature & Signature.AFTER_CLOSE:
        rules.append(RuleId.DELIVERY_AFTER_CLOSE)
    removed = signature & _REMOVED and not signature & Signature.DEL_AFTER_CLOSE
    survives = signature & (Signature.ORPHANED | Signature.REGISTERED)
    if signature & Signature.CLOSE_OTHER and not removed and not survives:
        rules.append(RuleId.IMPLICIT_REMOVAL)
    if signature & Signature.CLOSE_IN_BATCH:
        rules.append(RuleId.CLOSE_IN_OPEN_BATCH)
    return tuple(rules)


def judge_lifetime(ended: LifetimeEnded, context: Context) -> tuple[Draft, ...]:
    """One draft of count 1 for every warning the lifetime gives."""
    return tuple(_finding(rule, ended.slot, context) for rule in signature_rules(ended.signature))


def unseen_lifetime(rule: RuleId, ts: int, context: Context, count: int) -> Draft:
    """A warning known by its count alone, of so many lifetimes: no lifetime of that signature was decoded."""
    doubts = Doubts(context=context)
    doubts.note("counted by signature; no example was decoded")
    tgid = context.target.tgid
    finding = draft(rule, doubts, slot=None, reg=None, ts=ts, tgid=tgid, actors=(), site_roles=())
    finding.count = count
    return finding


def _finding(rule: RuleId, slot: SlotLife, context: Context) -> Draft:
    doubts = Doubts(context=context)
    end = slot.destroy.ts or slot.last_delivery or slot.close.ts
    doubts.lost(slot, (), end)
    doubts.predates(slot)
    margin = None
    window = _width(slot.close.ts, slot.destroy.ts)
    if rule is RuleId.DELIVERY_AFTER_CLOSE:
        margin = _width(slot.last_after_close, slot.destroy.ts)
        if slot.after_close > 1:
            doubts.note(f"{slot.after_close} deliveries came after the close")
    return draft(
        rule,
        doubts,
        slot=slot,
        reg=None,
        ts=end,
        tgid=slot.tgid,
        actors=_actors(slot),
        site_roles=("closed", "destroyed"),
        window_ns=window,
        margin_ns=margin,
    )


def _actors(slot: SlotLife) -> tuple[Actor, ...]:
    waiter = slot.waiter or slot.last_tid
    late = slot.last_after_close
    last = late or slot.last_delivery
    failed = not slot.flags & SlotFlag.DELETED
    return (
        actor("registered", slot.add),
        *seen("removed", slot.removed, "EPOLL_CTL_DEL failed" if failed else "EPOLL_CTL_DEL"),
        actor("closed", slot.close),
        *seen(
            "delivered",
            Moment(slot.last_delivery_enter if last == slot.last_delivery else last, last, 0, waiter),
            "visible after the close" if late else "",
        ),
        actor("destroyed", slot.destroy),
    )


FEWEST_LEAKED = 16
"""Fewer closed slots may as well be upstream objects that wait to be used again."""


def judge_lingering(event: SlotLingering, context: Context, *, grows: bool) -> Draft | Dropped:
    """leaked-slot: the fd is closed for `leak_after_ns` and the slot still not destroyed, or HUP is reported
    for as long and the connection never closed. `grows`: their number was seen to grow."""
    slot = event.slot
    if slot.state is SlotState.FREE or slot.destroy.seen:
        return Dropped("slot-was-destroyed")
    closed = slot.close.seen and bool(slot.flags & SlotFlag.CLOSED)
    since = slot.close.ts if closed else slot.hup_since
    if not since:
        return Dropped("fd-still-open")
    age = event.ts - since
    if age < context.leak_after_ns:
        return Dropped("not-lingering-long-enough")
    if closed and event.total < FEWEST_LEAKED:
        return Dropped("few-closed-slots-may-wait-to-be-used-again")
    doubts = Doubts(context=context)
    doubts.needs(Role.DESTROY)
    doubts.lost(slot, (), event.ts)
    doubts.predates(slot)
    if closed:
        doubts.note(f"{event.total} slots were closed that long ago or longer, and never destroyed")
    if closed and not grows:
        doubts.doubt("their number was not seen to grow: closed slots may wait to be used again")
    return draft(
        RuleId.LEAKED_SLOT,
        doubts,
        slot=slot,
        reg=None,
        ts=event.ts,
        tgid=slot.tgid,
        actors=(
            *seen("created", slot.create),
            actor("registered", slot.add),
            *seen("removed", slot.removed),
            *seen("closed", slot.close if closed else None),
            *seen(
                "delivered", None if closed else Moment(since, since, 0, slot.last_tid), "first with EPOLLHUP"
            ),
        ),
        site_roles=("registered", "closed"),
        sub_class="" if closed else "hung-up",
        window_ns=age,
    )


def _width(start: int, end: int) -> int | None:
    """0 when the two overlap (the close returned after the destroy): concurrent, no window at all."""
    return max(0, end - start) if start and end else None
