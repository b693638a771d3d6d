# Owns machine code: disassembly (capstone), control flow inside one function, what a uprobe costs at
# an instruction and whether the kernel accepts it. x86-64; aarch64 through arm64.py. Must not know DWARF.
from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from sys import intern
from typing import Any

import capstone
from capstone import x86_const as x86

from symbols import arm64
from symbols.image import Image
from symbols.lists import Range
from symbols.plan import ArgSource, Price
from symbols.registers import AARCH64, MACHINES, X86_64, Machine

_MAX_FUNCTION = 2 << 20  # bytes; larger "functions" are damaged headers
_PADDING = "nop"
_TABLE_RUN = 24  # instructions before an indirect jmp that may say where its table is
_MAX_TABLE = 1024  # entries
_MAX_RUN = 48  # instructions looked at for a cheaper address
_PREFIXES = frozenset((0x66, 0x67, 0xF2, 0xF3, 0x64, 0x65))
_BAD_PREFIXES = {0x26: "es:", 0x2E: "cs:", 0x36: "ss:", 0x3E: "ds:", 0xF0: "lock"}
# arch/x86/kernel/uprobes.c, good_insns_64: opcodes it refuses (EVEX 0x62 among them)
_BAD_OPCODES = frozenset(
    bytes.fromhex(
        "06 07 0e 16 17 1e 1f 27 2f 37 3f 60 61 62 6c 6d 6e 6f 82 9a cc cd ce cf"
        "d4 d5 d6 e4 e5 e6 e7 ea ec ed ee ef f1 f4 fa fb"
    )
)


def _opcode(raw: bytes) -> tuple[list[int], int, int]:
    """(legacy prefixes, index of the opcode byte, REX or 0)."""
    prefixes, at, rex = [], 0, 0
    while at < len(raw) and (raw[at] in _PREFIXES or raw[at] in _BAD_PREFIXES):
        prefixes.append(raw[at])
        at += 1
    if at < len(raw) and 0x40 <= raw[at] <= 0x4F:
        rex = raw[at]
        at += 1
    return prefixes, at, rex


def refused(raw: bytes) -> str | None:
    """Why the kernel refuses a uprobe on this instruction; None when it takes it."""
    if not raw:
        return "not an instruction"
    prefixes, at, _rex = _opcode(raw)
    for prefix in prefixes:
        if prefix in _BAD_PREFIXES:
            return f"the kernel refuses uprobes on {_BAD_PREFIXES[prefix]}-prefixed instructions"
    if at >= len(raw) or raw[at] in _BAD_OPCODES:
        return "the kernel refuses uprobes on this opcode"
    return None


def price(raw: bytes) -> Price:
    """What the kernel does with it: branch_setup_xol_ops, push_setup_xol_ops."""
    prefixes, at, _rex = _opcode(raw)
    op = raw[at] if at < len(raw) else 0
    cheap = op in (0xE8, 0xE9, 0xEB, 0x90) or 0x70 <= op <= 0x7F or (0x50 <= op <= 0x57 and len(raw) <= 2)
    cheap = cheap or (op == 0x0F and at + 1 < len(raw) and 0x80 <= raw[at + 1] <= 0x8F)
    if 0x66 in prefixes and op != 0x90:
        cheap = False  # 16-bit branches are not emulated
    return Price.EMULATED if cheap else Price.SINGLE_STEP


def _is_nop5(raw: bytes) -> bool:
    return len(raw) == 5 and raw[:2] == b"\x0f\x1f"


@dataclass(frozen=True, slots=True)
class Insn:
    """mnemonic, operands: in x86-64's terms where control flow is concerned; text: as it is."""

    address: int
    size: int
    mnemonic: str
    operands: str
    text: str = ""

    def __str__(self) -> str:
        return self.text or f"{self.mnemonic} {self.operands}".strip()


class FunctionCode:
    """The instructions of one function and the direct edges between them.

    Jump tables are decoded where their shape is known. What follows a jmp or ret and is no target
    counts as reachable from outside (`orphans`): targets of other tables, landing pads.
    """

    def __init__(self, image: Image, ranges: Iterable[Range]) -> None:
        self.image = image
        ranges = list(ranges)
        self.low = ranges[0][0] if ranges else 0  # the entry
        self.insns: dict[int, Insn] = {}
        self.targets: set[int] = set()
        self._succ: dict[int, tuple[int, ...]] = {}
        self.preds: dict[int, list[int]] = {}
        self.orphans: set[int] = set()
        self.machine: Machine = MACHINES.get(image.machine, X86_64)
        self._arm = arm64.Decoder() if self.machine is AARCH64 else None
        self._md = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._detail = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._detail.detail = True
        self._cache: dict[int, Any] = {}
        self._undecoded: bool | None = None
        for low, high in ranges:
            self._sweep(low, min(high, low + _MAX_FUNCTION))
        self._link()
        # rbp is the frame's only where a prologue makes it so; else it is any register.
        framed = any(i.mnemonic == "mov" and i.operands == "rbp, rsp" for i in self.insns.values())
        self._frame_bases: tuple[str, ...] = ("rsp", "rip", "rbp") if framed else ("rsp", "rip")
        if self._arm is not None:
            framed = any(i.operands.startswith("x29, sp") for i in self.insns.values())
            self._frame_bases = ("sp", "x29") if framed else ("sp",)

    def _sweep(self, low: int, high: int) -> None:
        at = low
        while at < high:
            raw = self.image.code(at, high - at)
            if not raw:
                return
            if self._arm is not None:
                for address, size, mnemonic, operands, text in self._arm.sweep(raw, at):
                    self.insns[address] = Insn(
                        address, size, intern(mnemonic), intern(operands), intern(text)
                    )
                    at = address + size
                at += 4 - at % 4  # a word of data
                continue
            for address, size, mnemonic, operands in self._md.disasm_lite(raw, at):
                self.insns[address] = Insn(address, size, intern(mnemonic), intern(operands))
                at = address + size
            at += 1  # not an instruction: a byte of data

    def _link(self) -> None:
        after_end = True
        tables = self._tables()
        for address, insn in self.insns.items():
            following = address + insn.size
            if after_end and (_PADDING in insn.mnemonic or insn.mnemonic == "int3"):
                self._succ[address] = ()  # never runs: what follows it is reached otherwise
                continue
            name = insn.mnemonic.removeprefix("notrack ").removeprefix("bnd ")
            target = int(insn.operands, 16) if name[0] == "j" and insn.operands.startswith("0x") else None
            if target is not None:
                self.targets.add(target)
            succ: tuple[int, ...]
            if name == "jmp":
                succ = (target,) if target is not None else tables.get(address, ())
            elif name.startswith("ret") or name in ("ud2", "hlt", "int3"):
                succ = ()
            elif target is not None:
                succ = (target, following)
            else:
                succ = (following,)
            self._succ[address] = tuple(s for s in succ if s in self.insns)
            for s in self._succ[address]:
                self.preds.setdefault(s, []).append(address)
            if after_end:
                self.orphans.add(address)
            after_end = name == "jmp" or not succ
        self.orphans = {a for a in self.orphans if not self.preds.get(a)}

    def _tables(self) -> dict[int, tuple[int, ...]]:
        """Indirect jmp -> its targets."""
        order, tables = list(self.insns), {}
        for index, at in enumerate(order):
            insn = self.insns[at]
            if insn.mnemonic.endswith("jmp") and not insn.operands.startswith("0x"):
                before = [self.detail(a) for a in order[max(0, index - _TABLE_RUN) : index]]
                where = _table_of(self.detail(at), before)
                if where is not None:
                    tables[at] = self._entries(*where)
                    self.targets.update(tables[at])
        return tables

    def _entries(self, table: int, size: int) -> tuple[int, ...]:
        """A table's targets: its values as long as they are instructions of this function."""
        raw = self.image.code(table, _MAX_TABLE * size)
        targets: dict[int, None] = {}
        for at in range(0, len(raw) - size + 1, size):
            value = int.from_bytes(raw[at : at + size], "little", signed=size == 4)
            target = table + value if size == 4 else value
            if target not in self.insns:
                break
            targets[target] = None
        return tuple(targets)

    def succ(self, address: int) -> tuple[int, ...]:
        return self._succ.get(address, ())

    def reach(
        self, starts: Iterable[int], *, avoid: Collection[int] = (), within: Collection[int] | None = None
    ) -> set[int]:
        """Addresses reachable from starts (starts included) without entering `avoid` or leaving `within`."""
        seen: set[int] = set()
        stack = [s for s in starts if s in self.insns and s not in avoid]
        while stack:
            at = stack.pop()
            if at in seen:
                continue
            seen.add(at)
            stack += (
                s
                for s in self._succ.get(at, ())
                if s not in seen and s not in avoid and (within is None or s in within)
            )
        return seen

    def inside(self, ranges: Iterable[Range]) -> set[int]:
        """Instruction addresses in the ranges."""
        spans = list(ranges)
        return {a for a in self.insns if any(lo <= a < hi for lo, hi in spans)}

    def raw(self, address: int) -> bytes:
        insn = self.insns.get(address)
        return self.image.code(address, insn.size) if insn else b""

    def detail(self, address: int) -> Any:
        """capstone's CsInsn with operand detail (arm64.Detail looks like one), or None."""
        if address not in self._cache and self._arm is not None:
            self._cache[address] = self._arm.detail(self.raw(address), address)
        elif address not in self._cache:
            found = list(self._detail.disasm(self.raw(address), address, 1))
            self._cache[address] = found[0] if found else None
        return self._cache[address]

    def refused(self, address: int) -> str | None:
        """Why no probe can sit on the instruction at an address; None when one can."""
        raw = self.raw(address)
        if self._arm is not None:
            return arm64.refused(raw)
        if _is_nop5(raw):
            return "it is a 5-byte nop, which newer kernels rewrite"
        return refused(raw)

    def price(self, address: int) -> Price:
        raw = self.raw(address)
        if self._arm is not None:
            return Price.EMULATED if arm64.simulated(raw) else Price.SINGLE_STEP
        return price(raw)

    @property
    def undecoded(self) -> bool:
        """Whether there is a jump through a table whose targets are not known."""
        if self._undecoded is None:
            self._undecoded = any(
                insn.mnemonic.endswith("jmp")
                and not insn.operands.startswith("0x")
                and not self._succ.get(at)
                and not self._leaves(at)
                for at, insn in self.insns.items()
            )
        return self._undecoded

    def _leaves(self, at: int) -> bool:
        """Whether an indirect jump is a call at a function's end: through memory that no index selects, or by
        a register behind what takes the frame down."""
        insn = self.detail(at)
        place = insn.operands[0] if insn is not None and insn.operands else None
        if place is not None and place.type == x86.X86_OP_MEM:
            return not place.mem.index
        before = [self.insns[pred] for pred in self.preds.get(at, ())]
        return bool(before) and all(
            one.mnemonic in ("pop", "leave") or (one.mnemonic == "add" and one.operands.startswith("rsp"))
            for one in before
        )

    # -- straight-line runs ----------------------------------------------------------------------

    def straight(self, start: int) -> Iterator[int]:
        """start and the instructions that run exactly when it does: up to and including the first
        branch or call, and before any branch target."""
        at = start
        for _ in range(_MAX_RUN):
            insn = self.insns.get(at)
            if insn is None:
                return
            yield at
            following = at + insn.size
            if self.succ(at) != (following,) or insn.mnemonic.startswith(("call", "syscall")):
                return
            if following in self.targets or following not in self.insns:
                return
            at = following

    def cheapest(
        self, start: int, source: ArgSource, *, harmless: bool, before: int | None = None
    ) -> int | None:
        """The cheapest probeable address that means the same as start, where source still holds.

        before: not this address nor behind it.

        harmless: accesses through foreign pointers may pass (create). Otherwise the run ends at the
        first memory access outside the frame: that is the damage (destroy), or the fault (dispatch).
        """
        best, rank = None, 99
        for at in self.straight(start):
            if at == before:
                break
            if self.refused(at) is None:
                this = 0 if self.price(at) is Price.EMULATED else 1
                if this < rank:
                    best, rank = at, this
            if rank == 0 or not self.passes(at, source, harmless):
                break
        return best

    @property
    def frame_registers(self) -> frozenset[str]:
        """Registers that point into the function's own frame, all through it."""
        return frozenset(self._frame_bases) - {"rip"}

    def writes_foreign(self, at: int) -> bool:
        """Whether the instruction may write memory outside the frame (calls do)."""
        return self._foreign(at, capstone.CS_AC_WRITE)

    def touches_foreign(self, at: int) -> bool:
        """Whether the instruction may read or write memory outside the frame (calls do)."""
        return self._foreign(at, capstone.CS_AC_READ | capstone.CS_AC_WRITE)

    def _foreign(self, at: int, access: int) -> bool:
        insn = self.detail(at)
        if insn is None or insn.mnemonic.startswith("call"):
            return True
        return any(
            operand.type == x86.X86_OP_MEM
            and operand.access & access
            and not (operand.mem.base and insn.reg_name(operand.mem.base) in self._frame_bases)
            for operand in insn.operands
        )

    def passes(self, at: int, source: ArgSource, harmless: bool) -> bool:
        """Whether source gives the same value after this instruction as before it."""
        insn = self.detail(at)
        if insn is None:
            return False
        try:
            _read, written = insn.regs_access()
        except capstone.CsError:
            return False
        names = {full_register(insn.reg_name(reg)) for reg in written}
        used = source.registers()
        if used & names:
            return False
        reads_memory = source.reads_memory()
        if self._arm is not None and insn.mnemonic.startswith(("ldx", "ldax")):
            return False  # between an exclusive load and its store, a step would break the pair for ever
        if insn.mnemonic.startswith("push") and (reads_memory or "rsp" in used):
            return False
        for operand in insn.operands:
            if operand.type != x86.X86_OP_MEM or insn.mnemonic.startswith(("lea", "nop")):
                continue
            base = insn.reg_name(operand.mem.base) if operand.mem.base else ""
            frame = base in self._frame_bases and base not in used and not operand.mem.index
            writes = operand.access & capstone.CS_AC_WRITE
            if writes and reads_memory:
                return False
            if not frame and not harmless:
                return False
        return True


def _table_of(jump: Any, before: list[Any]) -> tuple[int, int] | None:
    """(address, entry size) of the table that an indirect jmp goes through.

    8: `jmp [table + index*8]`, or such a mov before; 4: `lea base, [rip + table]; movsxd r, [base + index*4];
    add r, base; jmp r` (position independent: offsets from the table).
    """
    place = jump.operands[0] if jump is not None and jump.operands else None
    if place is None:
        return None
    if place.type == x86.X86_OP_MEM:
        return (place.mem.disp, 8) if not place.mem.base and place.mem.scale == 8 else None
    base = ""
    for insn in reversed(before):
        if insn is None or len(insn.operands) != 2 or insn.operands[1].type != x86.X86_OP_MEM:
            continue
        target, source = insn.operands[0], insn.operands[1].mem
        name = insn.reg_name(target.reg) if target.type == x86.X86_OP_REG else ""
        if not base and insn.mnemonic == "movsxd" and source.scale == 4 and source.base:
            base = insn.reg_name(source.base)
        elif not base and insn.mnemonic == "mov" and name == jump.reg_name(place.reg):
            return (source.disp, 8) if not source.base and source.scale == 8 else None
        elif base and insn.mnemonic == "lea" and name == base:
            rip = bool(source.base) and insn.reg_name(source.base) == "rip"
            return (insn.address + insn.size + source.disp, 4) if rip else None
    return None


_FULL = {
    "ax": "rax",
    "bx": "rbx",
    "cx": "rcx",
    "dx": "rdx",
    "si": "rsi",
    "di": "rdi",
    "bp": "rbp",
    "sp": "rsp",
}


def full_register(name: str | None) -> str:
    """The 64-bit register a capstone register name is part of ("r8d" -> "r8"); others unchanged."""
    if not name or name == "sp":  # aarch64's; nothing works on 16 bits of rsp
        return name or ""
    if name[0] == "r" and name[1:2].isdigit():
        return name.rstrip("dwb")
    if name in ("al", "ah", "bl", "bh", "cl", "ch", "dl", "dh"):
        return f"r{name[0]}x"
    stem = name.lstrip("re") if name[0] in "re" and len(name) == 3 else name
    stem = stem.removesuffix("l") if stem in ("sil", "dil", "bpl", "spl") else stem
    return _FULL.get(stem, name)
