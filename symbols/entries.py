# Owns entries as bytes: where one could start that has a value at a place, whether one really does, and the
# linear scan of a unit (no DIE objects, precomputed entry sizes) for what bytes cannot tell.
# Must not know what names and references mean (search.py does).
from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from symbols import dwarf_const as dw
from symbols.abbrevs import Abbrev
from symbols.dwarf import Die, Dwarf, Unit
from symbols.errors import SymbolError
from symbols.leb import Truncated, uleb
from symbols.needles import REACH, SHORT, entry_regex

_MAX_PREFIX = 96  # bytes between an entry's start and the attribute that was found in it
_WINDOWS = ((4096, 256), (16384, 2048))  # bytes back to the first start, starts
_SURE = 90  # percent of the chains

Wanted = tuple[Abbrev, int, int]
"""(abbreviation, index of the attribute in it, its form)"""
Test = Callable[[Die], bool]


class Entries:
    """Verified entries of one image's debug information."""

    def __init__(self, dwarf: Dwarf) -> None:
        self.dwarf = dwarf
        self._verified: dict[int, bool] = {}
        self._tables: dict[tuple[int, frozenset[int], tuple[int, ...]], list[Wanted]] = {}

    # -- hits ------------------------------------------------------------------------------------

    def charge(self, unit: Unit) -> None:
        self.dwarf.spend(3 + (unit.end - unit.first) // 16384)

    def hits(
        self, unit: Unit, needle: bytes, wanted: list[Wanted], fits: Test, found: dict[int, Die]
    ) -> bool:
        """Entries whose wanted attribute has these bytes. False: too short to be found by searching."""
        if len(needle) > SHORT:
            self.charge(unit)
            for at in unit.info.find_all(needle, unit.first, unit.end):
                self.collect(unit, at, wanted, fits, found)
            return True
        regexes = [entry_regex(unit, abbrev, index, needle) for abbrev, index, _form in wanted]
        for regex in regexes:
            if regex is None:
                return False
            self.charge(unit)
            for offset in unit.info.search(regex, unit.first, unit.end, REACH):
                self.take(unit, offset, fits, found)
        return True

    def collect(self, unit: Unit, at: int, wanted: list[Wanted], fits: Test, found: dict[int, Die]) -> None:
        for offset in self._starts(unit, at, wanted):
            self.take(unit, offset, fits, found)

    def take(self, unit: Unit, offset: int, fits: Test, found: dict[int, Die]) -> None:
        """Keep what lies at an offset if it is an entry, and the right one."""
        if offset in found:
            return
        try:
            die = self.dwarf.parse(unit, offset)
            if die is None or not fits(die):
                return
        except Truncated:
            return
        except SymbolError:
            if self._is_entry(unit, offset):
                raise
            return
        if self._is_entry(unit, offset):
            found[offset] = die

    def abbrevs(self, unit: Unit, tags: Collection[int], attributes: tuple[int, ...]) -> list[Wanted]:
        key = (id(unit.abbrevs), frozenset(tags), attributes)
        known = self._tables.get(key)
        if known is None:
            known = self._tables[key] = [
                (abbrev, index, form)
                for abbrev in unit.abbrevs.values()
                if abbrev.tag in tags
                for index, (attribute, form, _const) in enumerate(abbrev.attrs)
                if attribute in attributes
            ]
        return known

    def _starts(self, unit: Unit, at: int, wanted: list[Wanted]) -> Iterator[int]:
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
        wrong ones die or join them; so nearly all arrive on the true chain. Where they do not agree,
        from farther away, at last from the unit's start.
        """
        known = self._verified.get(offset)
        if known is None:
            for distance, starts in _WINDOWS:
                if known is None and offset - unit.first > distance:
                    self.dwarf.spend((starts + distance // 8) // 8)
                    known = self._agreed(unit, range(offset - distance, offset - distance + starts), offset)
            if known is None:
                self.dwarf.spend((offset - unit.first) // 64)
                known = self._on_chain(unit, offset)
            self._verified[offset] = known
        return known

    def _on_chain(self, unit: Unit, offset: int) -> bool:
        at: int | None = unit.first
        while at is not None and at < offset:
            at = self._next_entry(unit, at)
        return at == offset

    def _agreed(self, unit: Unit, starts: range, offset: int) -> bool | None:
        """Whether the chains from these starts come by; None when they are few or of different minds."""
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
        total = sum(weight.values())
        ours = weight.get(fate.get(meets, -1), 0)
        if total < len(starts) // 16 or 100 * max(weight.values()) < _SURE * total:
            return None
        return 100 * ours >= _SURE * total

    def _next_entry(self, unit: Unit, at: int) -> int | None:
        """Where the entry at `at` ends; None for nonsense. Chains are made of this: few calls."""
        info = unit.info
        buf, pos, end = info.buf, info.base + at, info.base + unit.end
        if pos >= end:
            return None
        code = buf[pos]
        if code == 0:
            return at + 1
        try:
            if code < 0x80:
                pos += 1
            else:
                code, pos = uleb(buf, pos, end)
            abbrev = unit.abbrevs.get(code)
            if abbrev is None:
                return None
            fixed = abbrev.fixed
            return (pos + fixed if fixed >= 0 else self.dwarf.skip(unit, abbrev, pos)) - info.base
        except Truncated:
            return None

    # -- the linear scan -------------------------------------------------------------------------

    def scan(self, unit: Unit, tags: Collection[int]) -> Iterator[tuple[int, Abbrev]]:
        """(offset, abbreviation) of every entry of a unit with one of the tags, in order."""
        dwarf = self.dwarf
        buf, base, end = unit.info.buf, unit.info.base, unit.info.base + unit.end
        abbrevs, pos = unit.abbrevs, base + unit.first
        wanted = {code for code, abbrev in abbrevs.items() if abbrev.tag in tags}
        fixed = {code: abbrev.fixed for code, abbrev in abbrevs.items() if abbrev.fixed >= 0}
        skip = dwarf.skip
        seen = 0
        while pos < end:
            seen += 1
            if not seen & 0xFFF:
                dwarf.spend(0x1000 // 8)
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

    def scan_for(self, unit: Unit, tags: Collection[int], fits: Test, found: dict[int, Die]) -> None:
        for offset, _abbrev in self.scan(unit, tags):
            die = self.dwarf.die(offset, unit)
            if die is not None and fits(die):
                found[offset] = die
