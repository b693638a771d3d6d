"""Mini cores against a full core of the same stop: gdb, lldb, drgn and our own unwinder agree."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from pathlib import Path

import pytest

from probes.capture.capturer import Capturer
from probes.capture.facts import Captured, MemoryRange, Seized
from symbols.corefile import CoreFile
from tests.integration import debuggers
from tests.integration.capturing import captured, crasher, needs_root, program
from tests.integration.debuggers import AtCrash
from tests.integration.harness import load, server
from tests.requirements import require_program
from tests.unit.symbols import backtraces
from tests.unit.symbols.backtraces import Gdb
from tests.unit.symbols.builds import build_c

__all__ = ["needs_root"]  # a fixture

MOST = 250  # frames that the oracles' scripts ask for


def capture_again(pid: int, tid: int, number: int, folder: Path, ranges: list[MemoryRange]) -> Captured:
    """A mini core of a process that stands just before it gets a fatal signal."""
    with Capturer(folder) as capturer:
        assert isinstance(capturer.seize(pid), Seized)
        capturer.ranges(pid, ranges)
        if number != signal.SIGSEGV:  # a fault comes again by itself
            assert ctypes.CDLL(None).syscall(234, pid, tid, number) == 0  # tgkill(2)
        os.kill(pid, signal.SIGCONT)
        return captured(capturer)


def compare(
    exe: Path, full: Path, crashed: int, wanted: Gdb, event: Captured, tmp: Path, *, zig: bool = False
) -> None:
    mini = Path(event.path)
    assert event.tid == crashed
    assert backtraces.of_core(exe, full, tmp) == wanted
    assert backtraces.of_core(exe, mini, tmp) == wanted
    mine = backtraces.ours(mini)
    assert backtraces.differences(wanted, {tid: _first(trace) for tid, trace in mine.items()}) == []
    pcs = debuggers.pcs(wanted)
    for name, small, large in (
        ("lldb", debuggers.lldb(exe, mini), debuggers.lldb(exe, full)),
        ("drgn", debuggers.drgn(mini), debuggers.drgn(full)),
    ):
        assert small == large, name
        assert small[0] == crashed, name
        if not zig:  # they count inlined frames of its code otherwise, or refuse its debugging information
            assert {tid: rows[:MOST] for tid, rows in small[1].items()} == pcs, name
    assert not [left for left in event.left_out if left.what in ("crasher stack", "stack", "thread")]


def _first(trace: backtraces.Backtrace) -> backtraces.Backtrace:
    return backtraces.Backtrace(frames=trace.frames[:MOST], end=trace.end)


@pytest.mark.parametrize(
    ("flags", "what", "number"),
    [
        (("-O2",), "n", signal.SIGSEGV),
        (("-O0",), "a", signal.SIGABRT),
        (("-O2",), "h", signal.SIGABRT),  # in a handler on its own stack, above the frame that faulted
        (("-O2",), "o", signal.SIGSEGV),  # the stack pointer is in the guard page
        (("-O2", "-static"), "n", signal.SIGSEGV),
    ],
    ids=lambda value: "".join(value) if isinstance(value, tuple) else str(value),
)
def test_crashes(flags: tuple[str, ...], what: str, number: int, tmp_path: Path) -> None:
    exe = build_c("-g", "-pthread", *flags, source="crasher.c", folder=Path(__file__).parent / "programs")
    with crasher(6, exe=exe) as target:
        watch = AtCrash(target.pid, tmp_path, signal.Signals(number).name)
        with target.connect() as connection:
            connection.sendall(what.encode())
            full, crashed, wanted = watch.wait()
            event = capture_again(target.pid, crashed, number, tmp_path, [MemoryRange(target.slot, 64)])
        compare(exe, full, crashed, wanted, event, tmp_path)
        assert len(wanted) == 7
        _same_memory(Path(event.path), full, target.rseq)


def _same_memory(mini: Path, full: Path, rseq: int) -> None:
    """Every byte that both cores have is the same, but for what the second stop itself writes: nothing."""
    small, large = CoreFile(mini), CoreFile(full)
    try:
        pages, different = 0, []
        for start, size, _ in small._loads:
            for page in range(start, start + size, 4096):
                one, other = small.memory(page, 4096), large.memory(page, 4096)
                if other is not None:
                    pages += 1
                    different += [page + i for i in range(4096) if one and one[i] != other[i]]
        assert pages > 20
        # the kernel notes the processor there whenever the thread has moved to another (rseq(2))
        bases = [thread.registers["fs_base"] + rseq for thread in small.threads]
        assert [at for at in different if not any(base <= at < base + 32 for base in bases)] == []
        for one, other in zip(sorted(small.threads, key=_tid), sorted(large.threads, key=_tid), strict=True):
            mine, full_ones = dict(one.registers), dict(other.registers)
            for name in ("rax", "orig_rax"):  # of a system call that is to be restarted
                mine.pop(name)
                full_ones.pop(name)
            assert (one.tid, mine) == (other.tid, full_ones)
    finally:
        small.close()
        large.close()


def _tid(thread: object) -> int:
    return thread.tid  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("mode", ["ReleaseSafe", "Debug"])
def test_the_bundled_server(mode: str, tmp_path: Path) -> None:
    """A stale dispatch: null + 0x2f8 in getState, as in the crash this project exists for."""
    args = ("--port", "0", "--workers", "4", "--bug", "dup-outlives-close")
    with server(mode, tmp_path, *args) as target:
        watch = AtCrash(target.pid, tmp_path)
        client = load(target.port, "dup", connections=100, concurrency=1)
        try:
            full, crashed, wanted = watch.wait()
            event = capture_again(target.pid, crashed, signal.SIGSEGV, tmp_path, [])
        finally:
            client.kill()
            client.communicate()
        assert (event.signal, event.fault_address, event.handled) == (11, 0x2F8, True)
        assert len(wanted) == 6
        compare(target.exe, full, crashed, wanted, event, tmp_path, zig=True)


def test_debuggers_read_variables_and_libraries(tmp_path: Path) -> None:
    """gdb finds the shared objects through link_map, and values in memory that only the mini core has."""
    with crasher(2) as target, Capturer(tmp_path) as capturer:
        capturer.seize(target.pid)
        capturer.ranges(target.pid, [MemoryRange(target.slot, 64)])
        target.ask("n")
        core = captured(capturer).path
        exe = os.readlink(f"/proc/{target.pid}/exe") if target.process.poll() is None else ""
    command = [require_program("gdb"), "-nx", "-batch", "-ex", "set debuginfod enabled off"]
    for text in (
        f"file {exe or program()}",
        f"core-file {core}",
        "info sharedlibrary",
        "print known_global",
        "print known_slot->text",
        "print $_siginfo._sifields._sigfault.si_addr",
        "info auxv",
        "info proc",
        "p $xmm0",
    ):
        command += ["-ex", text]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert "libc.so.6" in said
    assert "ld-linux-x86-64.so.2" in said
    assert '"changed at run time' in said
    assert '"text of a slot' in said
    assert "(void *) 0x10" in said
    assert "AT_ENTRY" in said
    assert "v4_float" in said
    assert "Program terminated with signal SIGSEGV" in said
