"""A run ends when it is told to, whatever its main thread is in the middle of."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent import stopping
from agent.errors import ExitCode
from agent.stopping import Stop

IN_TIME = 60.0


def told(*numbers: int, between: float = 0.0) -> list[int]:
    """Exit statuses that a Stop asks for while its main thread blocks in a read that nobody answers."""
    here = threading.get_native_id()
    asked: list[int] = []
    read, write = os.pipe()

    def leave(code: int) -> None:
        asked.append(code)
        os.close(write)

    def send() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(between)

    with Stop(leave=leave).installed():
        threading.Thread(target=send, daemon=True).start()
        assert os.read(read, 1) == b"", here
    os.close(read)
    return asked


def test_a_second_signal_ends_a_process_that_is_stuck() -> None:
    assert told(signal.SIGTERM, signal.SIGTERM, between=2 * stopping._TWICE_S)[:1] == [ExitCode.RUNTIME]


def test_a_limit_ends_a_process_that_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "LIMIT_S", 0.5)
    assert told(signal.SIGINT)[:1] == [ExitCode.RUNTIME]


def test_what_moves_and_what_has_a_limit_of_its_own_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "LIMIT_S", 1.0)
    asked: list[int] = []
    with Stop(leave=asked.append).installed() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            stop.moved()
            time.sleep(0.01)
        with stop.patience(60.0):
            time.sleep(1.5)
        stop.moved()
    assert asked == []


def test_the_same_signal_told_to_process_and_group_is_one() -> None:
    """As timeout(1) does."""
    asked: list[int] = []
    with Stop(leave=asked.append).installed() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
    assert stop.signal == signal.SIGTERM
    assert asked == []


WRITES = """
import sys
from agent.stopping import Stop
with Stop(lasting=True).installed():
    sys.stderr.write("begun\\n")
    sys.stderr.flush()
    for _ in range(1 << 10):
        sys.stdout.write("x" * (1 << 12))
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_standard_output_that_nobody_reads(signals: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITES], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        assert process.stderr.readline() == "begun\n"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        if signals == 2:
            time.sleep(2 * stopping._TWICE_S)
            process.send_signal(signal.SIGTERM)
        assert process.wait(IN_TIME) == ExitCode.RUNTIME
        took = time.monotonic() - began
        said = process.stderr.read()
    assert (
        "a second signal, SIGTERM, came" if signals == 2 else "nothing moved for 5 s after SIGTERM"
    ) in said
    assert "standard output takes nothing" in said
    assert took > stopping.LIMIT_S or signals == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["atexit", "modules"])
def test_a_signal_while_the_interpreter_ends_does_not_change_the_status(
    number: signal.Signals, when: str, tmp_path: Path
) -> None:
    """In atexit handlers, and when modules are torn down: Python has given up its own handlers by then."""
    script = tmp_path / "ends.py"
    script.write_text(
        "import atexit, os, sys\n"
        "class Late:\n"
        f"    def __del__(self, kill=os.kill, pid=os.getpid()): kill(pid, {int(number)})\n"
        + (
            f"atexit.register(os.kill, os.getpid(), {int(number)})\n"
            if when == "atexit"
            else "late = Late()\n"
        )
        + "from agent import cli\n"
        "sys.argv = ['afterfree', '--version']\n"
        "cli.main()\n"
    )
    root = Path(stopping.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=IN_TIME,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
