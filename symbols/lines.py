# Owns the Symbolizer: pc -> frames with file, line and inline chain. Never raises for an address it
# does not know: a stack must be printable. Must not read processes; addresses are image addresses.
from __future__ import annotations

import os
from collections import OrderedDict

from symbols import dwarf_const as dw
from symbols.debugfiles import Searched
from symbols.dwarf import Die, Dwarf
from symbols.errors import STRAY_ERRORS, NoDebugInfo, SymbolError
from symbols.fetch import Debuginfod
from symbols.image import Image
from symbols.linetable import LineTables
from symbols.plan import Frame, SourceLine
from symbols.scopes import Function, Scopes
from symbols.search import Search


class Symbolizer:
    """Frames of image addresses, innermost first, with a bounded LRU cache.

    Without DWARF (or in its gaps): the symbol table's name and no location; without a symbol: "?".
    The image must stay open as long as the symbolizer is used.
    """

    def __init__(
        self, image: Image, *, debug: Image | None = None, capacity: int = 4096, names_only: bool = False
    ) -> None:
        """names_only: from symbol tables, without opening debug information."""
        self._image = image
        self._symbols = debug if debug is not None and debug.has_functions else image
        self._cache: OrderedDict[int, tuple[Frame, ...]] = OrderedDict()
        self._capacity = max(1, capacity)
        self._dwarf: Dwarf | None = None
        if names_only:
            return
        try:
            # No server is asked for a stack.
            self._dwarf = Dwarf(debug or image, Searched(server=Debuginfod(urls=())))
        except NoDebugInfo:
            return
        except (SymbolError, *STRAY_ERRORS):
            return  # damaged debug information: names from the symbol table are still right
        self._lines = LineTables(self._dwarf)
        search = Search(self._dwarf)
        self._scopes = Scopes(image, self._dwarf, search, self._lines, symbols=self._symbols)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Symbolizer:
        """A symbolizer on a file of its own. Raises SymbolError when it is no ELF file."""
        return cls(Image(path, any_machine=True))

    def frames(self, address: int) -> tuple[Frame, ...]:
        """At least one frame. For a return address pass address - 1."""
        known = self._cache.get(address)
        if known is not None:
            self._cache.move_to_end(address)
            return known
        try:
            if self._dwarf is not None:
                self._dwarf.refill()
            found = self._find(address)
        except (SymbolError, *STRAY_ERRORS):
            found = self._by_symbol(address)
        self._cache[address] = found
        if len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return found

    def _by_symbol(self, address: int) -> tuple[Frame, ...]:
        symbol = self._symbols.function_at(address)
        return (Frame(function=symbol.name if symbol else "?", location=None),)

    def _find(self, address: int) -> tuple[Frame, ...]:
        if self._dwarf is None:
            return self._by_symbol(address)
        function = self._function(address)
        if function is None:
            return self._by_symbol(address)
        location = self._lines.at(address, function.die.unit)
        frames = []
        inlined = [
            scope
            for scope in self._scopes.chain_at(function, address)
            if scope.tag == dw.TAG_inlined_subroutine
        ]
        for scope in reversed(inlined):
            frames.append(Frame(function=self._name(scope), location=location, inlined=True))
            location = self._scopes.call_site(scope, function)
        frames.append(Frame(function=self._name(function.die), location=location))
        return tuple(frames)

    def _function(self, address: int) -> Function | None:
        symbol = self._symbols.function_at(address)
        if symbol is not None and symbol.size and not self._scopes.maybe_described(address):
            return None  # an object without debug information: do not scan all of it for nothing
        return self._scopes.function_of(address)

    def _name(self, die: Die) -> str:
        if self._dwarf is None:
            return "?"
        return self._dwarf.linkage_name(die) or "?"


def describe(frame: Frame) -> str:
    """`function at file:line`, for logs and tests."""
    place: SourceLine | None = frame.location
    return f"{frame.function} at {place}" if place else frame.function
