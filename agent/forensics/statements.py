# Owns the statements about what was found: fault, pointer, slot, free list, delivery, connections; each
# with what it rests on and how sure it is. Pure: facts in, sentences out; no I/O, no clock, no verdict.
from __future__ import annotations

from collections.abc import Iterator

from agent.forensics.evidence import CrashEvidence, Ended, Source
from agent.forensics.explanation import Certainty, Evidence, Statement, Topic
from agent.forensics.facts import CodePlace, Examination, Fault, ListEnd, Load
from agent.text import short_name
from probes.abi import SlotState
from probes.events import SlotLife

_FILL = 0xAAAA_AAAA_AAAA_AAAA


# -- the fault -------------------------------------------------------------------------------------


def own_frame(fault: Fault | None) -> CodePlace | None:
    """The innermost frame of the program's own code; failing that, the innermost one."""
    if fault is None:
        return None
    frames = (*fault.frames, *fault.callers)
    return next((frame for frame in frames if frame.own), frames[0] if frames else None)


def place_text(frame: CodePlace) -> str:
    """`function (file:line)`, with long generic arguments left out."""
    name = short_name(frame.function, 48)
    return f"{name} ({frame.file.rpartition('/')[2]}:{frame.line})" if frame.line else name


def field_name(fault: Fault | None) -> str:
    return f"{fault.type}.{fault.field}" if fault is not None and fault.type and fault.field else ""


def pointer_kind(value: int | None) -> str:
    if value is None:
        return "an unknown pointer"
    if value == 0:
        return "a null pointer"
    if value == _FILL:
        return "0xaaaaaaaaaaaaaaaa, Zig's undefined fill"
    text = _as_text(value)
    return f"{value:#x}" + (f", which is the text {text}" if text else "")


def _as_text(value: int) -> str:
    """A pointer that is really text says whose bytes have come to lie there."""
    raw = value.to_bytes(8, "little").rstrip(b"\0")
    good = len(raw) >= 6 and all(32 <= byte < 127 or byte in (9, 10, 13) for byte in raw)
    return repr(raw.decode("ascii")) if good else ""


def about_fault(evidence: CrashEvidence, seen: Examination) -> Iterator[Statement]:
    fault = seen.fault
    if fault is None and evidence.ended is not Ended.CRASHED:
        text = {
            Ended.LIVING: "no signal had ended the process: it is of a living one, and nothing faulted",
            Ended.SENT: "the signal was sent to the process: no instruction of it faulted",
        }[evidence.ended]
        rest = Evidence("signal", f"{evidence.signal}, si_code {evidence.si_code}")
        yield Statement(topic=Topic.FAULT, text=text, certainty=Certainty.OBSERVED, evidence=(rest,))
        return
    if fault is None:
        text = "where it faulted is not known: no registers of the thread were captured"
        yield Statement(topic=Topic.FAULT, text=text, certainty=Certainty.UNKNOWN)
        return
    rests = [Evidence("registers", f"rip = {fault.pc:#x}")]
    place = own_frame(fault)
    if fault.aborted:
        through = f" through {', '.join(fault.panic[-2:])}" if fault.panic else ""
        text = (
            f"the program ended itself{through}, called from {place_text(place)}"
            if place
            else "the program ended itself"
        )
        yield Statement(topic=Topic.FAULT, text=text, certainty=Certainty.OBSERVED, evidence=tuple(rests))
        return
    if fault.instruction:
        rests.append(Evidence("instruction", fault.instruction))
    if fault.base:
        value = f"{fault.base_value:#x}" if fault.base_value is not None else "unknown"
        rests.append(Evidence("registers", f"{fault.base} = {value}"))
    if evidence.fault_addr is not None:
        rests.append(Evidence("signal", f"address {evidence.fault_addr:#x}"))
    elif fault.address is not None:
        rests.append(Evidence("signal", "no address: what the instruction computed is none of user space"))
    if fault.in_handler:
        rests.append(Evidence("stack", "the signal frame below the program's own handler"))
    verb = "writes" if fault.writes else "reads"
    where = f" in {place_text(fault.frames[0])}" if fault.frames else ""
    via = f", inlined into {place_text(fault.frames[1])}" if fault.frames and fault.frames[0].inlined else ""
    name = field_name(fault)
    if name:
        what = f"{name} (offset {fault.offset:#x}) of {pointer_kind(fault.base_value)}"
    elif fault.base:
        what = f"offset {fault.offset:#x} of {pointer_kind(fault.base_value)}"
    else:
        what = f"address {fault.address:#x}" if fault.address is not None else "memory that is not there"
    agrees = fault.base_value is not None and fault.address == fault.base_value + fault.offset
    yield Statement(
        topic=Topic.FAULT,
        text=f"`{fault.instruction}` {verb} {what}{where}{via}",
        certainty=Certainty.CONFIRMED if name and agrees else Certainty.OBSERVED,
        evidence=tuple(rests),
    )
    yield from _variable(fault)


def _variable(fault: Fault) -> Iterator[Statement]:
    variable = fault.variable
    if variable is None:
        return
    name = short_name(variable.function, 48)
    whose = f"the inlined {name}" if variable.inlined else name
    how = f"in {fault.base}" if variable.exact else f"which has the value of {fault.base}"
    yield Statement(
        topic=Topic.POINTER,
        text=f"the pointer is `{variable.name}` ({variable.type}) of {whose}, {how}",
        certainty=Certainty.CONFIRMED if variable.exact else Certainty.INFERRED,
        evidence=(Evidence("debug information", f"{variable.name} {how}"),),
    )


def about_origin(seen: Examination) -> Iterator[Statement]:
    slot, fault = seen.slot, seen.fault
    if fault is None or fault.aborted or not fault.base:
        return
    load = _best(seen)
    rests = []
    if load is not None:
        still = {True: "still holds it", False: "holds another value now", None: "was not captured"}[
            load.agrees
        ]
        where = f" from {load.address:#x}, which {still}" if load.address is not None else ""
        rests.append(Evidence("instruction", f"{load.instruction}{where}"))
    free = seen.free_list
    if load is not None and free is not None and not free.partial and load.address == free.head:
        yield Statement(
            topic=Topic.ORIGIN,
            text=f"the pointer was taken from the head of the pool's free list, {free.path} ({free.head:#x})",
            certainty=Certainty.CONFIRMED if load.agrees else Certainty.OBSERVED,
            evidence=tuple(rests),
        )
        return
    if slot is None:
        how = f": it was {load.how}" if load is not None else ""
        yield Statement(
            topic=Topic.ORIGIN,
            text=f"that the pointer came from a slot is not shown{how}",
            certainty=Certainty.UNKNOWN,
            evidence=tuple(rests),
        )
        return
    rests += [
        Evidence(way, f"{slot.address:#x}")
        for way in slot.by
        if way in ("variable", "batch", "register", "finding")
    ]
    field = f", field {slot.field}" if slot.field else ""
    ways = {"code", "variable", "batch", "finding"} & set(slot.by)
    certainty = Certainty.CONFIRMED if len(ways) > 1 else Certainty.OBSERVED if ways else Certainty.INFERRED
    if slot.address == fault.base_value:
        text = f"the pointer is slot {slot.address:#x} itself ({seen.slot_type})"
    elif slot.field and load is not None and slot.link and load.base_value == slot.link:
        text = (
            f"it was loaded from {slot.link:#x}, the free list's link, which slot {slot.address:#x}{field} "
            f"({seen.slot_type}), gives for its object"
        )
    elif not slot.tied:
        certainty = Certainty.INFERRED
        text = (
            f"that the pointer came from slot {slot.address:#x} ({seen.slot_type}) is not shown by the code; "
            "the batch that the thread was working on brought it the event of a connection that has ended"
        )
    else:
        text = f"it was loaded from slot {slot.address:#x}{field} ({seen.slot_type})"
    if "code" in ways and load is not None and load.agrees is not True and len(ways) == 1:
        certainty = Certainty.INFERRED
    yield Statement(topic=Topic.ORIGIN, text=text, certainty=certainty, evidence=tuple(rests))


def _best(seen: Examination) -> Load | None:
    known = [load for load in seen.loads if load.address is not None]
    return known[0] if known else seen.loads[0] if seen.loads else None


# -- the slot --------------------------------------------------------------------------------------


def about_slot(seen: Examination, life: SlotLife | None) -> Iterator[Statement]:
    """life: the last one of this slot that was watched."""
    slot = seen.slot
    if slot is None:
        return
    if not slot.data:
        text = f"what slot {slot.address:#x} holds was not captured"
        yield Statement(topic=Topic.SLOT, text=text, certainty=Certainty.UNKNOWN)
        return
    rests: tuple[Evidence, ...] = (Evidence("memory", slot.data[:32].hex(" ", 8)),)
    over = f" over `{slot.link_aliases.partition('.')[0]}`" if slot.link_aliases else ""
    rest = "; the rest is 0xaa, what destroy leaves in this build" if slot.filled else ""
    gone = life is not None and life.state is SlotState.FREE
    if ("free list" in slot.by or gone) and slot.link is not None:
        link = "null: the last of the list" if slot.link == 0 else f"{slot.link:#x}, the next free slot"
        text = f"its first bytes are the free list's link{over} ({link}){rest}"
        certainty = Certainty.CONFIRMED if "free list" in slot.by or slot.filled else Certainty.OBSERVED
        if gone:
            rests = (*rests, Evidence("events", "its destroy was seen, and no create since"))
    elif slot.filled:
        text = (
            f"it is filled with 0xaa{' but for the word' + over if over else ''}: destroyed, or never set up"
        )
        certainty = Certainty.OBSERVED
    elif _whole(seen):
        text = "it is not on the free list: by memory alone it is a live object"
        certainty = Certainty.OBSERVED
    else:
        text = "whether it is free cannot be told from its bytes"
        certainty = Certainty.UNKNOWN
    yield Statement(topic=Topic.SLOT, text=text, certainty=certainty, evidence=rests)
    if seen.holders:
        names = ", ".join(seen.holders[:4])
        yield Statement(
            topic=Topic.SLOT,
            text=f"pointers that still lead to it: {names}",
            certainty=Certainty.OBSERVED,
            evidence=(Evidence("memory", names),),
        )


def _whole(seen: Examination) -> bool:
    """Whether the free list was followed from its head to its end."""
    free = seen.free_list
    return free is not None and free.end is ListEnd.NULL and not free.partial


def about_free_list(seen: Examination) -> Iterator[Statement]:
    free, slot = seen.free_list, seen.slot
    if free is None:
        text = f"the pool's free list could not be walked: {seen.free_list_reason or 'not found'}"
        yield Statement(topic=Topic.FREE_LIST, text=text, certainty=Certainty.UNKNOWN)
        return
    rests = (
        Evidence("debug information", f"{free.path} at {free.head:#x}"),
        Evidence("memory", " -> ".join(f"{node:#x}" for node in (*free.nodes[:4], free.last)[:5])),
    )
    end = {
        ListEnd.NULL: "and then ends",
        ListEnd.CYCLE: f"and comes back to {free.last:#x}: it is a ring",
        ListEnd.MISPLACED: f"and then goes to {pointer_kind(free.last)}, where no slot can be",
        ListEnd.UNREADABLE: f"and then goes to {free.last:#x}, which was not captured",
        ListEnd.LIMIT: "and goes on beyond what is followed",
    }[free.end]
    nodes = f"{free.length} slot{'s' if free.length != 1 else ''}"
    if free.partial:
        through = (
            f"leads through {nodes} {end}" if free.length or free.end is not ListEnd.NULL else "ends there"
        )
        text = f"followed from the slot on, the list {through}; its head was not captured"
        yield Statement(topic=Topic.FREE_LIST, text=text, certainty=Certainty.OBSERVED, evidence=rests[1:])
        return
    if slot is not None and free.position is not None:
        text = f"{free.path} holds {nodes} {end}; slot {slot.address:#x} is number {free.position + 1}"
        certainty = Certainty.CONFIRMED
    else:
        absent = f"; slot {slot.address:#x} is not on it" if slot is not None else ""
        empty = not free.length and free.end is ListEnd.NULL
        text = f"{free.path} {'is empty' if empty else f'holds {nodes} {end}'}{absent}"
        certainty = Certainty.OBSERVED
    yield Statement(topic=Topic.FREE_LIST, text=text, certainty=certainty, evidence=rests)


def about_delivery(evidence: CrashEvidence, seen: Examination) -> Iterator[Statement]:
    slot = seen.slot
    if slot is None:
        return
    for known in evidence.batches:
        values = [userdata for userdata, _events in known.deliveries]
        if slot.address in values:
            number = f"batch {known.batch} " if known.batch else "the open batch "
            yield Statement(
                topic=Topic.DELIVERY,
                text=(
                    f"{number}of thread {known.tid} carries its address as userdata: "
                    f"delivery {values.index(slot.address) + 1} of {len(values)}"
                ),
                certainty=Certainty.OBSERVED,
                evidence=(Evidence("events", f"userdata {slot.address:#x}"),),
            )
            return
    for batch in seen.batches:
        values = [userdata for userdata, _events in batch.entries]
        if slot.address in values:
            at, events = values.index(slot.address), batch.entries[values.index(slot.address)][1]
            of = f"of {batch.count}" if batch.count is not None else "(the batch's length is not known)"
            yield Statement(
                topic=Topic.DELIVERY,
                text=(
                    f"the events that epoll_wait last wrote to {batch.path} carry its address as userdata: "
                    f"entry {at + 1} {of}, events {events:#x}"
                ),
                certainty=Certainty.OBSERVED if batch.count is not None else Certainty.INFERRED,
                evidence=(Evidence("memory", f"struct epoll_event at {batch.address + 12 * at:#x}"),),
            )
            return


def about_connections(evidence: CrashEvidence, seen: Examination) -> Iterator[Statement]:
    """Which connections there were, where nothing was watching."""
    if evidence.source is not Source.CORE or evidence.history is not None:
        return
    count = len(seen.live)
    if seen.free_list is not None and not count:
        yield Statement(
            topic=Topic.CONNECTIONS,
            text="no other slot is reachable from the program's own pointers and not on the free list",
            certainty=Certainty.OBSERVED,
        )
    elif seen.free_list is not None:
        yield Statement(
            topic=Topic.CONNECTIONS,
            text=(
                f"{count} other slot{'s are' if count != 1 else ' is'} reachable from the program's own "
                "pointers and not on the free list: presumably registered. The kernel's list of "
                "registrations is not in a core"
            ),
            certainty=Certainty.INFERRED,
            evidence=(Evidence("memory", ", ".join(f"{slot:#x}" for slot in seen.live[:8])),),
        )
