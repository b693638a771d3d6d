# Owns .debug_line: file tables and rows. Decodes the part of one sequence when asked for one address; a
# whole unit only when that fails. Must not know functions or scopes.
from __future__ import annotations

import bisect
import os.path
import re
from array import array
from dataclasses import dataclass, field
from itertools import pairwise

from symbols import dwarf_const as dw
from symbols.data import Data
from symbols.dwarf import Dwarf, Unit
from symbols.errors import MalformedImage
from symbols.leb import Truncated, sleb, uleb
from symbols.plan import SourceLine

_MAX_FILES = 500_000
_MAX_ROWS = 20_000_000
_END_SEQUENCE = b"\x00\x01\x01"
_BEHIND = 1 << 14  # bytes of code that are decoded behind an address


@dataclass(slots=True)
class Rows:
    """Rows of one sequence, by address. The last one is its end."""

    addresses: array[int] = field(default_factory=lambda: array("Q"))
    files: array[int] = field(default_factory=lambda: array("I"))
    lines: array[int] = field(default_factory=lambda: array("I"))
    columns: array[int] = field(default_factory=lambda: array("I"))

    def add(self, state: list[int]) -> None:
        address, file, line, column = state
        self.addresses.append(address & 0xFFFF_FFFF_FFFF_FFFF)
        self.files.append(file & 0xFFFF_FFFF)
        self.lines.append(line & 0xFFFF_FFFF)
        self.columns.append(column & 0xFFFF_FFFF)

    @property
    def low(self) -> int:
        return self.addresses[0] if self.addresses else 0

    @property
    def high(self) -> int:
        return self.addresses[-1] if self.addresses else 0


@dataclass(slots=True)
class Program:
    """One line program: its header and where its opcodes are (buffer positions)."""

    version: int
    min_length: int
    line_base: int
    line_range: int
    opcode_base: int
    lengths: bytes  # operands of each standard opcode
    files: list[str]
    start: int
    end: int
    address_size: int
    number: int  # of the program, for the tables of what is decoded
    data: Data


class _Header:
    """Reads one line program's header: DWARF 5, section 6.2.4, and the older form."""

    def __init__(self, dwarf: Dwarf, data: Data, unit: Unit) -> None:
        self._dwarf = dwarf
        self._data = data
        self._unit = unit

    def read(self, offset: int, number: int) -> Program:
        data, unit = self._data, self._unit
        length, size, at = data.uint(offset, 4), 4, offset + 4
        if length == 0xFFFFFFFF:
            length, size, at = data.uint(at, 8), 8, at + 8
        end = at + length
        version = data.uint(at, 2)
        at += 2
        address_size = unit.addr_size
        if end > data.size or not 2 <= version <= 5:
            raise Truncated
        if version >= 5:
            address_size = data.uint(at, 1)
            at += 2
        header_length = data.uint(at, size)
        at += size
        start = at + header_length
        min_length = data.uint(at, 1)
        at += 2 if version >= 4 else 1
        line_base = int.from_bytes(data.read(at + 1, 1), "little", signed=True)
        line_range, opcode_base = data.uint(at + 2, 1), data.uint(at + 3, 1)
        if not line_range or not opcode_base or start > end:
            raise Truncated
        lengths = b"\0" + data.read(at + 4, opcode_base - 1)
        at += 4 + opcode_base - 1
        names = self._files5(at, size, unit) if version >= 5 else self._files4(at, start, unit)
        base = data.base
        return Program(
            version, min_length, line_base, line_range, opcode_base, lengths, names, base + start, base + end,
            address_size, number, data,
        )  # fmt: skip

    def _comp_dir(self, unit: Unit) -> str:
        return self._dwarf.string(self._dwarf.root(unit), dw.AT_comp_dir) or ""

    def _files4(self, at: int, end: int, unit: Unit) -> list[str]:
        data = self._data
        directories = [self._comp_dir(unit)]
        while at < end and len(directories) < _MAX_FILES:
            text = data.cstr(at)
            at += len(text) + 1
            if not text:
                break
            directories.append(_join(directories[0], text.decode("utf-8", "replace")))
        names = ["?"]
        while at < end and len(names) < _MAX_FILES:
            text = data.cstr(at)
            at += len(text) + 1
            if not text:
                break
            directory, pos = uleb(data.buf, data.base + at, data.end)
            _time, pos = uleb(data.buf, pos, data.end)
            _size, pos = uleb(data.buf, pos, data.end)
            at = pos - data.base
            folder = directories[directory] if directory < len(directories) else ""
            names.append(_join(folder, text.decode("utf-8", "replace")))
        return names

    def _files5(self, at: int, size: int, unit: Unit) -> list[str]:
        directories, at = self._entries5(at, size, unit, None)
        return self._entries5(at, size, unit, directories)[0]

    def _entries5(
        self, at: int, size: int, unit: Unit, directories: list[str] | None
    ) -> tuple[list[str], int]:
        data = self._data
        buf, end, pos = data.buf, data.end, data.base + at
        formats = []
        count = buf[pos]
        pos += 1
        for _ in range(count):
            kind, pos = uleb(buf, pos, end)
            form, pos = uleb(buf, pos, end)
            formats.append((kind, form))
        total, pos = uleb(buf, pos, end)
        if total > _MAX_FILES or (total and not formats):
            raise Truncated
        names: list[str] = []
        for _ in range(total):
            name, directory = "", 0
            for kind, form in formats:
                text, number, pos = self._form5(form, size, pos)
                if kind == 1:  # DW_LNCT_path
                    name = text
                elif kind == 2:  # DW_LNCT_directory_index
                    directory = number
            if directories is None:
                names.append(_join(names[0] if names else self._comp_dir(unit), name))
            else:
                names.append(_join(directories[directory] if directory < len(directories) else "", name))
        return names, pos - data.base

    def _form5(self, form: int, size: int, pos: int) -> tuple[str, int, int]:
        data = self._data
        if form == dw.FORM_string:
            raw = data.cstr(pos - data.base)
            return raw.decode("utf-8", "replace"), 0, pos + len(raw) + 1
        if form in (dw.FORM_line_strp, dw.FORM_strp):
            part = self._unit.part
            table = part.line_str if form == dw.FORM_line_strp else part.str
            raw = table.cstr(data.uint(pos - data.base, size))
            return raw.decode("utf-8", "replace"), 0, pos + size
        if form == dw.FORM_udata:
            number, pos = uleb(data.buf, pos, data.end)
            return "", number, pos
        if form == dw.FORM_block:
            number, pos = uleb(data.buf, pos, data.end)
            return "", 0, pos + number
        width = dw.FIXED_SIZES.get(form)
        if width is None:
            raise Truncated
        return "", data.uint(pos - data.base, width), pos + width


class LineTables:
    """pc -> file:line for one image. Raises MalformedImage only for damaged headers."""

    def __init__(self, dwarf: Dwarf) -> None:
        self._dwarf = dwarf
        self._programs: dict[tuple[int, int], Program | None] = {}
        self._sequences: dict[int, list[Rows]] = {}  # program -> decoded sequences
        self._complete: set[int] = set()
        self._starts: dict[int, tuple[list[int], list[int]]] = {}
        self._begun: set[tuple[int, int]] = set()  # (program, where a sequence begins): decoded in part

    # -- files -----------------------------------------------------------------------------------

    def program(self, unit: Unit) -> Program | None:
        unit = unit.home
        offset = self._dwarf.root(unit).number(dw.AT_stmt_list)
        data = unit.part.section(".debug_line")
        if offset is None or not data.size:
            return None
        key = (unit.part.shift, offset)
        if key not in self._programs:
            try:
                self._programs[key] = _Header(self._dwarf, data, unit).read(offset, len(self._programs))
            except (Truncated, IndexError):
                raise data.bad(f"line program at {offset:#x} is malformed") from None
        return self._programs[key]

    def file(self, unit: Unit, index: int) -> str:
        """The name of a file number, joined with its directory; "?" when there is none."""
        try:
            program = self.program(unit)
        except MalformedImage:
            return "?"
        if program is None or not 0 <= index < len(program.files):
            return "?"
        return program.files[index]

    # -- rows ------------------------------------------------------------------------------------

    def at(self, address: int, unit: Unit) -> SourceLine | None:
        """The source line of an address in one unit's line program."""
        try:
            program = self.program(unit)
            if program is None:
                return None
            rows = self._rows_for(program, address)
        except (MalformedImage, Truncated):
            return None
        if rows is None:
            return None
        index = bisect.bisect_right(rows.addresses, address) - 1
        if index < 0:
            return None
        number = rows.files[index]
        name = program.files[number] if number < len(program.files) else "?"
        return SourceLine(file=name, line=rows.lines[index], column=rows.columns[index])

    def sequence(self, address: int, unit: Unit) -> Rows | None:
        """The decoded sequence that covers an address."""
        try:
            program = self.program(unit)
            return self._rows_for(program, address) if program is not None else None
        except (MalformedImage, Truncated):
            return None

    def _rows_for(self, program: Program, address: int) -> Rows | None:
        known = self._sequences.setdefault(program.number, [])
        for rows in known:
            if rows.low <= address < rows.high:
                return rows
        if program.number in self._complete:
            return None
        rows_at = self._from_start(program, address)
        if rows_at is not None:
            known.append(rows_at)
            return rows_at
        self._complete.add(program.number)
        known.clear()
        pos, total = program.start, 0
        while pos < program.end and total < _MAX_ROWS:
            try:
                rows, pos = self._decode(program, pos)
            except Truncated:
                break
            total += len(rows.addresses)
            if rows.addresses and rows.high > rows.low and rows.low:
                known.append(rows)
        known.sort(key=lambda rows: rows.low)
        return next((rows for rows in known if rows.low <= address < rows.high), None)

    def _from_start(self, program: Program, address: int) -> Rows | None:
        """The sequence around an address, up to a little behind it, from the last start at or before it.

        The bytes of a start and of an end may be operands of something else: what was decoded must begin
        at one of the starts, and hold the address.
        """
        starts, places = self._starts_of(program)
        index = bisect.bisect_right(starts, address) - 1
        if index < 0:
            return None
        # Opcodes may precede set_address (LLVM: file and column).
        buf, begin = program.data.buf, places[index]
        for _ in range(4):
            begin = buf.rfind(_END_SEQUENCE, program.start, begin)
            try:
                first = program.start if begin < 0 else begin + len(_END_SEQUENCE)
                again = (program.number, first) in self._begun  # for a second address: all of it
                rows, _pos = self._decode(program, first, 1 << 64 if again else address + _BEHIND)
            except Truncated:
                rows = Rows()
            if rows.low <= address < rows.high and _holds(starts, rows.low):
                self._begun.add((program.number, first))
                return rows
            if begin < 0:
                break
        return None

    def _starts_of(self, program: Program) -> tuple[list[int], list[int]]:
        """(addresses that DW_LNE_set_address gives, sorted; where the opcodes are)."""
        if program.number not in self._starts:
            size = program.address_size
            regex = re.compile(rb"(?=\x00[\x%02x]\x02)" % (size + 1), re.DOTALL)
            data, base = program.data, program.data.base
            found = sorted(
                (int.from_bytes(data.buf[base + at + 3 : base + at + 3 + size], "little"), base + at)
                for at in data.search(regex, program.start - base, program.end - base, 3)
            )
            self._dwarf.spend(len(found) // 8)
            self._starts[program.number] = [start for start, _at in found], [at for _start, at in found]
        return self._starts[program.number]

    def _decode(self, program: Program, pos: int, stop_at: int = 1 << 64) -> tuple[Rows, int]:
        """One sequence: (rows, position after it), up to an address. DWARF 5, section 6.2.5."""
        buf, end = program.data.buf, program.end
        base, span, first = program.line_base, program.line_range, program.opcode_base
        unit_length = program.min_length
        state = [0, 1, 1, 0]  # address, file, line, column
        rows, steps = Rows(), 0
        while pos < end and state[0] <= stop_at:
            op = buf[pos]
            pos += 1
            if op >= first:
                op -= first
                state[0] += op // span * unit_length
                state[2] += base + op % span
                rows.add(state)
            elif op == 0:
                length, pos = uleb(buf, pos, end)
                if not length or pos + length > end:
                    raise Truncated
                kind, stop = buf[pos], pos + length
                if kind == 1:
                    rows.add(state)
                    return self._done(rows, steps), stop
                if kind == 2:
                    state[0] = int.from_bytes(buf[pos + 1 : stop], "little")
                pos = stop
            elif op == 1:
                rows.add(state)
            elif op in (3, 5) and pos < end and buf[pos] < 0x80:  # one byte: most of them
                value = buf[pos]
                pos += 1
                if op == 5:
                    state[3] = value
                else:
                    state[2] += value - 0x80 if value & 0x40 else value
            else:
                pos = self._standard(program, op, pos, state)
            steps += 1
            if len(rows.addresses) > _MAX_ROWS:
                raise Truncated
        return self._done(rows, steps), pos

    def _done(self, rows: Rows, steps: int) -> Rows:
        self._dwarf.spend(steps // 8)
        return _ordered(rows)

    def _standard(self, program: Program, op: int, pos: int, state: list[int]) -> int:
        """A standard opcode that makes no row: changes state, returns the position after it."""
        buf, end = program.data.buf, program.end
        if op == 2:
            value, pos = uleb(buf, pos, end)
            state[0] += value * program.min_length
        elif op == 3:
            value, pos = sleb(buf, pos, end)
            state[2] += value
        elif op in (4, 5):
            state[1 if op == 4 else 3], pos = uleb(buf, pos, end)
        elif op == 8:
            state[0] += (255 - program.opcode_base) // program.line_range * program.min_length
        elif op == 9:
            state[0] += int.from_bytes(buf[pos : pos + 2], "little")
            pos += 2
        elif op not in (6, 7, 10, 11):
            for _ in range(program.lengths[op] if op < len(program.lengths) else 0):
                _value, pos = uleb(buf, pos, end)
        return pos


def _holds(numbers: list[int], wanted: int) -> bool:
    index = bisect.bisect_left(numbers, wanted)
    return index < len(numbers) and numbers[index] == wanted


def _ordered(rows: Rows) -> Rows:
    """DWARF forbids descending addresses in a sequence; damaged tables have them."""
    addresses = rows.addresses
    if any(a > b for a, b in pairwise(addresses)):
        order = sorted(range(len(addresses)), key=addresses.__getitem__)
        rows.addresses = array("Q", (addresses[i] for i in order))
        rows.files = array("I", (rows.files[i] for i in order))
        rows.lines = array("I", (rows.lines[i] for i in order))
        rows.columns = array("I", (rows.columns[i] for i in order))
    return rows


def _join(directory: str, name: str) -> str:
    return name if name.startswith("/") or not directory else os.path.join(directory, name)
