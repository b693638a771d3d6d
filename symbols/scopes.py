# Owns the way from an entry to its surroundings: the enclosing function, the chain of scopes down to
# an instance, source places, what locations refer to. Reads DWARF through dwarf.py; judges nothing.
from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, replace

from symbols import dwarf_const as dw
from symbols.cfa import CfaRules
from symbols.dwarf import Die, Dwarf, Unit
from symbols.expressions import Place, Unsupported, value_of
from symbols.image import Image
from symbols.linetable import LineTables
from symbols.lists import Range, locations_of, ranges_of
from symbols.plan import ArgSource, SourceLine
from symbols.registers import MACHINES, X86_64
from symbols.search import Search
from symbols.values import register

_CALL_FRAME_CFA = b"\x9c"
_SCOPES = frozenset((dw.TAG_lexical_block, dw.TAG_inlined_subroutine, dw.TAG_subprogram))


@dataclass(slots=True)
class Function:
    """An out-of-line function: its entry and code ranges, first range at the entry point."""

    die: Die
    name: str
    low: int
    ranges: list[Range]

    def holds(self, address: int) -> bool:
        return any(lo <= address < hi for lo, hi in self.ranges)


class Scopes:
    """Functions and scopes of one image, found by search."""

    def __init__(
        self, image: Image, dwarf: Dwarf, search: Search, lines: LineTables, *, symbols: Image | None = None
    ) -> None:
        self.image = image
        self.symbols = symbols or image  # a stripped image's symbols are in its debug file
        self.dwarf = dwarf
        self.search = search
        self.lines = lines
        self._at_low: dict[int, Function | None] = {}
        self._index: list[Function] | None = None
        self._units: list[tuple[int, int, int]] | None = None  # range, index of its unit
        self.machine = MACHINES.get(image.machine, X86_64)  # of others, lines are read and nothing else
        self._cfa = CfaRules(image, self.machine, dwarf.image)
        self._cfa_at: dict[int, ArgSource | None] = {}

    # -- functions -------------------------------------------------------------------------------

    def function_of(self, address: int) -> Function | None:
        """The out-of-line function whose code holds the address."""
        symbol = self.symbols.function_at(address)
        if symbol is not None:
            found = self._function_at_low(symbol.address)
            if found is not None and found.holds(address):
                return found
        for function in self._all():  # no symbol, or a symbol DWARF does not agree with
            if function.holds(address):
                return function
        return None

    def as_function(self, die: Die) -> Function | None:
        """A subprogram entry that has code; None for declarations and abstract instances."""
        ranges = ranges_of(self.dwarf, die)
        if not ranges or not self.image.executable(ranges[0][0]):
            return None
        low = self.dwarf.address(die, dw.AT_low_pc)
        entry = low if low is not None and any(lo == low for lo, _hi in ranges) else ranges[0][0]
        ranges.sort(key=lambda r: r[0] != entry)
        return Function(die, self.dwarf.linkage_name(die) or f"{entry:#x}", entry, ranges)

    def _function_at_low(self, low: int) -> Function | None:
        if low not in self._at_low:
            found = (self.as_function(die) for die in self.search.subprograms_at(low))
            self._at_low[low] = next((function for function in found if function is not None), None)
        return self._at_low[low]

    def _all(self) -> list[Function]:
        if self._index is None:
            self._index = []
            for unit in self.dwarf.units:
                for offset, abbrev in self.search.scan(unit, (dw.TAG_subprogram,)):
                    if abbrev.has(dw.AT_low_pc) or abbrev.has(dw.AT_ranges):
                        die = self.dwarf.die(offset, unit)
                        function = self.as_function(die) if die is not None else None
                        if function is not None:
                            self._index.append(function)
        return self._index

    def maybe_described(self, address: int) -> bool:
        """False only when the units' own ranges prove that no debug information covers the address."""
        return self.search.coverage.maybe(address)

    def unit_at(self, address: int) -> Unit | None:
        """The unit whose own ranges hold the address; None where units do not say theirs."""
        if self._units is None:
            spans = [
                (lo, hi, number)
                for number, unit in enumerate(self.dwarf.units)
                if unit.skeleton is None
                for lo, hi in ranges_of(self.dwarf, self.dwarf.root(unit))
            ]
            self._units = sorted(spans)
        index = bisect.bisect_right(self._units, (address, 1 << 64, 0)) - 1
        if index < 0 or not self._units[index][0] <= address < self._units[index][1]:
            return None
        return self.dwarf.units[self._units[index][2]]

    # -- scopes ----------------------------------------------------------------------------------

    def path_to(self, function: Function, offset: int) -> list[Die] | None:
        """The scopes from the function's own entry down to (and with) the entry at offset.

        None when no such entry lies below the function: a hit that is no entry at all.
        """
        chain = [function.die]
        for depth, die in self.dwarf.subtree(function.die):
            if die.offset > offset:
                return None
            if die.offset == offset:
                return [*chain[:depth], die]
            if die.abbrev.children:
                del chain[depth:]
                chain.append(die)
        return None

    def chain_at(self, function: Function, address: int) -> list[Die]:
        """The scopes that cover an address, outermost first, the function itself included."""
        chain = [function.die]
        for depth, die in self.dwarf.subtree(function.die):
            if depth != len(chain) or die.tag not in _SCOPES or die.tag == dw.TAG_subprogram:
                continue
            if any(lo <= address < hi for lo, hi in ranges_of(self.dwarf, die)):
                chain.append(die)
        return chain

    def variables(self, scope: Die) -> Iterator[Die]:
        """Parameters and variables declared directly in a scope."""
        wanted = (dw.TAG_formal_parameter, dw.TAG_variable)
        return (child for child in self.dwarf.children(scope) if child.tag in wanted)

    # -- source places ---------------------------------------------------------------------------

    def call_site(self, die: Die, function: Function) -> SourceLine | None:
        """Where an inlined instance was called from.

        Zig's own backend gives no call_file: it inlines into the function's own file.
        """
        line = die.number(dw.AT_call_line)
        file = die.number(dw.AT_call_file)
        if line is None:
            return None
        name = self.file(die.unit, file)
        if file is None:
            row = self.lines.at(function.low, function.die.unit)
            name = row.file if row is not None else "?"
        return SourceLine(file=name, line=line, column=die.number(dw.AT_call_column) or 0)

    def declared_at(self, die: Die, low: int | None = None) -> SourceLine | None:
        """Where a function was declared; from the line table at its entry where DWARF does not say."""
        line = self.dwarf.inherited(die, dw.AT_decl_line)
        file = self.dwarf.inherited(die, dw.AT_decl_file)
        if line is not None and file is not None:
            column = self.dwarf.inherited(die, dw.AT_decl_column)
            return SourceLine(
                file=self.file(file[0].unit, file[1]), line=line[1], column=column[1] if column else 0
            )
        row = self.lines.at(low, die.unit) if low is not None else None
        if row is not None and line is not None:
            return SourceLine(file=row.file, line=line[1])
        return row

    def file(self, unit: Unit, index: int | None) -> str:
        return self.lines.file(unit, index) if index is not None else "?"

    # -- what locations refer to -----------------------------------------------------------------

    def place(self, function: Function, address: int) -> Place:
        """What a location expression means at an address of the function."""
        entry = self._place(function, function.low, None)
        return entry if address == function.low else self._place(function, address, entry)

    def _place(self, function: Function, address: int, entry: Place | None) -> Place:
        cfa = self.cfa(function, address)
        machine, dwarf = self.machine, self.dwarf
        place = Place(machine=machine, cfa=cfa, at_entry=entry is None, entry=entry, dwarf=dwarf)
        reason = place.base_reason
        for low, high, expr in locations_of(dwarf, function.die, dw.AT_frame_base):
            if not low <= address < high:
                reason = "the frame base has no location there"
                continue
            try:
                base = value_of(expr, function.die.unit, place)
            except Unsupported as error:
                return replace(place, base_reason=f"the frame base cannot be told: {error}")
            return replace(place, base=base, base_is_cfa=expr == _CALL_FRAME_CFA)
        return replace(place, base_reason=reason)

    def cfa(self, function: Function, address: int) -> ArgSource | None:
        """The canonical frame address of the function's call, at an address of the function."""
        if address == function.low:
            return register(self.machine.stack).add(self.machine.entry_cfa).source
        if address not in self._cfa_at:
            self._cfa_at[address] = self._cfa.at(address)
        return self._cfa_at[address]
