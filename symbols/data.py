# Owns bounded, read-only windows on mapped bytes: checked reads, and searches that leave no memory behind.
# Must not know ELF.
from __future__ import annotations

import mmap
import re
from collections.abc import Iterator

from symbols.errors import MalformedImage

WINDOW = 1 << 20  # bytes looked at before they may leave the memory again


class Data:
    """A read-only window on a buffer: section bytes without a copy.

    Offsets are relative to the window. Reads beyond its end raise MalformedImage.
    """

    __slots__ = ("_touched", "base", "buf", "end", "name", "path", "size")

    def __init__(self, buf: bytes | mmap.mmap, base: int, size: int, name: str, path: str) -> None:
        self.buf = buf
        self.base = base
        self.size = size
        self.end = base + size
        self.name = name
        self.path = path
        self._touched = (1 << 62, 0, 0)  # lowest, highest, bytes searched since they last left memory

    def bad(self, detail: str) -> MalformedImage:
        return MalformedImage(detail, path=self.path, where=self.name)

    def read(self, offset: int, count: int) -> bytes:
        if offset < 0 or count < 0 or offset + count > self.size:
            raise self.bad(f"{count} bytes at {offset:#x} lie beyond its end ({self.size:#x})")
        start = self.base + offset
        return self.buf[start : start + count]

    def uint(self, offset: int, count: int) -> int:
        return int.from_bytes(self.read(offset, count), "little")

    def cstr(self, offset: int) -> bytes:
        if offset < 0 or offset >= self.size:
            raise self.bad(f"string at {offset:#x} lies beyond its end ({self.size:#x})")
        start = self.base + offset
        stop = self.buf.find(b"\0", start, self.end)
        if stop < 0:
            raise self.bad(f"string at {offset:#x} has no end")
        return self.buf[start:stop]

    def same(self, other: Data) -> bool:
        """Whether both windows show the same bytes."""
        step = 1 << 20
        return self.size == other.size and all(
            self.read(at, min(step, self.size - at)) == other.read(at, min(step, self.size - at))
            for at in range(0, self.size, step)
        )

    def position(self, pattern: bytes, low: int, high: int) -> int:
        """Buffer position of the pattern's first occurrence between two positions; -1 without one.

        mmap.find of CPython before 3.11.4 reads one byte behind the end (gh-105235), which need not be mapped
        where the end is the map's.
        """
        if high < len(self.buf):
            return self.buf.find(pattern, low, high)
        at = self.buf.find(pattern, low, high - 1)
        last = high - len(pattern)
        return last if at < 0 and last >= low and self.buf[last:high] == pattern else at

    def find_all(self, pattern: bytes, start: int = 0, stop: int | None = None) -> list[int]:
        """Offsets of every (also overlapping) occurrence of pattern."""
        found = []
        limit = self.end if stop is None else min(self.base + stop, self.end)
        low = self.base + start
        while low < limit:
            high = min(low + WINDOW, limit)
            reach = min(high + len(pattern) - 1, limit)
            at = self.position(pattern, low, reach)
            while at >= 0:
                found.append(at - self.base)
                at = self.position(pattern, at + 1, reach)
            self._forget(low, high)
            low = high
        return found

    def search(self, regex: re.Pattern[bytes], start: int, stop: int, reach: int) -> Iterator[int]:
        """Offsets at which a look-ahead matches that sees at most `reach` bytes."""
        limit = min(self.base + stop, self.end)
        for low in range(self.base + start, limit, WINDOW):
            high = min(low + WINDOW, limit)
            for match in regex.finditer(self.buf, low, min(high + reach, limit)):
                if match.start() >= high:
                    break  # the next window has it whole
                yield match.start() - self.base
            self._forget(low, high)

    def _forget(self, low: int, high: int) -> None:
        """What was looked at leaves the memory from time to time: sections are larger than it should be."""
        first, last, total = self._touched
        first, last, total = min(first, low), max(last, high), total + high - low
        if total >= WINDOW and isinstance(self.buf, mmap.mmap):
            page = first & -mmap.PAGESIZE
            self.buf.madvise(mmap.MADV_DONTNEED, page, last - page)
            first, last, total = 1 << 62, 0, 0
        self._touched = (first, last, total)
