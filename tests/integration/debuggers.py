"""Other debuggers on a core, and gdb on a live process that is about to crash: the oracles of mini cores."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.integration.harness import wait_for
from tests.requirements import require_program, skip_or_fail
from tests.unit.symbols.backtraces import Gdb

# Stops at the fatal signal, notes every backtrace, makes a full core, and leaves the process group-stopped at
# the very instruction, so that it meets the same signal again when it goes on.
_AT_CRASH = """
import gdb, json, os
for text in ("pagination off", "confirm off", "debuginfod enabled off", "backtrace past-main on"):
    gdb.execute("set " + text)
for name in ("SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE", "SIGBUS"):
    stops = name == {stop_at!r}
    gdb.execute("handle %s %s" % (name, "stop nopass" if stops else "nostop pass"))
gdb.execute("handle SIGPIPE nostop pass")
gdb.execute("attach {pid}")
open({folder!r} + "/attached", "w").close()
gdb.execute("continue")
crashed = gdb.selected_thread().ptid[1]
threads = {{}}
for thread in gdb.selected_inferior().threads():
    thread.switch()
    rows, frame = [], gdb.newest_frame()
    while frame is not None and len(rows) < 250:
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            rows.append([frame.pc(), frame.type() == gdb.SIGTRAMP_FRAME, frame.name() or "?"])
        try:
            frame = frame.older()
        except gdb.MemoryError:
            frame = None
    threads[thread.ptid[1]] = rows
gdb.execute("gcore " + {folder!r} + "/full.core")
os.kill({pid}, {stop})
gdb.execute("detach")
open({folder!r} + "/crash.json", "w").write(json.dumps([crashed, threads]))
"""


class AtCrash:
    """gdb waits for a process to crash; see _AT_CRASH."""

    def __init__(self, pid: int, folder: Path, stop_at: str = "SIGSEGV") -> None:
        self._pid, self._folder, self._signal = pid, folder, stop_at
        script = folder / "at-crash.py"
        script.write_text(
            _AT_CRASH.format(pid=pid, folder=str(folder), stop=int(signal.SIGSTOP), stop_at=stop_at)
        )
        self._log = (folder / "gdb.log").open("w+")
        self._gdb = subprocess.Popen(
            [require_program("gdb"), "-nx", "-batch", "-x", str(script)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        wait_for((folder / "attached").exists, 60, "gdb does not attach")

    def wait(self) -> tuple[Path, int, Gdb]:
        """(full core, tid that crashed, gdb's backtraces); the process is group-stopped and untraced."""
        self._gdb.wait(60)
        self._log.seek(0)
        said = self._log.read()
        self._log.close()
        assert (self._folder / "crash.json").exists(), said
        crashed, threads = json.loads((self._folder / "crash.json").read_text())
        wait_for(lambda: backtraces_state(self._pid) <= {"T"}, what="the process does not stop")
        return (
            self._folder / "full.core",
            crashed,
            {int(tid): [tuple(row) for row in rows] for tid, rows in threads.items()},
        )


def backtraces_state(pid: int) -> set[str]:
    """States of all threads (proc(5))."""
    found = set()
    for tid in os.listdir(f"/proc/{pid}/task"):
        text = Path(f"/proc/{pid}/task/{tid}/stat").read_text()
        found.add(text.rsplit(")", 1)[1].split()[0])
    return found


_LLDB_THREAD = re.compile(r"^([* ]) thread #(\d+)(?:: tid = (\d+))?,", re.MULTILINE)
_LLDB_FRAME = re.compile(r"frame #\d+: 0x([0-9a-f]+)([^\n]*)")


def lldb(exe: Path, core: Path) -> tuple[int, dict[int, list[int]]]:
    """(selected thread, pcs of every thread's frames without inlined ones) as lldb sees a core."""
    command = [require_program("lldb"), "--no-lldbinit", "--batch"]
    for text in (f"target create {exe} --core {core}", "thread list", "thread backtrace all"):
        command += ["-o", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    listed, _, traces = done.stdout.partition("(lldb) thread backtrace all")
    tids = {number: (int(tid), mark) for mark, number, tid in _LLDB_THREAD.findall(listed) if tid}
    assert tids, done.stdout + done.stderr
    found = {}
    starts = list(_LLDB_THREAD.finditer(traces))
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        text = traces[start.end() : following.start() if following is not None else None]
        rows = [int(pc, 16) for pc, rest in _LLDB_FRAME.findall(text) if "[inlined]" not in rest]
        found[tids[start[2]][0]] = rows
    return next(tid for tid, mark in tids.values() if mark == "*"), found


_DRGN = """
import json, sys, drgn
program = drgn.Program()
program.set_core_dump({core!r})
try:
    program.load_default_debug_info()
except Exception:
    pass  # libraries without debugging information; Zig's own, which drgn 0.0.22 refuses
def pcs(frames):
    rows = []
    for frame in frames:
        try:
            if not frame.is_inline:
                rows.append(frame.pc)
        except LookupError:  # the frame above the outermost one
            break
    return rows
found = {{thread.tid: pcs(thread.stack_trace()) for thread in program.threads()}}
print(json.dumps([program.crashed_thread().tid, found]))
"""


def drgn(core: Path) -> tuple[int, dict[int, list[int]]]:
    """(crashed thread, pcs of every thread's frames without inlined ones) as drgn sees a core."""
    if importlib.util.find_spec("drgn") is None:
        skip_or_fail("drgn for this interpreter (python3-drgn)")
    done = subprocess.run(
        [sys.executable, "-c", _DRGN.format(core=str(core))], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    crashed, found = json.loads(done.stdout)
    return crashed, {int(tid): rows for tid, rows in found.items()}


def pcs(threads: Gdb) -> dict[int, list[int]]:
    return {tid: [pc for pc, _signal, _name in rows] for tid, rows in threads.items()}
