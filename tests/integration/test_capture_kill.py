"""SIGKILL for the capture helper at random moments, with the target under load: nobody notices."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from probes.capture.capturer import Capturer
from probes.capture.facts import CaptureOptions, MemoryRange
from symbols.corefile import CoreFile
from tests.integration.capturing import Crasher, crasher, needs_root, runs_free, tasks
from tests.integration.harness import descendants, load, server, wait_for

__all__ = ["needs_root"]  # a fixture

pytestmark = pytest.mark.slow

KILLS = 240


class Client(threading.Thread):
    """Requests without pause on one connection; every second one raises a SIGSEGV that the server handles."""

    def __init__(self, target: Crasher) -> None:
        super().__init__(daemon=True)
        self._connection: socket.socket = target.connect()
        self.answered: Counter[str] = Counter()
        self.slowest = 0.0
        self.failure = ""
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            while not self.ended.is_set():
                for what in "es":
                    began = time.monotonic()
                    self._connection.sendall(what.encode())
                    answer = self._connection.recv(1)
                    if answer != what.encode():
                        raise ConnectionError(f"{answer!r} for {what}")
                    self.slowest = max(self.slowest, time.monotonic() - began)
                    self.answered[what] += 1
        except OSError as error:
            self.failure = repr(error)
        finally:
            self._connection.close()


def _phase(pid: int, folder: Path) -> str:
    """What the helper was doing when it was killed, as far as it shows."""
    if any(path.name.endswith(".partial") for path in folder.iterdir()):
        return "write"
    states = tasks(pid).values()
    if "t" in {state for state, _ in states}:
        return "capture"
    traced = {tracer != 0 for _, tracer in states}
    return "seize" if len(traced) == 2 else "traced" if traced == {True} else "start"


def _whole(path: Path) -> bool:
    core = CoreFile(path)
    try:
        end = max(offset + size for _, size, offset in core._loads)
        return len(core.threads) == 21 and end == path.stat().st_size
    finally:
        core.close()


def test_killed_at_random_moments(tmp_path: Path) -> None:
    source, phases, files = random.Random(11), Counter[str](), 0
    options = CaptureOptions(captures=1_000_000)
    with crasher(20) as target, Capturer(tmp_path) as capturer:
        clients = [Client(target) for _ in range(2)]
        for client in clients:
            client.start()
        began = time.monotonic()
        for number in range(KILLS):
            kill_tracer = number % 2 == 0
            moment = source.uniform(0, 0.02) if not kill_tracer else 0.0

            def kill_helper(helper: int = capturer.helper_pid, after: float = moment) -> None:
                time.sleep(after)
                phases[_phase(target.pid, tmp_path)] += 1
                with suppress(ProcessLookupError):
                    os.kill(helper, signal.SIGKILL)

            if not kill_tracer and capturer.helper_pid:
                helper = capturer.helper_pid
                killer = threading.Thread(target=kill_helper)
                killer.start()
                capturer.seize(target.pid, options)
                killer.join()
                if capturer.helper_pid not in (0, helper):  # killed so early that another was started
                    os.kill(capturer.helper_pid, signal.SIGKILL)
            else:
                capturer.seize(target.pid, options)
                capturer.ranges(target.pid, [MemoryRange(target.slot - target.slot % 4096, 512 << 10)])
                time.sleep(source.uniform(0, 0.06))
                phases[_phase(target.pid, tmp_path)] += 1
                for pid in descendants(capturer.helper_pid):
                    os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 5
            while not runs_free(target.pid):
                held = {
                    task: state for task, state in tasks(target.pid).items() if state[1] or state[0] in "Tt"
                }
                living = descendants(capturer.helper_pid)
                assert time.monotonic() < deadline, f"stopped or traced: {held}; {living}; kill {number}"
                time.sleep(0.01)
            deadline = time.monotonic() + 5
            while capturer.seized and time.monotonic() < deadline:
                capturer.poll(0.1)
            for path in tmp_path.iterdir():
                if not path.name.startswith("."):
                    assert _whole(path), path
                    files += 1
                path.unlink()
        seconds = time.monotonic() - began
        for client in clients:
            client.ended.set()
            client.join(10)
            assert not client.is_alive(), "a request was never answered"
            assert client.failure == ""
        counters = target.counters()
        requests = sum((client.answered for client in clients), Counter[str]())
        print(
            f"\n{KILLS} kills in {seconds:.0f} s {dict(phases)}, {files} whole files, requests "
            f"{dict(requests)}, slowest {max(one.slowest for one in clients) * 1000:.0f} ms, {counters}"
        )
        assert counters["segv"] == requests["s"]  # not one signal was lost, and none came twice
        assert runs_free(target.pid)
        assert phases["capture"] > 20
        assert phases["write"] > 10
        assert files > 30


def test_the_bundled_server_under_load(tmp_path: Path) -> None:
    source = random.Random(3)
    folder = tmp_path / "spool"
    folder.mkdir()
    with (
        server("ReleaseSafe", tmp_path, "--port", "0", "--workers", "4") as target,
        Capturer(folder) as capturer,
    ):
        client = load(target.port, "correct", connections=60_000, concurrency=16)
        kills = 0
        while client.poll() is None and kills < 60:
            capturer.seize(target.pid)
            time.sleep(source.uniform(0, 0.03))
            helper = capturer.helper_pid
            for pid in [*descendants(helper), *([helper] if kills % 4 == 0 else [])]:
                os.kill(pid, signal.SIGKILL)
            wait_for(lambda: runs_free(target.pid), 5, "a thread is stopped or traced")
            wait_for(lambda: capturer.poll() is not None and not capturer.seized, 5, "not noticed")
            kills += 1
        out, err = client.communicate(timeout=120)
        assert client.returncode == 0, err
        said = json.loads(out)
        assert {key: said[key] for key in ("connect_failures", "timeouts", "responses_other")} == {
            "connect_failures": 0, "timeouts": 0, "responses_other": 0
        }  # fmt: skip
        assert kills >= 10
        print(f"\n{kills} kills, {said['completed']} connections completed")
