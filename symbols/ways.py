# Owns probing the ways that lead to a place instead of the place: a branch costs a probe a fifth of what most
# other instructions cost. x86-64. Must not know DWARF, nor choose which places are to be moved.
from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from capstone import x86_const as x86

from symbols.code import FunctionCode, full_register
from symbols.plan import LOAD_BIAS, MAX_STEPS, Add, ArgSource, Deref, Price

MOST_WAYS = 4
"""Probes instead of one."""

_MOST_BACK = 16  # instructions on one way
_MOST_LOOKED_AT = 4000  # instructions of one loop


@dataclass(frozen=True, slots=True)
class Way:
    """A branch that leads to the place. when: the flags with which it does (plan.Site.when)."""

    address: int
    when: str
    source: ArgSource


def ways_to(
    code: FunctionCode, place: int, source: ArgSource, taken: Collection[int], *, shortest: int = 0
) -> list[Way] | None:
    """The branches of which exactly one is passed, in that direction, each time before control comes to a
    place, with what gives source's value there; None where that cannot be had.

    Between a branch and the place runs nothing but plain instructions: no call, no system call, no locked
    access, nothing that moves the stack pointer, none of the addresses `taken`, where other probes sit. And
    no branch is part of a loop without a call that does not pass the place, which may be a search or a
    lock's; one of at least `shortest` instructions is borne.
    """
    if code.undecoded:
        return None  # such a jump may lead to any label on the way
    found: dict[int, Way] = {}
    known = {place: source}
    open_ = [(place, 0)]
    while open_:
        at, depth = open_.pop()
        preds = code.preds.get(at, [])
        if not preds or at == code.low or depth >= _MOST_BACK:
            return None
        for pred in preds:
            if pred in taken or pred == place:
                return None
            when = _branches(code, pred, at)
            if when is not None:
                way = Way(pred, when, known[at])
                if found.setdefault(pred, way) != way or (when and _spins(code, pred, at, shortest)):
                    return None
                continue
            before = _before(code, pred, known[at])
            if before is None or known.setdefault(pred, before) != before:
                return None
            open_.append((pred, depth + 1))
        if len(found) > MOST_WAYS:
            return None
    return sorted(found.values(), key=lambda way: way.address)


def _branches(code: FunctionCode, at: int, to: int) -> str | None:
    """The condition with which an emulated branch leads to `to`, "" for any; None: it is no such branch."""
    insn = code.insns[at]
    name, target = insn.mnemonic, insn.operands
    if name[0] != "j" or not target.startswith("0x"):
        return None
    if code.price(at) is not Price.EMULATED or code.refused(at) is not None:
        return None
    if name == "jmp" or int(target, 16) == at + insn.size:
        return ""
    condition = name[1:]
    if int(target, 16) == to:
        return condition
    return condition[1:] if condition[0] == "n" else f"n{condition}"


def _spins(code: FunctionCode, at: int, to: int, shortest: int) -> bool:
    """Whether the branch may run many times without leading to `to`: a loop without any call, of fewer
    instructions than `shortest` (0: of any number)."""
    seen: set[int] = set()
    row, length = {succ for succ in code.succ(at) if succ != to}, 1
    while row and (not shortest or length < shortest):
        if at in row:
            return True
        seen |= row
        if len(seen) > _MOST_LOOKED_AT:
            return True
        passed = (here for here in row if not code.insns[here].mnemonic.startswith(("call", "syscall")))
        row = {succ for here in passed for succ in code.succ(here)} - seen - {to}
        length += 1
    return False


def _before(code: FunctionCode, at: int, source: ArgSource) -> ArgSource | None:
    """What has source's value before an instruction that does nothing else of interest; None: not known."""
    insn, plain = code.detail(at), code.insns[at]
    raw = code.raw(at)
    if insn is None or code.succ(at) != (at + plain.size,):
        return None
    if plain.mnemonic.startswith(("call", "sys", "int", "rep", "xchg", "xadd", "cmpxchg", "mfence")):
        return None
    if raw[0] == 0xF0 or "lock" in plain.mnemonic:
        return None
    written = {full_register(insn.reg_name(reg)) for reg in insn.regs_access()[1]}
    if "rsp" in written:
        return None  # the frame is what tells the calls apart
    if code.passes(at, source, harmless=True):
        return source
    if len(insn.operands) != 2 or source.register not in written or source.entry is not None:
        return None
    target, value = insn.operands
    if target.type != x86.X86_OP_REG or target.size != 8 or source.registers() != {source.register}:
        return None
    if any(part is not source and part.registers() for part in source.parts()):
        return None
    if insn.reg_name(target.reg) != source.register:
        return None
    moved = _moved(insn, plain.mnemonic, value)
    if moved is None:
        return None
    steps = (*moved.steps, *source.steps)
    folded = replace(moved, steps=tuple(step for step in steps if step != Add(0)))
    return folded if folded.weight() <= MAX_STEPS else None


def _moved(insn: Any, name: str, value: Any) -> ArgSource | None:
    """What a mov or lea gives its register."""
    if name == "mov" and value.type == x86.X86_OP_REG and value.size == 8:
        return ArgSource(register=insn.reg_name(value.reg))
    if value.type != x86.X86_OP_MEM or value.mem.index or value.mem.segment or not value.mem.base:
        return None
    base = insn.reg_name(value.mem.base)
    amount = value.mem.disp
    if base == "rip":
        base, amount = LOAD_BIAS, insn.address + insn.size + amount
    if name == "lea":
        return ArgSource(register=base, steps=(Add(amount),))
    if name == "mov" and value.size == 8:
        return ArgSource(register=base, steps=(Add(amount), Deref(8)))
    return None
