# Owns which units describe which addresses, by the ranges that their roots give. Must not read other entries.
from __future__ import annotations

import bisect
from itertools import accumulate

from symbols import dwarf_const as dw
from symbols.dwarf import Dwarf, Unit
from symbols.lists import ranges_of

_ROOTS = (dw.TAG_compile_unit, dw.TAG_skeleton_unit)


class Coverage:
    """Address -> units. Units whose roots give no ranges may describe any address."""

    def __init__(self, dwarf: Dwarf) -> None:
        spans: list[tuple[int, int, Unit]] = []
        self.unknown: list[Unit] = []
        split = {id(unit.skeleton) for unit in dwarf.units if unit.skeleton is not None}
        for unit in dwarf.units:
            dwarf.spend()
            root = dwarf.root(unit.home)  # a split unit's skeleton has the ranges
            if root.tag not in _ROOTS or id(unit) in split:
                continue
            found = ranges_of(dwarf, root)
            spans += ((low, high, unit) for low, high in found)
            if not found:
                self.unknown.append(unit)
        spans.sort(key=lambda span: span[:2])
        self._lows = [low for low, _high, _unit in spans]
        self._highs = [high for _low, high, _unit in spans]
        self._units = [unit for _low, _high, unit in spans]
        self._reach = list(accumulate(self._highs, max))

    def units_at(self, address: int) -> list[Unit]:
        """The units whose ranges hold an address, and those that may."""
        found: list[Unit] = []
        index = bisect.bisect_right(self._lows, address) - 1
        while index >= 0 and self._reach[index] > address:
            if self._highs[index] > address:
                found.append(self._units[index])
            index -= 1
        return found + self.unknown

    def maybe(self, address: int) -> bool:
        """False only when the units' own ranges prove that none describes the address."""
        return not self._lows or bool(self.units_at(address))
