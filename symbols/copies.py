# Owns telling the copies of one inlined instance apart: loop unrolling and peeling repeat its code, and all
# copies share one entry of the debug information. A copy begins where the argument has a new value.
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from capstone import x86_const as x86

from symbols.code import FunctionCode, full_register
from symbols.expressions import Unsupported
from symbols.plan import LOAD_BIAS, Add, ArgSource, Deref

_MAX_COPIES = 64
_MAX_BACK = 16  # instructions before an entry
_MAX_REGION = 20_000  # instructions followed between copies

Places = frozenset[str]
"""Registers ("rbx") and 8 bytes of memory ("rsp+16", "rbx+8") that hold the argument."""


def all_entries(
    code: FunctionCode,
    inside: set[int],
    entries: Iterable[int],
    source_at: Callable[[int], ArgSource | None],
    starts: Iterable[int],
    *,
    once: bool = True,
) -> list[int]:
    """The entries, and those of copies that are reached through other copies only.

    source_at: the argument at an address, None where it has no location. starts: addresses at which a
    location of it begins. once: one argument is worked on once, as by destroy; else copies may follow each
    other that have the same one. Raises Unsupported where copies cannot be told apart.
    """
    known = {at: place_of(source_at(at)) for at in entries}
    back = reentries(code, inside, known)
    candidates = {at: place_of(source_at(at)) for at in {*back, *starts} & inside}
    for _ in range(_MAX_COPIES):
        open_ = {at: place for at, place in candidates.items() if place and at not in known}
        if not open_:
            break
        held = _follow(code, known, open_)
        fresh = {at for at in open_ if at in held and open_[at] not in held[at][0]}
        if not fresh:
            if any(at in held and open_[at] not in held[at][1] for at in open_):
                raise Unsupported("its argument may have changed on some ways through it")
            break
        nearest = {
            at for at in fresh if at in code.reach(_after(code, known), avoid=(known.keys() | fresh) - {at})
        }
        for at in nearest:
            if not repeats(code, inside, known, at, fresh):
                raise Unsupported("its argument changes inside it")
        if not nearest:
            raise Unsupported("its copies cannot be told apart")
        known.update({at: open_[at] for at in nearest})
    else:
        raise Unsupported("its copies cannot be told apart")
    if not once and _may_repeat(code, inside, set(known), back - known.keys()):
        raise Unsupported("control comes back into it, and its code may repeat for the same argument")
    return list(known)


def reentries(code: FunctionCode, inside: set[int], entries: Iterable[int]) -> set[int]:
    """Addresses at which control comes back into the instance from other code."""
    known = set(entries)
    return {at for at in inside if at not in known and any(p not in inside for p in code.preds.get(at, ()))}


def _after(code: FunctionCode, entries: Iterable[int]) -> list[int]:
    return [s for at in entries for s in code.succ(at)]


def place_of(source: ArgSource | None) -> str:
    """The register or memory that holds the argument; "" for anything else."""
    if source is None or source.register in (None, LOAD_BIAS):
        return ""
    match source.steps:
        case ():
            return source.register or ""
        case (Deref(size=8),):
            return f"{source.register}+0"
        case (Add(amount=amount), Deref(size=8)):
            return f"{source.register}+{amount}"
    return ""


def _follow(
    code: FunctionCode, entries: Mapping[int, str], targets: Iterable[int]
) -> dict[int, tuple[Places, Places]]:
    """address -> (places that may hold the argument of the entry passed last, places that surely do)."""
    towards = set(targets)
    stack = list(towards)
    while stack:  # only what leads to a target
        for pred in code.preds.get(stack.pop(), ()):
            if pred not in towards:
                towards.add(pred)
                if pred not in entries:
                    stack.append(pred)
    if len(towards) > _MAX_REGION:
        raise Unsupported("its copies lie too far apart to tell")
    held: dict[int, tuple[Places, Places]] = {}
    work = []
    for at, place in entries.items():
        if at in towards:
            held[at] = (_aliases(code, at, place),) * 2
            work.append(at)
    while work:
        at = work.pop()
        may, must = held[at]
        insn = code.detail(at)
        leaves = (step_places(code, insn, may), step_places(code, insn, must))
        for succ in code.succ(at):
            if succ not in towards or succ in entries:
                continue
            old = held.get(succ)
            new = leaves if old is None else (old[0] | leaves[0], old[1] & leaves[1])
            if new != old:
                held[succ] = new
                work.append(succ)
    return held


def _aliases(code: FunctionCode, at: int, place: str) -> Places:
    """The place and the registers that the straight code before an address made equal to it."""
    found, written = {place} - {""}, set[str]()
    for _ in range(_MAX_BACK if found else 0):
        preds = code.preds.get(at, [])
        if at in code.targets or len(preds) != 1 or len(code.succ(preds[0])) != 1:
            break
        at = preds[0]
        insn = code.detail(at)
        if insn is None or insn.mnemonic.startswith("call"):
            break
        if insn.mnemonic == "mov" and all(o.type == x86.X86_OP_REG and o.size == 8 for o in insn.operands):
            pair = {full_register(insn.reg_name(operand.reg)) for operand in insn.operands}
            if pair & found and not pair & written:
                found |= pair
        written |= {full_register(insn.reg_name(reg)) for reg in insn.regs_access()[1]}
    return frozenset(found)


def step_places(code: FunctionCode, insn: Any, places: Places) -> Places:
    """Where the value is after an instruction."""
    if insn is None:
        return frozenset()
    if not places:
        return places
    name, operands = insn.mnemonic, insn.operands
    frame = code.frame_registers
    kept = places
    if code.writes_foreign(insn.address):  # it may be the memory behind any pointer
        kept = frozenset(place for place in kept if "+" not in place or _base(place) in frame)
    if name.startswith("call"):
        saved = {*code.machine.saved, *frame}
        return frozenset(place for place in kept if _base(place) in saved)
    written = {full_register(insn.reg_name(reg)) for reg in insn.regs_access()[1]}
    kept = frozenset(place for place in kept if _base(place) not in written)
    for operand in operands:
        if operand.type == x86.X86_OP_MEM and operand.access & 2:
            base = insn.reg_name(operand.mem.base) if operand.mem.base else ""
            low, high = operand.mem.disp - 7, operand.mem.disp + max(operand.size, 1)
            kept = frozenset(p for p in kept if not (base in frame and _at(p, base) in range(low, high)))
    if name == "mov" and len(operands) == 2 and operands[0].size == operands[1].size == 8:
        target, source = (_operand_place(insn, operand) for operand in operands)
        if target and source in places and _base(target) not in written - {target}:
            kept |= {target}
    return kept


def _base(place: str) -> str:
    """The register that a place is, or is reached by."""
    return place.partition("+")[0]


def _at(place: str, base: str) -> int | None:
    register, _plus, offset = place.partition("+")
    return int(offset) if offset and register == base else None


def _operand_place(insn: Any, operand: Any) -> str:
    if operand.type == x86.X86_OP_REG:
        return full_register(insn.reg_name(operand.reg))
    if operand.type == x86.X86_OP_MEM and operand.mem.base and not operand.mem.index:
        base = insn.reg_name(operand.mem.base)
        return f"{base}+{operand.mem.disp}" if base != "rip" and not operand.mem.segment else ""
    return ""


def repeats(
    code: FunctionCode, inside: set[int], entries: Iterable[int], start: int, others: set[int]
) -> bool:
    """Whether the code from start does again what the code behind an entry does.

    Else it may be the rest of the same copy, which computes the argument anew.
    """
    known = set(entries)
    before = code.reach(known, avoid={start}, within=inside)
    behind = code.reach([start], avoid=known | (others - {start}), within=inside)
    of = effect if any(effect(code, at) for at in inside) else access
    first = {of(code, at) for at in before - behind} - {()}
    again = {of(code, at) for at in behind - before} - {()}
    return len(first & again) * 3 >= len(first) * 2 > 0


def _may_repeat(code: FunctionCode, inside: set[int], entries: set[int], back: set[int]) -> bool:
    """Whether what one part of the instance does with memory may be done again before the next entry.

    A copy with the same argument would do so; what was optimized away from it leaves nothing to probe.
    """
    starts = entries | back
    if not back or len(starts) > _MAX_COPIES:
        return bool(back)
    parts = {}
    for at in starts:
        part = code.reach([at], avoid=starts - {at}, within=inside)
        parts[at] = {access(code, a) for a in part} - {()}
    if not any(parts.values()):
        return True
    for at, done in parts.items():
        after = code.reach(code.succ(at), avoid=entries)
        if any(done & parts[other] for other in back & after):
            return True
    return False


def effect(code: FunctionCode, at: int) -> tuple[object, ...]:
    """What an instruction does to memory, whatever registers it uses; () for nothing."""
    return _shape(code, at) if code.writes_foreign(at) else ()


def access(code: FunctionCode, at: int) -> tuple[object, ...]:
    """What an instruction reads or writes outside the frame, whatever registers it uses; () for nothing."""
    return _shape(code, at) if code.touches_foreign(at) else ()


def _shape(code: FunctionCode, at: int) -> tuple[object, ...]:
    insn = code.detail(at)
    if insn is None:
        return ()
    if insn.mnemonic.startswith("call"):
        return ("call", insn.op_str)
    parts: list[object] = [insn.mnemonic]
    for operand in insn.operands:
        if operand.type == x86.X86_OP_MEM:
            fixed = insn.reg_name(operand.mem.base) == "rip" if operand.mem.base else True
            parts.append(operand.mem.disp + (insn.address + insn.size if fixed and operand.mem.base else 0))
            parts.append(operand.size)
        else:
            parts.append(operand.imm if operand.type == x86.X86_OP_IMM else operand.type)
    return tuple(parts)
