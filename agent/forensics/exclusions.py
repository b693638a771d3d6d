# Owns the other explanations of the same crash: each with the test that tells it apart and what came out.
# Pure: facts in, values out. An untested alternative is said to be untested.
from __future__ import annotations

from agent.forensics.explanation import Alternative, Cause, Outcome
from agent.forensics.facts import Examination, ListEnd
from agent.forensics.past import Diagnosis, Past
from probes.abi import SlotState


def alternatives(seen: Examination, past: Past, found: Diagnosis) -> tuple[Alternative, ...]:
    """What else could look like this. Nothing when no slot is involved."""
    if seen.slot is None and seen.free_list is None:
        return ()
    return (
        _uninitialised(seen, past),
        _corruption(seen, past, found),
        _twice(seen, past, found),
        _recycled(seen, past, found),
        _elsewhere(seen),
    )


def _on_list(seen: Examination) -> bool:
    return seen.slot is not None and "free list" in seen.slot.by


def _gone(seen: Examination, past: Past) -> bool:
    life = past.life
    same = life is not None and seen.slot is not None and life.addr == seen.slot.address
    return same and life is not None and life.state is SlotState.FREE


def _uninitialised(seen: Examination, past: Past) -> Alternative:
    test = "a slot that was never set up is not on the free list, and its first word is no link of the list"
    outcome, because = Outcome.UNKNOWN, seen.free_list_reason or "the slot is not known"
    if _on_list(seen) and seen.free_list is not None and seen.slot is not None:
        link = seen.slot.link
        what = (
            "null, which ends the list" if link == 0 else f"{link:#x}, the next node" if link else "its link"
        )
        outcome = Outcome.EXCLUDED
        because = (
            f"the slot is node {(seen.free_list.position or 0) + 1} of the list; its first word is {what}"
        )
    elif _gone(seen, past):
        outcome, because = Outcome.EXCLUDED, "its destroy was watched, and no create since"
    elif seen.slot is not None and seen.slot.filled:
        outcome, because = Outcome.POSSIBLE, "the slot is filled with 0xaa, which create() does as well"
    elif seen.slot is not None and seen.free_list is not None:
        outcome, because = Outcome.POSSIBLE, "the slot is not on the free list"
    return Alternative(
        name="a pointer that was never initialised", test=test, outcome=outcome, because=because
    )


def _corruption(seen: Examination, past: Past, found: Diagnosis) -> Alternative:
    test = (
        "the free list must lead to null through aligned slots, and a freed slot hold only what destroy wrote"
    )
    free, slot = seen.free_list, seen.slot
    if free is None:
        outcome, because = Outcome.UNKNOWN, seen.free_list_reason or "the free list was not found"
    elif found.cause is Cause.DESTROYED_TWICE and free.end is not ListEnd.NULL:
        outcome, because = Outcome.UNLIKELY, "the list is broken as the second destroy leaves it"
    elif free.end is ListEnd.NULL:
        nodes, then = f"{free.length} node{'s' if free.length != 1 else ''}", ", then null"
        if not free.length:
            nodes, then = "the list is empty", ""
        if free.partial:
            nodes = f"the list leads on through {nodes}"
        if free.partial and not free.length:
            nodes, then = "the list ends with it", ""
        outcome, because = Outcome.UNLIKELY, f"{nodes}{then}"
        gone = _on_list(seen) or free.partial or _gone(seen, past)
        if slot is not None and slot.filled:
            outcome = Outcome.EXCLUDED if _on_list(seen) or free.partial else Outcome.UNLIKELY
            because += "; besides the link the slot is 0xaa throughout"
        elif slot is not None and slot.data and gone:
            because += "; this build leaves a freed slot's bytes as they were"
    elif free.end is ListEnd.MISPLACED:
        outcome = Outcome.POSSIBLE
        because = f"after {free.length} nodes the list leads to {free.last:#x}, where no slot can be"
    else:
        outcome, because = (
            Outcome.UNKNOWN,
            f"the list could be followed for {free.length} nodes only ({free.end})",
        )
    return Alternative(name="a stray write (heap corruption)", test=test, outcome=outcome, because=because)


def _twice(seen: Examination, past: Past, found: Diagnosis) -> Alternative:
    test = "a slot destroyed twice makes the free list a ring, or is on it while a connection uses it"
    free, life = seen.free_list, past.life
    if found.cause is Cause.DESTROYED_TWICE:
        outcome, because = Outcome.CAUSE, found.evidence[0].detail if found.evidence else "see above"
    elif free is not None and free.end is ListEnd.MISPLACED:
        outcome, because = Outcome.POSSIBLE, "the list leads through a slot that is in use"
    elif life is not None and not life.double_destroys:
        outcome = Outcome.EXCLUDED
        because = (
            f"every destroy of generation {life.gen} was watched: one"
            if life.destroy.seen
            else f"generation {life.gen} lives, no destroy of it was seen"
        ) + (", and the list has no ring" if free is not None and free.end is ListEnd.NULL else "")
    elif free is not None and free.end is ListEnd.NULL:
        outcome = Outcome.UNLIKELY
        because = "the list has no ring now; an earlier one could have been used up again"
    else:
        outcome, because = (
            Outcome.UNKNOWN,
            seen.free_list_reason or "the list could not be followed to its end",
        )
    return Alternative(name="a double destroy", test=test, outcome=outcome, because=because)


def _recycled(seen: Examination, past: Past, found: Diagnosis) -> Alternative:
    test = (
        "a slot that another connection lives in is not on the free list and holds that connection's values"
    )
    if seen.slot is None:
        outcome, because = Outcome.UNKNOWN, "the slot is not known"
    elif found.cause is Cause.RECYCLED:
        outcome, because = Outcome.CAUSE, found.evidence[0].detail if found.evidence else "see above"
    elif _on_list(seen):
        outcome, because = Outcome.EXCLUDED, "the slot is on the free list: nobody lives in it"
    elif _gone(seen, past):
        outcome, because = Outcome.EXCLUDED, "its destroy was watched, and no create since"
    elif seen.slot.filled:
        outcome, because = Outcome.EXCLUDED, "the slot is filled with 0xaa: nobody has set it up"
    elif seen.free_list is not None and seen.free_list.end is ListEnd.NULL and not seen.free_list.partial:
        outcome, because = Outcome.POSSIBLE, "the slot is not on the free list"
    else:
        outcome, because = Outcome.UNKNOWN, seen.free_list_reason or "the free list could not be followed"
    return Alternative(name="a recycled slot", test=test, outcome=outcome, because=because)


def _elsewhere(seen: Examination) -> Alternative:
    test = "the code must have loaded the pointer from the slot, and the slot must still hold it"
    loads = [load for load in seen.loads if load.address is not None]
    slot = seen.slot
    if slot is None:
        outcome, because = Outcome.UNKNOWN, "the slot is not known"
    elif "code" in slot.by and loads and loads[0].agrees:
        outcome, because = Outcome.EXCLUDED, f"`{loads[0].instruction}` read it from {loads[0].address:#x}"
    elif "code" in slot.by:
        outcome, because = Outcome.UNLIKELY, "all ways of the code lead there; what it read was not captured"
    elif "one way" in slot.by:
        outcome, because = Outcome.UNLIKELY, "the code can have come to it in more than one way"
    elif "finding" in slot.by:
        outcome = Outcome.UNLIKELY
        because = "the batch that the thread worked on brought it the event of a connection that has ended"
    elif seen.fault is not None and seen.fault.aborted:
        outcome = Outcome.UNLIKELY
        because = f"no access faulted, the program ended itself; the slot was found by: {', '.join(slot.by)}"
    elif slot.by == ("register",):
        outcome, because = Outcome.POSSIBLE, "the slot was found by a register's value only"
    else:
        outcome, because = Outcome.UNLIKELY, f"found by: {', '.join(slot.by)}"
    return Alternative(name="a bad pointer from elsewhere", test=test, outcome=outcome, because=because)
