# Owns .debug_info: unit headers, abbreviations, DIEs at an offset. Parses one DIE when asked for it
# and never walks a unit by itself. Must not judge what a DIE means.
from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

from symbols import dwarf_const as dw
from symbols.errors import MalformedImage, NoDebugInfo
from symbols.image import Data, Image
from symbols.leb import Buffer, Truncated, sleb, uleb

_MAX_ABBREVS = 100_000
_MAX_ATTRS = 512
_MAX_UNITS = 1_000_000
_BUDGET = 2_000_000


@dataclass(frozen=True, slots=True)
class Abbrev:
    """One abbreviation. attrs: (attribute, form, implicit constant)."""

    code: int
    tag: int
    children: bool
    attrs: tuple[tuple[int, int, int], ...]
    fixed: int  # bytes of the attribute values; -1 when one of them varies

    def has(self, attribute: int) -> bool:
        return any(entry[0] == attribute for entry in self.attrs)


@dataclass(slots=True)
class Unit:
    """One unit of .debug_info. Offsets are section offsets."""

    offset: int
    end: int
    version: int
    offset_size: int
    addr_size: int
    kind: int  # DW_UT_*, 1 for a DWARF 4 compile unit
    first: int  # offset of the root DIE
    abbrevs: dict[int, Abbrev] = field(repr=False)
    sizes: dict[int, int] = field(repr=False)  # form -> bytes, for forms of fixed size
    root: Die | None = field(default=None, repr=False)


@dataclass(slots=True)
class Die:
    """A parsed entry. values: attribute -> (form, value); bytes for blocks and inline strings."""

    unit: Unit = field(repr=False)
    offset: int
    abbrev: Abbrev = field(repr=False)
    values: dict[int, tuple[int, int | bytes]]
    end: int  # where the next entry starts

    @property
    def tag(self) -> int:
        return self.abbrev.tag

    def has(self, attribute: int) -> bool:
        return attribute in self.values

    def number(self, attribute: int) -> int | None:
        entry = self.values.get(attribute)
        return entry[1] if entry is not None and isinstance(entry[1], int) else None


class Dwarf:
    """The debug information of one image. Raises NoDebugInfo, MalformedImage."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.info = image.section(".debug_info")
        if not self.info.size:
            raise NoDebugInfo("no DWARF debug information (.debug_info)", path=image.path)
        self.abbrev = image.section(".debug_abbrev")
        self.str = image.section(".debug_str")
        self.line_str = image.section(".debug_line_str")
        self.str_offsets = image.section(".debug_str_offsets")
        self.addr = image.section(".debug_addr")
        self._tables: dict[tuple[int, int, int, int], tuple[dict[int, Abbrev], dict[int, int]]] = {}
        self._budget = 0
        self.refill()
        self.units = self._read_units()
        self._unit_starts = [unit.offset for unit in self.units]

    def bad(self, detail: str, where: str = ".debug_info") -> MalformedImage:
        return MalformedImage(detail, path=self.image.path, where=where)

    def refill(self) -> None:
        """Start a new piece of work: resets what spend() counts down."""
        self._budget = _BUDGET

    def spend(self, amount: int = 1) -> None:
        """Count work (one unit: about a parsed entry). Raises MalformedImage beyond any honest need."""
        self._budget -= amount
        if self._budget < 0:
            raise self.bad("leads to more work than any program's debug information should")

    # -- units -----------------------------------------------------------------------------------

    def _read_units(self) -> list[Unit]:
        units: list[Unit] = []
        info, at = self.info, 0
        while at + 4 <= info.size and len(units) < _MAX_UNITS:
            length, offset_size, pos = info.uint(at, 4), 4, at + 4
            if length == 0xFFFFFFFF:
                length, offset_size, pos = info.uint(pos, 8), 8, pos + 8
            elif length >= 0xFFFFFFF0:
                raise self.bad(f"unit at {at:#x} has a reserved length")
            end = pos + length
            if length < 7 or end > info.size:
                raise self.bad(f"unit at {at:#x} ends beyond the section")
            version, kind = info.uint(pos, 2), 1
            pos += 2
            if version == 5:
                kind, addr_size = info.uint(pos, 1), info.uint(pos + 1, 1)
                abbrev_at = info.uint(pos + 2, offset_size)
                pos += 2 + offset_size
                pos += {2: 8 + offset_size, 6: 8 + offset_size, 4: 8, 5: 8}.get(kind, 0)
            elif 2 <= version <= 4:
                abbrev_at, addr_size = info.uint(pos, offset_size), info.uint(pos + offset_size, 1)
                pos += offset_size + 1
            else:
                at = end  # a version from the future: nothing in it is ours
                continue
            if addr_size not in (4, 8):
                raise self.bad(f"unit at {at:#x} has {addr_size}-byte addresses")
            table, sizes = self._abbrevs(abbrev_at, offset_size, addr_size, version)
            units.append(Unit(at, end, version, offset_size, addr_size, kind, pos, table, sizes))
            at = end
        return units

    def _abbrevs(
        self, offset: int, offset_size: int, addr_size: int, version: int
    ) -> tuple[dict[int, Abbrev], dict[int, int]]:
        key = (offset, offset_size, addr_size, version)
        if key not in self._tables:
            sizes = dict(dw.FIXED_SIZES)
            sizes[dw.FORM_addr] = addr_size
            sizes.update(dict.fromkeys(dw.OFFSET_FORMS, offset_size))
            sizes[dw.FORM_ref_addr] = addr_size if version == 2 else offset_size
            try:
                self._tables[key] = (self._read_abbrevs(offset, sizes), sizes)
            except Truncated:
                raise self.bad(f"table at {offset:#x} is truncated", ".debug_abbrev") from None
        return self._tables[key]

    def _read_abbrevs(self, offset: int, sizes: dict[int, int]) -> dict[int, Abbrev]:
        table: dict[int, Abbrev] = {}
        buf, end, pos = self.abbrev.buf, self.abbrev.end, self.abbrev.base + offset
        while len(table) < _MAX_ABBREVS:
            code, pos = uleb(buf, pos, end)
            if code == 0:
                break
            tag, pos = uleb(buf, pos, end)
            if pos >= end:
                raise Truncated
            children = buf[pos] != 0
            pos += 1
            attrs: list[tuple[int, int, int]] = []
            total = 0
            while True:
                attribute, pos = uleb(buf, pos, end)
                form, pos = uleb(buf, pos, end)
                const = 0
                if form == dw.FORM_implicit_const:
                    const, pos = sleb(buf, pos, end)
                if attribute == 0 and form == 0:
                    break
                if len(attrs) >= _MAX_ATTRS:
                    raise Truncated
                attrs.append((attribute, form, const))
                size = sizes.get(form, -1)
                total = -1 if size < 0 or total < 0 else total + size
            table[code] = Abbrev(code, tag, children, tuple(attrs), total)
        return table

    def unit_at(self, offset: int) -> Unit | None:
        index = bisect.bisect_right(self._unit_starts, offset) - 1
        if index < 0:
            return None
        unit = self.units[index]
        return unit if unit.first <= offset < unit.end else None

    def root(self, unit: Unit) -> Die:
        if unit.root is None:
            die = self.die(unit.first, unit)
            if die is None:
                raise self.bad(f"unit at {unit.offset:#x} has no root entry")
            unit.root = die
        return unit.root

    # -- entries ---------------------------------------------------------------------------------

    def die(self, offset: int, unit: Unit | None = None) -> Die | None:
        """The entry at a section offset; None for a null entry. Raises MalformedImage."""
        unit = unit or self.unit_at(offset)
        if unit is None:
            raise self.bad(f"no unit holds offset {offset:#x}")
        try:
            return self.parse(unit, offset)
        except Truncated:
            raise self.bad(f"entry at {offset:#x} is malformed") from None

    def parse(self, unit: Unit, offset: int) -> Die | None:
        """As die(), but raises Truncated: for candidates that may be no entry at all."""
        self.spend()
        base = self.info.base
        buf, pos, end = self.info.buf, base + offset, base + unit.end
        code, pos = uleb(buf, pos, end)
        if code == 0:
            return None
        abbrev = unit.abbrevs.get(code)
        if abbrev is None:
            raise Truncated
        values: dict[int, tuple[int, int | bytes]] = {}
        for attribute, form, const in abbrev.attrs:
            if form == dw.FORM_implicit_const:
                values.setdefault(attribute, (form, const))
                continue
            used, value, pos = self._value(unit, form, buf, pos, end)
            values.setdefault(attribute, (used, value))
        return Die(unit, offset, abbrev, values, pos - base)

    def _value(self, unit: Unit, form: int, buf: Buffer, pos: int, end: int) -> tuple[int, int | bytes, int]:
        size = unit.sizes.get(form)
        if size is not None:
            stop = pos + size
            if stop > end:
                raise Truncated
            if form == dw.FORM_flag_present:
                return form, 1, pos
            return form, int.from_bytes(buf[pos:stop], "little"), stop
        if form in dw.LEB_FORMS:
            value, pos = sleb(buf, pos, end) if form == dw.FORM_sdata else uleb(buf, pos, end)
            return form, value, pos
        if form in dw.BLOCK_FORMS:
            if form in (dw.FORM_exprloc, dw.FORM_block):
                length, pos = uleb(buf, pos, end)
            else:
                width = {dw.FORM_block1: 1, dw.FORM_block2: 2, dw.FORM_block4: 4}[form]
                length, pos = int.from_bytes(buf[pos : pos + width], "little"), pos + width
            if pos + length > end:
                raise Truncated
            return form, buf[pos : pos + length], pos + length
        if form == dw.FORM_string:
            stop = buf.find(b"\0", pos, end)
            if stop < 0:
                raise Truncated
            return form, buf[pos:stop], stop + 1
        if form == dw.FORM_indirect:
            inner, pos = uleb(buf, pos, end)
            if inner in (dw.FORM_indirect, dw.FORM_implicit_const):
                raise Truncated
            return self._value(unit, inner, buf, pos, end)
        raise Truncated

    def skip(self, unit: Unit, abbrev: Abbrev, pos: int, stop_at: int = -1) -> int:
        """Buffer position after an entry's values, or before attribute number stop_at. Raises Truncated."""
        if abbrev.fixed >= 0 and stop_at < 0:
            return pos + abbrev.fixed
        buf, end, sizes = self.info.buf, self.info.base + unit.end, unit.sizes
        for index, (_attribute, form, _const) in enumerate(abbrev.attrs):
            if index == stop_at:
                break
            size = sizes.get(form)
            if size is not None:
                pos += size
            elif form == dw.FORM_exprloc:
                length, pos = uleb(buf, pos, end)
                pos += length
            elif form in dw.LEB_FORMS:
                while pos < end and buf[pos] >= 0x80:
                    pos += 1
                pos += 1
            else:
                pos = self._value(unit, form, buf, pos, end)[2]
        if pos > end:
            raise Truncated
        return pos

    def children(self, die: Die) -> Iterator[Die]:
        """Direct children. Subtrees of children are skipped entry by entry."""
        return (child for depth, child in self.subtree(die) if depth == 1)

    def subtree(self, die: Die, limit: int = 2_000_000) -> Iterator[tuple[int, Die]]:
        """(depth, entry) of everything below die, in order; depth 1 is a direct child."""
        if not die.abbrev.children:
            return
        depth, at = 1, die.end
        for _ in range(limit):
            if at >= die.unit.end:
                return  # a missing null entry at a unit's end is common and harmless
            entry = self.die(at, die.unit)
            if entry is None:
                depth -= 1
                at += 1
                if depth == 0:
                    return
                continue
            yield depth, entry
            at = entry.end
            if entry.abbrev.children:
                depth += 1
        raise self.bad(f"entry at {die.offset:#x} has too many descendants")

    # -- attribute values ------------------------------------------------------------------------

    def string(self, die: Die, attribute: int) -> str | None:
        entry = die.values.get(attribute)
        if entry is None:
            return None
        form, value = entry
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if form == dw.FORM_strp:
            return self.str.cstr(value).decode("utf-8", "replace")
        if form == dw.FORM_line_strp:
            return self.line_str.cstr(value).decode("utf-8", "replace")
        if form in dw.STRX_FORMS:
            width = die.unit.offset_size
            at = self._base(die.unit, dw.AT_str_offsets_base, 8 if width == 4 else 16) + value * width
            return self.str.cstr(self.str_offsets.uint(at, width)).decode("utf-8", "replace")
        return None

    def address(self, die: Die, attribute: int) -> int | None:
        """An address-class value; None where absent or of another class."""
        entry = die.values.get(attribute)
        if entry is None or not isinstance(entry[1], int):
            return None
        if entry[0] == dw.FORM_addr:
            return entry[1]
        return self.indexed_address(die.unit, entry[1]) if entry[0] in dw.ADDRX_FORMS else None

    def indexed_address(self, unit: Unit, index: int) -> int:
        base = self._base(unit, dw.AT_addr_base, 8 if unit.offset_size == 4 else 16)
        return self.addr.uint(base + index * unit.addr_size, unit.addr_size)

    def _base(self, unit: Unit, attribute: int, default: int) -> int:
        root = self.root(unit)
        value = root.number(attribute)
        if value is None and attribute == dw.AT_addr_base:
            value = root.number(dw.AT_GNU_addr_base)
        return default if value is None else value

    def high_pc(self, die: Die, low: int) -> int | None:
        entry = die.values.get(dw.AT_high_pc)
        if entry is None or not isinstance(entry[1], int):
            return None
        if entry[0] == dw.FORM_addr or entry[0] in dw.ADDRX_FORMS:
            return self.address(die, dw.AT_high_pc)
        return low + entry[1]

    def target(self, die: Die, attribute: int) -> Die | None:
        """The entry a reference attribute names; None where absent, foreign, or not an entry."""
        entry = die.values.get(attribute)
        if entry is None or not isinstance(entry[1], int) or entry[0] in dw.FOREIGN_REF_FORMS:
            return None
        offset = entry[1] + (die.unit.offset if entry[0] in dw.UNIT_REF_FORMS else 0)
        unit = self.unit_at(offset)
        return None if unit is None else self.die(offset, unit)

    def origin_chain(self, die: Die) -> Iterator[Die]:
        """die, then what it names by abstract_origin or specification, and so on."""
        seen: Die | None = die
        for _ in range(16):
            if seen is None:
                return
            yield seen
            seen = self.target(seen, dw.AT_abstract_origin) or self.target(seen, dw.AT_specification)

    def name(self, die: Die) -> str:
        """DW_AT_name, its own or inherited; "" when it has none."""
        for entry in self.origin_chain(die):
            name = self.string(entry, dw.AT_name)
            if name:
                return name
        return ""

    def linkage_name(self, die: Die) -> str:
        """The linkage name, its own or inherited; falls back to the name."""
        for entry in self.origin_chain(die):
            for attribute in (dw.AT_linkage_name, dw.AT_MIPS_linkage_name):
                name = self.string(entry, attribute)
                if name:
                    return name
        return self.name(die)

    def inherited(self, die: Die, attribute: int) -> tuple[Die, int] | None:
        """(the entry that carries it, the number) along the origin chain."""
        for entry in self.origin_chain(die):
            value = entry.number(attribute)
            if value is not None:
                return entry, value
        return None

    def data(self, name: str) -> Data:
        return self.image.section(name)
