# Owns call frame information: .eh_frame (by .eh_frame_hdr's binary search where there is one) and
# .debug_frame, as rows of rules (DWARF 5, section 6.4; LSB 5, section 10.6). Must not read memory or
# processes. The file is untrusted: every count is bounded, anything malformed gives None.
from __future__ import annotations

import bisect
import struct
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from symbols.data import Data
from symbols.errors import STRAY_ERRORS, SymbolError
from symbols.image import Image
from symbols.leb import Buffer, Truncated, sleb, uleb

_MAX_ENTRIES = 2_000_000
_MAX_STEPS = 100_000
_MAX_SAVED = 64
_MAX_CIES = 4096
_MASK = 0xFFFF_FFFF_FFFF_FFFF


class How(Enum):
    """Where a caller's register is (DWARF 5, section 6.4.1); without a rule it is what it was."""

    UNDEFINED = "undefined"
    SAME = "same value"
    OFFSET = "saved at CFA + value"
    VAL_OFFSET = "CFA + value"
    REGISTER = "in register number value"
    EXPRESSION = "saved at the expression's result"
    VAL_EXPRESSION = "the expression's result"


class Rule(NamedTuple):
    how: How
    value: int = 0
    expression: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The rules in force at one address. CFA = register + offset, or the expression where there is one."""

    low: int  # [low, high): the FDE's addresses
    high: int
    cfa_register: int  # DWARF number
    cfa_offset: int
    cfa_expression: bytes | None
    rules: dict[int, Rule]
    return_register: int
    signal: bool  # augmentation S: a signal trampoline; its return address is not behind a call


@dataclass(slots=True)
class _Cie:
    code_align: int
    data_align: int
    return_register: int
    encoding: int  # of FDE addresses, DW_EH_PE_*
    augmented: bool
    signal: bool
    program: tuple[int, int]  # buffer positions


@dataclass(slots=True)
class _Fde:
    low: int
    high: int
    cie: _Cie
    program: tuple[int, int]


class _State:
    """The row under construction."""

    __slots__ = ("expression", "initial", "offset", "register", "rules", "saved")

    def __init__(self) -> None:
        self.register, self.offset = 7, 8
        self.expression: bytes | None = None
        self.rules: dict[int, Rule] = {}
        self.initial: dict[int, Rule] = {}
        self.saved: list[tuple[int, int, bytes | None, dict[int, Rule]]] = []

    def restore(self, register: int) -> None:
        if register in self.initial:
            self.rules[register] = self.initial[register]
        else:
            self.rules.pop(register, None)


class FrameTable:
    """Rows of one image. `debug`: the separate debug file, for .debug_frame."""

    def __init__(self, image: Image, debug: Image | None = None) -> None:
        self._image = image
        self._debug = debug or image
        self._sections: list[_Section] | None = None

    def row(self, address: int) -> Row | None:
        """The rules at an image address; None where nothing (or nothing usable) describes it."""
        for section in self._opened():
            try:
                fde = section.find(address)
                if fde is not None:
                    return section.run(fde, address)
            except (SymbolError, *STRAY_ERRORS):
                continue
        return None

    def function(self, address: int) -> tuple[int, int] | None:
        """Image addresses [low, high) of the function, or the part of one, that an address lies in."""
        for section in self._opened():
            try:
                fde = section.find(address)
            except (SymbolError, *STRAY_ERRORS):
                continue
            if fde is not None:
                return fde.low, fde.high
        return None

    def _opened(self) -> list[_Section]:
        if self._sections is None:
            self._sections = self._open()
        return self._sections

    def _open(self) -> list[_Section]:
        found = []
        for image, name, eh in ((self._image, ".eh_frame", True), (self._debug, ".debug_frame", False)):
            try:
                if image.has(name):
                    found.append(_Section(image, name, eh=eh))
            except (SymbolError, *STRAY_ERRORS):
                continue
        return found


class _Section:
    """One section of entries, and the way to the entry of an address."""

    def __init__(self, image: Image, name: str, *, eh: bool) -> None:
        self._data: Data = image.section(name)
        self._eh = eh
        self._vaddr = _address_of(image, name)
        self._cies: dict[int, _Cie | None] = {}
        self._starts: list[int] | None = None
        self._fdes: list[_Fde] = []
        self._index = _Index.of(image, self._vaddr) if eh else None

    def find(self, address: int) -> _Fde | None:
        if self._index is not None:
            at = self._index.entry(address)
            if at is not None:
                fde = self._entry(at - self._vaddr)
                if fde is not None and fde.low <= address < fde.high:
                    return fde
            return None
        if self._starts is None:
            self._scan()
        index = bisect.bisect_right(self._starts or [], address) - 1
        if index < 0:
            return None
        fde = self._fdes[index]
        return fde if fde.low <= address < fde.high else None

    def _scan(self) -> None:
        at, data = 0, self._data
        while at + 8 <= data.size and len(self._fdes) < _MAX_ENTRIES:
            length = data.uint(at, 4)
            if length == 0 and not self._eh:
                at += 4
                continue
            if length < 4 or at + 4 + length > data.size:
                break  # .eh_frame ends with a zero; 64-bit entries do not occur on x86-64 and aarch64
            try:
                fde = self._entry(at)
            except (SymbolError, *STRAY_ERRORS):
                fde = None
            if fde is not None:
                self._fdes.append(fde)
            at += 4 + length
        self._fdes.sort(key=lambda fde: fde.low)
        self._starts = [fde.low for fde in self._fdes]

    def _entry(self, at: int) -> _Fde | None:
        """The FDE at an offset of the section; None for a CIE."""
        data = self._data
        length, ident = struct.unpack("<II", data.read(at, 8))
        end = at + 4 + length
        if length < 4 or end > data.size or ident == (0 if self._eh else 0xFFFFFFFF):
            return None
        where = at + 4 - ident if self._eh else ident
        if where not in self._cies:
            if len(self._cies) >= _MAX_CIES:
                self._cies.clear()
            self._cies[where] = self._cie(where)
        cie = self._cies[where]
        if cie is None:
            return None
        pos, stop = data.base + at + 8, data.base + end
        low, pos = self._pointer(pos, stop, cie.encoding)
        size, pos = self._pointer(pos, stop, cie.encoding & 0x0F)
        if cie.augmented:
            skip, pos = uleb(data.buf, pos, stop)
            pos += skip
        low &= _MASK
        return _Fde(low, low + (size & _MASK), cie, (pos, stop)) if size else None

    def _cie(self, at: int) -> _Cie | None:
        data = self._data
        if not 0 <= at <= data.size - 12:
            return None
        buf, pos = data.buf, data.base + at + 8
        end = data.base + at + 4 + data.uint(at, 4)
        if end > data.end or data.uint(at + 4, 4) != (0 if self._eh else 0xFFFFFFFF):
            return None
        version = buf[pos]
        text = data.cstr(at + 9)
        pos += 2 + len(text)
        if version >= 4:
            pos += 2  # address size, segment selector size
        code_align, pos = uleb(buf, pos, end)
        data_align, pos = sleb(buf, pos, end)
        returns, pos = (buf[pos], pos + 1) if version == 1 else uleb(buf, pos, end)
        if text[:1] != b"z":
            known = _Cie(code_align, data_align, returns, 0, False, False, (pos, end))
            return known if not text or not self._eh else None
        size, cursor = uleb(buf, pos, end)
        pos = cursor + size
        encoding = 0
        for letter in text[1:]:
            if letter == 0x52:  # R: encoding of the addresses
                encoding = buf[cursor]
                cursor += 1
            elif letter == 0x4C:  # L: encoding of the language's data
                cursor += 1
            elif letter == 0x50:  # P: an encoded pointer to the personality routine
                _routine, cursor = self._pointer(cursor + 1, end, buf[cursor] & 0x0F)
            elif letter not in b"SBG":  # signal frame; aarch64's return address signing and tagging
                return None
        return _Cie(code_align, data_align, returns, encoding, True, b"S" in text, (pos, end))

    def _pointer(self, pos: int, end: int, encoding: int) -> tuple[int, int]:
        return _encoded(self._data, pos, end, encoding, self._vaddr)

    # -- programs --------------------------------------------------------------------------------

    def run(self, fde: _Fde, address: int) -> Row | None:
        state = _State()
        location = self._execute(fde.cie.program, fde, state, fde.low, address)
        state.initial = dict(state.rules)
        self._execute(fde.program, fde, state, location, address)
        return Row(
            low=fde.low,
            high=fde.high,
            cfa_register=state.register,
            cfa_offset=state.offset,
            cfa_expression=state.expression,
            rules=state.rules,
            return_register=fde.cie.return_register,
            signal=fde.cie.signal,
        )

    def _execute(
        self, program: tuple[int, int], fde: _Fde, state: _State, location: int, address: int
    ) -> int:
        """Run until the location passes the address. Returns the location."""
        (pos, end), buf = program, self._data.buf
        for _ in range(_MAX_STEPS):
            if pos >= end:
                return location
            op = buf[pos]
            pos += 1
            if op >> 6 == 1:
                location += (op & 0x3F) * fde.cie.code_align
            elif op in (2, 3, 4):
                width = 1 << (op - 2)
                location += int.from_bytes(buf[pos : pos + width], "little") * fde.cie.code_align
                pos += width
            elif op == 1:
                location, pos = self._pointer(pos, end, fde.cie.encoding)
            else:
                pos = _instruction(buf, op, pos, end, state, fde.cie)
            if location > address:
                return location
        raise Truncated


def _instruction(buf: Buffer, op: int, pos: int, end: int, state: _State, cie: _Cie) -> int:
    """One instruction that does not advance the location; returns the position after it."""
    kind = op >> 6
    if kind == 2:
        value, pos = uleb(buf, pos, end)
        state.rules[op & 0x3F] = Rule(How.OFFSET, value * cie.data_align)
    elif kind == 3:
        state.restore(op & 0x3F)
    elif op == 0x0A:
        if len(state.saved) >= _MAX_SAVED:
            raise Truncated
        state.saved.append((state.register, state.offset, state.expression, dict(state.rules)))
    elif op == 0x0B:
        if not state.saved:
            raise Truncated
        state.register, state.offset, state.expression, state.rules = state.saved.pop()
    elif op in (0x0C, 0x0D, 0x0E, 0x0F, 0x12, 0x13):
        pos = _define_cfa(buf, op, pos, end, state, cie)
    elif op == 0x2E:  # GNU_args_size
        _size, pos = uleb(buf, pos, end)
    elif op not in (0x00, 0x2D):  # nop, AARCH64_negate_ra_state
        pos = _define_register(buf, op, pos, end, state, cie)
    return pos


def _define_cfa(buf: Buffer, op: int, pos: int, end: int, state: _State, cie: _Cie) -> int:
    if op == 0x0F:
        size, pos = uleb(buf, pos, end)
        if pos + size > end:
            raise Truncated
        state.expression = bytes(buf[pos : pos + size])
        return pos + size
    if op in (0x0C, 0x0D, 0x12):
        state.register, pos = uleb(buf, pos, end)
        state.expression = None
    if op in (0x0C, 0x0E):
        state.offset, pos = uleb(buf, pos, end)
    elif op in (0x12, 0x13):
        factored, pos = sleb(buf, pos, end)
        state.offset = factored * cie.data_align
    return pos


_OFFSETS = {0x05: How.OFFSET, 0x11: How.OFFSET, 0x2F: How.OFFSET, 0x14: How.VAL_OFFSET, 0x15: How.VAL_OFFSET}


def _define_register(buf: Buffer, op: int, pos: int, end: int, state: _State, cie: _Cie) -> int:
    register, pos = uleb(buf, pos, end)
    if op in _OFFSETS:
        value, pos = (sleb if op in (0x11, 0x15) else uleb)(buf, pos, end)
        sign = -1 if op == 0x2F else 1
        state.rules[register] = Rule(_OFFSETS[op], sign * value * cie.data_align)
    elif op == 0x06:
        state.restore(register)
    elif op == 0x07:
        state.rules[register] = Rule(How.UNDEFINED)
    elif op == 0x08:
        state.rules[register] = Rule(How.SAME)
    elif op == 0x09:
        other, pos = uleb(buf, pos, end)
        state.rules[register] = Rule(How.REGISTER, other)
    elif op in (0x10, 0x16):
        size, pos = uleb(buf, pos, end)
        if pos + size > end:
            raise Truncated
        how = How.EXPRESSION if op == 0x10 else How.VAL_EXPRESSION
        state.rules[register] = Rule(how, 0, bytes(buf[pos : pos + size]))
        pos += size
    else:
        raise Truncated
    return pos


class _Index:
    """.eh_frame_hdr's table: (start, entry) pairs, sorted (LSB 5, section 10.6.2)."""

    def __init__(self, data: Data, vaddr: int, table: int, count: int) -> None:
        self._data, self._vaddr, self._table, self._count = data, vaddr, table, count

    @classmethod
    def of(cls, image: Image, frames: int) -> _Index | None:
        """None without one, or when it is not of the usual form: the section is scanned then."""
        if not image.has(".eh_frame_hdr"):
            return None
        data, vaddr = image.section(".eh_frame_hdr"), _address_of(image, ".eh_frame_hdr")
        try:
            version, pointer, counter, table = data.read(0, 4)
            if version != 1 or table != 0x3B:  # relative to the header, four bytes, signed
                return None
            where, pos = _encoded(data, data.base + 4, data.end, pointer, vaddr)
            count, pos = _encoded(data, pos, data.end, counter, vaddr)
        except (SymbolError, *STRAY_ERRORS):
            return None
        at = pos - data.base
        if where & _MASK != frames or not 0 < count <= (data.size - at) // 8:
            return None
        return cls(data, vaddr, at, count)

    def entry(self, address: int) -> int | None:
        """Address of the last entry that starts at or before the address."""
        wanted, base = address - self._vaddr, self._data.base + self._table
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            if struct.unpack_from("<i", self._data.buf, base + 8 * middle)[0] <= wanted:
                low = middle + 1
            else:
                high = middle
        if not low:
            return None
        return int(struct.unpack_from("<i", self._data.buf, base + 8 * low - 4)[0]) + self._vaddr


def _encoded(data: Data, pos: int, end: int, encoding: int, vaddr: int) -> tuple[int, int]:
    """(value, next buffer position) of a pointer in one of the DW_EH_PE_* forms."""
    form, base = encoding & 0x0F, encoding & 0x70
    if encoding & 0x80 or base not in (0, 0x10, 0x30):
        raise Truncated
    start = pos
    if form in (1, 9):
        value, pos = (uleb if form == 1 else sleb)(data.buf, pos, end)
    else:
        width = {0: 8, 2: 2, 3: 4, 4: 8}[form & 7]
        if pos + width > end:
            raise Truncated
        value = int.from_bytes(data.buf[pos : pos + width], "little", signed=bool(form & 8))
        pos += width
    if base == 0x10:  # relative to the pointer itself
        value += vaddr + start - data.base
    elif base == 0x30:  # relative to the section that holds it
        value += vaddr
    return value, pos


def _address_of(image: Image, name: str) -> int:
    return next((section.addr for section in image.sections if section.name == name), 0)
