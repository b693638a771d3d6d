"""gdb's backtraces as the oracle: of every thread of a core file or a stopped process."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from symbols.corefile import CoreFile
from symbols.errors import SymbolError
from symbols.image import Image
from symbols.modules import modules_of
from symbols.unwind import Backtrace, Unwinder
from tests.requirements import require_program, skip_or_fail

_SCRIPT = """
import gdb, json
threads = {{}}
for thread in gdb.selected_inferior().threads():
    thread.switch()
    rows, frame = [], gdb.newest_frame()
    while frame is not None and len(rows) < 250:
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):  # neither is on the stack
            rows.append([frame.pc(), frame.type() == gdb.SIGTRAMP_FRAME, frame.name() or "?"])
        try:
            frame = frame.older()
        except gdb.MemoryError:
            frame = None
    threads[thread.ptid[1]] = rows
open({out!r}, "w").write(json.dumps(threads))
"""

Gdb = dict[int, list[tuple[int, bool, str]]]


def _gdb(tmp: Path, *args: str) -> str:
    quiet = ("set pagination off", "set confirm off", "set auto-load no", "set debuginfod enabled off")
    command = [require_program("gdb"), "-nx", "-batch"]
    for text in (*quiet, "set backtrace past-main on", *args):
        command += ["-ex", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def wait_until_asleep(pid: int) -> None:
    """Until every thread of the process sleeps (proc(5): state S), so that its stacks stand still."""
    for _ in range(200):
        states = [
            (path / "stat").read_text().rsplit(")", 1)[1].split()[0]
            for path in Path(f"/proc/{pid}/task").iterdir()
        ]
        if states and set(states) == {"S"}:
            return
        time.sleep(0.02)
    raise AssertionError(f"threads of {pid} do not come to rest: {states}")


def dump(pid: int, tmp: Path) -> tuple[Path, Gdb]:
    """A core of a running process, with gdb's backtraces at the same stop. The process goes on."""
    core, out, script = tmp / f"core.{pid}", tmp / f"bt.{pid}.json", tmp / "bt.py"
    script.write_text(_SCRIPT.format(out=str(out)))
    said = _gdb(tmp, f"attach {pid}", f"source {script}", f"gcore {core}", "detach")
    if "ptrace: Operation not permitted" in said:
        skip_or_fail("permission to trace a process that is no child (kernel.yama.ptrace_scope)")
    assert out.exists(), said
    assert core.exists(), said
    return core, read(out)


def of_core(exe: Path, core: Path, tmp: Path) -> Gdb:
    """gdb's backtraces of a core."""
    out, script = tmp / "core-bt.json", tmp / "bt.py"
    script.write_text(_SCRIPT.format(out=str(out)))
    said = _gdb(tmp, f"file {exe}", f"core-file {core}", f"source {script}")
    assert out.exists(), said
    return read(out)


def read(path: Path) -> Gdb:
    return {int(tid): [tuple(row) for row in rows] for tid, rows in json.loads(path.read_text()).items()}


def ours(core: Path) -> dict[int, Backtrace]:
    """Our unwinder over the same core."""
    images: dict[str, Image | None] = {}

    def open_image(path: str) -> Image | None:
        try:
            images[path] = Image(path)
        except SymbolError:
            images[path] = None
        return images[path]

    file = CoreFile(core)
    try:
        unwinder = Unwinder(modules_of(file.files, open_image), file.memory)
        return {thread.tid: unwinder.unwind(thread.registers) for thread in file.threads}
    finally:
        file.close()
        for image in images.values():
            if image is not None:
                image.close()


def differences(gdb: Gdb, mine: dict[int, Backtrace]) -> list[str]:
    """One line per thread whose frames are not the same; nothing when all are."""
    found = []
    for tid, rows in gdb.items():
        trace = mine.get(tid)
        wanted = [(pc, signal) for pc, signal, _name in rows]
        seen = [(frame.pc, frame.signal) for frame in trace.frames] if trace is not None else []
        if wanted != seen:
            pairs = zip(wanted, seen, strict=False)
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(seen)))
            theirs = [(hex(pc), signal, name) for pc, signal, name in rows[at : at + 3]]
            own = trace.frames[at : at + 3] if trace is not None else ()
            found.append(
                f"{tid}: frame {at}: gdb {theirs} of {len(wanted)}, ours "
                f"{[(hex(f.pc), f.signal, f.step.name) for f in own]} of {len(seen)}, {trace and trace.end}"
            )
    return found
