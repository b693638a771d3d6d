# Owns the last resort for create: no variable holds the result, but the code shows it. A pool's create
# pops its free list into a register, or allocates; where both ways meet, that register is the slot.
# Every condition that makes this true is checked; otherwise create stays unprobed.
from __future__ import annotations

from itertools import pairwise

from capstone import x86_const as x86

from symbols.code import FunctionCode, full_register
from symbols.expressions import Unsupported
from symbols.instances import Instance, check_entries, entry_points
from symbols.merged import FRAME, Head, head_of, loads, plain_move
from symbols.plan import ArgSource
from symbols.sites import Found

_STEPS = 64
_REG, _MEM = x86.X86_OP_REG, x86.X86_OP_MEM


def find_popped(instance: Instance, link_offset: int) -> list[Found]:
    """The place where the popped and the allocated slot meet. Raises Unsupported with the reason."""
    code = instance.code
    inside = code.inside(instance.ranges)
    found: dict[int, Found] = {}
    for load in sorted(inside):
        insn = code.detail(load)
        if not plain_move(insn):
            continue
        head = head_of(insn, insn.operands[1])
        register = full_register(insn.reg_name(insn.operands[0].reg)) if head is not None else ""
        if head is None or insn.operands[0].size != 8:
            continue
        after = _pop_ends(code, load, head, register, link_offset, inside)
        if after is None:
            continue
        meeting = _meeting(code, after, register, inside)
        if meeting is None:
            raise Unsupported("the ways of a popped and of a new slot do not visibly meet")
        _check_others(code, meeting, register, inside, load)
        _check_only_from(code, instance, meeting, inside)
        if not _is_read(code, meeting, register):
            raise Unsupported("the popped slot's register is not used where the ways meet")
        note = "the result, where a slot popped off the free list and a new one meet"
        place = Found(meeting, ArgSource(register=register), "(result)", note)
        if found.setdefault(meeting, place) != place:
            raise Unsupported("two pops meet at one place")
    if not found:
        raise Unsupported("its code shows no pop of a free list")
    check_entries(instance, entry_points(instance)[0], found)
    return list(found.values())


def _pop_ends(
    code: FunctionCode, load: int, head: Head, register: str, link: int, inside: set[int]
) -> int | None:
    """The address after `mov [head], next` of a pop whose `mov register, [head]` is at load."""
    at, branched, following = load, False, ""
    next_of = Head(False, link, register if register in FRAME else "")
    for _ in range(_STEPS):
        succ = code.succ(at)
        insn = code.detail(at)
        if insn is None or not succ or at not in inside:
            return None
        name = insn.mnemonic
        if at != load and name[0] == "j" and len(succ) == 2:
            if branched:
                return None
            branched = True
            at = succ[1] if name in ("je", "jz") else succ[0]  # the way of a list that is not empty
            continue
        if name.startswith("call"):
            return None
        if at != load:
            if loads(insn, None, next_of, base=register):
                following = full_register(insn.reg_name(insn.operands[0].reg))
                if following == register:
                    return None
            elif following and _stores(insn, following, head):
                return succ[0] if branched and len(succ) == 1 else None
            elif register in _written(insn):
                return None
        at = succ[0]
    return None


def _stores(insn: object, register: str, head: Head) -> bool:
    operands = getattr(insn, "operands", [])
    if getattr(insn, "mnemonic", "") != "mov" or len(operands) != 2 or head_of(insn, operands[0]) != head:
        return False
    value = operands[1]
    return bool(value.type == 1 and full_register(insn.reg_name(value.reg)) == register)  # type: ignore[attr-defined]


def _written(insn: object) -> set[str]:
    _read, written = insn.regs_access()  # type: ignore[attr-defined]
    return {full_register(insn.reg_name(reg)) for reg in written}  # type: ignore[attr-defined]


def _meeting(code: FunctionCode, at: int, register: str, inside: set[int]) -> int | None:
    """The first address with several ways in, on the popped slot's way from `at`."""
    for _ in range(_STEPS):
        if len(code.preds.get(at, ())) > 1:
            return at
        succ, insn = code.succ(at), code.detail(at)
        if insn is None or len(succ) != 1 or at not in inside or register in _written(insn):
            return None
        at = succ[0]
    return None


def _check_others(code: FunctionCode, meeting: int, register: str, inside: set[int], load: int) -> None:
    """On each other way: a call, a check of its result that can leave, and the register gets the new slot."""
    for pred in code.preds.get(meeting, ()):
        way = [pred]
        while way[-1] != load and not code.insns[way[-1]].mnemonic.startswith("call"):
            if way[-1] not in inside:
                raise Unsupported("a way to the result does not come from create's own code")
            preds = code.preds.get(way[-1], [])
            if len(preds) != 1 or len(way) > _STEPS:
                raise Unsupported("a way to the result cannot be followed back")
            way.append(preds[0])
        if way[-1] != load and not _is_checked(code, [*way[::-1], meeting], register, inside):
            raise Unsupported("a way to the result is not visibly checked for failure")


def _is_checked(code: FunctionCode, way: list[int], register: str, inside: set[int]) -> bool:
    """Whether the way from a call to the meeting tests the call's result, leaves on failure and defines
    the register. Out of memory must not arrive at the meeting."""
    result, tested, checked, defined = {"rax"}, False, False, False
    for at, following in pairwise(way[1:]):
        insn = code.detail(at)
        if insn is None:
            return False
        succ, operands = code.succ(at), insn.operands
        if insn.mnemonic[0] == "j" and len(succ) == 2:
            others = [other for other in succ if other != following]
            if tested and way[-1] not in code.reach(others, within={*inside, way[-1]}):
                checked = True
            continue
        if insn.mnemonic in ("test", "cmp"):
            registers = {full_register(insn.reg_name(o.reg)) for o in operands if o.type == _REG}
            frame = any(
                o.type == _MEM and o.mem.base and insn.reg_name(o.mem.base) in ("rsp", "rbp")
                for o in operands
            )
            tested = bool(registers & result) or frame  # an error union comes back in memory
            continue
        written = _written(insn)
        if "rflags" in written:
            tested = False
        copied = (
            insn.mnemonic == "mov"
            and operands[1].type == _REG
            and full_register(insn.reg_name(operands[1].reg)) in result
        )
        result = result | written if copied and operands[0].type == _REG else result - written
        defined = defined or register in written
    return checked and defined


def _check_only_from(code: FunctionCode, instance: Instance, meeting: int, inside: set[int]) -> None:
    if meeting in code.reach({instance.function.low} | code.orphans, avoid=inside):
        raise Unsupported("the result's place is also reached without create")
    if meeting in inside and meeting in code.reach(code.succ(meeting), within=inside):
        raise Unsupported("the result's place lies in a loop")


def _is_read(code: FunctionCode, start: int, register: str) -> bool:
    """Whether the register is live at start: some way reads it before it is written."""
    seen: set[int] = set()
    stack = [start]
    while stack and len(seen) < 400:
        at = stack.pop()
        insn = code.detail(at)
        if at in seen or insn is None:
            continue
        seen.add(at)
        read = {full_register(insn.reg_name(reg)) for reg in insn.regs_access()[0]}
        if register in read and not insn.mnemonic.startswith("call"):
            return True
        if register in _written(insn) or (
            insn.mnemonic.startswith("call") and register not in code.machine.saved
        ):
            continue
        stack += code.succ(at)
    return False
