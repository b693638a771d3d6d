# Owns stack unwinding on x86-64: registers and a memory reader -> frames, by call frame information, by the
# kernel's signal frames, by frame pointers where nothing else is known. Must not read processes itself.
# Memory is untrusted: a chain must go up the stack, never twice through the same place, and is bounded.
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from symbols.cfi import How, Row
from symbols.cfi import Rule as RegisterRule
from symbols.cfi_expr import Memory, evaluate
from symbols.modules import Module, Modules
from symbols.registers import REGISTERS

MOST_FRAMES = 256

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_RSP, _RBP, _RIP = 7, 6, 16
_KEPT = (3, 6, 12, 13, 14, 15)
"""rbx, rbp, r12 to r15: what a callee gives back as it got it (psABI x86-64, 3.2.1)."""

# mov $15, %rax (or %eax); syscall: rt_sigreturn, what a signal handler returns to
_SIGRETURNS = (bytes.fromhex("48c7c00f0000000f05"), bytes.fromhex("b80f0000000f05"))
# struct ucontext, struct sigcontext_64 (arch/x86/include/uapi/asm): the registers from offset 40 on
_SIGCONTEXT = 40
_SIGCONTEXT_ORDER = (8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2, 7, 16)
_FARTHEST = 64 << 20  # bytes between a frame and its caller's, at most


class Step(Enum):
    """How a frame was found from the one it called."""

    START = "registers"
    CFI = "call frame information"
    SIGNAL = "signal frame"
    FRAME_POINTER = "frame pointer"
    ENTRY = "function entry"  # interrupted before the frame was set up, or a call to a wild address


class End(Enum):
    """Why the chain ends."""

    OUTERMOST = "the outermost frame"
    UNREADABLE = "stack memory cannot be read"
    LOST = "no caller can be found"
    LOOP = "the chain does not go up the stack"
    LIMIT = "too many frames"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnwoundFrame:
    """registers: what is known of them in this frame, by name; the innermost frame knows all of them."""

    pc: int
    cfa: int | None  # of this frame; None where its own caller was not found
    exact: bool  # pc itself was about to execute; otherwise it is behind a call: look up pc - 1
    step: Step
    signal: bool  # a signal trampoline
    registers: Mapping[str, int]

    @property
    def lookup(self) -> int:
        """The address to symbolize."""
        return self.pc if self.exact else self.pc - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Backtrace:
    frames: tuple[UnwoundFrame, ...]
    end: End


@dataclass(slots=True)
class _Caller:
    registers: dict[int, int]  # by DWARF number, 16 = rip
    cfa: int
    step: Step
    signal: bool = False  # the frame that was left is a signal trampoline


class _Stopped(Exception):
    def __init__(self, end: End) -> None:
        super().__init__(end.value)
        self.end = end


class Unwinder:
    """Unwinds threads of one process."""

    def __init__(self, modules: Modules, memory: Memory) -> None:
        """memory: (address, count) -> exactly count bytes; where it gives None, the images' own bytes."""
        self._modules = modules
        self._memory = memory

    def unwind(self, registers: Mapping[str, int], limit: int = MOST_FRAMES) -> Backtrace:
        """Frames from registers by name (at least rip and rsp), innermost first. Never raises."""
        known = {n: registers[name] & _MASK for n, name in enumerate(REGISTERS) if name in registers}
        known[_RIP] = registers.get("rip", 0) & _MASK
        frames: list[UnwoundFrame] = []
        step, exact, floor = Step.START, True, -1
        while True:
            pc, end, caller = known[_RIP], None, None
            try:
                if len(frames) + 1 >= max(1, limit):
                    raise _Stopped(End.LIMIT)
                caller = self._caller(known, exact)
                if caller.cfa <= floor and not (caller.signal or (frames and frames[-1].signal)):
                    raise _Stopped(End.LOOP)
                if any(f.pc == caller.registers[_RIP] and f.cfa == caller.cfa for f in frames):
                    raise _Stopped(End.LOOP)
            except _Stopped as stopped:
                end = stopped.end
            frames.append(
                UnwoundFrame(
                    pc=pc,
                    cfa=caller.cfa if caller is not None else None,
                    exact=exact,
                    step=step,
                    signal=caller is not None and caller.signal,
                    registers={_name(number): value for number, value in known.items()},
                )
            )
            if end is not None or caller is None:
                return Backtrace(frames=tuple(frames), end=end or End.LOST)
            known, step, exact, floor = caller.registers, caller.step, caller.signal, caller.cfa

    def _read(self, address: int, count: int) -> bytes | None:
        address &= _MASK
        raw = self._memory(address, count)
        return raw if raw is not None and len(raw) == count else self._modules.code(address, count)

    def _word(self, address: int) -> int:
        raw = self._read(address, 8)
        if raw is None:
            raise _Stopped(End.UNREADABLE)
        return int.from_bytes(raw, "little")

    # -- one step --------------------------------------------------------------------------------

    def _caller(self, known: dict[int, int], exact: bool) -> _Caller:
        pc = known[_RIP]
        module = self._modules.find(pc if exact else pc - 1)
        if any(self._read(pc, len(code)) == code for code in _SIGRETURNS):
            return self._from_signal(known)
        row = None
        if module is not None and module.table is not None:
            row = module.table.row((pc if exact else pc - 1) - module.bias)
        if row is not None:
            return self._by_rules(row, known)
        if exact:
            caller = self._at_entry(known, module)
            if caller is not None:
                return caller
        return self._by_frame_pointer(known)

    def _by_rules(self, row: Row, known: dict[int, int]) -> _Caller:
        returns = row.rules.get(row.return_register)
        if returns is not None and returns.how is How.UNDEFINED:
            raise _Stopped(End.OUTERMOST)
        if row.cfa_expression is not None:
            cfa = evaluate(row.cfa_expression, known, self._read)
        elif row.cfa_register in known:
            cfa = (known[row.cfa_register] + row.cfa_offset) & _MASK
        else:
            cfa = None
        if cfa is None:
            raise _Stopped(End.LOST)
        found = {number: known[number] for number in _KEPT if number in known}
        found[_RSP] = cfa
        for number, rule in row.rules.items():
            value = self._recover(rule, number, cfa, known)
            if value is None:
                found.pop(number, None)
            else:
                found[number] = value
        if row.return_register not in found:
            raise _Stopped(End.UNREADABLE if returns is not None else End.LOST)
        found[_RIP] = found[row.return_register]
        if not found[_RIP]:
            raise _Stopped(End.OUTERMOST)
        return _Caller(found, cfa, Step.SIGNAL if row.signal else Step.CFI, row.signal)

    def _recover(self, rule: RegisterRule, number: int, cfa: int, known: dict[int, int]) -> int | None:
        address: int | None = None
        if rule.how is How.UNDEFINED:
            return None
        if rule.how is How.SAME:
            return known.get(number)
        if rule.how is How.REGISTER:
            return known.get(rule.value)
        if rule.how is How.VAL_OFFSET:
            return (cfa + rule.value) & _MASK
        if rule.how is How.VAL_EXPRESSION:
            return evaluate(rule.expression, known, self._read, (cfa,))
        if rule.how is How.OFFSET:
            address = cfa + rule.value
        else:
            address = evaluate(rule.expression, known, self._read, (cfa,))
        raw = self._read(address, 8) if address is not None else None
        return int.from_bytes(raw, "little") if raw is not None else None

    def _from_signal(self, known: dict[int, int]) -> _Caller:
        """The kernel's struct rt_sigframe: behind the return address that was popped lies the ucontext."""
        if _RSP not in known:
            raise _Stopped(End.LOST)
        raw = self._read(known[_RSP] + _SIGCONTEXT, 8 * len(_SIGCONTEXT_ORDER))
        if raw is None:
            raise _Stopped(End.UNREADABLE)
        found = {
            number: int.from_bytes(raw[8 * index : 8 * index + 8], "little")
            for index, number in enumerate(_SIGCONTEXT_ORDER)
        }
        return _Caller(found, found[_RSP], Step.SIGNAL, signal=True)

    # -- without call frame information ----------------------------------------------------------

    def _at_entry(self, known: dict[int, int], module: Module | None) -> _Caller | None:
        """The caller of a function that was interrupted before its frame was set up, or after it was gone."""
        pc, rsp = known[_RIP], known.get(_RSP)
        if rsp is None:
            raise _Stopped(End.LOST)
        pushed = 0
        if module is not None and module.image is not None and module.executable(pc):
            address = pc - module.bias
            symbol = module.image.function_at(address)
            prologue = b"" if symbol is None else module.image.code(symbol.address, 8)
            skip = 4 if prologue[:4] == b"\xf3\x0f\x1e\xfa" else 0  # endbr64
            into = -1 if symbol is None else address - symbol.address
            if prologue[skip : skip + 1] == b"\x55" and into == skip + 1:  # behind push %rbp
                pushed = 8
            elif not (0 <= into <= skip or module.image.code(address, 1) == b"\xc3"):  # at ret
                return None
        elif module is not None and module.executable(pc):
            return None  # nothing is known of this code: its frame pointer is the better guess
        known = dict(known)
        back = self._word(rsp + pushed)
        if not self._is_code(back):
            return None
        if pushed:
            known[_RBP] = self._word(rsp)
        found = {number: known[number] for number in _KEPT if number in known}
        found[_RIP], found[_RSP] = back, rsp + pushed + 8
        return _Caller(found, found[_RSP], Step.ENTRY)

    def _by_frame_pointer(self, known: dict[int, int]) -> _Caller:
        rbp, rsp = known.get(_RBP), known.get(_RSP, 0)
        if rbp is None or not rbp:
            raise _Stopped(End.OUTERMOST if rbp == 0 else End.LOST)
        if rbp % 8 or not rsp <= rbp < rsp + _FARTHEST:
            raise _Stopped(End.LOST)
        back = self._word(rbp + 8)
        if not back:
            raise _Stopped(End.OUTERMOST)
        if not self._is_code(back):
            raise _Stopped(End.LOST)
        found = {_RBP: self._word(rbp), _RSP: rbp + 16, _RIP: back}
        return _Caller(found, rbp + 16, Step.FRAME_POINTER)

    def _is_code(self, address: int) -> bool:
        module = self._modules.find(address - 1)
        return module is not None and module.executable(address - 1)


def _name(number: int) -> str:
    return "rip" if number == _RIP else (REGISTERS[number] if number < 16 else f"reg{number}")
