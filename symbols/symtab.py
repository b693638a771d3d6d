# Owns a symbol table's functions, by address. Numbers only: a name is read when it is asked for.
# Must not know other sections.
from __future__ import annotations

import bisect
import struct
from array import array
from dataclasses import dataclass

from symbols.data import Data

_MAX_SYMBOLS = 4_000_000
_INDEX = (1 << 24) - 1  # more than that
_STT_FUNC = 2


@dataclass(frozen=True, slots=True)
class FunctionSymbol:
    name: str
    address: int
    size: int  # bytes; 0 where the symbol table gives none


class FunctionTable:
    """FUNC symbols with an address. Raises MalformedImage where a name is not there."""

    def __init__(self, data: Data | None = None, strings: Data | None = None) -> None:
        """data: .symtab or .dynsym; without it the table is empty. strings: what it is linked to."""
        self._strings = strings
        self._starts, self._sizes, self._names = array("Q"), array("Q"), array("I")
        if data is not None and strings is not None:
            self._read(data, strings)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def all(self) -> list[FunctionSymbol]:
        return [self._symbol(index) for index in range(len(self._starts))]

    def at(self, address: int) -> FunctionSymbol | None:
        """The function whose [address, address + size) holds the address."""
        index = bisect.bisect_right(self._starts, address) - 1
        steps = 0
        while index >= 0 and steps < 16:  # aliases and nested sizes: a few steps back are enough
            start = self._starts[index]
            if start <= address < start + max(self._sizes[index], 1):
                return self._symbol(index)
            index -= 1
            steps += 1
        return None

    def _symbol(self, index: int) -> FunctionSymbol:
        if self._strings is None:
            return FunctionSymbol("", self._starts[index], self._sizes[index])
        text = self._strings.cstr(self._names[index]).decode("utf-8", "replace")
        return FunctionSymbol(text, self._starts[index], self._sizes[index])

    def _read(self, data: Data, strings: Data) -> None:
        count = min(data.size // 24, _MAX_SYMBOLS)
        starts, sizes, names = array("Q"), array("Q"), array("I")
        for first in range(0, count, 1 << 14):
            raw = data.read(first * 24, min(1 << 14, count - first) * 24)
            for name, info, _other, shndx, value, size in struct.iter_unpack("<IBBHQQ", raw):
                if info & 15 == _STT_FUNC and shndx and value:
                    starts.append(value)
                    sizes.append(size)
                    names.append(name)
        buf, base, limit = strings.buf, strings.base, strings.end

        def rank(key: int) -> tuple[int, bool, int]:
            """function_at takes the last of those with one address: `close`, not `__close`."""
            index = key & _INDEX
            at = base + names[index]
            return -sizes[index], at < limit and buf[at] != 0x5F, names[index]

        # One number each: a tuple or a sort key for every function would take three times the memory.
        order = [start << 24 | index for index, start in enumerate(starts)]
        order.sort()
        first = 0
        for last in range(1, len(order) + 1):
            if last == len(order) or order[last] >> 24 != order[first] >> 24:
                if last - first > 1:
                    order[first:last] = sorted(order[first:last], key=rank)
                first = last
        self._starts = array("Q", (key >> 24 for key in order))
        self._sizes = array("Q", (sizes[key & _INDEX] for key in order))
        self._names = array("I", (names[key & _INDEX] for key in order))
