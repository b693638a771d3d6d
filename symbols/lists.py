# Owns range lists and location lists of DWARF 4 (.debug_ranges, .debug_loc) and 5 (.debug_rnglists,
# .debug_loclists). Returns plain tuples; must not evaluate expressions.
from __future__ import annotations

from collections.abc import Iterator

from symbols import dwarf_const as dw
from symbols.dwarf import Die, Dwarf, Unit
from symbols.image import Data
from symbols.leb import Truncated, uleb

_MAX_ENTRIES = 200_000

Range = tuple[int, int]
"""[low, high)"""

Located = tuple[int, int, bytes]
"""[low, high) and the expression that holds there. (0, 2**64-1, expr) where it always holds."""

EVERYWHERE = 1 << 64


def ranges_of(dwarf: Dwarf, die: Die) -> list[Range]:
    """The addresses a scope covers, in the order DWARF lists them; empty ones left out."""
    low = dwarf.address(die, dw.AT_low_pc)
    high = dwarf.high_pc(die, low) if low is not None else None
    if low is not None and high is not None:
        return [(low, high)] if high > low else []
    entry = die.values.get(dw.AT_ranges)
    if entry is None or not isinstance(entry[1], int):
        return []
    unit = die.unit
    if unit.version >= 5:
        data = dwarf.data(".debug_rnglists")
        at = entry[1]
        if entry[0] == dw.FORM_rnglistx:
            at = _indexed(dwarf, unit, data, dw.AT_rnglists_base, at)
        found = [(lo, hi) for lo, hi, _pos in _list5(dwarf, unit, data, at, locations=False)]
    else:
        data = dwarf.data(".debug_ranges")
        found = [(lo, hi) for lo, hi, _pos in _list4(dwarf, unit, data, entry[1], locations=False)]
    return [(lo, hi) for lo, hi in found if hi > lo]


def locations_of(dwarf: Dwarf, die: Die, attribute: int = dw.AT_location) -> list[Located]:
    """Where a variable lives, by address. Empty when DWARF does not say."""
    entry = die.values.get(attribute)
    if entry is None:
        return []
    form, value = entry
    if isinstance(value, bytes):
        return [(0, EVERYWHERE, value)] if value else []
    unit = die.unit
    if unit.version >= 5:
        data = dwarf.data(".debug_loclists")
        if form == dw.FORM_loclistx:
            value = _indexed(dwarf, unit, data, dw.AT_loclists_base, value)
        raw = _list5(dwarf, unit, data, value, locations=True)
    else:
        data = dwarf.data(".debug_loc")
        raw = _list4(dwarf, unit, data, value, locations=True)
    found: list[Located] = []
    for lo, hi, (at, size) in raw:
        if hi > lo and size:
            found.append((lo, hi, data.read(at, size)))
    return found


def _indexed(dwarf: Dwarf, unit: Unit, data: Data, attribute: int, index: int) -> int:
    base = dwarf.root(unit).number(attribute)
    if base is None:
        base = 12 if unit.offset_size == 4 else 20  # the first list after the section's header
    return base + data.uint(base + index * unit.offset_size, unit.offset_size)


def _base_address(dwarf: Dwarf, unit: Unit) -> int:
    return dwarf.address(dwarf.root(unit), dw.AT_low_pc) or 0


def _list4(
    dwarf: Dwarf, unit: Unit, data: Data, at: int, *, locations: bool
) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """DWARF 4, sections 2.6.2 and 2.17.3."""
    width = unit.addr_size
    highest = (1 << (8 * width)) - 1
    base = _base_address(dwarf, unit)
    for _ in range(_MAX_ENTRIES):
        dwarf.spend()
        low, high = data.uint(at, width), data.uint(at + width, width)
        at += 2 * width
        if low == 0 and high == 0:
            return
        if low == highest:
            base = high
            continue
        block = (0, 0)
        if locations:
            size = data.uint(at, 2)
            block = (at + 2, size)
            at += 2 + size
        yield low + base, high + base, block
    raise data.bad("a list has no end")


def _list5(
    dwarf: Dwarf, unit: Unit, data: Data, at: int, *, locations: bool
) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """DWARF 5, sections 7.7.3 (DW_LLE) and 7.25 (DW_RLE). The codes agree but for default_location."""
    try:
        yield from _entries5(dwarf, unit, data, at, locations)
    except Truncated:
        raise data.bad(f"list at {at:#x} is truncated") from None


def _entries5(
    dwarf: Dwarf, unit: Unit, data: Data, at: int, locations: bool
) -> Iterator[tuple[int, int, tuple[int, int]]]:
    width = unit.addr_size
    base = _base_address(dwarf, unit)

    def leb(pos: int) -> tuple[int, int]:
        value, after = uleb(data.buf, data.base + pos, data.end)
        return value, after - data.base

    for _ in range(_MAX_ENTRIES):
        dwarf.spend()
        kind = data.uint(at, 1)
        at += 1
        if locations and kind >= 5:  # DW_LLE has default_location at 5, DW_RLE does not
            kind = {5: -5, 6: 5, 7: 6, 8: 7}.get(kind, kind)
        low, high = 0, EVERYWHERE
        if kind == 0:
            return
        if kind == 1:  # base_addressx
            index, at = leb(at)
            base = dwarf.indexed_address(unit, index)
            continue
        if kind == 2:  # startx_endx
            first, at = leb(at)
            second, at = leb(at)
            low, high = dwarf.indexed_address(unit, first), dwarf.indexed_address(unit, second)
        elif kind == 3:  # startx_length
            first, at = leb(at)
            second, at = leb(at)
            low = dwarf.indexed_address(unit, first)
            high = low + second
        elif kind == 4:  # offset_pair
            low, at = leb(at)
            high, at = leb(at)
            low, high = low + base, high + base
        elif kind == -5:
            pass
        elif kind == 5:  # base_address
            base = data.uint(at, width)
            at += width
            continue
        elif kind == 6:  # start_end
            low, high = data.uint(at, width), data.uint(at + width, width)
            at += 2 * width
        elif kind == 7:  # start_length
            low = data.uint(at, width)
            length, at = leb(at + width)
            high = low + length
        else:
            raise data.bad(f"list entry of unknown kind {kind}")
        block = (0, 0)
        if locations:
            size, at = leb(at)
            block = (at, size)
            at += size
        yield low, high, block
    raise data.bad("a list has no end")
