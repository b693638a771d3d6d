"""Capture by ptrace on a real server: what it passes on, what it takes, and that it lets go."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import stat
import time
from pathlib import Path

import pytest

from probes.capture.capturer import Capturer
from probes.capture.facts import (
    Captured,
    CaptureOptions,
    Ending,
    MemoryRange,
    Released,
    Seized,
)
from symbols.corefile import CoreFile
from tests.integration.capturing import (
    captured,
    capturer,
    crasher,
    events_until,
    needs_root,
    released,
    runs_free,
    tasks,
)
from tests.integration.harness import wait_for

__all__ = ["capturer", "needs_root"]  # fixtures


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


def test_seized_again_at_once(capturer: Capturer) -> None:
    with crasher(20) as target:
        for _ in range(30):
            assert isinstance(capturer.seize(target.pid), Seized)
            capturer.release(target.pid)
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
