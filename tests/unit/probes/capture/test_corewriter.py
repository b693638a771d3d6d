"""The core format: our notes through the system's own C structures, our segments through readers of cores."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from probes.capture.corewriter import CoreThread, Segment, core_head, notes_size
from probes.capture.process import PAGE, ProcessFacts, Vma
from symbols.corefile import CoreFile
from tests.requirements import require_program
from tests.unit.symbols.builds import build_c

ARGUMENTS = b"server --port 80 " * 9
PROCESS = ProcessFacts(
    pid=100, ppid=7, pgrp=8, sid=9, uid=1000, gid=1001, state="R", nice=-5, flags=0x400040,
    comm=b"a name of more than fifteen", arguments=ARGUMENTS,
    auxv=struct.pack("<4Q", 6, 4096, 0, 0),
)  # fmt: skip
SIGINFO = struct.pack("<iii4xQ", 11, 0, 1, 0x2F8).ljust(128, b"\0")
FILES = (
    Vma(0x400000, 0x402000, 5, False, 0, 17, "/usr/bin/server"),
    Vma(0x402000, 0x403000, 6, False, 0x2000, 17, "/usr/bin/server"),
    Vma(0x7000_0000, 0x7000_1000, 4, False, 0, 18, "/lib/a file\n\udcff (deleted)"),
)


def registers(first: int) -> bytes:
    return struct.pack("<27Q", *range(first, first + 27))


def xsave(size: int, features: int) -> bytes:
    area = bytearray(b"\xee" * size)
    struct.pack_into("<Q", area, 464, features)
    struct.pack_into("<QQ", area, 512, features, 0)
    return bytes(area)


THREADS = (
    CoreThread(tid=103, signal=11, registers=registers(1000), floating=b"f" * 512, siginfo=SIGINFO),
    CoreThread(tid=100, signal=0, registers=registers(2000)),
    CoreThread(tid=105, signal=6, registers=registers(3000), extended=xsave(2432, 0xE7)),
)


def write(path: Path, *segments: tuple[Segment, bytes]) -> Path:
    head = core_head(PROCESS, THREADS, FILES, [segment for segment, _ in segments])
    assert len(head) % PAGE == 0
    path.write_bytes(head + b"".join(content for _, content in segments))
    return path


def test_notes_as_the_system_declares_them(tmp_path: Path) -> None:
    reader = build_c(source="notes.c", folder=Path(__file__).parent)
    core = write(tmp_path / "core")
    said = subprocess.run([reader, core], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [
        "sizes 336 136 216",
        f"prstatus 11 11 103 7 8 9 {1016:x} {1026:x} 1",
        f"prpsinfo 0 R 0 -5 400040 1000 1001 100 7 8 9 a name of more |{ARGUMENTS[:79].decode()}",
        "siginfo 11 1 0x2f8",
        "note CORE 6 32",
        f"note CORE 46494c45 {16 + 3 * 24 + 2 * 16 + len(b'/lib/a file?? (deleted)') + 1}",
        "note CORE 2 512",
        f"prstatus 11 11 100 7 8 9 {2016:x} {2026:x} 0",
        f"prstatus 11 11 105 7 8 9 {3016:x} {3026:x} 0",
        "note LINUX 202 832",
    ]
    readelf = subprocess.run([require_program("readelf"), "-lW", core], capture_output=True, text=True)
    assert "CORE (Core file)" in readelf.stdout
    assert not readelf.stderr


def test_extended_registers_are_cut_to_what_all_agree_on(tmp_path: Path) -> None:
    with write(tmp_path / "core").open("rb") as f:
        (notes,) = [s for s in ELFFile(f).iter_segments() if isinstance(s, NoteSegment)]
        (area,) = [n["n_descdata"] for n in notes.iter_notes() if n["n_name"] == "LINUX"]
    area = area if isinstance(area, bytes) else area.encode("latin-1")
    assert struct.unpack_from("<Q", area, 464) == (7,)
    assert struct.unpack_from("<QQ", area, 512) == (7, 0)
    assert area[576:] == b"\xee" * 256


def test_memory_and_files(tmp_path: Path) -> None:
    core = CoreFile(
        write(
            tmp_path / "core",
            (Segment(0x400000, 0x2000, 0, 5), b""),
            (Segment(0x402000, PAGE, PAGE, 6), b"d" * PAGE),
            (Segment(0x403000, 2 * PAGE, 2 * PAGE, 6), b"b" * 2 * PAGE),
        )
    )
    assert [(thread.tid, thread.signal) for thread in core.threads] == [(103, 11), (100, 11), (105, 11)]
    assert core.threads[2].registers["rip"] == 3016
    assert core.memory(0x402FFF, 2) == b"db"
    assert core.memory(0x401000, 8) is None  # in the executable's file
    assert core.memory(0x404FFF, 2) is None
    assert [(file.start, file.end, file.offset) for file in core.files] == [
        (vma.start, vma.end, vma.offset) for vma in FILES
    ]
    assert core.files[2].path == "/lib/a file\n\udcff (deleted)"
    core.close()


def test_more_segments_than_the_header_can_count(tmp_path: Path) -> None:
    count = 70_000
    pieces = [(Segment(0x10_0000 + 2 * PAGE * n, PAGE, 0, 6), b"") for n in range(count)]
    path = write(tmp_path / "core", *pieces, (Segment(0x7F00_0000_0000, PAGE, PAGE, 6), b"x" * PAGE))
    core = CoreFile(path)
    assert core.memory(0x7F00_0000_0000, 1) == b"x"
    core.close()
    with path.open("rb") as f:
        assert ELFFile(f).num_segments() == count + 2


def test_notes_size_is_an_upper_bound() -> None:
    for threads in (1, 7, 300):
        notes = core_head(PROCESS, THREADS[:1] * threads, FILES, [])
        assert len(notes) - PAGE <= notes_size(threads, 2432, FILES)


@pytest.mark.parametrize("threads", [(), (CoreThread(tid=1, signal=11, registers=b"\0" * 68),)])
def test_no_core_without_registers(threads: tuple[CoreThread, ...]) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        core_head(PROCESS, threads, FILES, [])
