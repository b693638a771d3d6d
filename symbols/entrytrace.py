# Owns the symbolic execution of a function's straight-line prologue: which entry register (or stack
# slot) a parameter's stack home was filled from. Unoptimized code describes parameters by their
# homes, which hold nothing at entry. Must not know DWARF.
from __future__ import annotations

from typing import Any, NamedTuple

from capstone import x86_const as x86

from symbols.arm64 import Detail
from symbols.code import FunctionCode, full_register
from symbols.plan import Add, ArgSource, Deref


class _Sym(NamedTuple):
    """base + offset. base: an entry register, "cfa", or "@N": the 8 bytes at CFA + N at entry."""

    base: str
    offset: int


class EntryTrace:
    """What is known after the prologue of the function at `entry`.

    homes: CFA offset -> what was first stored there.
    """

    def __init__(self, code: FunctionCode, entry: int) -> None:
        self.homes: dict[int, _Sym] = {}
        self.registers: dict[str, _Sym] = {}
        self._code = code
        self._stack = code.machine.stack
        self.registers = {name: _Sym(name, 0) for name in code.machine.registers}
        self.registers[self._stack] = _Sym("cfa", -code.machine.entry_cfa)
        for at in code.straight(entry):
            insn = code.detail(at)
            if insn is None or not self._step(insn):
                break

    def at_entry(self, register: str, offset: int) -> ArgSource | None:
        """Where, at the function's first instruction, the value is that the home at
        register + offset (registers as after the prologue) will hold; None when not provable."""
        where = self.registers.get(register)
        if where is None or where.base != "cfa":
            return None
        return self.at_cfa(where.offset + offset)

    def at_cfa(self, home: int) -> ArgSource | None:
        """As at_entry, for a home at CFA + home."""
        value = self.homes.get(home)
        if value is None and home >= 0:
            value = _Sym(f"@{home}", 0)  # passed on the stack, never moved
        if value is None or value.base == "cfa":
            return None
        steps: list[Add | Deref] = []
        name = value.base
        if name.startswith("@"):
            name = self._stack
            steps = [Add(int(value.base[1:]) + self._code.machine.entry_cfa), Deref(8)]
        if value.offset:
            steps.append(Add(value.offset))
        return ArgSource(register=name, steps=tuple(steps))

    def _step(self, insn: Any) -> bool:
        """Execute one instruction; False ends the trace."""
        name, ops = insn.mnemonic, insn.operands
        if name[0] == "j" or name.startswith(("call", "ret", "loop", "syscall", "ud2")):
            return False
        if name in ("leave", "pop") or (ops and self._is_stack(insn, ops[0]) and name in ("mov", "add")):
            return False  # the epilogue: rsp as the body has it is what locations mean
        if name == "push":
            rsp = self.registers["rsp"]
            if rsp.base != "cfa":
                return False
            self.registers["rsp"] = _Sym("cfa", rsp.offset - 8)
            if ops[0].type == x86.X86_OP_REG:
                value = self.registers.get(insn.reg_name(ops[0].reg))
                if value is not None:
                    self.homes.setdefault(rsp.offset - 8, value)
            return True
        result: _Sym | None = None
        if isinstance(insn, Detail) and (insn.pair or insn.moved):
            return self._step_arm64(insn)
        if name in ("mov", "movabs") and len(ops) == 2:
            source, target = self._read(insn, ops[1]), ops[0]
            if target.type == x86.X86_OP_MEM:
                place = self._address(insn, target)
                if place is not None and target.size == 8:
                    self.homes.setdefault(place, source or _Sym("cfa", 0))
                return True
            result = source
        elif name == "lea" and ops[1].type == x86.X86_OP_MEM:
            mem = ops[1].mem
            base = self.registers.get(insn.reg_name(mem.base)) if mem.base and not mem.index else None
            result = _Sym(base.base, base.offset + mem.disp) if base else None
        elif name in ("sub", "add") and ops[0].type == x86.X86_OP_REG and ops[1].type == x86.X86_OP_IMM:
            base = self.registers.get(insn.reg_name(ops[0].reg))
            amount = ops[1].imm if name == "add" else -ops[1].imm
            result = _Sym(base.base, base.offset + amount) if base else None
        else:
            self._spoil_memory(insn)
        for reg in insn.regs_access()[1]:
            self.registers.pop(full_register(insn.reg_name(reg)), None)
        if result is not None and ops[0].type == x86.X86_OP_REG and ops[0].size == 8:
            self.registers[insn.reg_name(ops[0].reg)] = result
        return self._stack in self.registers

    def _is_stack(self, insn: Any, operand: Any) -> bool:
        return bool(operand.type == x86.X86_OP_REG and insn.reg_name(operand.reg) == self._stack)

    def _step_arm64(self, insn: Detail) -> bool:
        """stp, ldp, and what moves its base register."""
        place = next(operand for operand in insn.operands if operand.type == x86.X86_OP_MEM)
        at = self._address(insn, place)
        others = [operand for operand in insn.operands if operand is not place]
        if place.access & 2:
            for number, value in enumerate(others):
                home = at + number * insn.pair if at is not None else None
                if home is not None and value.size == 8:
                    self.homes.setdefault(home, self._read(insn, value) or _Sym("cfa", 0))
                elif home is not None:
                    self._spoil_memory(insn)
        elif self._stack in insn.written:
            return False  # the epilogue
        base = self.registers.get(insn.moved[0]) if insn.moved else None
        for register in insn.written:
            self.registers.pop(register, None)
        if insn.moved and base is not None:
            self.registers[insn.moved[0]] = _Sym(base.base, base.offset + insn.moved[1])
        return self._stack in self.registers

    def _spoil_memory(self, insn: Any) -> None:
        for operand in insn.operands:
            if operand.type == x86.X86_OP_MEM and operand.access & 2:
                place = self._address(insn, operand)
                if place is not None:
                    first = place - place % 8
                    for home in range(first, place + max(operand.size, 8), 8):
                        self.homes.setdefault(home, _Sym("cfa", 0))

    def _address(self, insn: Any, operand: Any) -> int | None:
        mem = operand.mem
        base = self.registers.get(insn.reg_name(mem.base)) if mem.base and not mem.index else None
        return base.offset + mem.disp if base is not None and base.base == "cfa" else None

    def _read(self, insn: Any, operand: Any) -> _Sym | None:
        if operand.type == x86.X86_OP_REG and operand.size == 8:
            return self.registers.get(insn.reg_name(operand.reg))
        if operand.type == x86.X86_OP_MEM and operand.size == 8:
            place = self._address(insn, operand)
            if place is None:
                return None
            return self.homes.get(place, _Sym(f"@{place}", 0) if place >= 0 else None)
        return None
