# Owns the question who calls a function: direct calls and tail calls in the machine code, and signs that it
# is called in ways that code does not show (its address is taken). x86-64. Must not choose what is probed.
from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from symbols.code import FunctionCode
from symbols.image import Image
from symbols.instances import Finder
from symbols.registers import X86_64
from symbols.scopes import Function, Scopes

_MAX_CALLS = 256
_MAX_TEXT = 256 << 20
_PIECE = 4 << 20
_SHORT = 130  # bytes that a 2-byte jump reaches
_BLOCK = 1 << 16
_ADDRESSES = re.compile(rb"[\x48\x4c]\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d]", re.DOTALL)  # lea r, [rip + d]
_DATA = (".data", ".data.rel.ro", ".data.rel.ro.local", ".data.rel.local", ".rodata", ".init_array", ".got")


@dataclass(frozen=True, slots=True)
class Call:
    """A call or tail call: the instruction, and the function that it is in."""

    address: int
    following: int  # address behind it
    function: Function
    code: FunctionCode
    kind: str  # "call", "jmp", or "jcc" (a tail call that is conditional)


class Callers:
    """Calls of functions of one image."""

    def __init__(self, image: Image, scopes: Scopes, finder: Finder) -> None:
        self._image = image
        self._scopes = scopes
        self._finder = finder

    def of(self, target: int) -> tuple[list[Call], list[str]]:
        """(calls of the function at an address, why there may be others)."""
        if self._scopes.machine is not X86_64:
            return [], ["its callers are looked for on x86-64 only"]
        calls: list[Call] = []
        reasons: list[str] = []
        for address in self._branches(target):
            if len(calls) >= _MAX_CALLS:
                return calls, [f"it is called from more than {_MAX_CALLS} places"]
            call = self._call(address, target)
            if isinstance(call, str):
                reasons.append(call)
            elif call is not None:
                calls.append(call)
        if self._taken(target):
            reasons.append("its address is taken: calls through a pointer cannot be told")
        if self._library():
            reasons.append("it may be called from other files: this one is a shared library")
        return calls, list(dict.fromkeys(reasons))

    def _text(self) -> Iterator[tuple[int, bytes]]:
        """(address, bytes) of all code, in overlapping pieces."""
        left = _MAX_TEXT
        for segment in self._image.segments:
            if segment.executable:
                for start in range(segment.vaddr, segment.vaddr + segment.filesz, _PIECE):
                    if left > 0:
                        yield start, self._image.code(start, _PIECE + 8)
                    left -= _PIECE

    def _branches(self, target: int) -> Iterator[int]:
        """Addresses at which bytes lie that would be a branch there, were they an instruction."""
        for start, raw in self._text():
            for at in range(0, min(len(raw), _PIECE), _BLOCK):
                block = raw[at : at + _BLOCK + 8]
                found = _branches_to(block, target - start - at)
                yield from sorted({start + at + one for one in found if one < _BLOCK})
        low = max(target - _SHORT, 0)
        raw = self._image.code(low, 2 * _SHORT)
        for at in range(len(raw) - 1):
            if raw[at] == 0xEB or 0x70 <= raw[at] <= 0x7F:
                offset = raw[at + 1] - (raw[at + 1] >> 7 << 8)
                if low + at + 2 + offset == target:
                    yield low + at

    def _call(self, address: int, target: int) -> Call | str | None:
        function = self._scopes.function_of(address)
        if function is None:
            symbol = self._scopes.symbols.function_at(address)
            if symbol is None:
                return None  # not code, as far as anybody says
            return f"{symbol.name}, which has no debug information, calls it"
        if function.low == target:
            return None  # it calls itself
        code = self._finder.code_of(function)
        insn = code.insns.get(address)
        if insn is None or insn.operands != f"{target:#x}":
            return None
        kind = "call" if insn.mnemonic.startswith("call") else "jmp" if insn.mnemonic == "jmp" else "jcc"
        return Call(address, address + insn.size, function, code, kind)

    def _taken(self, target: int) -> bool:
        for start, raw in self._text():
            for found in _ADDRESSES.finditer(raw):
                end = found.end() + 4
                offset = int.from_bytes(raw[end - 4 : end], "little", signed=True)
                if end <= len(raw) and start + end + offset == target:
                    return True
            if not self._image.pie and target >> 32 == 0 and target.to_bytes(4, "little") in raw:
                return True
        needle = target.to_bytes(8, "little")
        for name in (*_DATA, ".rela.dyn"):
            section = self._image.section(name)
            if any(at % 8 == 0 for at in section.find_all(needle)):
                return True
        return False

    def _library(self) -> bool:
        return self._image.pie and not self._image.interpreted and self._image.has(".dynsym")


def only_passes_on(call: Call, target: int) -> bool:
    """Whether the function that a tail call is in returns nothing but what the target returns."""
    code = call.code
    for low, high in call.function.ranges:
        for at, insn in code.insns.items():
            if not low <= at < high:
                continue
            if insn.mnemonic.startswith("ret"):
                return False
            leaves = insn.mnemonic.startswith("j") and not code.succ(at)
            if leaves and insn.operands != f"{target:#x}":
                return False
    return True


def _branches_to(block: bytes, target: int) -> Iterator[int]:
    """Where bytes of a block of code would be a branch to a target, counted from the block's start.

    The upper half of such a branch's offset has a few values at most in one block: these are searched for.
    """
    for upper in {(target - part) >> 16 & 0xFFFF for part in (0, _BLOCK // 2, _BLOCK + 8)}:
        needle = upper.to_bytes(2, "little")
        at = block.find(needle)
        while at >= 0:
            end = at + 2
            if at >= 3 and end + int.from_bytes(block[at - 2 : end], "little", signed=True) == target:
                if block[at - 3] in (0xE8, 0xE9):
                    yield at - 3
                elif at >= 4 and block[at - 4] == 0x0F and block[at - 3] & 0xF0 == 0x80:
                    yield at - 4
            at = block.find(needle, at + 1)
