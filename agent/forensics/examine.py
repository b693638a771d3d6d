# Owns the order in which a crash is examined: fault, origin of the pointer, slot, free list, batches, live
# slots. Needs open images; runs in a command or a worker, never in the daemon. Judges nothing.
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from agent.forensics.batches import batches
from agent.forensics.evidence import CrashEvidence, Ended
from agent.forensics.facts import CodePlace, Examination, Fault, FreeList, SlotSeen
from agent.forensics.faultsite import Site, field_of, find_site, loads_of, with_added
from agent.forensics.freelist import Pools
from agent.forensics.objects import Objects
from agent.forensics.sequel import ended_by
from agent.forensics.slots import Slots, with_way
from agent.forensics.view import OpenImage, View
from probes.abi import SlotState
from symbols.errors import STRAY_ERRORS, SymbolError
from symbols.plan import ProbePlan
from symbols.resolve import Session
from symbols.types import Type

_MOST_MOMENTS = 512
_MOST_PCS = 16
_MOST_PLACES = 8


def examine(
    evidence: CrashEvidence,
    plan: ProbePlan,
    session: Session,
    open_image: OpenImage = lambda _path: None,
) -> Examination:
    """What debug information and captured memory say about a crash. Never raises for bad evidence.

    session: the executable's debug information (symbols.resolve.open_session), which stays the caller's.
    """
    notes: list[str] = list(evidence.notes)
    view = View(evidence, plan, session, open_image)
    objects = Objects(view)
    slot_type = _type(view, plan.slot.type_name)
    if slot_type is None:
        notes.append(f"the slot's type {plan.slot.type_name} is not described by the debug information")
    try:
        site = find_site(view)
    except (SymbolError, *STRAY_ERRORS) as error:
        site = None
        notes.append(f"the fault could not be examined: {error}")
    if site is None and evidence.ended is Ended.CRASHED:
        notes.append("no registers of the crashed thread were captured")
    found = batches(view, objects)
    loads = loads_of(view, site) if site is not None else ()
    site = with_added(view, site, loads) if site is not None else None
    slots = Slots(view, objects, slot_type)
    slot = slots.find(site, loads, found)
    if site is not None and slot is not None and slot.field and slot.field == plan.slot.object_field:
        site = _typed_by_slot(view, site, plan)
    pools = Pools(view, objects, slot_type)
    free, reason = pools.free_list(slot.address if slot is not None else None)
    if slot is not None and free is not None and free.position is not None:
        slot = with_way(slot, "free list")
    history = evidence.history
    if free is None and slot is not None and (slot.filled or _destroyed(evidence, slot.address)):
        free = pools.behind(slot.address)
    if slot is not None and history is not None and any(life.addr == slot.address for life in history.lives):
        slot = with_way(slot, "history")
    pool = free.path.rpartition(".")[0] if free is not None and not free.partial else ""
    reachable, holders = slots.reachable(slot.address if slot is not None else None, pool)
    return Examination(
        fault=site.fault if site is not None else None,
        loads=loads,
        slot=slot,
        slot_type=plan.slot.type_name,
        slot_size=plan.slot.size,
        object_field=plan.slot.object_field or "",
        free_list=free,
        free_list_reason=reason,
        batches=found,
        live=_not_free(reachable, free, slot),
        calls=tuple(_calls(view, evidence)),
        holders=holders,
        notes=tuple(notes),
    )


def _type(view: View, name: str) -> Type | None:
    try:
        return view.types.find(name)
    except (SymbolError, *STRAY_ERRORS):
        return None


def _typed_by_slot(view: View, site: Site, plan: ProbePlan) -> Site:
    """No variable names the pointer, but it was loaded from the field that leads to the slot's object."""
    fault: Fault = site.fault
    if fault.type or not plan.slot.object_type or fault.indexed:
        return site
    kind = _type(view, plan.slot.object_type)
    if kind is None:
        return site
    field = field_of(view, kind, fault.offset)
    return replace(site, fault=replace(fault, type=kind.name, field=field), type=kind)


def _calls(view: View, evidence: CrashEvidence) -> Iterator[tuple[int, int, tuple[CodePlace, ...]]]:
    """Who was running at the moments of the history: the program's own frames, innermost first."""
    history = evidence.history
    if history is None:
        return
    stacks = {stack.id: stack for stack in history.stacks if stack.tgid == evidence.target.tgid}
    moments = [
        moment
        for life in history.lives
        for moment in (life.create, life.add, life.removed, life.close, life.destroy, life.prev_destroy)
    ]
    moments += [reg.dup for reg in history.registrations]
    moments += [actor.moment for finding in history.findings for actor in finding.actors]
    last = ended_by(evidence)
    moments += [last.moment] if last is not None else []
    seen: set[tuple[int, int]] = set()
    for moment in moments[-_MOST_MOMENTS:]:
        if not moment.seen or (moment.ip, moment.stack) in seen:
            continue
        seen.add((moment.ip, moment.stack))
        kept = stacks.get(moment.stack)
        pcs = view.callers(kept, _MOST_PCS) if kept is not None and kept.pcs else [(moment.ip, False)]
        places: list[CodePlace] = []
        for pc, exact in pcs:
            places += view.places_probed(pc) if pc == moment.ip else view.places_at(pc, exact=exact)
        own = tuple(place for place in places if place.own)
        yield moment.ip, moment.stack, (own or tuple(places))[:_MOST_PLACES]


def _destroyed(evidence: CrashEvidence, slot: int) -> bool:
    history = evidence.history
    lives = [life for life in history.lives if life.addr == slot] if history is not None else []
    return bool(lives) and max(lives, key=lambda life: life.gen).state is SlotState.FREE


def _not_free(slots: tuple[int, ...], free: FreeList | None, crashed: SlotSeen | None) -> tuple[int, ...]:
    taken = set(free.nodes) if free is not None else set()
    taken |= {crashed.address} if crashed is not None else set()
    return tuple(slot for slot in slots if slot not in taken)
