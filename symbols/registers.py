# Owns the names of the general registers. Apart from the DWARF reader: the daemon needs the names only.
from __future__ import annotations

REGISTERS = ("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", *(f"r{i}" for i in range(8, 16)))
"""psABI x86-64, figure 3.36: DWARF register numbers 0 to 15."""
