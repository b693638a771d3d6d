# Owns range lists and location lists of DWARF 4 (.debug_ranges, .debug_loc) and 5 (.debug_rnglists,
# .debug_loclists). Returns plain tuples; must not evaluate expressions.
from __future__ import annotations

from collections.abc import Iterator

from symbols import dwarf_const as dw
from symbols.data import Data
from symbols.dwarf import Die, Dwarf, Unit
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
        data = unit.part.section(".debug_rnglists")
        at = entry[1]
        if entry[0] == dw.FORM_rnglistx:
            at = _indexed(dwarf, unit, data, dw.AT_rnglists_base, at)
        found = [(lo, hi) for lo, hi, _pos in _list5(dwarf, unit, data, at, locations=False)]
    else:
        data, at = unit.home.part.section(".debug_ranges"), entry[1]
        if unit.skeleton is not None:  # GNU's split DWARF 4
            at += dwarf.root(unit.skeleton).number(dw.AT_GNU_ranges_base) or 0
        found = [(lo, hi) for lo, hi, _pos in _list4(dwarf, unit, data, at, locations=False)]
    return [(lo, hi) for lo, hi in found if hi > lo]


def locations_of(dwarf: Dwarf, die: Die, attribute: int = dw.AT_location) -> list[Located]:
    """Where a variable lives, by address. Empty when DWARF does not say."""
    return [(lo, hi, expr) for lo, hi, expr in _located(dwarf, die, attribute) if hi > lo]


def views_of(dwarf: Dwarf, die: Die) -> list[Located]:
    """Where a variable lives between two views of one address, before its instruction runs: low == high.

    gcc's location views (gcc.gnu.org, "LVu"): without DW_AT_GNU_locviews such an entry means nothing.
    """
    if not die.has(dw.AT_GNU_locviews):
        return []
    return [(lo, hi, expr) for lo, hi, expr in _located(dwarf, die, dw.AT_location) if hi == lo]


def _located(dwarf: Dwarf, die: Die, attribute: int) -> list[Located]:
    entry = die.values.get(attribute)
    if entry is None:
        return []
    form, value = entry
    if isinstance(value, bytes):
        return [(0, EVERYWHERE, value)] if value else []
    unit = die.unit
    if unit.version >= 5:
        data = unit.part.section(".debug_loclists")
        if form == dw.FORM_loclistx:
            value = _indexed(dwarf, unit, data, dw.AT_loclists_base, value)
        raw = _list5(dwarf, unit, data, value, locations=True)
    else:
        data = unit.part.section(".debug_loc")
        if unit.part.suffix:
            raw = _list_gnu(dwarf, unit, data, value)
        else:
            raw = _list4(dwarf, unit, data, value, locations=True)
    found: list[Located] = []
    for lo, hi, (at, size) in raw:
        if hi >= lo and size:
            found.append((lo, hi, data.read(at, size)))
    return found


def _indexed(dwarf: Dwarf, unit: Unit, data: Data, attribute: int, index: int) -> int:
    base = dwarf.root(unit).number(attribute)
    if base is None:
        base = 12 if unit.offset_size == 4 else 20  # the first list after the section's header
    return base + data.uint(base + index * unit.offset_size, unit.offset_size)


def _base_address(dwarf: Dwarf, unit: Unit) -> int:
    return dwarf.address(dwarf.root(unit.home), dw.AT_low_pc) or 0


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


def _list_gnu(dwarf: Dwarf, unit: Unit, data: Data, at: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """.debug_loc.dwo of GNU's split DWARF 4 (gcc.gnu.org/wiki/DebugFission, DW_LLE_GNU_*)."""
    base = _base_address(dwarf, unit)
    try:
        for _ in range(_MAX_ENTRIES):
            dwarf.spend()
            kind = data.uint(at, 1)
            at += 1
            if kind == 0:
                return
            if kind == 4:  # offset_pair
                low, high, at = data.uint(at, 4) + base, data.uint(at + 4, 4) + base, at + 8
            elif kind in (1, 2, 3):
                first, pos = uleb(data.buf, data.base + at, data.end)
                low, at = dwarf.indexed_address(unit, first), pos - data.base
                if kind == 1:  # base_address_selection
                    base = low
                    continue
                if kind == 2:  # start_end
                    second, pos = uleb(data.buf, data.base + at, data.end)
                    high, at = dwarf.indexed_address(unit, second), pos - data.base
                else:  # start_length
                    high, at = low + data.uint(at, 4), at + 4
            else:
                raise data.bad(f"list entry of unknown kind {kind}")
            size = data.uint(at, 2)
            yield low, high, (at + 2, size)
            at += 2 + size
    except Truncated:
        raise data.bad(f"list at {at:#x} is truncated") from None
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


def merge(spans: list[Range]) -> list[Range]:
    """By address, overlapping and adjoining ones as one."""
    merged: list[Range] = []
    for low, high in sorted(spans):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged
