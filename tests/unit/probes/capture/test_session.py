"""The loop of a tracing process: what it must say before it ends."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from probes.capture.facts import Captured, CaptureOptions, Ending, Released, Seized
from probes.capture.session import Session

CAPTURED = Captured(
    pid=1, tid=1, signal=11, code=1, fault_address=0x2F8, siginfo=b"", handled=False, at_ns=1, pause_ns=1,
    write_ns=1, path="core.1.1", failure="", copied_bytes=1, file_bytes=1, threads=(), left_out=(),
    left_out_bytes=0,
)  # fmt: skip


@pytest.fixture
def own_process() -> Iterator[None]:
    """A session sets up the process it runs in; this one needs its settings back."""
    handler, interval = signal.getsignal(signal.SIGCHLD), sys.getswitchinterval()
    yield
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, handler)
    sys.setswitchinterval(interval)
    gc.enable()


@pytest.mark.timeout(20)
@pytest.mark.usefixtures("own_process")
def test_a_file_that_is_written_as_the_target_ends_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its wake-up comes together with that of the end: one wait takes both."""
    ours, theirs = socket.socketpair()
    folder = os.open(tmp_path, os.O_RDONLY)
    request = {"pid": os.getpid(), "options": asdict(CaptureOptions())}
    session = Session(theirs, folder, folder, request)

    def ends() -> Released:
        session._writers = 1
        session._written.append(CAPTURED)
        os.write(session._wake_write, b"\0")
        session._wait(None)
        return Released(pid=1, why=Ending.EXITED)

    monkeypatch.setattr(session._tracer, "seize", lambda _since: Seized(pid=1, threads=1, took_ns=1))
    monkeypatch.setattr(session, "_loop", ends, raising=True)
    with ours, theirs:
        session.run()
        said = ours.recv(1 << 16).decode().splitlines()
    os.close(folder)
    assert [json.loads(line)["kind"] for line in said] == ["Seized", "Captured", "Released"]
