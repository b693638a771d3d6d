"""Real target, real load, real probes: starts them, waits for handshakes, collects what each side says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.correlator.core import Correlator
from agent.correlator.findings import Finding
from probes import abi, events
from probes.session import LiveSession, SessionOptions
from symbols.plan import ProbePlan
from symbols.resolve import resolve
from tests.targets.build import build

READY_TIMEOUT_S = 20.0
SETTLE_S = 0.6


@dataclass(slots=True)
class Server:
    """One running target."""

    process: subprocess.Popen[str]
    port: int
    exe: Path
    truth_file: Path
    stderr_file: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> dict[str, Any]:
        """SIGTERM, then what the target knows: the summary of its ground truth."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        return self.truth()[-1]

    def truth(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.truth_file.read_text(encoding="utf-8").splitlines()]


@contextmanager
def server(mode: str, tmp: Path, *args: str, name: str = "poolserver") -> Iterator[Server]:
    """Build (cached) and start a target; wait for its `ready` line; end it however the test ends."""
    exe = build(name, mode)
    truth, stderr = tmp / "truth.jsonl", tmp / "stderr.txt"
    with stderr.open("w") as err:
        process = subprocess.Popen(
            [str(exe), *args, "--truth", str(truth), "--duration-s", "300"],
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready "), f"no ready line but {line!r}: {stderr.read_text()}"
        fields = dict(part.split("=") for part in line.split()[1:])
        yield Server(process, int(fields["port"]), exe, truth, stderr)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def load(port: int, mix: str, *args: str, connections: int, concurrency: int = 32) -> subprocess.Popen[str]:
    """Start the load client on loopback; it is bounded in connections and time."""
    return subprocess.Popen(
        [
            str(build("loadgen", "ReleaseSafe")),
            "--port", str(port), "--mix", mix, "--connections", str(connections),
            "--concurrency", str(concurrency), "--duration-s", "120", *args,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


@dataclass(slots=True)
class Run:
    """Everything one watched run produced."""

    events: list[events.Event] = field(default_factory=list)
    correlator: Correlator = field(default_factory=Correlator)
    counters: dict[str, int] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)
    keep_events: bool = True

    def feed(self, batch: Sequence[events.Event]) -> None:
        for event in batch:
            self.correlator.feed(event)
            if self.keep_events:
                self.events.append(event)

    def findings(self) -> tuple[Finding, ...]:
        return tuple(self.correlator.findings())

    def count(self, rule: str, *, confidence: str | None = None) -> int:
        return sum(
            finding.count
            for finding in self.findings()
            if finding.rule == rule and (confidence is None or finding.confidence == confidence)
        )

    def suspicions(self, suspect: abi.Suspect) -> list[events.SuspicionRaised]:
        return [
            event
            for event in self.events
            if isinstance(event, events.SuspicionRaised) and event.suspect == suspect
        ]

    def lost(self) -> dict[str, int]:
        totals: dict[str, int] = {}
        for event in self.events:
            if isinstance(event, events.Lost):
                totals[event.what] = totals.get(event.what, 0) + event.count
        return totals


_PLANS: dict[Path, ProbePlan] = {}


def plan_of(exe: Path) -> ProbePlan:
    if exe not in _PLANS:
        _PLANS[exe] = resolve(exe)
    return _PLANS[exe]


@contextmanager
def attached(
    target: Server, *, options: SessionOptions | None = None, keep_events: bool = True
) -> Iterator[tuple[LiveSession, Run]]:
    session = LiveSession.open(plan_of(target.exe), pids=[target.pid], follow=False, options=options)
    run = Run(keep_events=keep_events)
    try:
        yield session, run
    finally:
        session.close()


def pump(session: LiveSession, run: Run, until: subprocess.Popen[str], timeout: float = 150.0) -> None:
    """Feed everything that comes until the load has ended and nothing has happened for a while."""
    deadline = time.monotonic() + timeout
    quiet_since: float | None = None
    while time.monotonic() < deadline:
        batch = list(session.poll(0.1))
        run.feed(batch)
        if until.poll() is None:
            continue
        busy = any(isinstance(event, events.SuspicionRaised | events.LifetimesCounted) for event in batch)
        now = time.monotonic()
        if busy or quiet_since is None:
            quiet_since = now
        elif now - quiet_since > SETTLE_S or session.finished:
            break
    out, err = until.communicate(timeout=10)
    assert until.returncode == 0, f"load client: {err}"
    run.load = json.loads(out)


def finish(session: LiveSession, run: Run) -> None:
    run.feed(list(session.drain()))
    run.counters = dict(session.counters())


def cli(*args: str, timeout: float = 120, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run afterfree as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "agent.cli", *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **(env or {})},
        check=False,
    )


def start_cli(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "agent.cli", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str], with_signal: int = signal.SIGTERM, timeout: float = 20) -> tuple[str, str]:
    with suppress(ProcessLookupError):
        process.send_signal(with_signal)
    return process.communicate(timeout=timeout)


def wait_for(condition: Any, timeout: float = 15.0, what: str = "condition") -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s")
        time.sleep(0.02)
