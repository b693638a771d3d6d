"""What watching costs the target: throughput and processor time per request, in interleaved rounds."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from probes import loader
from tests.integration.harness import (
    Server,
    cpu_seconds,
    daemon,
    descendants,
    load,
    plan_of,
    rss_kb,
    server,
)

ROUND_S = 2
CONNECTIONS = 32
VARIANTS = ("without", "empty", "afterfree")
LOADS = ("keep-alive", "churn")


@dataclass(slots=True)
class Sample:
    """One load on one variant. rate: requests (keep-alive) or connections (churn) per second."""

    rate: float
    cpu_us: float  # of the target, per request or connection


@dataclass(slots=True)
class Costs:
    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)  # (variant, load)
    daemon_cpu: list[float] = field(default_factory=list)  # per cent of one core while under load
    helpers_cpu: list[float] = field(default_factory=list)
    daemon_kb: list[int] = field(default_factory=list)
    helpers_kb: list[int] = field(default_factory=list)
    attach_s: list[float] = field(default_factory=list)  # start of the command to "watching"
    arm_s: list[float] = field(default_factory=list)  # the loader child alone: compile, verify, attach
    arm_empty_s: list[float] = field(default_factory=list)

    def median(self, variant: str, kind: str) -> Sample:
        found = self.samples[variant, kind]
        return Sample(statistics.median(s.rate for s in found), statistics.median(s.cpu_us for s in found))

    def ratio(self, variant: str, base: str, kind: str) -> tuple[float, float]:
        """Median over the rounds of rate against rate, and of time against time, within a round."""
        pairs = list(zip(self.samples[variant, kind], self.samples[base, kind], strict=True))
        return (
            statistics.median(a.rate / b.rate for a, b in pairs),
            statistics.median(a.cpu_us / b.cpu_us for a, b in pairs),
        )


def _keep_alive(port: int) -> float:
    """Requests in ROUND_S seconds over CONNECTIONS connections; wrk where there is one."""
    if shutil.which("wrk"):
        said = subprocess.run(
            ["wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", f"{ROUND_S}s", f"http://127.0.0.1:{port}/"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        if "Non-2xx" in said or "Socket errors" in said:
            raise RuntimeError(f"failed requests: {said}")
        done = re.search(r"(\d+) requests in", said)
        if done is None:
            raise RuntimeError(f"wrk said {said}")
        return float(done.group(1))
    requests = 40_000 * ROUND_S // CONNECTIONS
    return _loadgen(port, "keepalive", CONNECTIONS, "--requests", str(requests))["requests"]


def _churn(port: int) -> float:
    """Connections of one request each."""
    return _loadgen(port, "churn", 6_000 * ROUND_S)["completed"]


def _loadgen(port: int, mix: str, connections: int, *args: str) -> dict[str, float]:
    client = load(port, mix, *args, connections=connections, concurrency=CONNECTIONS)
    out, err = client.communicate(timeout=60)
    result: dict[str, float] = json.loads(out)
    failed = [key for key in ("connect_failures", "short", "timeouts", "responses_other") if result[key]]
    if client.returncode or failed:
        raise RuntimeError(f"failed requests: {failed} {err}")
    return result


def _sample(target: Server, run: Callable[[int], float]) -> Sample:
    cpu, began = cpu_seconds(target.pid), time.monotonic()
    done = run(target.port)
    seconds = time.monotonic() - began
    return Sample(done / seconds, 1e6 * (cpu_seconds(target.pid) - cpu) / done)


@contextlib.contextmanager
def _empty(target: Server, costs: Costs) -> Iterator[None]:
    """Empty programs on the same attach points."""
    handles = loader.load(
        plan_of(target.exe),
        image=f"/proc/{target.pid}/exe",
        pids=(target.pid,),
        options=loader.LoadOptions(empty=True),
    )
    costs.arm_empty_s.append(handles.seconds)
    try:
        yield
    finally:
        handles.close()


@contextlib.contextmanager
def _afterfree(target: Server, costs: Costs, tmp: Path) -> Iterator[None]:
    """The daemon as a user runs it; what it costs is measured between its start and its end."""
    began = time.monotonic()
    with daemon(tmp, "watch", "--pid", str(target.pid), "--format", "json") as watch:
        watch.wait_ready()
        costs.attach_s.append(time.monotonic() - began)
        helpers = {pid: cpu_seconds(pid) for pid in descendants(watch.pid)}
        before, start = cpu_seconds(watch.pid), time.monotonic()
        yield
        seconds = time.monotonic() - start
        costs.daemon_cpu.append(100 * (cpu_seconds(watch.pid) - before) / seconds)
        costs.daemon_kb.append(rss_kb(watch.pid))
        still = descendants(watch.pid).keys() & helpers.keys()  # the symbolizer ends when it is idle
        costs.helpers_cpu.append(100 * sum(cpu_seconds(pid) - helpers[pid] for pid in still) / seconds)
        costs.helpers_kb.append(sum(map(rss_kb, still)))
        if watch.lines() or watch.end(signal.SIGTERM):
            raise RuntimeError(f"findings or a failure in the correct mode: {watch.said()}")


@contextlib.contextmanager
def _started(command: str, port: int, tmp: Path) -> Iterator[Server]:
    """A server of another project, which answers GET / on this port of loopback."""
    words = shlex.split(command)
    with (tmp / "stderr.txt").open("w") as err:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=err, text=True)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command} does not listen on port {port}") from None
                time.sleep(0.05)
        yield Server(process, port, Path(words[0]).resolve(), tmp / "none", tmp / "stderr.txt")
    finally:
        process.kill()
        process.wait()


def measure(
    rounds: int, tmp: Path, *, mode: str = "ReleaseSafe", command: str | None = None, port: int = 0
) -> Costs:
    """`rounds` times all variants, each with all loads, on one and the same server.

    command, port: a server of another project, instead of the bundled one.
    """
    costs = Costs()
    with _started(command, port, tmp) if command else server(mode, tmp, "--max-conn", "1024") as target:
        _keep_alive(target.port)
        for number in range(rounds):
            # another order every round: what comes first finds the processor in another state
            for variant in VARIANTS[number % 3 :] + VARIANTS[: number % 3]:
                with contextlib.ExitStack() as stack:
                    if variant == "empty":
                        stack.enter_context(_empty(target, costs))
                    elif variant == "afterfree":
                        stack.enter_context(_afterfree(target, costs, tmp))
                    for kind, run in zip(LOADS, (_keep_alive, _churn), strict=True):
                        costs.samples.setdefault((variant, kind), []).append(_sample(target, run))
        for _ in range(3):
            handles = loader.load(
                plan_of(target.exe),
                image=f"/proc/{target.pid}/exe",
                pids=(target.pid,),
                options=loader.LoadOptions(),
            )
            costs.arm_s.append(handles.seconds)
            handles.close()
    return costs
