# Owns the machines whose executables are understood: names of their general registers and what the
# calling convention fixes. Apart from the DWARF reader: the daemon needs the names only.
from __future__ import annotations

from dataclasses import dataclass

REGISTERS = ("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", *(f"r{i}" for i in range(8, 16)))
"""psABI x86-64, figure 3.36: DWARF register numbers 0 to 15."""

# struct user_regs_struct (arch/x86/include/asm/user_64.h): registers as ptrace(2) and cores have them
USER_REGS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi"),
    *("rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)

CONDITIONS = frozenset(("o", "b", "ae", "e", "be", "a", "s", "p", "l", "ge", "le", "g"))
"""Of x86-64's jcc (Intel SDM volume 1, appendix B), as disassemblers write them; n before: the opposite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One instruction set with its Linux calling convention."""

    name: str  # as uname -m has it
    registers: tuple[str, ...]  # by DWARF number
    stack: str  # the stack pointer
    entry_cfa: int  # CFA minus the stack pointer at a function's first instruction
    result: str  # where a returned pointer is
    saved: frozenset[str]  # what survives a call


X86_64 = Machine(
    name="x86_64",
    registers=REGISTERS,
    stack="rsp",
    entry_cfa=8,  # the return address
    result="rax",  # psABI 3.2.3
    saved=frozenset(("rbx", "rbp", "r12", "r13", "r14", "r15")),  # psABI 3.2.1
)

AARCH64 = Machine(
    name="aarch64",
    registers=(*(f"x{i}" for i in range(31)), "sp"),  # AADWARF64, table 1: numbers 0 to 31
    stack="sp",
    entry_cfa=0,  # the return address is in x30
    result="x0",  # AAPCS64 6.9
    saved=frozenset(f"x{i}" for i in range(19, 30)),  # AAPCS64 6.1.1
)

MACHINES = {machine.name: machine for machine in (X86_64, AARCH64)}
