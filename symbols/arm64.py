# Owns aarch64 machine code, put into the terms in which symbols/ reads code, those of x86-64: a load or store
# of one register is a mov, b is jmp, bl is call, fp is x29. Also what the kernel does with a probed
# instruction. Must not know DWARF.
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import capstone
from capstone import arm64_const as a64

REG, IMM, MEM = 1, 2, 3  # capstone numbers them alike on both machines
READ, WRITE = capstone.CS_AC_READ, capstone.CS_AC_WRITE

_NAMES = {"fp": "x29", "lr": "x30", "wsp": "sp", "wzr": "xzr"}
_JUMPS = {"b": "jmp", "br": "jmp", "braa": "jmp", "brab": "jmp", "braaz": "jmp", "brabz": "jmp"}
_CONDITIONS = {"cbz": "je", "cbnz": "jne", "tbz": "je", "tbnz": "jne", "b.eq": "je", "b.ne": "jne"}
_STOPS = {"brk": "ud2", "hlt": "hlt", "udf": "ud2", "eret": "ret", "svc": "syscall"}
_LOADS = {  # loads and stores of one register: bytes in memory, 0: the register's size
    **dict.fromkeys(("ldr", "ldur", "ldar", "ldapr", "str", "stur", "stlr"), 0),
    **dict.fromkeys(("ldrb", "ldurb", "ldarb", "strb", "sturb", "stlrb"), 1),
    **dict.fromkeys(("ldrh", "ldurh", "ldarh", "strh", "sturh", "stlrh"), 2),
}
_PAIRS = frozenset(("ldp", "ldnp", "stp", "stnp"))
_WRITERS = ("st", "swp", "cas", "ldadd", "ldclr", "ldset", "ldeor", "ldsm", "ldum")
_LSL = a64.ARM64_SFT_LSL
_WIDTHS = {"x": 8, "w": 4, "q": 16, "d": 8, "s": 4, "h": 2, "b": 1}


def full_name(name: str | None) -> str:
    """The 64-bit register a name is part of ("w8" -> "x8"); others unchanged."""
    if not name:
        return ""
    name = _NAMES.get(name, name)
    return f"x{name[1:]}" if name[0] == "w" and name[1:].isdigit() else name


def flow_terms(mnemonic: str, operands: str) -> tuple[str, str]:
    """(mnemonic, operands) of what changes the flow, in x86's terms; others unchanged."""
    target = operands.rsplit("#", 1)[-1] if "#" in operands else operands
    if mnemonic in _JUMPS:
        return "jmp", target
    if mnemonic in _CONDITIONS or mnemonic.startswith(("b.", "bc.")):
        return _CONDITIONS.get(mnemonic, "jcc"), target
    if mnemonic == "bl" or mnemonic.startswith("blr"):
        return "call", target
    if mnemonic.startswith("ret"):
        return "ret", ""
    return _STOPS.get(mnemonic, mnemonic), operands


@dataclass(frozen=True, slots=True)
class Memory:
    base: str
    index: str
    disp: int
    segment: int = 0


_NOWHERE = Memory("", "", 0)


@dataclass(frozen=True, slots=True)
class Operand:
    type: int
    size: int  # bytes
    access: int
    reg: str = ""
    imm: int = 0
    mem: Memory = _NOWHERE


@dataclass(frozen=True, slots=True)
class Detail:
    """One instruction as capstone gives those of x86-64, for what this package asks of them."""

    address: int
    size: int
    mnemonic: str
    op_str: str  # as flow_terms gives it
    operands: tuple[Operand, ...]
    read: tuple[str, ...]
    written: tuple[str, ...]
    moved: tuple[str, int] | None  # a base register that pre- or post-indexing moves, by how much
    pair: int = 0  # bytes of each register of ldp and stp; 0 for others

    def reg_name(self, register: str) -> str:
        return register

    def regs_access(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.read, self.written


class Decoder:
    """Instructions of aarch64."""

    def __init__(self) -> None:
        self._lite = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
        self._detail = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
        self._detail.detail = True

    def sweep(self, raw: bytes, at: int) -> Iterator[tuple[int, int, str, str, str]]:
        """(address, size, mnemonic, operands, text) up to the first word that is no instruction."""
        for address, size, mnemonic, operands in self._lite.disasm_lite(raw, at):
            name, rest = flow_terms(mnemonic, operands)
            yield address, size, name, rest, f"{mnemonic} {operands}".strip()

    def detail(self, raw: bytes, at: int) -> Detail | None:
        for insn in self._detail.disasm(raw, at, 1):
            return _normal(insn)
        return None


def _normal(insn: Any) -> Detail:
    read, written = (tuple(full_name(insn.reg_name(reg)) for reg in regs) for regs in insn.regs_access())
    name, rest = flow_terms(insn.mnemonic, insn.op_str)
    after = "]," in insn.op_str  # post-indexed: the access is at the base itself
    operands = [_operand(insn, operand, after) for operand in insn.operands]
    amount = next((operand.mem.disp for operand in insn.operands if operand.type == MEM), 0)
    if after and operands[-1].type == IMM:
        amount = operands.pop().imm
    pair = 0
    if insn.mnemonic in _PAIRS:
        pair = operands[0].size
        operands = [_sized(operand, 2 * pair) for operand in operands]
    elif insn.mnemonic in _LOADS and len(operands) == 2:
        size = _LOADS[insn.mnemonic] or operands[0].size
        name = "mov" if size == operands[0].size else "movzx"
        operands = [_sized(operand, size) for operand in operands]
        if operands[1].access & WRITE:
            operands.reverse()
    elif insn.mnemonic in ("add", "sub") and len(operands) == 3 and operands[2].type == IMM:
        name, operands = _sum(insn, operands)
    base = next((operand.mem.base for operand in operands if operand.type == MEM), "")
    moved = (base, amount) if insn.writeback and base else None
    return Detail(insn.address, insn.size, name, rest, tuple(operands), read, written, moved, pair)


def _operand(insn: Any, operand: Any, after: bool) -> Operand:
    if operand.type == MEM:
        access = WRITE if insn.mnemonic.startswith(_WRITERS) else READ
        base, index = (
            full_name(insn.reg_name(r)) if r else "" for r in (operand.mem.base, operand.mem.index)
        )
        return Operand(MEM, 0, access, mem=Memory(base, index, 0 if after else operand.mem.disp))
    if operand.type != REG:
        return Operand(operand.type, 8, READ, imm=operand.imm if operand.type == IMM else 0)
    register = insn.reg_name(operand.reg) or ""
    width = 8 if register in ("sp", "fp", "lr") else _WIDTHS.get(register[:1], 8)
    if full_name(register) == "xzr":
        return Operand(IMM, width, READ)
    return Operand(REG, width, operand.access, reg=full_name(register))


def _sized(operand: Operand, size: int) -> Operand:
    return Operand(MEM, size, operand.access, mem=operand.mem) if operand.type == MEM else operand


def _sum(insn: Any, operands: list[Operand]) -> tuple[str, list[Operand]]:
    """add, sub of a constant: on the register itself as x86 has them, else lea."""
    target, base, number = operands
    amount = number.imm << (insn.operands[2].shift.value if insn.operands[2].shift.type == _LSL else 0)
    if base.type == REG and target.reg == base.reg:
        return insn.mnemonic, [target, Operand(IMM, 8, READ, imm=amount)]
    place = Memory(base.reg, "", amount if insn.mnemonic == "add" else -amount)
    return "lea", [target, Operand(MEM, 8, READ, mem=place)]


# -- probes --------------------------------------------------------------------------------------


_HINT = 0xD503_201F
_HINTS = frozenset((0, 7, 8, 10, 24, 25, 26, 27, 32, 34, 36, 38))  # nop, xpaclri, paci*, bti
_REFUSED = (
    (0x3F80_0000, 0x0800_0000, "exclusive loads and stores"),
    (0x3B00_0000, 0x1800_0000, "loads and prefetches relative to the program counter"),
    (0xFE00_0000, 0xD600_0000, "authenticated branches"),
    (0xFF00_0000, 0xD400_0000, "instructions that raise exceptions"),
    (0xFFFF_F01F, _HINT, "this hint"),
    (0xFFF8_F01F, 0xD500_401F, "writes of the processor's state"),
    (0xFFF0_0000, 0xD510_0000, "writes of system registers"),
)


def _word(raw: bytes) -> int:
    return int.from_bytes(raw[:4], "little")


def simulated(raw: bytes) -> bool:
    """arch/arm64/kernel/probes/decode-insn.c, arm_probe_decode_insn: what is simulated, not stepped."""
    word = _word(raw)
    return (
        word & 0x7C00_0000 == 0x1400_0000  # b, bl
        or word & 0xFF00_0010 == 0x5400_0000  # b.cond
        or word & 0x7C00_0000 == 0x3400_0000  # cbz, cbnz, tbz, tbnz
        or word & 0xFFFF_FC1F in (0xD61F_0000, 0xD63F_0000, 0xD65F_0000)  # br, blr, ret
        or word & 0x1F00_0000 == 0x1000_0000  # adr, adrp
    )


def refused(raw: bytes) -> str | None:
    """Why the kernel refuses a uprobe on this instruction; None when it takes it.

    aarch64_insn_is_steppable of the same file; hints that newer kernels allow are refused as the oldest do.
    """
    word = _word(raw)
    if len(raw) < 4 or word >> 16 == 0:
        return "not an instruction"
    if simulated(raw):
        return None
    for mask, value, what in _REFUSED:
        if word & mask == value and (value != _HINT or (word >> 5 & 0x7F) not in _HINTS):
            return f"the kernel refuses uprobes on {what}"
    return None
