# Owns the names of the general registers. Apart from the DWARF reader: the daemon needs the names only.
from __future__ import annotations

REGISTERS = ("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", *(f"r{i}" for i in range(8, 16)))
"""psABI x86-64, figure 3.36: DWARF register numbers 0 to 15."""

# struct user_regs_struct (arch/x86/include/asm/user_64.h): registers as ptrace(2) and cores have them
USER_REGS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi"),
    *("rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
