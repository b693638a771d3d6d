# Owns a guess: does a destroy count references? It does where its code decrements a field of the slot,
# branches on what is left, and one way does what the other does not. Follows x86-64 code, bounded.
from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import capstone
from capstone import x86_const as x86

from symbols.code import FunctionCode, full_register
from symbols.plan import Add, ArgSource, Deref
from symbols.registers import X86_64

_MAX_STEPS = 400  # instructions, over all ways
_MASK = (1 << 64) - 1
_SUBTRACTS = re.compile(  # also std::atomic's operator--
    r"fetch_?sub|atomic.*mmE[iv]|ref(s|count|_count|_cnt)?_?(dec|sub|put|drop)|(dec|put|drop)_?ref|unref",
    re.IGNORECASE,
)
_CONDITIONAL = re.compile(r"j(?!mp|[er]?cxz)")


@dataclass(frozen=True, slots=True)
class _Value:
    """What a register or a home in the frame holds: the slot's address plus `at`, or what its field held."""

    kind: (
        str  # "slot", "field" (as loaded), "less" (that minus 1), "left" (what the decrement left, or found)
    )
    at: int = 0


@dataclass(slots=True)
class _State:
    address: int
    registers: dict[str, _Value]
    homes: dict[tuple[str, int], _Value] = field(default_factory=dict)
    flags: _Value | None = None

    def copy(self, address: int) -> _State:
        return _State(address, dict(self.registers), dict(self.homes), self.flags)


def counts_references(
    code: FunctionCode, inside: set[int], start: int, source: ArgSource, name_at: Callable[[int], str]
) -> int | None:
    """The offset of the field that the code from start on, where source is the slot, seems to count down in
    order to free at the last call only; None where it does not.

    name_at: the function at an address, "" where none is known: atomics are functions in unoptimized code.
    """
    state = _start(start, source)
    if code.machine is not X86_64 or state is None:
        return None
    return _Walk(code, inside, name_at).finds(state)


def _start(start: int, source: ArgSource) -> _State | None:
    if source.register is None or source.entry is not None:
        return None
    slot = _Value("slot")
    match source.steps:
        case ():
            return _State(start, {source.register: slot})
        case (Add(amount), Deref(8)):
            signed = (amount & _MASK) - (1 << 64 if amount >> 63 & 1 else 0)
            return _State(start, {}, {(source.register, signed): slot})
        case (Deref(8),):
            return _State(start, {}, {(source.register, 0): slot})
    return None


class _Walk:
    def __init__(self, code: FunctionCode, inside: set[int], name_at: Callable[[int], str]) -> None:
        self._code = code
        self._inside = inside
        self._name_at = name_at
        self._stored: set[int] = set()  # fields that were decremented
        self._tested: set[_Value] = set()  # what branches depend on

    def finds(self, start: _State) -> int | None:
        stack, seen, left = [start], set[int](), _MAX_STEPS
        while stack and left > 0:
            state = stack.pop()
            while state.address in self._inside and state.address not in seen and left > 0:
                left -= 1
                seen.add(state.address)
                insn = self._code.detail(state.address)
                if insn is None:
                    break
                flags = state.flags if _CONDITIONAL.match(insn.mnemonic) else None
                if flags is not None and self._divides(state.address):
                    self._tested.add(flags)
                self._step(state, insn)
                counted = [at for at in self._stored if _Value("left", at) in self._tested]
                if counted:
                    return counted[0]
                following = self._code.succ(state.address)
                if not following:
                    break
                stack += (state.copy(other) for other in following[1:])
                state.address = following[0]
        return None

    def _divides(self, branch: int) -> bool:
        """Whether one way of a branch does what the other never does."""
        ways = [self._code.reach([s], within=self._inside) for s in self._code.succ(branch)]
        if len(ways) != 2:
            return len(ways) == 1  # the other way leaves the function: a tail call
        only = (ways[0] - ways[1], ways[1] - ways[0])
        return any(self._code.writes_foreign(at) or self._leaves(at) for way in only for at in way)

    def _leaves(self, at: int) -> bool:
        return self._code.insns[at].mnemonic == "jmp" and not self._code.succ(at)

    # -- one instruction -------------------------------------------------------------------------

    def _step(self, state: _State, insn: Any) -> None:
        name, operands = insn.mnemonic.removeprefix("lock "), insn.operands
        if name.startswith("call"):
            self._call(state, insn)
            return
        if name in ("push", "pop", "nop", "leave") or name.startswith(("j", "endbr")):
            self._forget(state, insn)
            return
        result = self._result(state, insn, name, operands)
        added = self._read(state, insn, operands[1]) if name == "xadd" and len(operands) == 2 else None
        state.flags = self._flags(state, insn, name, operands, result)
        place = self._place(state, insn, operands[0]) if operands else None
        self._forget(state, insn)
        self._write(state, insn, operands, result)
        if place is not None and added is not None and _is_minus_one(added, operands[1].size):
            self._decremented(state, place.at)
            state.registers[_register(insn, operands[1])] = state.flags = _Value("left", place.at)

    def _result(self, state: _State, insn: Any, name: str, operands: Any) -> _Value | None:
        """What an instruction computes into its first operand."""
        if not operands:
            return None
        if name.startswith("set"):
            return state.flags
        if name == "lea" and len(operands) == 2:
            base = self._base(state, insn, operands[1])
            return _plus(base, int(operands[1].mem.disp))
        if name.startswith("mov") and len(operands) == 2:
            return self._read(state, insn, operands[1])
        if name == "or" and self._read(state, insn, operands[1]) == _Value("constant", -1):
            return _Value("constant", -1)
        if name == "neg":
            value = self._read(state, insn, operands[0])
            return _Value("constant", -value.at) if value is not None and value.kind == "constant" else None
        amount = self._amount(state, insn, name, operands)
        return None if amount is None else _plus(self._read(state, insn, operands[0]), amount)

    def _flags(
        self, state: _State, insn: Any, name: str, operands: Any, result: _Value | None
    ) -> _Value | None:
        if name.startswith(("mov", "lea", "set", "cmov")):
            return state.flags
        if name in ("cmp", "test"):
            values = [self._read(state, insn, operand) for operand in operands]
            return next((value for value in values if value is not None and value.kind == "left"), None)
        if result is None or result.kind not in ("less", "left"):
            return None
        stored = result.kind == "less" and operands[0].type == x86.X86_OP_MEM
        return _Value("left", result.at) if stored else result

    def _write(self, state: _State, insn: Any, operands: Any, result: _Value | None) -> None:
        if not operands or not operands[0].access & capstone.CS_AC_WRITE:
            return
        target = operands[0]
        if target.type == x86.X86_OP_REG:
            if result is not None:
                state.registers[_register(insn, target)] = result
            return
        if target.type != x86.X86_OP_MEM:
            return
        home = _home(self._code, insn, target)
        if home is not None:
            state.homes = {k: v for k, v in state.homes.items() if not _overlap(k, home, target.size)}
            if result is not None:
                state.homes[home] = result
            return
        place = self._place(state, insn, target)
        if place is not None and result is not None and result == _Value("less", place.at):
            self._decremented(state, place.at)

    def _decremented(self, state: _State, at: int) -> None:
        """The field is one less now: what was computed for it, and what is read of it from now on."""
        left = _Value("left", at)
        if _Value("less", at) in self._tested:  # one way stores it, the other frees at once
            self._tested.add(left)
        self._stored.add(at)
        state.registers["[]"] = left  # marks the field
        for values in (state.registers, state.homes):
            for key, value in list(values.items()):
                if value.at == at and value.kind in ("less", "field"):
                    values[key] = left  # type: ignore[index]
        if state.flags is not None and state.flags == _Value("less", at):
            state.flags = left

    def _call(self, state: _State, insn: Any) -> None:
        argument = state.registers.get("rdi")
        target = insn.operands[0] if insn.operands else None
        name = ""
        if target is not None and target.type == x86.X86_OP_IMM:
            name = self._name_at(target.imm)
        kept = {*self._code.machine.saved, *self._code.frame_registers, "[]"}
        state.registers = {k: v for k, v in state.registers.items() if k in kept}
        state.flags = None
        if argument is not None and argument.kind == "slot" and _SUBTRACTS.search(name):
            self._decremented(state, argument.at)
            state.registers["rax"] = _Value("left", argument.at)

    # -- operands --------------------------------------------------------------------------------

    def _amount(self, state: _State, insn: Any, name: str, operands: Any) -> int | None:
        """What an instruction adds to its first operand."""
        if name in ("dec", "inc"):
            return -1 if name == "dec" else 1
        added = self._read(state, insn, operands[1]) if name in ("add", "sub") and operands[1:] else None
        if added is None or added.kind != "constant":
            return None
        return added.at if name == "add" else -added.at

    def _read(self, state: _State, insn: Any, operand: Any) -> _Value | None:
        if operand.type == x86.X86_OP_REG:
            return state.registers.get(_register(insn, operand))
        if operand.type == x86.X86_OP_IMM:
            return _Value("constant", _signed(operand, operand.size))
        if operand.type != x86.X86_OP_MEM:
            return None
        home = _home(self._code, insn, operand)
        if home is not None:
            return state.homes.get(home)
        place = self._place(state, insn, operand)
        if place is None:
            return None
        left = state.registers.get("[]")
        return left if left is not None and left.at == place.at else _Value("field", place.at)

    def _place(self, state: _State, insn: Any, operand: Any) -> _Value | None:
        """The slot's field that a memory operand is, by its offset."""
        if operand.type != x86.X86_OP_MEM or operand.mem.segment:
            return None
        base = self._base(state, insn, operand)
        if base is None or base.kind != "slot":
            return None
        return _Value("field", base.at + operand.mem.disp)

    def _base(self, state: _State, insn: Any, operand: Any) -> _Value | None:
        if operand.type != x86.X86_OP_MEM or operand.mem.index or not operand.mem.base:
            return None
        return state.registers.get(full_register(insn.reg_name(operand.mem.base)))

    def _forget(self, state: _State, insn: Any) -> None:
        for reg in insn.regs_access()[1]:
            state.registers.pop(full_register(insn.reg_name(reg)), None)


def _plus(value: _Value | None, amount: int) -> _Value | None:
    """A value with a constant added: another place in the slot, or a count that is one less."""
    if value is None or value.kind == "left":
        return value
    if value.kind == "slot":
        return _Value("slot", value.at + amount)
    return _Value("less", value.at) if value.kind == "field" and amount == -1 else None


def _is_minus_one(value: _Value, size: int) -> bool:
    bits = 8 * size
    return value.kind == "constant" and value.at & (1 << bits) - 1 == (1 << bits) - 1


def _signed(operand: Any, size: int = 8) -> int:
    bits = 8 * min(max(size, 1), 8)
    value = int(operand.imm) & (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value


def _register(insn: Any, operand: Any) -> str:
    return full_register(insn.reg_name(operand.reg))


def _home(code: FunctionCode, insn: Any, operand: Any) -> tuple[str, int] | None:
    """A place in the frame."""
    mem = operand.mem
    base = insn.reg_name(mem.base) if mem.base else ""
    return (
        (base, int(mem.disp)) if base in code.frame_registers and not mem.index and not mem.segment else None
    )


def _overlap(known: tuple[str, int], home: tuple[str, int], size: int) -> bool:
    return known[0] == home[0] and home[1] - 8 < known[1] < home[1] + max(size, 1)
