# Owns finding entries without walking: bytes of a name's or an entry's offset, or of an address, are searched
# in .debug_info, and every hit is verified by parsing it. Falls back to a linear scan of a unit for what
# bytes cannot tell. Judges nothing.
from __future__ import annotations

import re
from collections.abc import Callable, Collection

from symbols import dwarf_const as dw
from symbols.coverage import Coverage
from symbols.data import Data
from symbols.dwarf import Die, Dwarf, Unit
from symbols.entries import Entries, Test, Wanted
from symbols.globs import glob_regex, longest_literal, string_offsets

_NAME_ATTRS = (dw.AT_linkage_name, dw.AT_MIPS_linkage_name, dw.AT_name)
_ORIGIN_ATTRS = (dw.AT_abstract_origin, dw.AT_specification)
_MAX_BACK = 512  # bytes of an inline name before the piece of it that was searched for
_MAX_INLINE = 64  # hits of such a piece in one unit; a scan is cheaper for more
_MAX_PASSES = 48  # searches of one unit for one glob; a scan is cheaper for more
FUNCTION_TAGS = frozenset((dw.TAG_subprogram, dw.TAG_inlined_subroutine))


class Search(Entries):
    """Entries of one image by name, by reference and by address."""

    def __init__(self, dwarf: Dwarf) -> None:
        super().__init__(dwarf)
        self._far: dict[frozenset[int], list[Unit]] = {}
        self._coverage: Coverage | None = None

    @property
    def coverage(self) -> Coverage:
        if self._coverage is None:
            self._coverage = Coverage(self.dwarf)
        return self._coverage

    # -- by name ---------------------------------------------------------------------------------

    def named(self, pattern: str, tags: Collection[int]) -> list[Die]:
        """Entries with one of the tags whose own name or linkage name matches the glob, by offset."""
        found: dict[int, Die] = {}
        regex = glob_regex(pattern)
        known: dict[tuple[int, int], set[int] | None] = {}

        def fits(die: Die) -> bool:
            return self._own_name_matches(die, regex)

        def strings(data: Data) -> set[int] | None:
            key = (id(data.buf), data.base)
            if key not in known:
                known[key] = string_offsets(data, pattern)
            return known[key]

        for unit in self.dwarf.units:
            wanted = self.abbrevs(unit, tags, _NAME_ATTRS)
            if wanted and not self._by_strings(unit, pattern, strings, wanted, fits, found):
                self.scan_for(unit, tags, fits, found)
        return [die for _offset, die in sorted(found.items())]

    def _by_strings(
        self,
        unit: Unit,
        pattern: str,
        strings: Callable[[Data], set[int] | None],
        wanted: list[Wanted],
        fits: Test,
        found: dict[int, Die],
    ) -> bool:
        """Entries of one unit by the offsets of matching strings. False: only a scan can tell."""
        part, forms = unit.part, {form for _abbrev, _index, form in wanted}
        sections = [(dw.FORM_strp, part.str), (dw.FORM_line_strp, part.line_str)]
        if part.supplement is not None:
            sections += [(form, part.supplement.str) for form in dw.SUP_STR_FORMS]
        for form, section in sections:
            if form in forms:
                values = strings(section)
                if values is None or not self._values(unit, values, _of(wanted, form), fits, found):
                    return False
        if forms & dw.STRX_FORMS:
            values = strings(part.str)
            if values is None or not self._indexed(unit, values, wanted, fits, found):
                return False
        if dw.FORM_string in forms:
            return self._inline(unit, pattern, _of(wanted, dw.FORM_string), fits, found)
        return dw.FORM_indirect not in forms

    def _values(
        self, unit: Unit, values: set[int], wanted: list[Wanted], fits: Test, found: dict[int, Die]
    ) -> bool:
        """Entries with one of the offsets as value. Offsets that differ in the last byte share a search."""
        width = unit.offset_size
        groups: dict[int, set[int]] = {}
        for value in values:
            if not value >> (8 * width):
                groups.setdefault(value >> 8, set()).add(value)
        if len(groups) > _MAX_PASSES:
            return False
        for group, members in groups.items():
            if len(members) == 1:
                self.hits(unit, next(iter(members)).to_bytes(width, "little"), wanted, fits, found)
                continue
            self.charge(unit)
            for at in unit.info.find_all(group.to_bytes(width - 1, "little"), unit.first + 1, unit.end):
                if unit.info.uint(at - 1, width) in members:
                    self.collect(unit, at - 1, wanted, fits, found)
        return True

    def _indexed(
        self, unit: Unit, strings: set[int], wanted: list[Wanted], fits: Test, found: dict[int, Die]
    ) -> bool:
        """Names by index into .debug_str_offsets. False: only a scan can tell."""
        width = unit.offset_size
        table = unit.part.section(".debug_str_offsets")
        start, stop = self.dwarf.str_offsets_base(unit), table.size
        if unit.version >= 5 and start >= width + 4:
            stop = min(stop, start - 4 + table.uint(start - width - 4, width))  # the length counts 4 more
        if len(strings) > _MAX_PASSES:
            return False
        indices = []
        for value in strings:
            if not value >> (8 * width):
                hits = table.find_all(value.to_bytes(width, "little"), start, stop)
                indices += [(at - start) // width for at in hits if (at - start) % width == 0]
        return len(indices) <= _MAX_PASSES and all(
            self._by_index(unit, index, _of(wanted, form), fits, found)
            for index in indices
            for form in dw.STRX_FORMS
        )

    def _by_index(
        self, unit: Unit, index: int, wanted: list[Wanted], fits: Test, found: dict[int, Die]
    ) -> bool:
        """Entries with an index as value, all of one form."""
        size = unit.sizes.get(wanted[0][2]) if wanted else 0
        if not wanted or (size is not None and index >> (8 * size)):
            return True
        needle = dw.uleb_bytes(index) if size is None else index.to_bytes(size, "little")
        return self.hits(unit, needle, wanted, fits, found)

    def _own_name_matches(self, die: Die, regex: re.Pattern[str]) -> bool:
        names = (self.dwarf.string(die, attribute) for attribute in _NAME_ATTRS)
        return any(name is not None and regex.match(name) for name in names)

    def _inline(
        self, unit: Unit, pattern: str, wanted: list[Wanted], fits: Test, found: dict[int, Die]
    ) -> bool:
        """Names that stand in the entries themselves. False: only a scan can tell."""
        literal = longest_literal(pattern)
        if not literal:
            return False
        back = 0 if pattern.encode().startswith(literal) else _MAX_BACK
        self.charge(unit)
        hits = unit.info.find_all(literal, unit.first, unit.end)
        if back and len(hits) > _MAX_INLINE:
            return False
        for hit in hits:
            self.dwarf.spend(1 + back)
            for at in range(max(unit.first, hit - back), hit + 1):
                self.collect(unit, at, wanted, fits, found)
        return True

    # -- by reference ----------------------------------------------------------------------------

    def referring(self, offset: int, tags: frozenset[int]) -> list[Die]:
        """Entries with one of the tags whose abstract_origin or specification is the entry at offset."""
        found: dict[int, Die] = {}
        home = self.dwarf.unit_at(offset)
        if home is None:
            return []

        def fits(die: Die) -> bool:
            return self._refers(die, offset)

        near = self.abbrevs(home, tags, _ORIGIN_ATTRS)
        if not self._near(home, offset - home.offset, near, fits, found):
            self.scan_for(home, tags, fits, found)
        for unit in self._far_units(tags):
            self.dwarf.spend(3)
            if not self._from_afar(unit, home, offset, self.abbrevs(unit, tags, _ORIGIN_ATTRS), fits, found):
                self.scan_for(unit, tags, fits, found)
        return [die for _offset, die in sorted(found.items())]

    def _near(self, unit: Unit, value: int, wanted: list[Wanted], fits: Test, found: dict[int, Die]) -> bool:
        """References inside of one unit. False: only a scan can tell."""
        return all(
            self._by_index(unit, value, _of(wanted, form), fits, found)
            for form in dw.UNIT_REF_FORMS
            if value >= 0
        )

    def _from_afar(
        self, unit: Unit, home: Unit, offset: int, wanted: list[Wanted], fits: Test, found: dict[int, Die]
    ) -> bool:
        """References from any unit of the file, or of one that it supplements."""
        if any(form == dw.FORM_indirect for _abbrev, _index, form in wanted):
            return False
        forms: Collection[int] = ()
        if home.part.same_file(unit.part):
            forms = (dw.FORM_ref_addr,)
        elif home.part.same_file(unit.part.supplement):
            forms = dw.SUP_REF_FORMS
        value = offset - home.part.shift
        return all(self._by_index(unit, value, _of(wanted, form), fits, found) for form in forms)

    def _far_units(self, tags: frozenset[int]) -> list[Unit]:
        """Units with references that may leave them."""
        if tags not in self._far:
            far = {dw.FORM_ref_addr, dw.FORM_indirect, *dw.SUP_REF_FORMS}
            self._far[tags] = [
                unit
                for unit in self.dwarf.units
                if any(form in far for _abbrev, _index, form in self.abbrevs(unit, tags, _ORIGIN_ATTRS))
            ]
        return self._far[tags]

    def _refers(self, die: Die, offset: int) -> bool:
        for attribute in _ORIGIN_ATTRS:
            entry = die.values.get(attribute)
            if entry is None or not isinstance(entry[1], int):
                continue
            if self.dwarf.reference(die.unit, entry[0], entry[1]) == offset:
                return True
        return False

    # -- by address ------------------------------------------------------------------------------

    def subprograms_at(self, low_pc: int) -> list[Die]:
        """Subprograms with this DW_AT_low_pc (address form or index into .debug_addr)."""
        found: dict[int, Die] = {}
        likely = self.coverage.units_at(low_pc)
        for unit in likely:
            self._at_low(unit, low_pc, found)
        if not found:
            seen = set(map(id, likely))
            for unit in self.dwarf.units:
                if id(unit) not in seen:
                    self._at_low(unit, low_pc, found)
        return list(found.values())

    def _at_low(self, unit: Unit, low_pc: int, found: dict[int, Die]) -> None:
        tags = (dw.TAG_subprogram,)
        wanted = self.abbrevs(unit, tags, (dw.AT_low_pc,))
        if not wanted or low_pc >> (8 * unit.addr_size):
            return

        def fits(die: Die) -> bool:
            return self.dwarf.address(die, dw.AT_low_pc) == low_pc

        plain = _of(wanted, dw.FORM_addr)
        needle = low_pc.to_bytes(unit.addr_size, "little")
        if plain:
            self.hits(unit, needle, plain, fits, found)
        if len(plain) == len(wanted):
            return
        data, base = unit.home.part.section(".debug_addr"), self.dwarf.addr_base(unit)
        places = data.find_all(needle, base) if base < data.size else []
        indices = [(at - base) // unit.addr_size for at in places if not (at - base) % unit.addr_size]
        if len(indices) > _MAX_PASSES or not all(
            self._by_index(unit, index, _of(wanted, form), fits, found)
            for index in indices
            for form in dw.ADDRX_FORMS
        ):
            self.scan_for(unit, tags, fits, found)


def _of(wanted: list[Wanted], form: int) -> list[Wanted]:
    return [one for one in wanted if one[2] == form]
