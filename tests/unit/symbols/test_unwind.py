"""The unwinder against gdb's bt, frame by frame, and against broken stacks and tables."""

from __future__ import annotations

import random
import signal
import subprocess
from pathlib import Path

import pytest

from symbols.cfi import FrameTable, How
from symbols.cfi_expr import evaluate
from symbols.corefile import CoreFile
from symbols.errors import SymbolError
from symbols.image import Image
from symbols.modules import Module, Modules, modules_of
from symbols.unwind import End, Step, Unwinder
from tests.unit.symbols import backtraces
from tests.unit.symbols.builds import build_c

FLAGS = [
    ("-g", "-O0"),
    ("-g", "-O2"),
    ("-g", "-O2", "-fno-asynchronous-unwind-tables", "-fno-omit-frame-pointer"),  # .debug_frame only
    ("-O3", "-s"),
    ("-g", "-O2", "-static"),
]


def _stopped(exe: Path, tmp: Path) -> tuple[Path, backtraces.Gdb]:
    """A core of stacks.c where it sits in its signal handler."""
    with subprocess.Popen([exe], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            backtraces.wait_until_asleep(process.pid)
            return backtraces.dump(process.pid, tmp)
        finally:
            process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_like_gdb_through_libc_and_a_signal_frame(flags: tuple[str, ...], tmp_path: Path) -> None:
    core, wanted = _stopped(build_c(*flags, "-pthread", source="stacks.c"), tmp_path)
    mine = backtraces.ours(core)
    assert backtraces.differences(wanted, mine) == []
    assert max(map(len, wanted.values())) > 15
    assert any(frame.signal for trace in mine.values() for frame in trace.frames)
    assert {trace.end for trace in mine.values()} == {End.OUTERMOST}


def test_frame_pointers_are_the_fallback(tmp_path: Path) -> None:
    core, wanted = _stopped(build_c("-g", "-O0", "-static", "-pthread", source="stacks.c"), tmp_path)
    file = CoreFile(core)
    exe = next(mapping.path for mapping in file.files if "stacks" in mapping.path or "gcc" in mapping.path)
    with Image(exe) as image:
        known = next(iter(modules_of(file.files, lambda path: image if path == exe else None)))
        blind = Modules([Module(known.start, known.end, known.bias, known.path, image, None)])
        names = {pc: name for rows in wanted.values() for pc, _signal, name in rows}
        thread = max(file.threads, key=lambda one: len(wanted[one.tid]))
        trace = Unwinder(blind, file.memory).unwind(thread.registers)
    found = [names.get(frame.pc, "?") for frame in trace.frames]
    # libc keeps no frame pointer: bottom() called pause() is skipped, our own functions are not.
    assert "handler" in found
    assert {Step.FRAME_POINTER, Step.SIGNAL} <= {frame.step for frame in trace.frames}
    file.close()


def test_any_stack_ends() -> None:
    """Registers and memory of anybody's making: an answer, bounded, no exception."""
    exe = build_c("-g", "-O2", "-pthread", source="stacks.c")
    source = random.Random(5)
    with Image(exe) as image:
        modules = Modules([Module(0x1000_0000, 0x1001_0000, 0x1000_0000, str(exe), image, FrameTable(image))])
        for _ in range(300):
            words = [
                source.choice(
                    (0x1000_1100 + source.randrange(0x400), 0x2000_0000 + 8 * source.randrange(512))
                )
                for _ in range(512)
            ]
            stack = b"".join(word.to_bytes(8, "little") for word in words)

            def memory(address: int, count: int, stack: bytes = stack) -> bytes | None:
                at = address - 0x2000_0000
                return stack[at : at + count] if 0 <= at <= len(stack) - count else None

            registers = {"rip": source.choice(words), "rsp": 0x2000_0000 + 8 * source.randrange(64)}
            trace = Unwinder(modules, memory).unwind(registers | {"rbp": source.choice(words)})
            assert 1 <= len(trace.frames) <= 256
    assert Unwinder(Modules(()), lambda _a, _n: None).unwind({}).end is not End.LIMIT


def test_a_call_through_a_wild_pointer() -> None:
    """pc = 0: the return address still lies on top of the stack."""
    exe = build_c("-g", "-O2", "-pthread", source="stacks.c")
    with Image(exe) as image:
        main = next(symbol for symbol in image.functions if symbol.name == "main")
        module = Module(0, 0x10_0000, 0, str(exe), image, FrameTable(image))
        back = (main.address + 16).to_bytes(8, "little")
        stack = {0x7FFF_0000: back}
        unwinder = Unwinder(Modules([module]), lambda at, n: stack.get(at) if n == 8 else None)
        trace = unwinder.unwind({"rip": 0xDEAD_BEEF_0000, "rsp": 0x7FFF_0000, "rbp": 1})
    assert [frame.pc for frame in trace.frames][:2] == [0xDEAD_BEEF_0000, main.address + 16]
    assert trace.frames[1].step is Step.ENTRY


def test_broken_tables_give_no_row(tmp_path: Path) -> None:
    exe = build_c("-g", "-O2", "-pthread", source="stacks.c")
    raw = exe.read_bytes()
    with Image(exe) as image:
        places = {s.name: s for s in image.sections if s.name in (".eh_frame", ".eh_frame_hdr")}
        functions = [symbol.address for symbol in image.functions]
        assert all(FrameTable(image).row(at) for at in functions if image.function_at(at).size)  # type: ignore[union-attr]
    source = random.Random(7)
    for index in range(300):
        broken = bytearray(raw)
        for _ in range(source.randrange(1, 12)):
            section = places[source.choice(list(places))]
            broken[section.offset + source.randrange(section.size)] = source.randrange(256)
        path = tmp_path / str(index)
        path.write_bytes(broken)
        with Image(path) as image:
            table = FrameTable(image)
            for address in functions:
                table.row(address + source.randrange(16))
        path.unlink()


def test_index_and_scan_agree() -> None:
    """The binary search of .eh_frame_hdr finds what reading every entry finds."""
    with Image(build_c("-g", "-O2", "-static", "-pthread", source="stacks.c")) as image:
        indexed, scanned = FrameTable(image), FrameTable(image)
        assert scanned.row(0) is None
        for section in scanned._sections or []:
            section._index = None
        for symbol in image.functions[:: max(1, len(image.functions) // 300)]:
            for at in (symbol.address, symbol.address + symbol.size // 2):
                assert indexed.row(at) == scanned.row(at), symbol


def test_rows_name_the_return_address() -> None:
    with Image(build_c("-g", "-O2", "-pthread", source="stacks.c")) as image:
        main = next(symbol for symbol in image.functions if symbol.name == "main")
        row = FrameTable(image).row(main.address)
        assert row is not None
        assert (row.cfa_register, row.cfa_offset, row.return_register) == (7, 8, 16)
        assert (row.rules[16].how, row.rules[16].value) == (How.OFFSET, -8)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (b"\x77\x08\x06\x23\x10", 0x1234 + 16),  # breg7+8, deref, plus_uconst 16
        (b"\x32\x35\x1c", (2 - 5) & (1 << 64) - 1),
        (b"\x77\x00\x80\x00\x3f\x1a\x3b\x2a\x33\x24\x22", None),  # reg16 is not known
        (b"\x31\x28\x01\x00\x96\x39", 9),  # bra over a nop
        (b"\x2f\xfd\xff", None),  # endless
        (b"\x22", None),
        (b"\xf3", None),
        (b"\x08\xff", 0xFF),
        (b"\x09\xff", (1 << 64) - 1),
        (b"\x11\x7f\x31\x1b", (1 << 64) - 1),
    ],
)
def test_expressions(expression: bytes, value: int | None) -> None:
    memory = {0x108: (0x1234).to_bytes(8, "little")}
    assert evaluate(expression, {7: 0x100}, lambda at, _n: memory.get(at)) == value


def test_broken_cores(tmp_path: Path) -> None:
    core, _wanted = _stopped(build_c("-g", "-O2", "-pthread", source="stacks.c"), tmp_path)
    raw, source = core.read_bytes(), random.Random(3)
    for index in range(60):
        broken = bytearray(raw[: source.randrange(64, len(raw))] if index % 2 else raw)
        for _ in range(8):
            broken[source.randrange(min(len(broken), 8192))] = source.randrange(256)
        path = tmp_path / "broken"
        path.write_bytes(broken)
        try:
            backtraces.ours(path)
        except SymbolError:
            continue
