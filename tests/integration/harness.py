"""Real target, real load, real probes: starts them, waits for handshakes, collects what each side says."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.correlator.core import Correlator
from agent.correlator.findings import Finding
from probes import abi, events
from probes.session import LiveSession, SessionOptions
from symbols.plan import ProbePlan
from symbols.profile import load_profile
from symbols.resolve import resolve
from tests.requirements import require_program
from tests.targets.build import build

SLOW = float(os.environ.get("AFTERFREE_SLOW", "1"))  # how many times slower than usual the machine is
SETTLE_S = 0.6 * SLOW


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
            self.process.wait(20 * SLOW)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        return self.truth()[-1]

    def truth(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.truth_file.read_text(encoding="utf-8").splitlines()]


@contextmanager
def server(
    mode: str, tmp: Path, *args: str, name: str = "poolserver", exe: Path | None = None
) -> Iterator[Server]:
    """Build (cached) and start a target; wait for its `ready` line; end it however the test ends."""
    exe = exe or build(name, mode)
    truth, stderr = tmp / "truth.jsonl", tmp / "stderr.txt"
    with stderr.open("w") as err:
        process = subprocess.Popen(
            [str(exe), *args, "--truth", str(truth), "--duration-s", f"{300 * SLOW:.0f}"],
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
            "--concurrency", str(concurrency), "--duration-s", f"{120 * SLOW:.0f}", *args,
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


def plan_of(exe: Path, profile: Path | None = None) -> ProbePlan:
    if exe not in _PLANS:
        _PLANS[exe] = resolve(exe, load_profile(profile) if profile is not None else None)
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


@dataclass(slots=True)
class Watch:
    """One session on every process of one build, present and future: attaching costs seconds each time."""

    mode: str
    exe: Path
    session: LiveSession

    @contextmanager
    def target(self, tmp: Path, run: Run, *args: str) -> Iterator[Server]:
        """A server that the session has found by itself."""
        with server(self.mode, tmp, *args, exe=self.exe) as target:
            pump_until(
                self.session, run, lambda: target.pid in self.session.targets, "the session sees no exec"
            )
            yield target


@contextmanager
def watching(
    mode: str,
    folder: Path,
    options: SessionOptions | None = None,
    *,
    name: str = "poolserver",
    profile: Path | None = None,
) -> Iterator[Watch]:
    # A copy: uprobes belong to the inode, and others may run the cached one meanwhile.
    exe = Path(shutil.copy(build(name, mode), folder))
    # nothing may be lost here, however long the test's own work keeps the reader away
    options = options or SessionOptions(lifetime_records=8192)
    session = LiveSession.open(plan_of(exe, profile), pids=[], follow=True, options=options)
    try:
        yield Watch(mode, exe, session)
    finally:
        session.close()


def pump(session: LiveSession, run: Run, until: subprocess.Popen[str], timeout: float = 150.0) -> None:
    """Feed everything that comes until the load has ended and nothing has happened for a while."""
    deadline = time.monotonic() + timeout * SLOW
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
    out, err = until.communicate(timeout=10 * SLOW)
    assert until.returncode == 0, f"load client: {err}"
    run.load = json.loads(out)


def finish(session: LiveSession, run: Run) -> None:
    run.feed(list(session.drain()))
    run.counters = dict(session.counters())


def pump_until(
    session: LiveSession, run: Run, condition: Callable[[], bool], what: str, timeout: float = 60.0
) -> None:
    """Feed everything that comes until `condition` holds. timeout: s, on a machine of usual speed."""
    deadline = time.monotonic() + timeout * SLOW
    while not condition():
        run.feed(list(session.poll(0.1)))
        assert time.monotonic() < deadline, f"{what}: not within {timeout} s"


def drive(session: LiveSession, run: Run, client: subprocess.Popen[str]) -> None:
    """Feed everything that comes until the load client has ended."""
    pump_until(session, run, lambda: client.poll() is not None, "the load client does not end", 150)
    out, err = client.communicate(timeout=10 * SLOW)
    assert client.returncode == 0, f"load client: {err}"
    run.load = json.loads(out)


def conclude(session: LiveSession, run: Run, target: Server) -> dict[str, Any]:
    """End the target while its events are still consumed, then drain: both sides have seen the same."""
    target.process.send_signal(signal.SIGTERM)
    pump_until(session, run, lambda: target.pid not in session.targets, "the session keeps a dead target")
    finish(session, run)
    return target.stop()


def cli(
    *args: str, timeout: float = 120, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
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


def end(
    process: subprocess.Popen[str], with_signal: int = signal.SIGTERM, timeout: float = 20
) -> tuple[str, str]:
    with suppress(ProcessLookupError):
        process.send_signal(with_signal)
    return process.communicate(timeout=timeout)


def wait_for(condition: Any, timeout: float = 15.0, what: str = "condition") -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s")
        time.sleep(0.02)


# -- the daemon as a process: what it costs, what it holds, what it leaves


@dataclass(slots=True)
class Daemon:
    """A running command of afterfree whose output goes to files: nobody has to empty a pipe."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        return self.err.read_text(encoding="utf-8")

    def lines(self) -> list[dict[str, Any]]:
        """Its standard output as JSON lines, up to the last whole one."""
        text = self.out.read_text(encoding="utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Until it says that it watches."""

        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"afterfree ended with {self.process.returncode}: {self.said()}")
            return "Ctrl-C ends" in self.said()

        wait_for(ready, timeout, f"no probes in place, it said {self.said()!r}")

    def end(self, with_signal: int = signal.SIGTERM, timeout: float = 30.0) -> int:
        with suppress(ProcessLookupError):
            self.process.send_signal(with_signal)
        return self.process.wait(timeout)


@contextmanager
def daemon(tmp: Path, *args: str, env: dict[str, str] | None = None) -> Iterator[Daemon]:
    """Start `afterfree ARGS`; it is killed at the end if it still runs. Its bundles stay below `tmp`."""
    if args[0] == "watch" and "--bundles" not in args:
        args = (*args, "--bundles", str(tmp / "bundles"))
    out, err = tmp / "afterfree.out", tmp / "afterfree.err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "agent.cli", *args],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **(env or {})},
        )
    try:
        yield Daemon(process, out, err)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def rss_kb(pid: int) -> int:
    """Resident memory in KiB (proc_pid_status(5): VmRSS)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> dict[int, str]:
    """Every child, grandchild, …: pid and command line."""
    found: dict[int, str] = {}
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                found |= {int(child): command, **descendants(int(child))}
    return found


def alive(pids: Iterable[int]) -> list[int]:
    """Those that still run: a zombie does not."""
    running = []
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX":
                running.append(pid)
    return running


def bpftool(*args: str) -> Any:
    answer = subprocess.run(
        [require_program("bpftool"), "-j", *args], capture_output=True, text=True, check=False
    )
    return json.loads(answer.stdout) if answer.returncode == 0 and answer.stdout.strip() else []


def kernel_ids(kind: str) -> set[int]:
    """All ids of "program", "map" or "link" (bpf(2): BPF_*_GET_NEXT_ID), without opening any.

    bpftool opens the maps of what it shows. One that opens and closes a program array while its clearing
    is queued makes the kernel keep it for ever (kernel/bpf/arraymap.c: prog_array_map_clear takes a reference
    per call, its work gives one back): not while something is ending.
    """
    command = {"program": 11, "map": 12, "link": 31}[kind]
    libc = ctypes.CDLL(None, use_errno=True)
    attr = (ctypes.c_uint32 * 3)()
    ids: set[int] = set()
    while libc.syscall(321, command, attr, ctypes.sizeof(attr)) == 0:  # x86-64
        ids.add(attr[1])
        attr[0] = attr[1]
    return ids


def attachments(pid: int) -> dict[str, set[int]]:
    """What `bpftool perf` says the process holds: {"tracepoint" | "uprobe": program ids}."""
    held: dict[str, set[int]] = {}
    for entry in bpftool("perf", "show"):
        if entry["pid"] == pid:
            held.setdefault(entry["fd_type"], set()).add(entry["prog_id"])
    return held


def map_ids(pid: int) -> set[int]:
    """BPF maps that a process holds by descriptor (proc_pid_fdinfo(5))."""
    ids = set()
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for info in Path(f"/proc/{pid}/fdinfo").iterdir():
            with suppress(FileNotFoundError):
                ids.update(int(row.split()[1]) for row in info.read_text().splitlines() if "map_id:" in row)
    return ids


def watched(pid: int) -> set[int]:
    """The processes that the kernel side of this daemon watches now: the keys of its `targets` maps."""
    keys: set[int] = set()
    for number in map_ids(pid):
        shown = bpftool("map", "show", "id", str(number))
        if isinstance(shown, dict) and shown.get("name") == "targets":
            entries = bpftool("map", "dump", "id", str(number))
            keys.update(int.from_bytes(bytes(int(b, 16) for b in e["key"]), "little") for e in entries)
    return keys
