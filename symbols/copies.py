# Owns telling the copies of one inlined instance apart: loop unrolling and peeling repeat its code, and all
# copies share one entry of the debug information. A copy begins where the argument has a new value.
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from capstone import x86_const as x86

from symbols.code import FunctionCode, full_register
from symbols.expressions import Unsupported
from symbols.plan import Add, ArgSource, Deref

_MAX_COPIES = 64
_MAX_REGION = 20_000  # instructions followed between copies
_VOLATILE = frozenset(
    ("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")
)  # psABI: calls change them
_FRAME = ("rsp", "rbp")

Places = frozenset[str]
"""Registers ("rbx") and stack slots ("rsp+16") that hold the argument."""


def all_entries(
    code: FunctionCode,
    inside: set[int],
    entries: Iterable[int],
    source_at: Callable[[int], ArgSource | None],
    starts: Iterable[int],
) -> list[int]:
    """The entries, and those of copies that are reached through other copies only.

    source_at: the argument at an address, None where it has no location. starts: addresses at which a
    location of it begins. Raises Unsupported where copies cannot be told apart.
    """
    known = {at: _place(source_at(at)) for at in entries}
    back = reentries(code, inside, known)
    candidates = {at: _place(source_at(at)) for at in {*back, *starts} & inside}
    for _ in range(_MAX_COPIES):
        open_ = {at: place for at, place in candidates.items() if place and at not in known}
        if not open_:
            return list(known)
        held = _follow(code, known, open_)
        fresh = {at for at in open_ if at in held and open_[at] not in held[at][0]}
        if not fresh:
            if any(at in held and open_[at] not in held[at][1] for at in open_):
                raise Unsupported("its argument may have changed on some ways through it")
            return list(known)
        nearest = {
            at for at in fresh if at in code.reach(_after(code, known), avoid=(known.keys() | fresh) - {at})
        }
        for at in nearest:
            if not repeats(code, inside, known, at, fresh):
                raise Unsupported("its argument changes inside it")
        if not nearest:
            break
        known.update({at: open_[at] for at in nearest})
    raise Unsupported("its copies cannot be told apart")


def reentries(code: FunctionCode, inside: set[int], entries: Iterable[int]) -> set[int]:
    """Addresses at which control comes back into the instance from other code."""
    known = set(entries)
    return {at for at in inside if at not in known and any(p not in inside for p in code.preds.get(at, ()))}


def _after(code: FunctionCode, entries: Iterable[int]) -> list[int]:
    return [s for at in entries for s in code.succ(at)]


def _place(source: ArgSource | None) -> str:
    """The register or stack slot that is the argument; "" for anything else."""
    if source is None or source.register is None:
        return ""
    match source.steps:
        case ():
            return source.register
        case (Deref(size=8),) if source.register in _FRAME:
            return f"{source.register}+0"
        case (Add(amount=amount), Deref(size=8)) if source.register in _FRAME:
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
            held[at] = (frozenset({place} if place else ()),) * 2
            work.append(at)
    while work:
        at = work.pop()
        may, must = held[at]
        insn = code.detail(at)
        leaves = (_step(insn, may), _step(insn, must))
        for succ in code.succ(at):
            if succ not in towards or succ in entries:
                continue
            old = held.get(succ)
            new = leaves if old is None else (old[0] | leaves[0], old[1] & leaves[1])
            if new != old:
                held[succ] = new
                work.append(succ)
    return held


def _step(insn: Any, places: Places) -> Places:
    """Where the value is after an instruction."""
    if insn is None:
        return frozenset()
    if not places:
        return places
    name, operands = insn.mnemonic, insn.operands
    if name.startswith("call"):
        return places - _VOLATILE
    kept = places - {full_register(insn.reg_name(reg)) for reg in insn.regs_access()[1]}
    if name in ("push", "pop") or any(
        full_register(insn.reg_name(r)) == "rsp" for r in insn.regs_access()[1]
    ):
        kept = frozenset(place for place in kept if not place.startswith("rsp"))
    for operand in operands:
        if operand.type == x86.X86_OP_MEM and operand.access & 2:
            base = insn.reg_name(operand.mem.base) if operand.mem.base else ""
            low, high = operand.mem.disp - 7, operand.mem.disp + max(operand.size, 1)
            kept = frozenset(p for p in kept if not (base in _FRAME and _at(p, base) in range(low, high)))
    if name == "mov" and len(operands) == 2 and operands[0].size == operands[1].size == 8:
        target, source = (_operand_place(insn, operand) for operand in operands)
        if target and source in places:
            kept |= {target}
    return kept


def _at(place: str, base: str) -> int | None:
    register, _plus, offset = place.partition("+")
    return int(offset) if offset and register == base else None


def _operand_place(insn: Any, operand: Any) -> str:
    if operand.type == x86.X86_OP_REG:
        return full_register(insn.reg_name(operand.reg))
    if operand.type == x86.X86_OP_MEM and operand.mem.base and not operand.mem.index:
        base = insn.reg_name(operand.mem.base)
        return f"{base}+{operand.mem.disp}" if base in _FRAME else ""
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
    first = {effect(code, at) for at in before - behind} - {()}
    again = {effect(code, at) for at in behind - before} - {()}
    return len(first & again) * 3 >= len(first) * 2 > 0


def effect(code: FunctionCode, at: int) -> tuple[object, ...]:
    """What an instruction does to memory, whatever registers it uses; () for nothing."""
    if not code.writes_foreign(at):
        return ()
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
        else:
            parts.append(operand.imm if operand.type == x86.X86_OP_IMM else operand.type)
    return tuple(parts)
