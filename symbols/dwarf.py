# Owns .debug_info: DIEs at an offset, their attributes' values, the references between them, over all files
# that the debug information is spread over. Parses one DIE when asked for it and never walks a unit by
# itself. Must not judge what a DIE means.
from __future__ import annotations

import bisect
from collections.abc import Iterator

from symbols import dwarf_const as dw
from symbols.abbrevs import Abbrev
from symbols.debugfiles import Searched
from symbols.errors import MalformedImage, NoDebugInfo
from symbols.image import Image
from symbols.leb import Buffer, Truncated, sleb, uleb
from symbols.split import SPLIT_NAMES, Extra, Skeleton
from symbols.units import UT_SPLIT_TYPE, UT_TYPE, Die, Part, Unit, UnitReader

__all__ = ["Abbrev", "Die", "Dwarf", "Part", "Unit"]

_BUDGET = 600_000  # parsed entries, about three seconds
_PER_BYTE = 64  # one more for so many bytes of .debug_info


class Dwarf:
    """The debug information of one image, with its .dwo, .dwp and supplementary files.

    Raises NoDebugInfo, DebugFileMismatch, MalformedImage. missing: split units without their file. Close it.
    """

    def __init__(self, image: Image, searched: Searched | None = None) -> None:
        self.image = image
        info = image.section(".debug_info")
        if not info.size:
            raise NoDebugInfo("no DWARF debug information (.debug_info)", path=image.path)
        self._size = info.size
        self._typedefs: dict[int, dict[str, None]] = {}
        self._budget = 0
        self.refill()
        self._part = Part(image)
        reader = UnitReader()
        types = image.section(".debug_types")
        self._extra = Extra(self._part, reader, self._dwo_id, info.size + types.size + (2 << 12))
        try:
            self.units = reader.read(self._part, info)
            if types.size:
                part = Part(image, shift=info.size + (1 << 12))
                self.units += reader.read(part, types, types=True)
            self.units += self._extra.supplement(searched)
            skeletons = [found for found in map(self._skeleton, self.units) if found is not None]
            for skeleton in skeletons:
                self.units += self._extra.split(skeleton)
        except BaseException:
            self.close()
            raise
        self.missing: tuple[str, ...] = tuple(self._extra.missing)
        if skeletons and len(self.missing) == len(skeletons) == len(self.units):
            self.close()
            raise NoDebugInfo(
                "its split debug information (.dwo) is not there",
                path=image.path,
                remedy="keep the .dwo files, or make a package of them beside the executable: dwp -e EXE",
                tried=self.missing,
            )
        self.units.sort(key=lambda unit: unit.offset)
        self._unit_starts = [unit.offset for unit in self.units]
        kinds = (UT_TYPE, UT_SPLIT_TYPE)
        self._types = {unit.ident: unit.type_at for unit in self.units if unit.kind in kinds}

    def close(self) -> None:
        """Close the files that were opened besides the image."""
        self._extra.close()

    def _skeleton(self, unit: Unit) -> Skeleton | None:
        if not self._may_be_skeleton(unit):
            return None
        root = self.root(unit)
        name = self.string(root, dw.AT_dwo_name) or self.string(root, dw.AT_GNU_dwo_name)
        ident = self._dwo_id(unit)
        if not name or ident is None:
            return None
        return Skeleton(unit, name, self.string(root, dw.AT_comp_dir) or "", ident)

    def _may_be_skeleton(self, unit: Unit) -> bool:
        """By its root's abbreviation, without reading more of the table than that."""
        base = unit.info.base
        try:
            code, _pos = uleb(unit.info.buf, base + unit.first, base + unit.end)
        except Truncated:
            return False
        abbrev = unit.abbrevs.get(code)
        return abbrev is not None and any(abbrev.has(name) for name in SPLIT_NAMES)

    def _dwo_id(self, unit: Unit) -> int | None:
        if unit.kind in (UT_TYPE, UT_SPLIT_TYPE):
            return None
        return unit.ident or self.root(unit).number(dw.AT_GNU_dwo_id)

    def bad(self, detail: str, where: str = ".debug_info") -> MalformedImage:
        return MalformedImage(detail, path=self.image.path, where=where)

    def refill(self) -> None:
        """Start a new piece of work: resets what spend() counts down."""
        self._budget = _BUDGET + self._size // _PER_BYTE

    def spend(self, amount: int = 1) -> None:
        """Count work (one unit: about a parsed entry). Raises MalformedImage beyond any honest need."""
        self._budget -= amount
        if self._budget < 0:
            raise self.bad("leads to more work than any program's debug information should")

    # -- units -----------------------------------------------------------------------------------

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
        base = unit.info.base
        buf, pos, end = unit.info.buf, base + offset, base + unit.end
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
        buf, end, sizes = unit.info.buf, unit.info.base + unit.end, unit.sizes
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
        part = die.unit.part
        if form == dw.FORM_strp:
            return part.str.cstr(value).decode("utf-8", "replace")
        if form == dw.FORM_line_strp:
            return part.line_str.cstr(value).decode("utf-8", "replace")
        if form in dw.SUP_STR_FORMS:
            other = part.supplement
            return other.str.cstr(value).decode("utf-8", "replace") if other is not None else None
        if form in dw.STRX_FORMS:
            width = die.unit.offset_size
            at = self.str_offsets_base(die.unit) + value * width
            return part.str.cstr(part.section(".debug_str_offsets").uint(at, width)).decode(
                "utf-8", "replace"
            )
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
        at = self.addr_base(unit) + index * unit.addr_size
        return unit.home.part.section(".debug_addr").uint(at, unit.addr_size)

    def addr_base(self, unit: Unit) -> int:
        """Where a unit's share of .debug_addr begins, after its header."""
        root = self.root(unit.home)
        base = root.number(dw.AT_addr_base)
        if base is None:
            base = root.number(dw.AT_GNU_addr_base)
        return _header(unit.home) if base is None else base

    def str_offsets_base(self, unit: Unit) -> int:
        """Where a unit's share of .debug_str_offsets begins, after its header."""
        base = self.root(unit).number(dw.AT_str_offsets_base)
        return _header(unit) if base is None else base

    def high_pc(self, die: Die, low: int) -> int | None:
        entry = die.values.get(dw.AT_high_pc)
        if entry is None or not isinstance(entry[1], int):
            return None
        if entry[0] == dw.FORM_addr or entry[0] in dw.ADDRX_FORMS:
            return self.address(die, dw.AT_high_pc)
        return low + entry[1]

    def target(self, die: Die, attribute: int) -> Die | None:
        """The entry a reference attribute names; None where absent or out of reach."""
        entry = die.values.get(attribute)
        if entry is None or not isinstance(entry[1], int):
            return None
        offset = self.reference(die.unit, entry[0], entry[1])
        unit = self.unit_at(offset) if offset is not None else None
        return None if unit is None or offset is None else self.die(offset, unit)

    def reference(self, unit: Unit, form: int, value: int) -> int | None:
        """The number of the entry that a reference names; None where its file or type unit is missing."""
        if form in dw.UNIT_REF_FORMS:
            return value + unit.offset
        if form == dw.FORM_ref_sig8:
            return self._types.get(value)
        if form in dw.SUP_REF_FORMS:
            return value + unit.part.supplement.shift if unit.part.supplement is not None else None
        return value + unit.part.shift

    def origin_chain(self, die: Die) -> Iterator[Die]:
        """die, then what it names by abstract_origin or specification, and so on."""
        seen: Die | None = die
        for _ in range(16):
            if seen is None:
                return
            yield seen
            seen = self.target(seen, dw.AT_abstract_origin) or self.target(seen, dw.AT_specification)

    def name(self, die: Die) -> str:
        """DW_AT_name, its own or inherited; of a nameless type a typedef's, if one led there; or ""."""
        for entry in self.origin_chain(die):
            name = self.string(entry, dw.AT_name)
            if name:
                return name
        return next(iter(self._typedefs.get(die.offset, ())), "")

    def called(self, die: Die, typedefs: list[str]) -> None:
        """Remember typedefs that led to a type: C's `typedef struct { … } conn_t` has no other name."""
        if typedefs:
            self._typedefs.setdefault(die.offset, {}).update(dict.fromkeys(typedefs))

    def typedefs(self, die: Die) -> list[str]:
        """The typedefs that are known to lead to a type."""
        return list(self._typedefs.get(die.offset, ()))

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


def _header(unit: Unit) -> int:
    """Bytes before the first entry of .debug_addr and .debug_str_offsets: DWARF 5 has a header there."""
    if unit.version < 5:
        return 0
    return 8 if unit.offset_size == 4 else 16
