"""Capture by ptrace on a real server: what it passes on, takes and refuses, and that it lets go."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from probes.capture.capturer import Capturer
from probes.capture.facts import (
    Captured,
    CaptureOptions,
    Ending,
    Left,
    MemoryRange,
    Refusal,
    Refused,
    Released,
    Seized,
)
from symbols.corefile import CoreFile
from tests.integration.capturing import (
    captured,
    crasher,
    events_until,
    released,
    runs_free,
    tasks,
)
from tests.integration.harness import descendants, wait_for
from tests.requirements import require_program, skip_or_fail


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        skip_or_fail("root")


@pytest.fixture
def capturer(tmp_path: Path) -> Iterator[Capturer]:
    folder = tmp_path / "spool"
    folder.mkdir(mode=0o700)
    with Capturer(folder) as one:
        yield one


def test_a_handled_signal_counts_at_its_first_delivery(capturer: Capturer) -> None:
    with crasher(3) as target:
        assert isinstance(capturer.seize(target.pid), Seized)
        capturer.ranges(target.pid, [MemoryRange(target.slot, 64)])
        assert target.ask("s") == b"s"
        event, end = events_until(capturer, Released)
        assert isinstance(event, Captured)
        assert isinstance(end, Released)
        assert (event.pid, event.tid, event.signal, event.handled) == (target.pid, target.pid, 11, True)
        assert (event.failure, end.why) == ("", Ending.CAPTURED)
        assert 0 < event.pause_ns < CaptureOptions().freeze_max_ns
        assert len(event.threads) == 4
        assert all(0 <= one.stopped_ns <= one.resumed_ns <= event.pause_ns for one in event.threads)
        assert {one.name for one in event.threads} >= {"parked-0", "parked-1", "parked-2"}
        assert target.counters()["segv"] == 1
        assert runs_free(target.pid)
        core = CoreFile(event.path)
        try:
            assert core.memory(target.slot + 8, 14) == b"text of a slot"
            assert core.memory(target.known_global, 19) == b"changed at run time"
            assert core.threads[0].tid == event.tid
            assert core.threads[0].registers == dict(event.threads[0].registers)
            assert core.threads[0].signal == 11
        finally:
            core.close()
        mode = os.stat(event.path)
        assert (stat.S_IMODE(mode.st_mode), mode.st_size) == (0o600, event.file_bytes)


def test_the_fault_of_a_deadly_one(capturer: Capturer) -> None:
    with crasher(0) as target:
        capturer.seize(target.pid)
        target.ask("n")
        event = captured(capturer)
        assert (event.signal, event.code, event.fault_address, event.handled) == (11, 1, 16, False)
        assert len(event.threads) == 1
        assert target.process.wait(10) == -signal.SIGSEGV


def test_the_kernels_own_core_dump_is_left_alone(capturer: Capturer, tmp_path: Path) -> None:
    with crasher(2, folder=tmp_path) as target:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(target.pid, resource.RLIMIT_CORE, unlimited)
        pattern = Path("/proc/sys/kernel/core_pattern")
        before = pattern.read_text()
        capturer.seize(target.pid)
        target.ask("n")
        captured(capturer)
        _, status = os.waitpid(target.pid, 0)
        assert os.WIFSIGNALED(status)
        assert os.WCOREDUMP(status)
        assert pattern.read_text() == before


def test_two_threads_crash_at_once(capturer: Capturer) -> None:
    with crasher(2) as target:
        capturer.seize(target.pid)
        target.ask("w")
        event = captured(capturer)
        crashed = [one for one in event.threads if one.registers]
        assert {one.signal for one in crashed} == {11}
        assert event.tid in {one.tid for one in crashed}
        assert len(event.threads) == 4


def test_other_signals_pass(capturer: Capturer) -> None:
    with crasher(2) as target:
        capturer.seize(target.pid)
        for _ in range(200):
            os.kill(target.pid, signal.SIGUSR1)
            assert target.ask("u") == b"u"
        assert target.counters()["usr1"] == 400
        assert capturer.poll() == []
        target.process.send_signal(signal.SIGTERM)
        end = released(capturer)
        assert (end.why, end.signal) == (Ending.EXITED, signal.SIGTERM)
        assert target.process.wait(10) == -signal.SIGTERM


def test_letting_go_interrupts_nothing(capturer: Capturer) -> None:
    with crasher(4) as target:
        assert target.counters()["eintr"] == 0
        for _ in range(5):
            assert isinstance(capturer.seize(target.pid), Seized)
            assert {tracer for _, tracer in tasks(target.pid).values()} != {0}
            capturer.release(target.pid)
            wait_for(lambda: runs_free(target.pid), what="it is still traced")
        assert [event.why for event in capturer.poll() if isinstance(event, Released)] == [
            Ending.REQUESTED
        ] * 5
        assert target.counters() == {"segv": 0, "usr1": 0, "eintr": 0}


def test_a_stop_interrupts_others_as_any_stop_does(capturer: Capturer) -> None:
    """epoll_wait(2) ends with EINTR when its thread is stopped (signal(7)); once, and only for a capture."""
    with crasher(2) as target:
        capturer.seize(target.pid)
        other = next(tid for tid in tasks(target.pid) if tid != target.pid)
        assert ctypes.CDLL(None).syscall(234, target.pid, other, int(signal.SIGSEGV)) == 0  # tgkill(2)
        assert captured(capturer).tid == other
        wait_for(lambda: target.counters()["segv"] == 1, what="the signal was lost")
        assert target.counters() == {"segv": 1, "usr1": 0, "eintr": 1}


def test_a_stopped_process_stays_stopped(capturer: Capturer) -> None:
    with crasher(3) as target:
        capturer.seize(target.pid)
        os.kill(target.pid, signal.SIGSTOP)
        wait_for(lambda: {s for s, _ in tasks(target.pid).values()} == {"t"}, what="it does not stop")
        time.sleep(0.2)
        assert {state for state, _ in tasks(target.pid).values()} == {"t"}
        os.kill(target.pid, signal.SIGCONT)
        assert target.ask("e") == b"e"
        # let go in the middle of a stop: it is the kernel's own stop from there
        os.kill(target.pid, signal.SIGSTOP)
        wait_for(lambda: {s for s, _ in tasks(target.pid).values()} == {"t"}, what="it does not stop")
        capturer.release(target.pid)
        wait_for(lambda: set(tasks(target.pid).values()) == {("T", 0)}, what="it does not stay stopped")
        os.kill(target.pid, signal.SIGCONT)
        assert target.ask("e") == b"e"


def test_threads_that_start_later(capturer: Capturer) -> None:
    with crasher(1) as target:
        capturer.seize(target.pid)
        for _ in range(100):
            assert target.ask("t") == b"t"
        target.ask("w")  # starts another thread, which crashes as well
        assert len(captured(capturer).threads) == 3


def test_many_threads(capturer: Capturer) -> None:
    with crasher(500) as target:
        seized = capturer.seize(target.pid)
        assert isinstance(seized, Seized)
        assert seized.threads == 501
        target.ask("n")
        event = captured(capturer)
        core = CoreFile(event.path)
        assert len(core.threads) == len(event.threads) == 501
        assert all(core.memory(thread.registers["rsp"], 64) for thread in core.threads)
        core.close()
        print(f"\n501 threads: seized in {seized.took_ns / 1e6:.1f} ms, pause {event.pause_ns / 1e6:.1f} ms")


def test_a_leader_that_has_ended(capturer: Capturer) -> None:
    with crasher(2, "zombie") as target:
        wait_for(lambda: tasks(target.pid)[target.pid][0] == "Z", what="the leader runs on")
        seized = capturer.seize(target.pid)
        assert isinstance(seized, Seized)
        assert seized.threads == 3
        target.ask("n")
        event = captured(capturer)
        assert len(event.threads) == 3
        assert event.tid != target.pid
        assert target.process.wait(10) == -signal.SIGSEGV


def test_a_leader_that_ends_while_seized(capturer: Capturer) -> None:
    with crasher(2, "leave") as target:
        seized = capturer.seize(target.pid)
        assert isinstance(seized, Seized)
        assert target.ask("l") == b"l"
        wait_for(lambda: tasks(target.pid)[target.pid][0] == "Z", what="the leader runs on")
        target.ask("n")
        event = captured(capturer)
        assert event.pause_ns < CaptureOptions().freeze_max_ns / 4  # nobody waits for a zombie
        assert len([one for one in event.threads if one.stopped_ns >= 0]) == 3


def test_exec_ends_it(capturer: Capturer) -> None:
    with crasher(2) as target:
        capturer.seize(target.pid)
        target.ask("x")
        assert released(capturer).why is Ending.EXEC
        wait_for(lambda: runs_free(target.pid), what="the new program is traced")


@pytest.mark.parametrize("threads", [0, 20])
def test_killed_midway(capturer: Capturer, threads: int) -> None:
    with crasher(threads) as target:
        capturer.seize(target.pid)
        target.process.kill()
        end = released(capturer)
        assert (end.why, end.signal) == (Ending.EXITED, signal.SIGKILL)
        assert target.process.wait(10) == -signal.SIGKILL


def test_more_than_one_capture(capturer: Capturer) -> None:
    with crasher(2) as target:
        capturer.seize(target.pid, CaptureOptions(captures=3))
        for _ in range(3):
            assert target.ask("s") == b"s"
        seen = events_until(capturer, Released)
        paths = [event.path for event in seen if not isinstance(event, Released)]
        assert len(set(paths)) == 3
        assert all(Path(path).stat().st_size for path in paths)
        assert target.counters()["segv"] == 3
        assert runs_free(target.pid)


# -- limits


def test_the_freeze_has_a_limit(capturer: Capturer) -> None:
    """Reading a page of a userfaultfd that nobody serves never ends: the target goes on all the same."""
    with crasher(3, "uffd") as target:
        if not target.blocked:
            skip_or_fail("userfaultfd(2)")
        capturer.seize(target.pid, CaptureOptions(freeze_max_ns=300_000_000))
        capturer.ranges(target.pid, [MemoryRange(target.slot, 64), MemoryRange(target.blocked, 64, 1)])
        began = time.monotonic()
        assert target.ask("s") == b"s"
        assert 0.25 < time.monotonic() - began < 0.8
        event = captured(capturer)
        assert 0.29e9 < event.pause_ns < 0.4e9
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
            assert time.monotonic() - began < 2.5
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
