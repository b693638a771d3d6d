# Owns the CFA rule of a pc, from .eh_frame or .debug_frame: what DW_OP_call_frame_cfa means there. Only
# rules of the form register + offset; registers' own rules are not kept (the unwinder will).
from __future__ import annotations

import bisect
from dataclasses import dataclass

from symbols.errors import SymbolError
from symbols.image import Data, Image
from symbols.leb import Truncated, sleb, uleb
from symbols.registers import REGISTERS

_MAX_ENTRIES = 2_000_000
_MAX_STEPS = 100_000

Rule = tuple[str, int]
"""(register, offset): CFA = register + offset."""


@dataclass(slots=True)
class _Cie:
    code_align: int
    encoding: int  # of FDE addresses, DW_EH_PE_*
    augmented: bool
    program: tuple[int, int]  # buffer positions


@dataclass(slots=True)
class _Fde:
    low: int
    high: int
    cie: _Cie
    program: tuple[int, int]


class CfaRules:
    """CFA rules of one image. Anything malformed or unusual gives None, never an exception."""

    def __init__(self, image: Image, debug: Image | None = None) -> None:
        self._fdes: list[_Fde] | None = None
        self._starts: list[int] = []
        self._image = image
        self._debug = debug or image

    def at(self, address: int) -> Rule | None:
        try:
            fde = self._by_header(address)
        except (SymbolError, Truncated, IndexError):
            fde = None
        if fde is not None:
            try:
                return _run(self._data, fde, address)
            except (Truncated, IndexError):
                return None
        if self._fdes is None:
            self._fdes = self._read(self._image, ".eh_frame", eh=True)
            self._fdes = self._fdes or self._read(self._debug, ".debug_frame", eh=False)
            self._fdes.sort(key=lambda fde: fde.low)
            self._starts = [fde.low for fde in self._fdes]
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0 or not self._fdes[index].low <= address < self._fdes[index].high:
            return None
        try:
            return _run(self._data, self._fdes[index], address)
        except (Truncated, IndexError):
            return None

    def _by_header(self, address: int) -> _Fde | None:
        """By .eh_frame_hdr's sorted table (LSB Core, 10.6.2), without reading every entry."""
        image = self._image
        header = next((s for s in image.sections if s.name == ".eh_frame_hdr"), None)
        frames = next((s for s in image.sections if s.name == ".eh_frame"), None)
        if header is None or frames is None or not image.has(".eh_frame_hdr"):
            return None
        table = image.section(".eh_frame_hdr")
        # version 1; the frame pointer in 4 bytes; the count as udata4; entries datarel|sdata4
        if table.read(0, 1) != b"\x01" or table.uint(1, 1) & 7 != 3 or table.read(2, 2) != b"\x03\x3b":
            return None
        low, high = 0, min(table.uint(8, 4), (table.size - 12) // 8)
        while low < high:
            middle = (low + high) // 2
            start = int.from_bytes(table.read(12 + 8 * middle, 4), "little", signed=True) + header.addr
            if start <= address:
                low = middle + 1
            else:
                high = middle
        if not low:
            return None
        place = int.from_bytes(table.read(12 + 8 * (low - 1) + 4, 4), "little", signed=True)
        self._data = data = image.section(".eh_frame")
        self._vaddr = frames.addr
        at = place + header.addr - frames.addr
        end = at + 4 + data.uint(at, 4)
        cie = self._cie(at + 4 - data.uint(at + 4, 4), eh=True)
        fde = self._fde(at + 8, end, cie) if cie is not None and end <= data.size else None
        return fde if fde is not None and fde.low <= address < fde.high else None

    # -- tables ----------------------------------------------------------------------------------

    def _read(self, image: Image, name: str, *, eh: bool) -> list[_Fde]:
        self._data = data = image.section(name)
        header = next((s for s in image.sections if s.name == name), None)
        self._vaddr = header.addr if header is not None else 0
        cies: dict[int, _Cie | None] = {}
        found: list[_Fde] = []
        at = 0
        while at + 4 <= data.size and len(found) < _MAX_ENTRIES:
            length = data.uint(at, 4)
            end = at + 4 + length
            if length in (0, 0xFFFFFFFF) or length < 4 or end > data.size:
                if length == 0 and not eh:
                    at += 4
                    continue
                break  # .eh_frame ends with a zero; 64-bit entries do not occur on x86-64
            ident = data.uint(at + 4, 4)
            if ident != (0 if eh else 0xFFFFFFFF):
                where = at + 4 - ident if eh else ident
                try:
                    if where not in cies:
                        cies[where] = self._cie(where, eh)
                    cie = cies[where]
                    fde = self._fde(at + 8, end, cie) if cie is not None else None
                except (Truncated, IndexError):
                    fde = None
                if fde is not None:
                    found.append(fde)
            at = end
        return found

    def _cie(self, at: int, eh: bool) -> _Cie | None:
        data = self._data
        if not 0 <= at <= data.size - 12:
            return None
        buf, base = data.buf, data.base
        end = base + at + 4 + data.uint(at, 4)
        if end > data.end:
            return None
        version = data.uint(at + 8, 1)
        text = data.cstr(at + 9)
        pos = base + at + 10 + len(text)
        if version >= 4:
            pos += 2
        code_align, pos = uleb(buf, pos, end)
        _data_align, pos = sleb(buf, pos, end)
        pos = pos + 1 if version == 1 else uleb(buf, pos, end)[1]
        encoding = 0
        if text[:1] == b"z":
            size, pos = uleb(buf, pos, end)
            program, cursor = pos + size, pos
            for letter in text[1:]:
                if letter == 0x52:  # R
                    encoding = buf[cursor]
                    cursor += 1
                elif letter == 0x4C:  # L
                    cursor += 1
                elif letter == 0x50:  # P: an encoded pointer; its size follows from the encoding
                    cursor += 1 + {0: 8, 2: 2, 3: 4, 4: 8}.get(buf[cursor] & 7, 8)
                elif letter not in (0x53, 0x42):  # S, B
                    return None
            return _Cie(code_align, encoding, True, (program, end))
        return _Cie(code_align, 0, False, (pos, end)) if not text or not eh else None

    def _fde(self, at: int, end: int, cie: _Cie) -> _Fde | None:
        data = self._data
        width = {0: 8, 2: 2, 3: 4, 4: 8}.get(cie.encoding & 7)
        if width is None or cie.encoding & 0x70 not in (0, 0x10):
            return None
        signed = bool(cie.encoding & 8)
        low = int.from_bytes(data.read(at, width), "little", signed=signed)
        if cie.encoding & 0x70 == 0x10:  # pc-relative
            low += self._vaddr + at
        size = data.uint(at + width, width)
        pos = data.base + at + 2 * width
        if cie.augmented:
            skip, pos = uleb(data.buf, pos, data.base + end)
            pos += skip
        return _Fde(low & 0xFFFF_FFFF_FFFF_FFFF, low + size, cie, (pos, data.base + end))


def _run(data: Data, fde: _Fde, address: int) -> Rule | None:
    """The CFA rule in force at an address: DWARF 5, section 6.4.2."""
    state: list[int] = [7, 8]  # register, offset
    saved: list[tuple[int, int]] = []
    valid = True
    location = fde.low
    for start, end in (fde.cie.program, fde.program):
        pos = start
        for _ in range(_MAX_STEPS):
            if pos >= end:
                break
            op = data.buf[pos]
            pos += 1
            step = 0
            if op >> 6 == 1:
                step = op & 0x3F
            elif op in (2, 3, 4):
                width = 1 << (op - 2)
                step = int.from_bytes(data.buf[pos : pos + width], "little")
                pos += width
            if op >> 6 == 1 or op in (2, 3, 4):
                location += step * fde.cie.code_align
                if location > address:
                    return _rule(state) if valid else None
                continue
            if op == 0x0F:  # def_cfa_expression: PLT stubs
                valid = False
            elif op in (0x0C, 0x12, 0x0D):
                valid = True
            pos = _operation(data, op, pos, end, state, saved)
    return _rule(state) if valid else None


def _rule(state: list[int]) -> Rule | None:
    return (REGISTERS[state[0]], state[1]) if state[0] < len(REGISTERS) else None


def _operation(
    data: Data, op: int, pos: int, end: int, state: list[int], saved: list[tuple[int, int]]
) -> int:
    """One instruction that does not advance the location; returns the position after it."""
    buf = data.buf
    if op == 0x0C:  # def_cfa
        state[0], pos = uleb(buf, pos, end)
        state[1], pos = uleb(buf, pos, end)
    elif op == 0x0D:  # def_cfa_register
        state[0], pos = uleb(buf, pos, end)
    elif op == 0x0E:  # def_cfa_offset
        state[1], pos = uleb(buf, pos, end)
    elif op == 0x0A:
        saved.append((state[0], state[1]))
    elif op == 0x0B:
        if not saved:
            raise Truncated
        state[0], state[1] = saved.pop()
    elif op >> 6 == 2 or op in (0x06, 0x07, 0x08, 0x2E):  # offset; restore_extended, undefined, same_value
        pos = uleb(buf, pos, end)[1]
    elif op in (0x05, 0x09, 0x14, 0x2F):  # offset_extended, register, val_offset
        pos = uleb(buf, uleb(buf, pos, end)[1], end)[1]
    elif op in (0x11, 0x15):  # the signed ones
        pos = sleb(buf, uleb(buf, pos, end)[1], end)[1]
    elif op in (0x0F, 0x10, 0x16):  # expressions
        if op != 0x0F:
            pos = uleb(buf, pos, end)[1]
        size, pos = uleb(buf, pos, end)
        pos += size
    elif op >> 6 != 3 and op != 0:  # restore, nop
        raise Truncated
    return pos
