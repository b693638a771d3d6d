# Owns the question which memory an instruction accessed, or would have: its operands with the registers'
# values (capstone). Must not know DWARF or read memory.
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import capstone
from capstone import x86_const as x86

from symbols.code import FunctionCode, full_register

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_CANONICAL = 0x0000_7FFF_FFFF_FFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """A memory operand with the registers' values; value None: the register is not known."""

    base: str  # 64-bit register, "" without
    base_value: int | None
    index: str
    index_value: int | None
    scale: int
    disp: int  # signed
    size: int  # bytes
    writes: bool
    address: int | None  # effective

    @property
    def canonical(self) -> bool:
        """Whether the address is one that a user space pointer can have on x86-64."""
        return self.address is None or self.address <= _CANONICAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The instruction at a pc. operand: the access that can have faulted; None where there is none."""

    address: int  # of the instruction, in the image
    text: str
    operand: Operand | None


def access_at(
    code: FunctionCode, at: int, registers: Mapping[str, int], fault_addr: int | None, *, bias: int = 0
) -> Access | None:
    """The instruction at an image address; of several operands the one that reaches fault_addr.

    A non-canonical address raises #GP, for which the kernel reports no address (si_code SI_KERNEL).
    """
    insn = code.detail(at)
    if insn is None:
        return None
    operands = [
        _operand(insn, operand, registers, bias)
        for operand in insn.operands
        if operand.type == x86.X86_OP_MEM and not insn.mnemonic.startswith(("lea", "nop"))
    ]
    chosen = next(
        (o for o in operands if fault_addr and o.address is not None and _near(o, fault_addr)), None
    )
    if chosen is None:
        chosen = next((o for o in operands if not o.canonical), None)
    if chosen is None and not fault_addr:
        chosen = operands[0] if operands else None
    if chosen is None and operands and all(o.address is None for o in operands):
        chosen = operands[0]
    return Access(address=at, text=f"{insn.mnemonic} {insn.op_str}".strip(), operand=chosen)


def _near(operand: Operand, address: int) -> bool:
    """An access across a page boundary faults at the second page's start."""
    return operand.address is not None and 0 <= address - operand.address < max(operand.size, 1)


def _operand(insn: Any, operand: Any, registers: Mapping[str, int], bias: int) -> Operand:
    mem = operand.mem
    base = full_register(insn.reg_name(mem.base)) if mem.base else ""
    index = full_register(insn.reg_name(mem.index)) if mem.index else ""
    known = dict(registers)
    known["rip"] = insn.address + insn.size + bias
    base_value, index_value = known.get(base), known.get(index)
    address: int | None = None
    if (not base or base_value is not None) and (not index or index_value is not None) and not mem.segment:
        address = ((base_value or 0) + (index_value or 0) * mem.scale + mem.disp) & _MASK
    return Operand(
        base=base, base_value=base_value, index=index, index_value=index_value, scale=mem.scale,
        disp=mem.disp, size=operand.size, writes=bool(operand.access & capstone.CS_AC_WRITE), address=address,
    )  # fmt: skip
