"""Capture by ptrace: its limits, what it refuses, and that it ends with whoever it works for."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from probes.capture.capturer import Capturer
from probes.capture.facts import (
    CaptureOptions,
    Ending,
    Left,
    MemoryRange,
    Refusal,
    Refused,
    Seized,
)
from symbols.corefile import CoreFile
from tests.integration.capturing import (
    captured,
    capturer,
    crasher,
    needs_root,
    released,
    runs_free,
    tasks,
)
from tests.integration.harness import descendants, wait_for
from tests.requirements import require_program, skip_or_fail

__all__ = ["capturer", "needs_root"]  # fixtures


def test_the_freeze_has_a_limit(capturer: Capturer) -> None:
    """Reading a page of a userfaultfd that nobody serves never ends: the target goes on all the same."""
    with crasher(3, "uffd") as target:
        if not target.blocked:
            skip_or_fail("userfaultfd(2)")
        capturer.seize(target.pid, CaptureOptions(freeze_max_ns=300_000_000))
        capturer.ranges(target.pid, [MemoryRange(target.slot, 64), MemoryRange(target.blocked, 64, 1)])
        began = time.monotonic()
        assert target.ask("s") == b"s"
        assert 0.25 < time.monotonic() - began < 5  # not for ever
        event = captured(capturer)
        assert 0.29e9 < event.pause_ns < 1.2e9  # beyond that its watchdog would have ended the tracer
        left = {one.what: one.why for one in event.left_out}
        assert left["slot"] is left["globals"] is Left.DEADLINE
        assert runs_free(target.pid)
        core = CoreFile(event.path)  # what came before it is there
        assert core.memory(target.slot + 8, 14) == b"text of a slot"
        assert core.memory(target.blocked, 8) is None
        assert len(core.threads) == 4
        core.close()


def test_a_tracer_that_hangs_is_ended(capturer: Capturer) -> None:
    with crasher(3, "uffd") as target:
        if not target.blocked:
            skip_or_fail("userfaultfd(2)")
        capturer.seize(target.pid, CaptureOptions(freeze_max_ns=500_000_000))
        capturer.ranges(target.pid, [MemoryRange(target.blocked, 64)])
        (tracer,) = {tracer for _, tracer in tasks(target.pid).values()}
        with target.connect() as connection:
            connection.sendall(b"s")
            wait_for(lambda: {s for s, _ in tasks(target.pid).values()} == {"t"}, what="no stop")
            os.kill(tracer, signal.SIGSTOP)
            began = time.monotonic()
            assert connection.recv(1) == b"s"
            assert time.monotonic() - began < 4
        assert released(capturer).why is Ending.HELPER_ENDED
        assert target.counters()["segv"] == 1
        assert isinstance(capturer.seize(target.pid), Seized)


def test_the_file_has_a_limit(capturer: Capturer) -> None:
    with crasher(100) as target:
        capturer.seize(target.pid, CaptureOptions(limit_bytes=1 << 20))
        capturer.ranges(target.pid, [MemoryRange(target.slot - target.slot % 4096, 512 << 10)])
        target.ask("n")
        event = captured(capturer)
        assert event.file_bytes <= 1 << 20
        assert event.left_out_bytes > 100_000
        assert Left.LIMIT in {one.why for one in event.left_out}
        core = CoreFile(event.path)
        assert core.memory(target.slot + 8, 14) == b"text of a slot"
        core.close()


def test_a_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mount, umount = require_program("mount"), require_program("umount")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True)
    if done.returncode:
        skip_or_fail("permission to mount a tmpfs")
    try:
        with Capturer(folder) as capturer, crasher(2) as target:
            capturer.seize(target.pid)
            assert target.ask("s") == b"s"
            event = captured(capturer)
            assert "No space left" in event.failure
            assert (event.path, event.signal, list(folder.iterdir())) == ("", 11, [])
            assert event.threads[0].registers["rip"]
    finally:
        subprocess.run([umount, str(folder)], check=True)


def test_files_belong_to_the_folders_owner(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    with Capturer(folder) as capturer, crasher(0) as target:
        capturer.seize(target.pid)
        target.ask("s")
        assert os.stat(captured(capturer).path).st_uid == 65534


# -- refusals


def test_another_debugger(capturer: Capturer, tmp_path: Path) -> None:
    with crasher(2) as target, Capturer(tmp_path) as other:
        assert isinstance(other.seize(target.pid), Seized)
        answer = capturer.seize(target.pid)
        assert isinstance(answer, Refused)
        assert answer.why is Refusal.TRACED
        assert {answer.tracer} == {tracer for _, tracer in tasks(target.pid).values()}
        assert target.ask("e") == b"e"
        other.release(target.pid)
        wait_for(lambda: runs_free(target.pid), what="it is still traced")
        assert isinstance(capturer.seize(target.pid), Seized)
        again = capturer.seize(target.pid)
        assert isinstance(again, Refused)
        assert again.why is Refusal.BUSY


def test_nothing_to_seize(capturer: Capturer) -> None:
    gone = subprocess.Popen(["/bin/true"])
    wait_for(lambda: tasks(gone.pid)[gone.pid][0] == "Z", what="true runs on")
    kthread = int(next(p.name for p in Path("/proc").iterdir() if p.name == "2"))
    with crasher(0) as target:
        answers = [
            capturer.seize(gone.pid),
            capturer.seize(1 << 22),
            capturer.seize(kthread),
            capturer.seize(target.pid, start_time=1),
        ]
        assert runs_free(target.pid)
    gone.wait()
    assert [one.why for one in answers if isinstance(one, Refused)] == [
        Refusal.GONE, Refusal.GONE, Refusal.KERNEL_THREAD, Refusal.REPLACED
    ]  # fmt: skip


_ASK = """
import ctypes, os, sys
from probes.capture.capturer import Capturer
pid, folder, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if how == "user":
    os.setgid(65534); os.setuid(65534)
else:  # every ptrace(2) fails with EPERM: BPF_LD nr; BPF_JEQ 101; RET ERRNO|1; RET ALLOW
    import struct
    libc = ctypes.CDLL(None)
    code = b"".join(struct.pack("<HBBI", *one) for one in (
        (0x20, 0, 0, 0), (0x15, 0, 1, 101), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)))
    text = ctypes.create_string_buffer(code)
    prog = ctypes.create_string_buffer(struct.pack("<H6xQ", 4, ctypes.addressof(text)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(prog))) == 0
with Capturer(folder) as capturer:
    answer = capturer.seize(pid)
    print(answer.why.value, answer.detail)
"""


@pytest.mark.parametrize(("how", "why"), [("user", "permission"), ("seccomp", "seccomp")])
def test_not_permitted(how: str, why: str, tmp_path: Path) -> None:
    folder = Path("/tmp")  # one that the other user can open
    with crasher(2) as target:
        done = subprocess.run(
            [sys.executable, "-c", _ASK, str(target.pid), str(folder), how],
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        assert done.stdout.startswith(why), done.stdout + done.stderr
        assert runs_free(target.pid)


# -- ends


def test_it_ends_with_the_daemon(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom probes.capture.capturer import Capturer\n"
        "c = Capturer(sys.argv[2]); c.start(); c.seize(int(sys.argv[1]))\n"
        "print('seized', flush=True); time.sleep(100)"
    )
    with crasher(3) as target:
        daemon = subprocess.Popen(
            [sys.executable, "-c", code, str(target.pid), str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"seized\n"
        helpers = descendants(daemon.pid)
        assert len(helpers) == 2
        daemon.kill()
        daemon.wait()
        wait_for(lambda: runs_free(target.pid), what="it is still traced")
        wait_for(lambda: not any(map(os.path.exists, (f"/proc/{p}" for p in helpers))), what="helpers stay")
        assert target.counters() == {"segv": 0, "usr1": 0, "eintr": 0}
        daemon.stdout.close()


def test_the_helper_is_started_again(capturer: Capturer) -> None:
    with crasher(2) as target:
        capturer.seize(target.pid)
        os.kill(capturer.helper_pid, signal.SIGKILL)
        assert released(capturer).why is Ending.HELPER_ENDED
        wait_for(lambda: runs_free(target.pid), what="it is still traced")
        assert isinstance(capturer.seize(target.pid), Seized)
        target.ask("s")
        assert captured(capturer).failure == ""


def test_starting_twice_keeps_what_is_seized(capturer: Capturer) -> None:
    with crasher(2) as target:
        capturer.seize(target.pid)
        helper = capturer.helper_pid
        capturer.start()
        assert capturer.helper_pid == helper
        target.ask("s")
        assert captured(capturer).failure == ""


def test_more_descriptors_than_select_can_count(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        with crasher(2) as target, Capturer(tmp_path) as capturer:
            assert isinstance(capturer.seize(target.pid), Seized)
            target.ask("s")
            assert captured(capturer).failure == ""
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_half_written_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".core.1.1.abc.partial").write_bytes(b"half")
    (tmp_path / "core.1.1").write_bytes(b"whole")
    with Capturer(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["core.1.1"]
