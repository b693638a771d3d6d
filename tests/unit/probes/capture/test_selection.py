"""What goes into a mini core, and in which order, on made-up processes."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from probes.capture import linkage
from probes.capture.facts import CaptureOptions, MemoryRange
from probes.capture.process import PAGE, Mappings, Vma
from probes.capture.selection import Selection, ThreadState

TEXT, DATA, BSS, HEAP, POOL = 0x400000, 0x500000, 0x501000, 0x600000, 0x700000
STACK, STACK_TWO, SIGNAL_STACK = 0x10_0000_0000, 0x10_1000_0000, 0x10_2000_0000
MIB = 1 << 20
VMAS = (
    Vma(TEXT, TEXT + 0x10000, 5, False, 0, 1, "/bin/server"),
    Vma(DATA, BSS, 6, False, 0x10000, 1, "/bin/server"),
    Vma(BSS, BSS + 0x4000, 6, False, 0, 0, ""),
    Vma(HEAP, HEAP + 0x10000, 6, False, 0, 0, "[heap]"),
    Vma(POOL, POOL + 0x10000, 6, False, 0, 0, ""),
    Vma(STACK - PAGE, STACK, 0, False, 0, 0, ""),  # guard
    Vma(STACK, STACK + 8 * MIB, 6, False, 0, 0, "[stack]"),
    Vma(STACK_TWO - PAGE, STACK_TWO, 0, False, 0, 0, ""),
    Vma(STACK_TWO, STACK_TWO + 8 * MIB, 6, False, 0, 0, ""),
    Vma(SIGNAL_STACK, SIGNAL_STACK + 0x10000, 6, False, 0, 0, ""),
    Vma(0x7FFF_F000_0000, 0x7FFF_F000_2000, 5, False, 0, 0, "[vdso]"),
)
RESTORER = TEXT + 0x800


@dataclass
class Notes:
    """A taker that copies nothing."""

    memory: dict[int, bytes] = field(default_factory=dict)
    taken: list[tuple[str, int, int]] = field(default_factory=list)

    def read(self, address: int, count: int) -> bytes:
        for start, content in self.memory.items():
            if start <= address < start + len(content):
                return content[address - start : address - start + count]
        return b""

    def words(self, address: int, count: int) -> tuple[int, ...]:
        raw = self.read(address, 8 * count)
        return struct.unpack(f"<{len(raw) // 8}Q", raw[: len(raw) // 8 * 8])

    def take(self, what: str, start: int, end: int, *, asked: bool = False) -> None:
        self.taken.append((what, start, end))

    def kinds(self) -> list[str]:
        return list(dict.fromkeys(what for what, _, _ in self.taken))

    def of(self, what: str) -> list[tuple[int, int]]:
        return [(start, end) for kind, start, end in self.taken if kind == what]


def thread(tid: int, sp: int, *, crashed: bool = False, fs: int = 0, **general: int) -> ThreadState:
    words = [0] * 27
    words[19], words[21], words[16] = sp, fs, TEXT + 0x10
    words[5] = general.get("rbx", 0)
    return ThreadState(tid=tid, crashed=crashed, registers=tuple(words))


def select(*threads: ThreadState, ranges: tuple[MemoryRange, ...] = (), notes: Notes | None = None) -> Notes:
    notes = notes or Notes()
    selection = Selection(Mappings(VMAS), threads, ranges, b"", CaptureOptions())
    selection.essentials(notes)
    selection.everything(notes, lambda vma: [(vma.start, vma.end)])
    return notes


def test_the_most_useful_first() -> None:
    notes = Notes({STACK + 0x1000: struct.pack("<Q", HEAP + 0x3000) * 4})
    select(
        thread(2, STACK_TWO + 0x2000, fs=STACK_TWO + 8 * MIB - 64),
        thread(1, STACK + 0x1000, crashed=True, rbx=POOL + 0x5008),
        ranges=(MemoryRange(POOL + 0x900, 64, 5), MemoryRange(POOL + 0x2000, 64, 1)),
        notes=notes,
    )
    assert notes.kinds() == [
        "crasher stack", "slot", "image header", "vdso", "stack", "register", "around slot", "stack word",
        "globals", "memory",
    ]  # fmt: skip
    assert notes.of("crasher stack") == [(STACK + 0x1000 - 128, STACK + 8 * MIB)]
    assert [start for start, _ in notes.of("slot")] == [POOL + 0x2000, POOL + 0x900]  # by priority
    assert notes.of("register")[0] == (POOL + 0x5000, POOL + 0x7000)
    assert notes.of("stack word") == [(HEAP + 0x3000, HEAP + 0x5000)]
    assert notes.of("globals") == [(DATA, BSS), (BSS, BSS + 0x4000)]
    first, rest = notes.of("stack")
    assert first == (STACK_TWO + 0x2000 - 128, STACK_TWO + 0x2000 - 128 + (64 << 10))
    assert rest == (STACK_TWO + 0x2000 - 128, STACK_TWO + 0x2000 - 128 + MIB)
    # what slots lie in, the heap, then the small before the large
    assert [start for start, _ in notes.of("memory")][:3] == [POOL, HEAP, BSS]


def test_a_stack_that_ran_into_its_guard() -> None:
    notes = select(thread(1, STACK - 64, crashed=True))
    assert notes.of("crasher stack") == [(STACK, STACK + 8 * MIB)]
    deep = select(thread(1, STACK - PAGE - 0x100, crashed=True))
    assert deep.of("crasher stack") == [(STACK, STACK + 8 * MIB)]


def test_a_wild_stack_pointer() -> None:
    for pointer in (0, 64, 0x0FFF_0000_0000, (1 << 64) - 8):
        assert select(thread(1, pointer, crashed=True)).of("crasher stack") == []


def test_the_stack_below_a_signal_stack() -> None:
    """The frame that was interrupted is on another stack; the kernel's frame says where."""
    pointer, interrupted = SIGNAL_STACK + 0x8000, STACK_TWO + 0x4000
    frame = struct.pack("<3Q", 1, 2, RESTORER) + b"\0" * (40 + 8 * 15) + struct.pack("<Q", interrupted)
    notes = Notes({pointer: frame, RESTORER: bytes.fromhex("48c7c00f0000000f05")})
    select(thread(1, pointer, crashed=True, fs=STACK_TWO + 8 * MIB - 64), notes=notes)
    assert notes.of("crasher stack") == [
        (pointer - 128, SIGNAL_STACK + 0x10000),
        (interrupted - 128, STACK_TWO + 8 * MIB),
    ]


def test_hostile_linkage_ends() -> None:
    """A link_map that points at itself, and tables that lie."""
    table, dynamic, debug, chain = 0x1000, 0x2000, 0x3000, 0x4000
    headers = struct.pack("<IIQQQQQQ", 6, 4, 0, 0x40, 0, 56, 56, 8)
    headers += struct.pack("<IIQQQQQQ", 2, 6, 0, 0x40 + dynamic - table, 0, 1 << 60, 1 << 60, 8)
    auxv = struct.pack("<8Q", 3, table, 4, 56, 5, 2, 0, 0)
    memory = {
        table: headers,
        dynamic: struct.pack("<4Q", 21, debug, 0, 0),
        debug: struct.pack("<2Q", 1, chain),
        chain: struct.pack("<5Q", 0, 0x5000, 0x6000, chain, 0),
    }
    places = list(linkage.places(auxv, Notes(memory).read))
    assert (debug, 40) in places
    assert 4096 < len(places) < 20_000
    assert max(size for _, size in places) <= 16 * 256
    assert list(linkage.places(auxv[:5], Notes(memory).read)) == []
    assert list(linkage.places(auxv, Notes({}).read)) == [(table, 112)]
