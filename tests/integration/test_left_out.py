"""Hits of tracepoints that the kernel leaves out, as its CPU is within another BPF program, are counted."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest

from probes import loader_bcc, perf
from probes.sysbpf import left_out

pytestmark = pytest.mark.bpf

_PRINTK = 6  # BPF_FUNC_trace_printk (linux/bpf.h)
_PERF_EVENT = 7  # BPF_PROG_TYPE_PERF_EVENT
_CPU_CLOCK = struct.pack("<IIQQ", 1, 64, 0, 100_000).ljust(64, b"\0")  # PERF_TYPE_SOFTWARE, each 0.1 ms


def program(name: str, kind: int, *instructions: tuple[int, int, int, int]) -> int:
    """Load what (opcode, registers, offset, immediate) say, with `return 0` at the end."""
    code = [*instructions, (0xB7, 0, 0, 0), (0x95, 0, 0, 0)]  # r0 = 0; exit
    return loader_bcc._program(name, kind, b"".join(struct.pack("<BBhi", *one) for one in code))


def test_what_the_kernel_leaves_out_is_counted() -> None:
    """A program that a timer runs hits a tracepoint: by bpf_trace_printk()."""
    number = perf.tracepoint_id("bpf_trace", "bpf_trace_printk")
    assert number is not None
    inner = program("inner", loader_bcc._TRACEPOINT)
    outer = program(
        "outer",
        _PERF_EVENT,
        (0x7A, 10, -8, 0x000A78),  # "x\\n"
        (0xBF, 0xA1, 0, 0),  # r1 = r10
        (0x07, 1, 0, -8),
        (0xB7, 2, 0, 3),
        (0x85, 0, 0, _PRINTK),
    )
    before = left_out(inner)
    links = [perf.attach(inner, number), perf._running(outer, _CPU_CLOCK, 0)]
    try:
        end = time.monotonic() + 60
        while left_out(inner) < before + 3 and time.monotonic() < end:
            pass
        counted = left_out(inner)
        said = Path(f"/proc/self/fdinfo/{inner}").read_text().split("recursion_misses:")[1].split()[0]
    finally:
        for fd in (*links, outer, inner):
            os.close(fd)
    assert before == 0
    assert 3 <= counted <= int(said)


def test_what_is_no_program_was_not_left_out(tmp_path: Path) -> None:
    with (tmp_path / "no program").open("w") as file:
        assert left_out(file.fileno()) == 0
