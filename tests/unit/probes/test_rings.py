# The ring readers over plain memory files laid out as the kernel side lays them out.
from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from probes import abi
from probes.rings import PATIENCE_S, Lifetimes, Recorder, Urgent, last_records, unpacked

CAPACITY = 8


class FakeRecorder:
    """Writes records as af_record() of probes/bpf/20-output.c does."""

    def __init__(self, cpus: int, capacity: int = CAPACITY) -> None:
        self.fd = os.memfd_create("recorder")
        self.capacity = capacity
        self.stride = (capacity + 1) * 64
        os.ftruncate(self.fd, -(-cpus * self.stride // mmap.PAGESIZE) * mmap.PAGESIZE)
        self.written = [0] * cpus

    def write(self, cpu: int, ts: int, kind: int = abi.Kind.DELIVERED) -> None:
        self.finish(cpu, self.begin(cpu), ts, kind)

    def begin(self, cpu: int) -> int:
        """Take the next place; what is there meanwhile is the record before it, or nothing."""
        number = self.written[cpu]
        self.written[cpu] = number + 1
        os.pwrite(self.fd, struct.pack("<Q", number + 1), cpu * self.stride)
        return number

    def finish(self, cpu: int, number: int, ts: int, kind: int = abi.Kind.DELIVERED) -> None:
        """Fill the place that was taken, `seq` last."""
        record = abi.RECORD.pack(number & 0xFFFFFFFF, kind, 0, ts, 0, 0, 1, 1, 0, -1, -1, 0, 0, -1)
        at = cpu * self.stride + 64 + (number % self.capacity) * 64
        os.pwrite(self.fd, record[4:], at + 4)
        os.pwrite(self.fd, record[:4], at)

    def start_at(self, cpu: int, number: int) -> None:
        """As if so many had been written before."""
        self.written[cpu] = number
        os.pwrite(self.fd, struct.pack("<Q", number), cpu * self.stride)


@pytest.fixture
def fake() -> Iterator[FakeRecorder]:
    made = FakeRecorder(2)
    yield made
    os.close(made.fd)


FAR = 1 << 60


def times(records: list[tuple[int, ...]]) -> list[int]:
    return [record[3] for record in records]


def test_records_of_all_cpus_come_in_order_of_time(fake: FakeRecorder) -> None:
    recorder = Recorder(fake.fd, 2, CAPACITY)
    for cpu, ts in ((0, 10), (1, 5), (0, 20), (1, 15)):
        fake.write(cpu, ts)
    assert times(recorder.read(FAR)) == [5, 10, 15, 20]
    assert recorder.read(FAR) == []
    assert recorder.lost == 0


def test_young_records_wait_for_what_another_cpu_may_still_write(fake: FakeRecorder) -> None:
    recorder = Recorder(fake.fd, 2, CAPACITY)
    young = 10 * Recorder.MARGIN_NS
    fake.write(0, young)
    fake.write(0, 1)
    assert times(recorder.read(young)) == [1]
    fake.write(1, young - 1)
    assert times(recorder.read(young + Recorder.MARGIN_NS)) == [young - 1, young]


def test_what_was_overwritten_is_counted_never_invented(fake: FakeRecorder) -> None:
    recorder = Recorder(fake.fd, 2, CAPACITY)
    for ts in range(1, 21):
        fake.write(0, ts)
    got = times(recorder.read(FAR))
    assert got == sorted(got)
    assert recorder.lost + len(got) == 20
    # the oldest record still in the ring may be half overwritten at any moment: it is not handed out
    assert got == list(range(14, 21))


def test_a_ring_that_wraps_is_read_in_two_pieces(fake: FakeRecorder) -> None:
    recorder = Recorder(fake.fd, 2, CAPACITY)
    for ts in range(1, 7):
        fake.write(0, ts)
    assert times(recorder.read(FAR)) == [1, 2, 3, 4, 5, 6]
    for ts in range(7, 12):
        fake.write(0, ts)
    assert times(recorder.read(FAR)) == [7, 8, 9, 10, 11]
    assert recorder.lost == 0


def test_history_from_before_the_reader_is_not_replayed(fake: FakeRecorder) -> None:
    fake.write(0, 1)
    recorder = Recorder(fake.fd, 2, CAPACITY)
    fake.write(0, 2)
    assert times(recorder.read(FAR)) == [2]


def test_a_record_that_is_being_written_is_not_taken_and_not_lost(fake: FakeRecorder) -> None:
    fake.start_at(0, 5)
    recorder = Recorder(fake.fd, 2, CAPACITY)
    fake.write(0, 10)
    interrupted = fake.begin(0)
    fake.write(0, 30)  # by the program that interrupted it
    assert times(recorder.read(FAR)) == [10]
    assert recorder.read(FAR) == []
    fake.finish(0, interrupted, 20)
    assert times(recorder.read(FAR)) == [20, 30]
    assert recorder.lost == 0


def test_a_place_that_holds_the_round_before_is_not_taken(fake: FakeRecorder) -> None:
    recorder = Recorder(fake.fd, 2, CAPACITY)
    for ts in range(1, CAPACITY + 1):
        fake.write(0, ts)
        assert times(recorder.read(FAR)) == [ts]
    second_round = fake.begin(0)
    assert recorder.read(FAR) == [], "what lies there is record 0, long since read"
    fake.finish(0, second_round, 99)
    assert times(recorder.read(FAR)) == [99]


def test_the_number_of_a_record_wraps_at_32_bits(fake: FakeRecorder) -> None:
    fake.start_at(0, 2**32 - 2)
    recorder = Recorder(fake.fd, 2, CAPACITY)
    for ts in (1, 2, 3, 4):
        fake.write(0, ts)
    begun = fake.begin(0)
    assert times(recorder.read(FAR)) == [1, 2, 3, 4]
    fake.finish(0, begun, 5)
    assert times(recorder.read(FAR)) == [5]


def test_a_program_preempted_within_a_record_is_waited_for_however_many_follow() -> None:
    """With preempt=full any number of programs may run on a CPU within one."""
    fake = FakeRecorder(1, 256)
    fake.start_at(0, 250)
    recorder = Recorder(fake.fd, 1, fake.capacity)
    preempted = fake.begin(0)
    for ts in range(2, 102):
        fake.write(0, ts)
    assert recorder.read(FAR) == []
    fake.finish(0, preempted, 1)
    assert times(recorder.read(FAR)) == list(range(1, 102))
    assert recorder.lost == 0
    os.close(fake.fd)


def test_a_record_that_is_never_finished_is_lost_and_holds_nothing_up_for_ever() -> None:
    fake, now = FakeRecorder(1, 256), [0.0]
    fake.start_at(0, 5)
    recorder = Recorder(fake.fd, 1, fake.capacity, clock=lambda: now[0])
    fake.begin(0)
    fake.write(0, 7)
    assert recorder.read(FAR) == []
    now[0] = PATIENCE_S + 1
    assert recorder.read(FAR) == []
    assert times(recorder.read(FAR)) == [7]
    assert recorder.lost == 1
    os.close(fake.fd)


def test_what_is_kept_of_a_crash_does_not_wait_for_a_preempted_program() -> None:
    fake = FakeRecorder(1, 256)
    fake.write(0, 1)
    fake.begin(0)
    for ts in range(3, 40):
        fake.write(0, ts)
    records, _ = last_records(fake.fd, 1, fake.capacity, 1)
    assert times(list(unpacked(records))) == [1, *range(3, 40)]
    os.close(fake.fd)


class FakeLifetimes:
    def __init__(self) -> None:
        self.size = ctypes.sizeof(abi.Lifetime)
        self.fd, self.heads = os.memfd_create("lifetimes"), os.memfd_create("heads")
        os.ftruncate(self.fd, -(-2 * CAPACITY * self.size // mmap.PAGESIZE) * mmap.PAGESIZE)
        os.ftruncate(self.heads, mmap.PAGESIZE)
        self.written = [0, 0]

    def write(self, cpu: int, signature: int) -> None:
        self.finish(cpu, self.begin(cpu), signature)

    def begin(self, cpu: int) -> int:
        number = self.written[cpu]
        self.written[cpu] = number + 1
        os.pwrite(self.heads, struct.pack("<Q", number + 1), cpu * ctypes.sizeof(abi.RingHead))
        return number

    def finish(self, cpu: int, number: int, signature: int) -> None:
        lifetime = abi.Lifetime(seq=number, cpu=cpu, signature=signature, slot=abi.Slot(addr=signature * 16))
        os.pwrite(self.fd, bytes(lifetime), (cpu * CAPACITY + number % CAPACITY) * self.size)


def test_lifetimes_are_counted_by_signature_with_one_example_each() -> None:
    fake = FakeLifetimes()
    reader = Lifetimes(fake.fd, fake.heads, 2, CAPACITY)
    for cpu, signature in ((0, 3), (1, 5), (0, 3), (0, 5), (1, 9)):
        fake.write(cpu, signature)
    counts, examples = reader.count()
    assert counts == {3: 2, 5: 2, 9: 1}
    assert set(examples) == {3, 5, 9}
    for signature, raw in examples.items():
        lifetime = abi.Lifetime.from_buffer_copy(raw)
        assert (lifetime.signature, lifetime.slot.addr) == (signature, signature * 16)
    assert reader.count() == ({}, {})


def test_lifetimes_across_the_wrap_and_beyond_it() -> None:
    fake = FakeLifetimes()
    reader = Lifetimes(fake.fd, fake.heads, 2, CAPACITY)
    for _ in range(5):
        fake.write(0, 1)
    assert reader.count()[0] == {1: 5}
    for _ in range(5):
        fake.write(0, 2)
    assert len(reader.read()) == 5
    for number in range(20):
        fake.write(1, number)
    counts, _ = reader.count()
    assert sum(counts.values()) + reader.lost == 20
    assert set(counts) == set(range(13, 20))


def test_a_lifetime_that_is_being_written_is_not_taken_and_not_lost() -> None:
    fake = FakeLifetimes()
    reader = Lifetimes(fake.fd, fake.heads, 2, CAPACITY)
    for _ in range(3):
        fake.write(0, 1)
    half = fake.begin(0)
    fake.write(0, 2)
    fake.write(1, 7)
    assert reader.count()[0] == {1: 3, 7: 1}
    assert reader.count()[0] == {}
    fake.finish(0, half, 9)
    assert reader.count()[0] == {9: 1, 2: 1}
    assert reader.lost == 0


def test_a_lifetime_that_is_never_finished_is_lost() -> None:
    fake, now = FakeLifetimes(), [0.0]
    fake.write(0, 1)
    reader = Lifetimes(fake.fd, fake.heads, 2, CAPACITY, clock=lambda: now[0])
    fake.begin(0)
    fake.write(0, 2)
    assert reader.count()[0] == {}
    now[0] = PATIENCE_S + 1
    assert reader.count()[0] == {}
    assert reader.count()[0] == {2: 1}
    assert reader.lost == 1


def ring_bytes(size: int) -> int:
    fd = os.memfd_create("urgent")
    os.ftruncate(fd, 2 * mmap.PAGESIZE + 2 * size)
    return fd


def put(fd: int, position: int, size: int, payload: bytes, flags: int = 0) -> int:
    """One record at `position`, in both copies of the data area; returns the next position."""
    record = struct.pack("<II", len(payload) | flags, 0) + payload
    for index, byte in enumerate(record):
        at = (position + index) % size
        for copy in (0, size):
            os.pwrite(fd, bytes([byte]), 2 * mmap.PAGESIZE + copy + at)
    position += (len(record) + 7) & ~7
    os.pwrite(fd, struct.pack("<Q", position), mmap.PAGESIZE)
    return position


def test_urgent_messages_come_once_and_their_space_is_freed() -> None:
    size = mmap.PAGESIZE
    fd = ring_bytes(size)
    reader = Urgent(fd, size)
    position = put(fd, 0, size, b"one")
    position = put(fd, position, size, b"gone", Urgent.DISCARDED)
    position = put(fd, position, size, b"two and more")
    assert reader.read() == [b"one", b"two and more"]
    assert reader.read() == []
    assert struct.unpack("<Q", os.pread(fd, 8, 0)) == (position,)


def test_a_message_that_is_being_written_ends_the_reading() -> None:
    size = mmap.PAGESIZE
    fd = ring_bytes(size)
    reader = Urgent(fd, size)
    position = put(fd, 0, size, b"whole")
    put(fd, position, size, b"half", Urgent.BUSY)
    assert reader.read() == [b"whole"]
    assert struct.unpack("<Q", os.pread(fd, 8, 0)) == (position,)


def test_a_message_across_the_end_of_the_ring_is_put_together() -> None:
    size = mmap.PAGESIZE
    fd = ring_bytes(size)
    reader = Urgent(fd, size)
    first, second = bytes(range(256)) * 15, bytes(reversed(range(256))) * 2
    position = put(fd, 0, size, first)
    assert reader.read() == [first]
    put(fd, position, size, second)
    assert reader.read() == [second]


def mapped_of(fd: int) -> int:
    """Bytes of this process that are mapped of a file."""
    inode, total = os.fstat(fd).st_ino, 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.split()[4] == str(inode):
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            total += high - low
    return total


def test_nothing_of_the_ring_stays_mapped_but_its_positions() -> None:
    """The kernel's pages count as resident from the moment on that they are mapped: 8 MB."""
    size = 1 << 20
    fd = ring_bytes(size)
    reader = Urgent(fd, size)
    put(fd, 0, size, b"one")
    assert reader.read() == [b"one"]
    assert mapped_of(fd) == 2 * mmap.PAGESIZE
    reader.close()
    assert mapped_of(fd) == 0


@pytest.mark.parametrize("window", [mmap.PAGESIZE, 1 << 19])
def test_messages_of_all_lengths_come_whole_wherever_they_lie(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within what is mapped, across its end, longer than it, and over the end of the ring."""
    monkeypatch.setattr(Urgent, "WINDOW", window)
    size = 8 * mmap.PAGESIZE
    fd = ring_bytes(size)
    reader = Urgent(fd, size)
    position = 0
    for length in (1, mmap.PAGESIZE - 8, 3 * mmap.PAGESIZE, 4088, 7, 2 * mmap.PAGESIZE + 5, 12_000, 9_000, 1):
        messages = [bytes([length & 0xFF]) * length, b"x" * (length % 100)]
        for message in messages:
            position = put(fd, position, size, message)
        assert reader.read() == messages
    assert position > size
