# Owns copying a stopped process's memory into a bounded buffer, until a deadline. Must not decide what is
# worth copying. Reading may block for ever (userfaultfd(2), FUSE): whoever stops the target must not wait
# for this.
from __future__ import annotations

import ctypes
import mmap
import struct
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from probes.capture.facts import Left, LeftOut
from probes.capture.process import PAGE, Mappings
from probes.capture.ptrace import Ptrace

CHUNK = 256 << 10
_MOST_HOLES = 64  # unreadable pages in one piece, before the rest of it is given up


def new_buffer(size: int, ready: int = 0) -> mmap.mmap:
    """Where copies go. ready: bytes whose pages are made now, not while a target stands (5 times faster)."""
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, min(ready, size), PAGE):
        buffer[at] = 0
    return buffer


class Stopped(Exception):
    """No more memory can be had: the deadline, or the limit."""

    def __init__(self, why: Left) -> None:
        super().__init__(why.value)
        self.why = why


class Run(NamedTuple):
    """Bytes that were copied. at: their place in the buffer."""

    start: int
    size: int
    at: int


class Copier:
    """Copies memory of one process, each page at most once. Used by one thread; close() from another."""

    def __init__(self, pid: int, mappings: Mappings, buffer: mmap.mmap, limit: int, deadline_ns: int) -> None:
        """limit: bytes, at most those of the buffer. deadline_ns: of CLOCK_MONOTONIC."""
        self._pid, self._mappings, self._deadline = pid, mappings, deadline_ns
        self._ptrace = Ptrace()
        self._buffer = buffer
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        self._limit, self._used = min(limit, len(buffer)), 0
        self._starts: list[int] = []  # what was taken or tried, disjoint, sorted
        self._ends: list[int] = []
        self._scratch = ctypes.create_string_buffer(1 << 16)
        self.closed = False
        self.reading: tuple[str, int, int] | None = None  # what, start, end: of the read that may hang
        self.runs: list[Run] = []
        self.left: list[LeftOut] = []

    @property
    def copied(self) -> int:
        return sum(run.size for run in self.runs)

    def close(self) -> None:
        """The target goes on: what is copied from now on does not count."""
        self.closed = True

    def view(self, run: Run) -> memoryview:
        return memoryview(self._buffer)[run.at : run.at + run.size]

    def read(self, address: int, count: int) -> bytes:
        """A few bytes, not kept; less than wanted, or b"", where there is nothing. Raises Stopped."""
        self._check()
        count = min(count, len(self._scratch))
        got = self._ptrace.read(self._pid, address, count, ctypes.addressof(self._scratch))
        return self._scratch.raw[:got]

    def words(self, address: int, count: int) -> tuple[int, ...]:
        raw = self.read(address, 8 * count)
        return struct.unpack(f"<{len(raw) // 8}Q", raw[: len(raw) // 8 * 8])

    def take(self, what: str, start: int, end: int, *, asked: bool = False) -> None:
        """Copy [start, end), widened to pages, as far as it is mapped, readable and not copied yet.

        asked: note also what is not mapped. Raises Stopped at the deadline and at the limit; what was missing
        is in `left`.
        """
        start, end = max(0, start - start % PAGE), min(-(-end // PAGE) * PAGE, 1 << 47)
        for first, last in list(self._untaken(start, end)):
            at = first
            for vma in self._mappings.between(first, last):
                begin, stop = max(vma.start, at), min(vma.end, last)
                if begin > at and asked:
                    self._leave(what, at, begin, Left.UNMAPPED)
                at = stop
                if vma.readable:
                    self._mark(begin, stop)
                    self._copy(what, begin, stop)
                else:
                    self._leave(what, begin, stop, Left.UNREADABLE)
            if at < last and asked:
                self._leave(what, at, last, Left.UNMAPPED)

    def missing(self, start: int, end: int) -> int:
        """How many bytes of [start, end) have not been tried."""
        return sum(last - first for first, last in self._untaken(start, end))

    # -- inside ----------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.closed or time.monotonic_ns() >= self._deadline:
            raise Stopped(Left.DEADLINE)

    def _leave(self, what: str, start: int, end: int, why: Left) -> None:
        self.left.append(LeftOut(what=what, address=start, size=end - start, why=why))

    def _copy(self, what: str, start: int, end: int) -> None:
        holes = 0
        while start < end:
            wanted = min(CHUNK, end - start, self._limit - self._used)
            self.reading = (what, start, end)
            try:
                self._check()
                if wanted <= 0:
                    raise Stopped(Left.LIMIT)
                got = self._ptrace.read(self._pid, start, wanted, self._base + self._used) // PAGE * PAGE
                self._check()  # copied while the target ran on: not of this stop
            except Stopped as stopped:
                self._leave(what, start, end, stopped.why)
                self.reading = None
                raise
            if got:
                self._keep(start, got)
                start += got
            if got < wanted:
                holes += 1
                last = min(end, start + PAGE) if holes < _MOST_HOLES else end
                self._leave(what, start, last, Left.UNREADABLE)
                start = last
        self.reading = None

    def _keep(self, start: int, size: int) -> None:
        last = self.runs[-1] if self.runs else None
        if last is not None and last.start + last.size == start and last.at + last.size == self._used:
            self.runs[-1] = Run(last.start, last.size + size, last.at)
        else:
            self.runs.append(Run(start, size, self._used))
        self._used += size

    def _untaken(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        index = max(0, bisect_right(self._starts, start) - 1)
        while start < end and index < len(self._starts) and self._starts[index] < end:
            if self._starts[index] > start:
                yield start, self._starts[index]
            start = max(start, self._ends[index])
            index += 1
        if start < end:
            yield start, end

    def _mark(self, start: int, end: int) -> None:
        """Merge [start, end) into what was taken."""
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
