"""From kept stack bytes to the frames of a report: unwinding in the worker, merging, files of a process."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.exhibit import SourceFrame, exhibit
from agent.report import _stack, report
from agent.scene import Scene
from agent.snapshots import Snapshots, fingerprint
from agent.stack_worker import STACK_WORDS, in_the_id, merged
from agent.symbolize import Answer, Question
from agent.symbolize_worker import Worker
from probes import procfs
from probes.events import MappedModule, ModulesMapped, StackSeen
from symbols.image import Image
from symbols.unwind import Backtrace, End, Step, UnwoundFrame
from tests.unit.agent.scenario import ATTACHED, PID, finding
from tests.unit.agent.test_report import plain
from tests.unit.symbols.builds import build_c

LIBC = MappedModule(
    start=0x7F00_0000_0000,
    end=0x7F00_0010_0000,
    bias=0x7F00_0000_0000,
    path="/lib/libc.so.6",
    identity="build-id:c0",
)


def _trace(*frames: tuple[int, int]) -> Backtrace:
    return Backtrace(
        frames=tuple(
            UnwoundFrame(pc=pc, cfa=None, exact=i == 0, step=Step.CFI, signal=False, registers={"rbp": rbp})
            for i, (pc, rbp) in enumerate(frames)
        ),
        end=End.UNREADABLE,
    )


@pytest.mark.parametrize(("name", "lines"), [("libc.so.6", False), ("libours.so.6", True)])
def test_of_the_c_library_names_are_enough(name: str, lines: bool, tmp_path: Path) -> None:
    """Its debug files hold thousands of units; every report leaves its frames out."""
    path = tmp_path / name
    shutil.copy(build_c("-g", "-O2"), path)
    with Image(path) as image:
        main = next(one.address for one in image.functions if one.name == "main")
        identity = image.identity
    request = {"do": "frames", "identity": identity, "args": [[main]], "images": {identity: [str(path)]}}
    (answer,) = Worker().answer(request)["answers"]
    function, file, *_rest = answer["frames"][-1]
    assert (function, bool(file)) == ("main", lines)


def test_the_walk_goes_on_where_the_bytes_end() -> None:
    registers = {"rbp": 0x100}
    # libc without a frame pointer: its caller 20 is in the bytes only, 30 in the walk only
    assert merged(_trace((10, 0x100), (20, 0x100)), [10, 30, 40], registers) == [
        (10, True),
        (20, False),
        (30, False),
        (40, False),
    ]
    # both know 30
    found = merged(_trace((10, 0x100), (20, 0x100), (30, 0x180), (35, 0x180)), [10, 30, 40], registers)
    assert [pc for pc, _exact in found] == [10, 20, 30, 40]
    # rbp is not a frame pointer any more: what the walk says cannot be placed
    assert [pc for pc, _ in merged(_trace((10, 0x100), (20, 5)), [10, 30], registers)] == [10, 20]
    assert [pc for pc, _ in merged(_trace((10, 0x100), (20, 5), (30, 6)), [10, 30], registers)] == [
        10,
        20,
        30,
    ]
    with pytest.raises(ValueError, match="another moment"):
        merged(_trace((11, 0x100)), [10], registers)


def test_a_request_needs_bytes_and_modules() -> None:
    known = Snapshots()
    stack = StackSeen(tgid=PID, id=3, pcs=(1,), registers={"rip": 1}, memory=b"x")
    known.know_stack(stack)
    assert known.request(PID, 3) is None
    known.know_modules(ModulesMapped(ts=1, tgid=PID, modules=(LIBC,)))
    request = known.request(PID, 3)
    assert request is not None
    assert request["memory"] == "78"
    assert request["modules"][0][3:] == ["/lib/libc.so.6", "build-id:c0"]
    assert fingerprint(stack) == fingerprint(replace(stack)) != fingerprint(replace(stack, memory=b"y"))
    assert fingerprint(replace(stack, memory=b"")) == 0


class _Libc:
    """Knows only what lies in libc, and one unwound stack."""

    def __init__(self, unwound: Answer) -> None:
        self._unwound = unwound

    def answer(self, question: Question) -> Answer | None:
        if question.kind == "unwind":
            return self._unwound
        if question.identity == LIBC.identity:
            return {"frames": [["close", "", 0, 0, False]]}
        return {"reason": "not asked"}


def _scene(**kept: Any) -> Scene:
    scene = Scene()
    scene.feed(ATTACHED)
    scene.feed(ModulesMapped(ts=1, tgid=PID, modules=(LIBC,)))
    for number in (1, 2, 3):
        scene.feed(StackSeen(tgid=PID, id=number, pcs=(0x7F00_0000_1235, 0x1002222), **kept))
    return scene


def test_a_shared_objects_frame_names_function_and_file() -> None:
    item = exhibit(finding(), _scene())
    pc = item.steps[0].pcs[0]
    assert pc.question == Question("frames", "build-id:c0", (0x1234,))
    text = plain(report(item, _Libc({})))
    assert "close  libc.so.6" in text
    frames = item.to_json(_Libc({}))["actors"][0]["frames"]
    assert (frames[0]["function"], frames[0]["module"]) == ("close", "/lib/libc.so.6")


def test_the_unwound_stack_comes_before_the_walk() -> None:
    own = ["Conn.close", "worker.zig", 7, 1, False]
    rows = [
        [0x7F00_0000_1235, "/lib/libc.so.6", "build-id:c0", {"frames": [["close", "", 0, 0, False]]}],
        [0x1003333, "/srv/poolserver", ATTACHED.plan["identity"], {"frames": [own]}],
    ]
    item = exhibit(finding(), _scene(registers={"rip": 1}, memory=b"12345678"))
    assert any(question.kind == "unwind" for question in item.questions())
    text = plain(report(item, _Libc({"stack": rows})))
    assert "Conn.close  worker.zig:7:1   through close" in text
    for bad in ({"stack": []}, {"stack": 5}, {"reason": "lost"}):
        assert "close  libc.so.6" in plain(report(item, _Libc(bad)))
    assert plain(report(item, _Libc({"stack": [[1], "x", [1, 2, 3, 4]]})))


def test_modules_of_a_process() -> None:
    modules = procfs.modules(os.getpid(), "own")
    assert modules is not None
    libc = next(row for row in modules if "libc.so" in row[3] or "libc-" in row[3])
    close = ctypes.cast(ctypes.CDLL(None).close, ctypes.c_void_p).value
    assert close is not None
    with Image(libc[3]) as image:
        assert libc[4] == image.identity
        symbol = image.function_at(close - libc[2])
    assert symbol is not None
    assert symbol.name == "close"
    executable = os.path.realpath("/proc/self/exe")
    assert [row[4] for row in modules if row[3] == executable] == ["own"]
    assert procfs.modules(1 << 30, "own") is None


def test_the_bias_of_an_executable_whose_segments_share_pages() -> None:
    exe = build_c("-g", "-O2", "-no-pie", "-Wl,-z,noseparate-code", "-pthread", source="stacks.c")
    with subprocess.Popen([exe], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            modules = procfs.modules(process.pid, "own")
        finally:
            process.kill()
    assert [row[2] for row in modules or [] if row[4] == "own"] == [0]


def test_the_worker_unwinds_a_kept_stack() -> None:
    """Two frames of a made-up stack through the real tables of a real program."""
    exe = build_c("-g", "-O2", "-no-pie", "-pthread", source="stacks.c")
    with Image(exe) as image:
        identity = image.identity
        at = {symbol.name: symbol for symbol in image.functions}
        inside, back = at["handler"].address, at["main"].address + 40
        low = min(segment.vaddr for segment in image.segments)
        high = max(segment.vaddr + segment.memsz for segment in image.segments)
    stack = {
        "pcs": [inside, 0x1234],
        "registers": {"rip": inside, "rsp": 0x7FFF_0000, "rbp": 0},
        "memory": back.to_bytes(8, "little").hex(),
        "modules": [[low, high, 0, str(exe), identity]],
    }
    request = {
        "do": "unwind",
        "identity": identity,
        "args": [[PID, 1, 1]] * 3,
        "images": {identity: [str(exe)]},
        "stacks": [stack, None, {**stack, "pcs": [inside + 1]}],
    }
    whole, lost, other = Worker().answer(request)["answers"]
    assert [row[0] for row in whole["stack"]][:2] == [inside, back]
    assert whole["stack"][0][3]["frames"][0][0] == "handler"
    assert whole["stack"][1][3]["frames"][-1][0] == "main"
    assert "not kept" in lost["reason"]
    assert "another moment" in other["reason"]


@pytest.mark.parametrize("kept", [True, False], ids=["frame-pointers", "none"])
def test_beyond_the_kept_bytes_the_walk_is_followed_from_a_function_with_a_frame_pointer(kept: bool) -> None:
    """Elsewhere rbp is a register like any other: what the kernel read behind it is nobody's caller."""
    flag = "-fno-omit-frame-pointer" if kept else "-fomit-frame-pointer"
    exe = build_c("-g", "-O2", "-no-pie", "-pthread", flag, source="stacks.c")
    with Image(exe) as image:
        identity = image.identity
        at = {symbol.name: symbol for symbol in image.functions}
        inside, main = at["handler"].address, at["main"]
        low = min(segment.vaddr for segment in image.segments)
        high = max(segment.vaddr + segment.memsz for segment in image.segments)
    stack = {
        "pcs": [inside, main.address + 60],  # an address in the program's code, as garbage may be
        "registers": {"rip": inside, "rsp": 0x7FFF_0000, "rbp": 0x7FFF_2000},
        "memory": (main.address + 40).to_bytes(8, "little").hex(),
        "modules": [[low, high, 0, str(exe), identity]],
    }
    request = {"do": "unwind", "identity": identity, "args": [[PID, 1, 1]]}
    request |= {"images": {identity: [str(exe)]}, "stacks": [stack]}
    (answer,) = Worker().answer(request)["answers"]
    expected = [inside, main.address + 40, *[main.address + 60] * kept]
    assert [row[0] for row in answer["stack"]] == expected


def test_what_a_stacks_id_tells() -> None:
    """As the kernel side hashes it: two callers by frame pointers, and the first words of the stack."""
    source = (Path(procfs.__file__).parent / "bpf" / "10-maps.c").read_text()
    assert f"#define AF_STACK_WORDS {STACK_WORDS} " in source
    words = [0x5000 + number for number in range(STACK_WORDS + 4)]
    memory = b"".join(word.to_bytes(8, "little") for word in words)
    told = in_the_id({"pcs": [1, 2, 3, 4], "memory": memory.hex()})
    assert told == {1, 2, 3, *words[:STACK_WORDS]}
    assert in_the_id({"pcs": [1], "memory": "00" * 5}) == {1}


FAR = """
#include <stdint.h>
#include <unistd.h>
static volatile int n;
struct seen { uint64_t rip, rsp, rbp; };
/* prints its registers and its stack, as the kernel side keeps them */
#define FN static void __attribute__((noinline))
FN leaf(void) {
    struct seen s;
    __asm__ volatile("lea 0(%%rip), %0\\n\\tmov %%rsp, %1\\n\\tmov %%rbp, %2"
                     : "=r"(s.rip), "=r"(s.rsp), "=r"(s.rbp));
    n += (int)write(1, &s, sizeof s) + (int)write(1, (void *)s.rsp, 1024);
}
FN middle(void) { volatile char pad[256]; pad[0] = 1; leaf(); n += pad[0]; }
FN on_timeout(void) { middle(); n += 2; }
FN on_hang_up(void) { middle(); n += 3; }
FN loop(int which) { if (which > 1) on_hang_up(); else on_timeout(); n += 4; }
int main(int argc, char **argv) { loop(argc); return (int)(argv == 0); }
"""


def test_callers_that_the_stacks_id_does_not_tell_apart_are_not_told_as_certain(tmp_path: Path) -> None:
    """-O2 without frame pointers, two ways that differ three levels up: the report of one says so."""
    source, exe = tmp_path / "far.c", tmp_path / "far"
    source.write_text(FAR)
    flags = ("-O2", "-g", "-no-pie", "-fno-pie", "-fomit-frame-pointer", "-fno-stack-protector")
    subprocess.run(["gcc", *flags, "-o", str(exe), str(source)], check=True)
    with Image(exe) as image:
        identity = image.identity
        low = min(segment.vaddr for segment in image.segments)
        high = max(segment.vaddr + segment.memsz for segment in image.segments)
    told = []
    for args in ([], ["x"]):
        raw = subprocess.run([str(exe), *args], capture_output=True, check=True).stdout
        rip, rsp, rbp = struct.unpack_from("<3Q", raw)
        stack = {
            "pcs": [rip],
            "registers": {"rip": rip, "rsp": rsp, "rbp": rbp},
            "memory": raw[24:].hex(),
            "modules": [[low, high, 0, str(exe), identity]],
        }
        request = {"do": "unwind", "identity": identity, "args": [[PID, 1, 1]]}
        request |= {"images": {identity: [str(exe)]}, "stacks": [stack]}
        (answer,) = Worker().answer(request)["answers"]
        rows = {row[3]["frames"][0][0]: row[3] for row in answer["stack"] if "frames" in row[3]}
        assert "unsure" not in rows["leaf"]
        assert "unsure" not in rows["middle"], "nobody else calls leaf"
        told += [(name, rows[name].get("unsure")) for name in ("on_timeout", "on_hang_up") if name in rows]
        assert rows["loop"]["unsure"], "it called the one that may be another"
    assert told == [("on_timeout", True), ("on_hang_up", True)]


def test_a_frame_that_is_not_certain_is_told_as_such_and_ends_the_stack() -> None:
    rows = [["in", "middle"], ["called", "by", "on_timeout"]]
    frames = [
        SourceFrame(1, "middle", "/src/far.c", 12, 3),
        SourceFrame(2, "on_timeout", "/src/far.c", 13, 3, unsure=True),
        SourceFrame(3, "loop", "/src/far.c", 15, 3, unsure=True),
    ]
    shown = plain(_stack(frames)).splitlines()
    assert [row.split()[: len(want)] for row, want in zip(shown, rows, strict=True)] == rows
    assert shown[1].endswith("or another caller of the same")
