# Owns finding entries without walking: bytes of a name's or an entry's offset are searched in
# .debug_info, and every hit is verified by parsing it. Falls back to a linear scan of a unit (no
# DIE objects, precomputed entry sizes) for the forms that bytes cannot tell. Judges nothing.
from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from symbols import dwarf_const as dw
from symbols.dwarf import Abbrev, Die, Dwarf, Unit
from symbols.image import Data
from symbols.leb import Truncated, uleb

_NAME_ATTRS = (dw.AT_linkage_name, dw.AT_MIPS_linkage_name, dw.AT_name)
_ORIGIN_ATTRS = (dw.AT_abstract_origin, dw.AT_specification)
_MAX_PREFIX = 96  # bytes between an entry's start and the attribute that was found in it
_MAX_HITS = 100_000
_SYNC_WINDOW = 4096
FUNCTION_TAGS = frozenset((dw.TAG_subprogram, dw.TAG_inlined_subroutine))


def glob_regex(pattern: str) -> re.Pattern[str]:
    """Our globs: only * and ? are special; [ ] { } ( ) . , are themselves."""
    return re.compile(_translate(pattern), re.DOTALL)


def _translate(pattern: str) -> str:
    return "".join({"*": ".*", "?": "."}.get(char) or re.escape(char) for char in pattern) + r"\Z"


def matches(pattern: str, name: str) -> bool:
    return glob_regex(pattern).match(name) is not None


class Search:
    """Entries of one image by name and by reference."""

    def __init__(self, dwarf: Dwarf) -> None:
        self.dwarf = dwarf
        self._verified: dict[int, bool] = {}

    # -- by name ---------------------------------------------------------------------------------

    def named(self, pattern: str, tags: Collection[int]) -> list[Die]:
        """Entries with one of the tags whose own name or linkage name matches the glob, by offset."""
        found: dict[int, Die] = {}
        regex = glob_regex(pattern)
        # A glob that opens with * matches every suffix of its names, and linkers merge suffixes:
        # too many offsets to search for.
        scan_all = pattern[:1] in ("*", "?", "")
        known: dict[tuple[int, int], list[int]] = {}

        def strings(data: Data) -> list[int]:
            key = (id(data.buf), data.base)
            if key not in known:
                known[key] = self._string_offsets(data, pattern)
            return known[key]

        for unit in self.dwarf.units:
            wanted = self._abbrevs(unit, tags, _NAME_ATTRS)
            if not wanted:
                continue
            forms = {form for _abbrev, _index, form in wanted}
            if scan_all or dw.FORM_indirect in forms:
                self._scan_named(unit, tags, regex, found)
                continue
            if forms & dw.STRX_FORMS and self._indexed(unit, strings(unit.part.str), wanted, found):
                self._scan_named(unit, tags, regex, found)
                continue
            part = unit.part
            sections = [(dw.FORM_strp, part.str), (dw.FORM_line_strp, part.line_str)]
            if part.supplement is not None:
                sections += [(form, part.supplement.str) for form in dw.SUP_STR_FORMS]
            for form, section in sections:
                if form in forms:
                    self._hits(unit, strings(section), [w for w in wanted if w[2] == form], found)
            if dw.FORM_string in forms:
                self._inline_strings(unit, pattern, [w for w in wanted if w[2] == dw.FORM_string], found)
        kept = (die for _offset, die in sorted(found.items()))
        return [die for die in kept if self._own_name_matches(die, regex)]

    def _indexed(
        self, unit: Unit, strings: list[int], wanted: list[tuple[Abbrev, int, int]], found: dict[int, Die]
    ) -> bool:
        """Names by index into .debug_str_offsets. True: an index is too short for bytes to tell, scan."""
        width = unit.offset_size
        table = unit.part.section(".debug_str_offsets")
        start, stop = self.dwarf.str_offsets_base(unit), table.size
        if unit.version >= 5 and start >= width + 4:
            stop = min(stop, start - 4 + table.uint(start - width - 4, width))  # the length counts 4 more
        indices = []
        for value in strings:
            if value >> (8 * width):
                continue
            hits = table.find_all(value.to_bytes(width, "little"), start, stop)
            indices += [(at - start) // width for at in hits if (at - start) % width == 0]
        for index in indices:
            for form in dw.STRX_FORMS:
                some = [w for w in wanted if w[2] == form]
                size = unit.sizes.get(form)
                if not some or (size is not None and index >> (8 * size)):
                    continue
                needle = dw.uleb_bytes(index) if size is None else index.to_bytes(size, "little")
                if len(needle) < 2:
                    return True
                self.dwarf.spend(1 + (unit.end - unit.first) // 4096)
                for at in unit.info.find_all(needle, unit.first, unit.end):
                    self._collect(unit, at, some, found)
        return False

    def _own_name_matches(self, die: Die, regex: re.Pattern[str]) -> bool:
        names = (self.dwarf.string(die, attribute) for attribute in _NAME_ATTRS)
        return any(name is not None and regex.match(name) for name in names)

    def _string_offsets(self, data: Data, pattern: str) -> list[int]:
        """Offsets in a string section at which a string matching the glob starts."""
        if not data.size:
            return []
        parts = ({"*": rb"[^\0]*", "?": rb"[^\0]"}.get(char) or re.escape(char.encode()) for char in pattern)
        body = b"".join(parts)
        offsets: list[int] = []
        # Look-ahead: a match may start inside another one (merged suffixes).
        start = re.match(r"[^*?]*", pattern)
        literal = start.group().encode() if start else b""
        regex = re.compile(body + rb"\0", re.DOTALL)
        at = data.buf.find(literal, data.base, data.end)
        while at >= 0 and len(offsets) < _MAX_HITS:
            if regex.match(data.buf, at, data.end):
                offsets.append(at - data.base)
            at = data.buf.find(literal, at + 1, data.end)
        return offsets

    def _hits(
        self, unit: Unit, values: list[int], wanted: list[tuple[Abbrev, int, int]], found: dict[int, Die]
    ) -> None:
        for value in values:
            if value >> (8 * unit.offset_size):
                continue
            self.dwarf.spend(1 + (unit.end - unit.first) // 4096)
            needle = value.to_bytes(unit.offset_size, "little")
            for at in unit.info.find_all(needle, unit.first, unit.end):
                self._collect(unit, at, wanted, found)

    def _inline_strings(
        self, unit: Unit, pattern: str, wanted: list[tuple[Abbrev, int, int]], found: dict[int, Die]
    ) -> None:
        info = unit.info
        window = Data(info.buf, info.base + unit.first, unit.end - unit.first, info.name, info.path)
        for at in self._string_offsets(window, pattern):
            self._collect(unit, at + unit.first, wanted, found)

    def _collect(
        self, unit: Unit, at: int, wanted: list[tuple[Abbrev, int, int]], found: dict[int, Die]
    ) -> None:
        for offset in self._starts(unit, at, wanted):
            if offset not in found and self._is_entry(unit, offset):
                try:
                    die = self.dwarf.parse(unit, offset)
                except Truncated:
                    continue
                if die is not None:
                    found[offset] = die

    def _abbrevs(
        self, unit: Unit, tags: Collection[int], attributes: tuple[int, ...]
    ) -> list[tuple[Abbrev, int, int]]:
        """(abbreviation, index of the attribute in it, its form)."""
        return [
            (abbrev, index, form)
            for abbrev in unit.abbrevs.values()
            if abbrev.tag in tags
            for index, (attribute, form, _const) in enumerate(abbrev.attrs)
            if attribute in attributes
        ]

    def _starts(self, unit: Unit, at: int, wanted: list[tuple[Abbrev, int, int]]) -> Iterator[int]:
        """Offsets at which an entry could start whose attribute value lies at `at`.

        Verified by its abbreviation code and by skipping forward exactly to `at`.
        """
        buf, base = unit.info.buf, unit.info.base
        for abbrev, index, _form in wanted:
            code = dw.uleb_bytes(abbrev.code)
            size = 0
            for _attribute, form, _const in abbrev.attrs[:index]:
                fixed = unit.sizes.get(form, -1)
                size = -1 if size < 0 or fixed < 0 else size + fixed
            if size >= 0:
                start = at - size - len(code)
                if start >= unit.first and buf[base + start : base + start + len(code)] == code:
                    yield start
                continue
            for start in range(max(unit.first, at - _MAX_PREFIX), at - len(code) - index + 1):
                if buf[base + start : base + start + len(code)] != code:
                    continue
                try:
                    reached = self.dwarf.skip(unit, abbrev, base + start + len(code), index)
                except Truncated:
                    continue
                if reached == base + at:
                    yield start

    def _is_entry(self, unit: Unit, offset: int) -> bool:
        """Whether the unit's chain of entries has a link at offset.

        From the unit's start when that is near. Otherwise by majority: parsing from every byte of a
        window before it, chains that once meet an entry's start stay on entries' starts for ever, and
        wrong ones die or join them; so nearly all arrive on the true chain.
        """
        known = self._verified.get(offset)
        if known is None:
            self.dwarf.spend(100)
            starts = range(unit.first, unit.first + 1)
            if offset - unit.first > _SYNC_WINDOW:
                starts = range(offset - _SYNC_WINDOW, offset - _SYNC_WINDOW // 2)
            known = self._verified[offset] = self._synchronized(unit, starts, offset)
        return known

    def _synchronized(self, unit: Unit, starts: range, offset: int) -> bool:
        owner: dict[int, int] = {}  # position -> chain that came by first
        fate: dict[int, int] = {}  # chain -> chain it ended as; absent when it ran into nonsense
        weight: dict[int, int] = {}  # surviving chain -> how many starts ended on it
        meets = -1
        for chain, start in enumerate(starts):
            at, end = start, chain
            while at <= offset:
                if at in owner:
                    end = fate.get(owner[at], -1)
                    break
                owner[at] = chain
                if at == offset:
                    meets = chain
                after = self._next_entry(unit, at)
                if after is None:
                    end = -1
                    break
                at = after
            if end >= 0:
                fate[chain] = end
                weight[end] = weight.get(end, 0) + 1
        if meets < 0 or meets not in fate:
            return False
        return fate[meets] == max(weight, key=lambda chain: weight[chain])

    def _next_entry(self, unit: Unit, at: int) -> int | None:
        base = unit.info.base
        try:
            code, pos = uleb(unit.info.buf, base + at, base + unit.end)
            if code == 0:
                return at + 1
            abbrev = unit.abbrevs.get(code)
            return None if abbrev is None else self.dwarf.skip(unit, abbrev, pos) - base
        except Truncated:
            return None

    # -- by reference ----------------------------------------------------------------------------

    def referring(self, offset: int, tags: Collection[int]) -> list[Die]:
        """Entries with one of the tags whose abstract_origin or specification is the entry at offset."""
        found: dict[int, Die] = {}
        home = self.dwarf.unit_at(offset)
        for unit in self.dwarf.units:
            wanted = self._abbrevs(unit, tags, _ORIGIN_ATTRS)
            same = [w for w in wanted if w[2] in dw.UNIT_REF_FORMS] if unit is home else []
            far: list[tuple[Abbrev, int, int]] = []
            if home is not None and home.part.same_file(unit.part):
                far = [w for w in wanted if w[2] == dw.FORM_ref_addr]
            elif home is not None and home.part.same_file(unit.part.supplement):
                far = [w for w in wanted if w[2] in dw.SUP_REF_FORMS]
            forms = {form for _abbrev, _index, form in same}
            if forms & {dw.FORM_ref1, dw.FORM_ref2} or any(w[2] == dw.FORM_indirect for w in wanted):
                self._scan_referring(unit, tags, offset, found)
                continue
            relative = offset - unit.offset
            self.dwarf.spend(1 + (unit.end - unit.first) // 4096)
            for form in forms:
                if form == dw.FORM_ref_udata:
                    needle = dw.uleb_bytes(relative)
                else:
                    if relative >> (8 * unit.sizes[form]):
                        continue
                    needle = relative.to_bytes(unit.sizes[form], "little")
                some = [w for w in same if w[2] == form]
                for at in unit.info.find_all(needle, unit.first, unit.end):
                    self._collect(unit, at, some, found)
            plain = offset - home.part.shift if home is not None else offset
            for form in {form for _abbrev, _index, form in far}:
                if not plain >> (8 * unit.sizes[form]):
                    needle = plain.to_bytes(unit.sizes[form], "little")
                    for at in unit.info.find_all(needle, unit.first, unit.end):
                        self._collect(unit, at, [w for w in far if w[2] == form], found)
        return [die for _offset, die in sorted(found.items()) if self._refers(die, offset)]

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
        tags = (dw.TAG_subprogram,)
        for unit in self.dwarf.units:
            self.dwarf.spend(1 + (unit.end - unit.first) // 4096)
            wanted = self._abbrevs(unit, tags, (dw.AT_low_pc,))
            plain = [w for w in wanted if w[2] == dw.FORM_addr]
            if plain and not low_pc >> (8 * unit.addr_size):
                needle = low_pc.to_bytes(unit.addr_size, "little")
                for at in unit.info.find_all(needle, unit.first, unit.end):
                    self._collect(unit, at, plain, found)
            if any(w[2] in dw.ADDRX_FORMS for w in wanted) and self._has_address(unit, low_pc):
                for offset, _abbrev in self.scan(unit, tags):
                    die = self.dwarf.die(offset, unit)
                    if die is not None and self.dwarf.address(die, dw.AT_low_pc) == low_pc:
                        found[offset] = die
        return [die for die in found.values() if self.dwarf.address(die, dw.AT_low_pc) == low_pc]

    def _has_address(self, unit: Unit, address: int) -> bool:
        """Whether an indexed address of the unit may be this one: its bytes are in .debug_addr."""
        if address >> (8 * unit.addr_size):
            return False
        data = unit.home.part.section(".debug_addr")
        return data.buf.find(address.to_bytes(unit.addr_size, "little"), data.base, data.end) >= 0

    # -- the linear scan -------------------------------------------------------------------------

    def scan(self, unit: Unit, tags: Collection[int]) -> Iterator[tuple[int, Abbrev]]:
        """(offset, abbreviation) of every entry of a unit with one of the tags, in order."""
        dwarf = self.dwarf
        buf, base, end = unit.info.buf, unit.info.base, unit.info.base + unit.end
        abbrevs, pos = unit.abbrevs, base + unit.first
        wanted = {code for code, abbrev in abbrevs.items() if abbrev.tag in tags}
        fixed = {code: abbrev.fixed for code, abbrev in abbrevs.items() if abbrev.fixed >= 0}
        skip = dwarf.skip
        while pos < end:
            start = pos
            code = buf[pos]
            pos += 1
            if code >= 0x80:
                shift = 7
                code &= 0x7F
                while pos < end:
                    byte = buf[pos]
                    pos += 1
                    code |= (byte & 0x7F) << shift
                    shift += 7
                    if byte < 0x80:
                        break
            if code in wanted:
                yield start - base, abbrevs[code]
            size = fixed.get(code)
            if size is not None:
                pos += size
            elif code:
                if code not in abbrevs:
                    raise dwarf.bad(f"entry at {start - base:#x} has an unknown abbreviation")
                try:
                    pos = skip(unit, abbrevs[code], pos)
                except Truncated:
                    raise dwarf.bad(f"entry at {start - base:#x} is malformed") from None

    def _scan_named(
        self, unit: Unit, tags: Collection[int], regex: re.Pattern[str], found: dict[int, Die]
    ) -> None:
        for offset, _abbrev in self.scan(unit, tags):
            die = self.dwarf.die(offset, unit)
            if die is not None and self._own_name_matches(die, regex):
                found[offset] = die

    def _scan_referring(self, unit: Unit, tags: Collection[int], target: int, found: dict[int, Die]) -> None:
        for offset, _abbrev in self.scan(unit, tags):
            die = self.dwarf.die(offset, unit)
            if die is not None and self._refers(die, target):
                found[offset] = die
