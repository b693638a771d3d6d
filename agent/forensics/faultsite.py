# Owns the fault in source terms: the instruction, its pointer, the variable and field, where the pointer had
# been loaded from. Reads evidence through a View; must not judge.
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from agent.forensics.evidence import Ended
from agent.forensics.facts import CodePlace, Fault, Load, Named
from agent.forensics.view import Spot, View
from symbols.access import Access, access_at
from symbols.dataflow import How, Origin, Place, Tracer
from symbols.errors import STRAY_ERRORS, SymbolError
from symbols.plan import ArgSource
from symbols.types import Type
from symbols.variables import Variable

_CALLERS = 6
_CLIMB = 3  # functions that a pointer is followed out of
# struct sigcontext_64 (arch/x86/include/uapi/asm/sigcontext.h), in words: what the CPU said of the fault
_TRAPNO, _CR2, _SIGCONTEXT = 20, 22, 40
_PAGE_FAULT = 14
_SIGABRT = 6
_NEAR_NULL = 0x10000  # a field of a null pointer lies below (vm.mmap_min_addr)


@dataclass(frozen=True, slots=True)
class Site:
    """A fault together with where in the crashed thread's stack it is."""

    fault: Fault
    spots: tuple[Spot, ...]  # from the faulting frame outwards
    access: Access | None
    type: Type | None  # what the faulting pointer points to


def find_site(view: View) -> Site | None:
    """The fault of the crashed thread; None where no registers were captured."""
    thread = view.evidence.crashed
    spots = view.spots(thread) if thread is not None else ()
    if thread is None or not spots:
        return None
    spots, address, handled = _interrupted(view, spots, view.evidence.fault_addr)
    if not handled and view.evidence.ended is not Ended.CRASHED:
        return None
    if not handled and view.evidence.signal == _SIGABRT:
        return _aborted(view, thread.tid, spots)
    spot = spots[0]
    registers = spot.frame.registers
    access = None
    if spot.ours:
        code = view.code_of(spot.address)
        if code is not None:
            access = access_at(code[1], spot.address, registers, address, bias=view.bias)
    fault = Fault(
        tid=thread.tid,
        pc=spot.frame.pc,
        module=spot.module.path if spot.module is not None else "",
        frames=view.places(spot),
        callers=tuple(place for other in spots[1 : 1 + _CALLERS] for place in view.places(other)),
        instruction=access.text if access is not None else "",
        address=address,
        in_handler=handled,
    )
    if access is None or access.operand is None:
        return Site(fault, spots, access, None)
    operand = access.operand
    fault = replace(
        fault,
        address=address or (operand.address if not operand.canonical else None),
        writes=operand.writes,
        base=operand.base,
        base_value=operand.base_value,
        offset=operand.disp,
        indexed=bool(operand.index),
    )
    return _named(view, Site(fault, spots, access, None))


def _named(view: View, site: Site) -> Site:
    """The site with the variable, type and field of the pointer, where debug information has them."""
    fault, spot = site.fault, site.spots[0]
    variable, kind = _pointer(view, spot, fault.base, fault.base_value, fault.offset)
    if variable is None or kind is None:
        return site
    named = Named(
        name=variable.name,
        type=variable.type.name,
        function=variable.function,
        inlined=variable.inlined,
        exact=variable.source == ArgSource(register=fault.base),
    )
    field = field_of(view, kind, fault.offset)
    return replace(site, fault=replace(fault, variable=named, type=kind.name, field=field), type=kind)


def with_added(view: View, site: Site, loads: tuple[Load, ...]) -> Site:
    """Code that adds the field's offset before it accesses: the pointer is what it added it to."""
    plus = {load.plus for load in loads if load.plus}
    fault = site.fault
    if len(plus) != 1 or fault.base_value is None:
        return site
    if fault.type and fault.base_value >= _NEAR_NULL:
        return site  # a pointer into the middle of an object that is there
    added = plus.pop()
    offset, value = fault.offset + added, (fault.base_value - added) & 0xFFFF_FFFF_FFFF_FFFF
    plain = replace(fault, base_value=value, offset=offset, variable=None, type="", field="")
    return _named(view, replace(site, fault=plain, type=None))


def _aborted(view: View, tid: int, spots: tuple[Spot, ...]) -> Site:
    """No access faulted: the program ended itself. The site is its own innermost frame."""
    at, panic = 0, []
    for index, spot in enumerate(spots):
        places = view.places(spot) if spot.ours else ()
        if any(place.own for place in places):
            at = index
            break
        panic += [place.function for place in places]
    frames, module = view.places(spots[at]), spots[at].module
    fault = Fault(
        tid=tid,
        pc=spots[at].frame.pc,
        module=module.path if module is not None else "",
        frames=frames,
        callers=tuple(place for other in spots[at + 1 : at + 1 + _CALLERS] for place in view.places(other)),
        aborted=True,
        panic=tuple(panic[:8]),
    )
    return Site(fault, spots[at:], None, None)


def _interrupted(
    view: View, spots: tuple[Spot, ...], address: int | None
) -> tuple[tuple[Spot, ...], int | None, bool]:
    """(frames from the faulting one on, fault address, whether a handler of the program ran on top).

    A program with a handler of its own (Zig's prints a trace) dies of the SIGABRT that the handler raises;
    what the CPU said is in the frame that the kernel pushed for the handler.
    """
    signals = [index for index, spot in enumerate(spots[:-1]) if spot.frame.signal]
    if not signals:
        return spots, address, False
    at = signals[-1]
    rsp = spots[at].frame.registers.get("rsp")
    trap = view.word(rsp + _SIGCONTEXT + 8 * _TRAPNO) if rsp is not None else None
    cr2 = view.word(rsp + _SIGCONTEXT + 8 * _CR2) if rsp is not None else None
    return spots[at + 1 :], cr2 if trap == _PAGE_FAULT else None, True


def _pointer(
    view: View, spot: Spot, base: str, value: int | None, offset: int
) -> tuple[Variable | None, Type | None]:
    """The innermost variable that holds the pointer: by its register, else by its value and type."""
    registers = spot.frame.registers
    byvalue: tuple[Variable, Type] | None = None
    for variable in view.in_scope(spot):
        target = view.variables.pointee(variable.type)
        if target is None or variable.source is None:
            continue
        if variable.source == ArgSource(register=base):
            return variable, target
        same = value is not None and variable.value(registers, view.read) == value
        if byvalue is None and same and field_of(view, target, offset):
            byvalue = (variable, target)
    return byvalue if byvalue is not None else (None, None)


def field_of(view: View, kind: Type, offset: int) -> str:
    try:
        view.session.dwarf.refill()
        path = view.types.field_at(kind, offset) or ""
    except (SymbolError, *STRAY_ERRORS):
        return ""
    # what Zig's backends put between an optional or a tagged union and its value
    return ".".join(part for part in path.split(".") if part not in ("null", "?", "payload"))


def loads_of(view: View, site: Site) -> tuple[Load, ...]:
    """Where the faulting pointer came from, followed into callers where it was a parameter."""
    operand = site.access.operand if site.access is not None else None
    if operand is None or not operand.base or operand.base in ("rsp", "rip"):
        return ()
    origins, level = _climb(view, site.spots, Place(operand.base), operand.base_value)
    name = _function_name(view, site.spots[level])
    # a constant that is another one did not come to the instruction
    origins = [o for o in origins if o.how is not How.CONSTANT or o.value == operand.base_value]
    return tuple(
        Load(
            instruction=origin.text,
            address=origin.address,
            base=origin.base,
            base_value=origin.base_value,
            agrees=origin.agrees,
            how=str(origin.how),
            plus=origin.plus,
            function=name,
        )
        for origin in origins
    )


def _climb(view: View, spots: tuple[Spot, ...], place: Place, value: int | None) -> tuple[list[Origin], int]:
    origins: list[Origin] = []
    for level, spot in enumerate(spots[: _CLIMB + 1]):
        at = _start(view, spot)
        if at is None or not spot.ours:
            return origins, max(level - 1, 0)
        found = _traced(view, spot, at, place, value, spot.frame.registers)
        entry = next((o for o in found if o.how is How.ENTRY), None)
        loads = [o for o in found if o.how is not How.ENTRY]
        if loads or entry is None or entry.place is None or level + 1 >= len(spots):
            return found, level
        if entry.place.disp is not None or spots[level + 1].frame.signal:
            return found, level
        origins, place = found, entry.place
    return origins, 0


def _start(view: View, spot: Spot) -> int | None:
    """The image address of the instruction at which a frame stands: the faulting one, or its call."""
    if spot.frame.exact:
        return spot.address
    code = view.code_of(spot.address)
    if code is None:
        return None
    return next((a for a, insn in code[1].insns.items() if a <= spot.address < a + insn.size), None)


def _traced(
    view: View, spot: Spot, at: int, place: Place, value: int | None, registers: Mapping[str, int]
) -> list[Origin]:
    code = view.code_of(spot.address)
    if code is None:
        return []
    function, instructions = code
    try:
        tracer = Tracer(instructions, function.low, registers, view.read, view.bias)
        return tracer.origins(at, place, value)
    except STRAY_ERRORS:
        return []


def _function_name(view: View, spot: Spot) -> str:
    places: tuple[CodePlace, ...] = view.places(spot)
    return places[-1].function if places else ""
