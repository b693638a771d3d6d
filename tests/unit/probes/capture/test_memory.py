"""Copying memory, on this very process."""

from __future__ import annotations

import ctypes
import mmap
import os
import time

import pytest

from probes.capture.facts import Left
from probes.capture.memory import Copier, Run, Stopped, new_buffer
from probes.capture.process import PAGE, Mappings, mappings_of
from probes.capture.selection import populated
from probes.capture.snapshot import segments

FOREVER = 1 << 62


class Area:
    """Anonymous memory of known content: page n holds n + 1."""

    def __init__(self, pages: int) -> None:
        self._map = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for page in range(pages):
            self._map[page * PAGE : (page + 1) * PAGE] = bytes([page % 255 + 1]) * PAGE
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def forbid(self, page: int) -> None:
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(self.start + page * PAGE), PAGE, 0) == 0

    def allow(self, page: int) -> None:
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(self.start + page * PAGE), PAGE, 3) == 0


def copier(limit: int = 1 << 20, deadline: int = FOREVER, mappings: Mappings | None = None) -> Copier:
    return Copier(os.getpid(), mappings or mappings_of(os.getpid()), new_buffer(limit), limit, deadline)


def content(one: Copier) -> dict[int, bytes]:
    """Page address -> its first byte."""
    found = {}
    for run in one.runs:
        view = one.view(run)
        for at in range(0, run.size, PAGE):
            assert run.start + at not in found
            found[run.start + at] = bytes(view[at : at + 1])
    return found


def test_each_page_once() -> None:
    area = Area(64)
    one = copier()
    for start, end in ((5, 9), (7, 12), (0, 6), (3, 20), (40, 41), (41, 42)):
        one.take("x", area.start + start * PAGE + 100, area.start + end * PAGE - 100)
    pages = [*range(20), 40, 41]
    assert content(one) == {area.start + page * PAGE: bytes([page + 1]) for page in pages}
    assert one.missing(area.start, area.start + 64 * PAGE) == 42 * PAGE
    assert one.left == []


def test_the_limit() -> None:
    area = Area(64)
    one = copier(limit=16 * PAGE)
    one.take("first", area.start, area.start + 10 * PAGE)
    with pytest.raises(Stopped):
        one.take("second", area.start + 32 * PAGE, area.start + 64 * PAGE)
    assert len(content(one)) == 16
    (left,) = one.left
    assert (left.what, left.address, left.size, left.why) == (
        "second", area.start + 38 * PAGE, 26 * PAGE, Left.LIMIT
    )  # fmt: skip


def test_the_deadline_and_the_end_of_the_stop() -> None:
    area = Area(4)
    late = copier(deadline=time.monotonic_ns())
    with pytest.raises(Stopped):
        late.take("x", area.start, area.start + PAGE)
    assert (late.runs, late.left[0].why) == ([], Left.DEADLINE)
    closed = copier()
    closed.take("x", area.start, area.start + PAGE)
    closed.close()
    with pytest.raises(Stopped):
        closed.take("x", area.start + PAGE, area.start + 2 * PAGE)
    with pytest.raises(Stopped):
        closed.read(area.start, 8)
    assert len(content(closed)) == 1


def test_holes() -> None:
    """A page that mappings promise and the kernel refuses: left out, and the rest is there."""
    area = Area(8)
    mappings = mappings_of(os.getpid())
    area.forbid(3)
    try:
        one = copier(mappings=mappings)
        one.take("x", area.start, area.start + 8 * PAGE)
    finally:
        area.allow(3)
    assert content(one).keys() == {area.start + page * PAGE for page in range(8) if page != 3}
    assert [(left.address, left.size, left.why) for left in one.left] == [
        (area.start + 3 * PAGE, PAGE, Left.UNREADABLE)
    ]
    parts = [piece for piece, _ in segments(mappings, one.runs) if piece.filled]
    assert [(piece.start, piece.size) for piece in parts] == [
        (area.start, 3 * PAGE), (area.start + 4 * PAGE, 4 * PAGE)
    ]  # fmt: skip


def test_nothing_mapped() -> None:
    one = copier()
    one.take("x", 0, 3 * PAGE)
    assert one.left == []
    one.take("slot", PAGE, 2 * PAGE, asked=True)
    one.take("slot", 1 << 63, (1 << 63) + 8, asked=True)
    assert [left.why for left in one.left] == [Left.UNMAPPED]
    assert one.runs == []


def test_only_what_was_touched() -> None:
    size = 64 << 20
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, 1, 5000, 16383):
        memory[page * PAGE] = 1
    vma = mappings_of(os.getpid()).find(start)
    assert vma is not None
    runs = [
        (max(first, start), min(last, start + size))
        for first, last in populated(os.getpid(), vma)
        if last > start and first < start + size
    ]
    assert [((first - start) // PAGE, (last - start) // PAGE) for first, last in runs] == [
        (0, 2), (5000, 5001), (16383, 16384)
    ]  # fmt: skip


def test_segments_stay_within_mappings() -> None:
    text = (0x10000, 0x14000, 5, False, 0, 9, "/bin/x")
    data = (0x14000, 0x16000, 6, False, 0x4000, 9, "/bin/x")
    heap = (0x16000, 0x18000, 6, False, 0, 0, "")
    from probes.capture.process import Vma

    mappings = Mappings([Vma(*text), Vma(*data), Vma(*heap)])
    runs = [Run(0x15000, 0x2000, 0), Run(0x10000, 0x1000, 0x2000), Run(0x17000, 0x1000, 0x3000)]
    found = [(p.start, p.size, p.filled, p.flags) for p, _ in segments(mappings, runs)]
    assert found == [
        (0x10000, 0x1000, 0x1000, 5),
        (0x11000, 0x3000, 0, 5),
        (0x14000, 0x1000, 0, 6),
        (0x15000, 0x1000, 0x1000, 6),
        (0x16000, 0x2000, 0x2000, 6),
    ]
