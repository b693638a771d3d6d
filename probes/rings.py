# Owns reading the kernel side's three outputs through their mappings: recorder, lifetimes, urgent ring.
# Bulk work on plain tuples and memoryviews: this is the one hot path user space has.
from __future__ import annotations

import ctypes
import mmap
import struct
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from operator import itemgetter

from probes import abi

_PAGE = mmap.PAGESIZE
_RECORD_SIZE = abi.RECORD.size
_LIFETIME_SIZE = ctypes.sizeof(abi.Lifetime)
_LIFETIME_WORDS = _LIFETIME_SIZE // 8
_BY_TIME = itemgetter(3)
_LOW = 0xFFFF_FFFF
_WHO = struct.Struct("<8xQ16xI").unpack_from  # (ts, tgid) of struct af_rec


def _map(fd: int, size: int) -> mmap.mmap:
    return mmap.mmap(fd, -(-size // _PAGE) * _PAGE, mmap.MAP_SHARED, mmap.PROT_READ)


def _words(mapping: mmap.mmap) -> memoryview:
    """The mapping as 64-bit words, for the positions shared with the kernel: one load or store each.

    Never struct for those: it copies byte by byte, and pack_into clears the bytes first (_struct.c), so that
    the kernel would now and then see a consumer position of 0 and take the ring for full.
    """
    return memoryview(mapping).cast("Q")


PATIENCE_S = 2.0
"""For a program that was preempted within a record (preempt=full, PREEMPT_RT); then its place is lost."""


def _whole(seqs: memoryview, start: int) -> int:
    """How many records from number `start` on are written, one after the other. A program takes its place
    first, and writes `seq` (the low half of the record's number) last. seqs: of each place, as 32 bits."""
    last = (start & _LOW) + len(seqs) - 1
    numbers = range(start, start + len(seqs))
    if last <= _LOW and seqs == array("I", range(start & _LOW, last + 1)):
        return len(seqs)
    wrong = (index for index, number in enumerate(numbers) if seqs[index] != number & _LOW)
    return next(wrong, len(seqs))


class _Holes:
    """Places of each CPU that were taken and are not filled: each is waited for, for a while."""

    def __init__(self, cpus: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: list[tuple[int, float]] = [(-1, 0.0)] * cpus

    def given_up(self, cpu: int, number: int) -> bool:
        """Whether this CPU's record of that number has been waited for long enough."""
        known, since = self._since[cpu]
        now = self._clock()
        if known != number:
            self._since[cpu] = (number, now)
            return False
        return now - since > PATIENCE_S


class Recorder:
    """The always-on recorder: one ring of 64-byte records per CPU, oldest overwritten.

    `capacity` records per CPU, a power of two. `read()` yields what is new, merged by time.
    """

    MARGIN_NS = 3_000_000  # a record is written within this of its timestamp; younger ones wait a turn

    def __init__(
        self, fd: int, cpus: int, capacity: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capacity = capacity
        self._holes = _Holes(cpus, clock)
        self._stride = (capacity + 1) * _RECORD_SIZE
        self._map = _map(fd, cpus * self._stride)
        self._heads = _words(self._map)
        self._next = [self._written(cpu) for cpu in range(cpus)]
        self._held: list[tuple[int, ...]] = []
        self.lost = 0  # records overwritten before they were read, since the start

    def _written(self, cpu: int) -> int:
        return int(self._heads[cpu * self._stride // 8])

    def _take(self, cpu: int) -> bytes:
        """What is new of one CPU, whole records up to the first that is not written to its end."""
        start, end = self._next[cpu], self._written(cpu)
        if end - start > self._capacity:
            self.lost += end - self._capacity - start
            start = end - self._capacity
        base = cpu * self._stride + _RECORD_SIZE
        mask = self._capacity - 1
        first, last = start & mask, end & mask
        self._next[cpu] = start
        if start == end:
            return b""
        if first < last:
            raw = self._map[base + first * _RECORD_SIZE : base + last * _RECORD_SIZE]
        else:
            raw = (
                self._map[base + first * _RECORD_SIZE : base + self._capacity * _RECORD_SIZE]
                + self._map[base : base + last * _RECORD_SIZE]
            )
        with memoryview(raw) as view, view.cast("I") as words, words[:: _RECORD_SIZE // 4] as seqs:
            whole = _whole(seqs, start)
        raw = raw[: whole * _RECORD_SIZE]
        self._next[cpu] = start + whole
        if not raw:
            if self._holes.given_up(cpu, start):
                self.lost += 1
                self._next[cpu] = start + 1
            return b""
        # what the kernel overwrote while it was being copied is not to be trusted: one more than the distance
        # says, because the next record may be half written
        overwritten = self._written(cpu) + 1 - self._capacity - start
        if overwritten > 0:
            overwritten = min(overwritten, len(raw) // _RECORD_SIZE)
            self.lost += overwritten
            raw = raw[overwritten * _RECORD_SIZE :]
        return raw

    def _taken_now(self, cpu: int) -> bytes:
        """The next whole records, without waiting for any before them; b"" when there are none."""
        written = self._written(cpu)
        while self._next[cpu] < written:
            raw = self._take(cpu)
            if raw:
                return raw
            self._next[cpu] += 1
        return b""

    def last(self, tgid: int) -> tuple[bytes, int]:
        """See last_records. Moves the reading position; `read` must not be called afterwards."""
        kept: list[bytes] = []
        overwritten = 0
        for cpu in range(len(self._next)):
            written = self._written(cpu)
            self._next[cpu] = max(0, written - self._capacity)
            overwritten += self._next[cpu]
            raw = b"".join(iter(lambda: self._taken_now(cpu), b""))  # noqa: B023
            records = (raw[at : at + _RECORD_SIZE] for at in range(0, len(raw), _RECORD_SIZE))
            kept.extend(deque((record for record in records if _WHO(record)[1] == tgid), maxlen=LAST_RECORDS))
        kept.sort(key=_WHO)
        return b"".join(kept), overwritten

    def read(self, now: int) -> list[tuple[int, ...]]:
        """Records older than `now` (CLOCK_MONOTONIC ns) minus the margin, in order of time."""
        records = self._held
        for cpu in range(len(self._next)):
            records.extend(abi.RECORD.iter_unpack(self._take(cpu)))
        records.sort(key=_BY_TIME)
        cut = now - self.MARGIN_NS
        if records and records[-1][3] > cut:
            index = len(records)
            while index and records[index - 1][3] > cut:
                index -= 1
            self._held = records[index:]
            del records[index:]
        else:
            self._held = []
        return records

    def close(self) -> None:
        self._heads.release()
        self._map.close()


LAST_RECORDS = 8192
"""Records of a crashed target that are kept of each CPU."""


def unpacked(records: bytes) -> Iterator[tuple[int, ...]]:
    """Records in their stored form as tuples in probes.abi.Record order; a broken tail is left out."""
    whole = len(records) - len(records) % _RECORD_SIZE
    return abi.RECORD.iter_unpack(records[:whole])


def last_records(fd: int, cpus: int, capacity: int, tgid: int) -> tuple[bytes, int]:
    """(the last LAST_RECORDS records of `tgid` on each CPU, by time; how many of anybody's were overwritten).

    For a moment that matters: maps the rings for the time of the call only.
    """
    recorder = Recorder(fd, cpus, capacity)
    try:
        return recorder.last(tgid)
    finally:
        recorder.close()


class Lifetimes:
    """One record per destroyed slot, one ring per CPU, oldest overwritten."""

    def __init__(
        self, fd: int, heads_fd: int, cpus: int, capacity: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capacity = capacity
        self._holes = _Holes(cpus, clock)
        self._cpus = cpus
        self._map = _map(fd, cpus * capacity * _LIFETIME_SIZE)
        self._heads_map = _map(heads_fd, cpus * ctypes.sizeof(abi.RingHead))
        self._heads = _words(self._heads_map)
        self._next = [self._written(cpu) for cpu in range(cpus)]
        self.lost = 0

    def _written(self, cpu: int) -> int:
        return int(self._heads[cpu * ctypes.sizeof(abi.RingHead) // 8])

    def _spans(self) -> Iterator[tuple[int, int]]:
        """(first record index in the whole mapping, count) of what is new; advances."""
        for cpu in range(self._cpus):
            start, end = self._next[cpu], self._written(cpu)
            # one record of slack: the next one may be half written over the oldest
            if end - start >= self._capacity:
                self.lost += end - self._capacity + 1 - start
                start = end - self._capacity + 1
            base = cpu * self._capacity
            self._next[cpu] = start
            while start < end:
                first = start & (self._capacity - 1)
                count = min(end - start, self._capacity - first)
                whole = self._whole(base + first, count, start)
                if whole:
                    self._next[cpu] = start + whole
                    yield base + first, whole
                elif self._holes.given_up(cpu, start):
                    self.lost += 1
                    self._next[cpu] = start + 1
                if whole < count:
                    break
                start += count

    def _whole(self, index: int, count: int, number: int) -> int:
        """How many of `count` records from place `index` on are written; the first is record `number`."""
        word = index * _LIFETIME_SIZE // 4
        with (
            memoryview(self._map) as view,
            view.cast("I") as words,
            words[word : word + count * _LIFETIME_SIZE // 4 : _LIFETIME_SIZE // 4] as seqs,
        ):
            return _whole(seqs, number)

    def count(self) -> tuple[Counter[int], dict[int, bytes]]:
        """Signatures of what is new with their counts, and the bytes of one lifetime of each.

        Nothing is decoded per lifetime: the signatures are one strided slice.
        """
        totals: Counter[int] = Counter()
        examples: dict[int, bytes] = {}
        with memoryview(self._map) as view, view.cast("Q") as words:
            for first, count in self._spans():
                signatures = words[
                    first * _LIFETIME_WORDS + 1 : (first + count) * _LIFETIME_WORDS : _LIFETIME_WORDS
                ]
                seen = signatures.tolist()
                signatures.release()
                totals.update(seen)
                for signature in set(seen) - examples.keys():
                    at = (first + seen.index(signature)) * _LIFETIME_SIZE
                    examples[signature] = self._map[at : at + _LIFETIME_SIZE]
        return totals, examples

    def read(self) -> list[bytes]:
        """The bytes of every new lifetime."""
        return [
            self._map[at * _LIFETIME_SIZE : (at + 1) * _LIFETIME_SIZE]
            for first, count in self._spans()
            for at in range(first, first + count)
        ]

    def close(self) -> None:
        self._map.close()
        self._heads.release()
        self._heads_map.close()


class Urgent:
    """A BPF ring buffer read through its mapping (kernel/bpf/ringbuf.c; layout in the map's documentation).

    Page 0 is the consumer position (ours to write), page 1 the producer position, then the data twice, so
    that what goes on at its beginning is in one piece. A part of the data is mapped while it is read: all
    that is mapped counts as resident at once, and mostly there is nothing to read.
    """

    BUSY, DISCARDED = 1 << 31, 1 << 30
    WINDOW = 1 << 19
    """Bytes mapped at a time, more where a message is longer."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self._size = size
        self._consumer = mmap.mmap(fd, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer = mmap.mmap(fd, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ, offset=_PAGE)
        self._consumed, self._produced = _words(self._consumer), _words(self._producer)

    def read(self, limit: int = 4096) -> list[bytes]:
        """At most `limit` of the messages that are there now, in order; frees their space. Raises OSError."""
        messages: list[bytes] = []
        position = int(self._consumed[0])
        end = int(self._produced[0])
        window, first, last = None, 0, 0
        try:
            while position < end and len(messages) < limit:
                at = position & (self._size - 1)
                needed = 8
                while True:
                    if window is None or not first <= at <= last - needed:
                        if window is not None:
                            window.close()
                        window, first = self._mapped(at, needed)
                        last = first + len(window)
                    length = int(struct.unpack_from("<I", window, at - first)[0])
                    size = length & ~(self.BUSY | self.DISCARDED)
                    if needed >= 8 + size or length & self.BUSY:
                        break
                    needed = 8 + size
                if length & self.BUSY:
                    break
                if not length & self.DISCARDED:
                    messages.append(window[at + 8 - first : at + 8 - first + size])
                position += (size + 8 + 7) & ~7
                self._consumed[0] = position
        finally:
            if window is not None:
                window.close()
        return messages

    def _mapped(self, at: int, size: int) -> tuple[mmap.mmap, int]:
        """(the data from the page of `at` on, that page's place); at least up to `size` bytes after `at`."""
        first = at - at % _PAGE
        length = min(max(self.WINDOW, -(-(at + size - first) // _PAGE) * _PAGE), 2 * self._size - first)
        return (
            mmap.mmap(self.fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=2 * _PAGE + first),
            first,
        )

    def close(self) -> None:
        self._consumed.release()
        self._produced.release()
        self._consumer.close()
        self._producer.close()
