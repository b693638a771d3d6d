"""programs/crasher.c as a running process, and waiting for what a capture says of it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from probes.capture.capturer import Capturer
from probes.capture.facts import Captured, Event, Released
from tests.requirements import skip_or_fail
from tests.unit.symbols.builds import build_c

PROGRAMS = Path(__file__).parent / "programs"


def program() -> Path:
    return build_c("-g", "-O2", "-pthread", source="crasher.c", folder=PROGRAMS)


@pytest.fixture(autouse=True)
def needs_root() -> None:
    if os.geteuid() != 0:
        skip_or_fail("root")


@pytest.fixture
def capturer(tmp_path: Path) -> Iterator[Capturer]:
    """With a folder of its own."""
    folder = tmp_path / "spool"
    folder.mkdir(mode=0o700)
    with Capturer(folder) as one:
        yield one


@dataclass(slots=True)
class Crasher:
    process: subprocess.Popen[str]
    port: int
    known_global: int
    slot: int
    rseq: int  # bytes from the thread pointer to its struct rseq
    blocked: int  # an address whose reading never ends; 0: none

    @property
    def pid(self) -> int:
        return self.process.pid

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def ask(self, what: str) -> bytes:
        """One request on a connection of its own; b"" when the server dies of it."""
        with self.connect() as connection:
            connection.sendall(what.encode())
            try:
                return connection.recv(256)
            except ConnectionError:
                return b""

    def counters(self) -> dict[str, int]:
        fields = (part.split("=") for part in self.ask("c").decode().split())
        return {name: int(value) for name, value in fields}


@contextmanager
def crasher(*args: str | int, exe: Path | None = None, folder: Path | None = None) -> Iterator[Crasher]:
    """Running and ready, in a folder; ended however the test ends."""
    with subprocess.Popen(
        [str(exe or program()), *map(str, args)], stdout=subprocess.PIPE, text=True, cwd=folder
    ) as process:
        try:
            assert process.stdout is not None
            fields = dict(part.split("=") for part in process.stdout.readline().split()[1:])
            blocked = 0 if fields["blocked"] == "(nil)" else int(fields["blocked"], 16)
            yield Crasher(
                process,
                int(fields["port"]),
                int(fields["global"], 16),
                int(fields["slot"], 16),
                int(fields["rseq"]),
                blocked,
            )
        finally:
            process.kill()


def events_until(
    capturer: Capturer, kind: type[Captured] | type[Released], timeout: float = 20.0
) -> list[Event]:
    """Everything up to the first event of this kind."""
    deadline = time.monotonic() + timeout
    seen: list[Event] = []
    while not any(isinstance(event, kind) for event in seen):
        assert time.monotonic() < deadline, f"no {kind.__name__} within {timeout} s, but {seen}"
        seen += capturer.poll(0.2)
    return seen


def captured(capturer: Capturer, timeout: float = 20.0) -> Captured:
    return next(e for e in events_until(capturer, Captured, timeout) if isinstance(e, Captured))


def released(capturer: Capturer, timeout: float = 20.0) -> Released:
    return next(e for e in events_until(capturer, Released, timeout) if isinstance(e, Released))


def tasks(pid: int) -> dict[int, tuple[str, int]]:
    """(state, pid of its tracer) of every thread (proc_pid_status(5))."""
    found = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        try:
            rows = Path(f"/proc/{pid}/task/{tid}/status").read_text().splitlines()
        except OSError:
            continue
        fields = dict(row.split(":\t", 1) for row in rows if ":\t" in row)
        found[int(tid)] = (fields["State"][0], int(fields["TracerPid"]))
    return found


def runs_free(pid: int) -> bool:
    """No thread is stopped and none is traced."""
    return all(state not in "Tt" and tracer == 0 for state, tracer in tasks(pid).values())
