# Owns what single x86-64 instructions do to registers, as backward data flow asks it: copies, constants
# that are added, what is overwritten (capstone). Must not follow several instructions.
from __future__ import annotations

from typing import Any

import capstone
from capstone import x86_const as x86

from symbols.code import full_register

SCRATCH = frozenset(("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11"))
"""What a call may overwrite (System V AMD64 ABI)."""


def same_register(insn: Any, operands: Any) -> bool:
    """Whether both operands are one register: `xor eax, eax`."""
    kinds = (operands[0].type, operands[1].type)
    if kinds != (x86.X86_OP_REG, x86.X86_OP_REG):
        return False
    return full_register(insn.reg_name(operands[0].reg)) == full_register(insn.reg_name(operands[1].reg))


def added_constant(insn: Any) -> tuple[str, int] | None:
    """(register, constant) where an instruction makes a 64-bit register from another plus a constant."""
    operands = insn.operands
    if len(operands) != 2 or operands[0].type != x86.X86_OP_REG or operands[0].size != 8:
        return None
    if insn.mnemonic in ("add", "sub") and operands[1].type == x86.X86_OP_IMM:
        amount = int(operands[1].imm)
        name = full_register(insn.reg_name(operands[0].reg))
        return name, amount if insn.mnemonic == "add" else -amount
    if insn.mnemonic == "lea" and operands[1].type == x86.X86_OP_MEM:
        mem = operands[1].mem
        if mem.base and not mem.index and insn.reg_name(mem.base) != "rip":
            return full_register(insn.reg_name(mem.base)), int(mem.disp)
    return None


def is_vector_copy(mnemonic: str) -> bool:
    """movdqu, movups, vmovaps and the like: whole vectors, unchanged."""
    return mnemonic.removeprefix("v").startswith(("movdq", "movup", "movap"))


def is_vector(register: str) -> bool:
    return register.startswith("xmm")


def vector_register(name: str | None) -> str:
    """ymm3 and zmm3 have xmm3 as their low part."""
    return "xmm" + name[3:] if name and name[:3] in ("xmm", "ymm", "zmm") else name or ""


def stack_moved(insn: Any, register: str) -> int | None:
    """Bytes by which an instruction lowers a stack register (what lies at +0 behind it was at -N before)."""
    if register != "rsp":
        return None
    if insn.mnemonic == "push":
        return -8
    if insn.mnemonic == "pop":
        return 8
    if (
        insn.mnemonic in ("sub", "add")
        and len(insn.operands) == 2
        and insn.operands[1].type == x86.X86_OP_IMM
    ):
        amount = int(insn.operands[1].imm)
        return -amount if insn.mnemonic == "sub" else amount
    return None


def registers_written(insn: Any) -> frozenset[str]:
    """64-bit names (xmmN for vectors) of what an instruction overwrites; all that a call may."""
    try:
        _read, written = insn.regs_access()
    except capstone.CsError:
        return frozenset()
    names = frozenset(vector_register(full_register(insn.reg_name(register))) for register in written)
    return (names | SCRATCH) - {"rsp"} if insn.mnemonic.startswith("call") else names


def copy_of(insn: Any, register: str) -> tuple[str, int] | None:
    """(other register, constant) where an instruction makes the other one register + constant."""
    operands = insn.operands
    if len(operands) != 2 or operands[0].type != x86.X86_OP_REG or operands[0].size != 8:
        return None
    copy, source, moved = full_register(insn.reg_name(operands[0].reg)), "", 0
    if insn.mnemonic == "mov" and operands[1].type == x86.X86_OP_REG:
        source = full_register(insn.reg_name(operands[1].reg))
    elif insn.mnemonic == "lea":
        source, moved = added_constant(insn) or ("", 0)
    return (copy, moved) if source == register and copy != register else None
