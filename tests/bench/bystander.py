"""What watching one process costs the system calls of another: beside strace, bpftrace and perf trace.

The tools watch the same server for the same calls; the loops are those of a process that nobody watches.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.integration.harness import daemon, server

CALLS = ("epoll_ctl", "epoll_wait", "epoll_pwait", "close")
SECONDS = 0.3  # of one loop
ARMING_S = 3.0  # what the other tools get to attach: they do not say when they have
Samples = dict[tuple[str, str], list[float]]  # (tool, loop) -> ns per call


def _commands(pid: int) -> dict[str, list[str]]:
    """The other tools that are installed, each as it would be used for the job."""
    probes = ",".join(f"tracepoint:syscalls:sys_{at}_{call}" for call in CALLS for at in ("enter", "exit"))
    commands = {
        "strace": ["strace", "-f", "-o", "/dev/null", "-e", f"trace={','.join(CALLS)}", "-p", str(pid)],
        "bpftrace": ["bpftrace", "-e", f"{probes} /pid == {pid}/ {{ @[probe] = count(); }}"],
        "perf trace": ["perf", "trace", "-o", "/dev/null", "-e", ",".join(CALLS), "-p", str(pid)],
    }
    return {tool: command for tool, command in commands.items() if shutil.which(command[0])}


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[None]:
    tool = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(ARMING_S)
        if tool.poll() is not None:
            raise RuntimeError(f"{command[0]} ended with {tool.returncode}")
        yield
    finally:
        tool.send_signal(signal.SIGINT)
        try:
            tool.wait(30)
        except subprocess.TimeoutExpired:
            tool.kill()
            tool.wait()


def measure(rounds: int, tmp: Path) -> Samples:
    """All variants in turn, so that what else happens on this machine hits each of them."""
    loops = tmp / "bystander"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-O2", "-o", str(loops), str(source)], check=True)
    samples: Samples = {}
    with server("ReleaseSafe", tmp, "--max-conn", "64") as target:
        others = _commands(target.pid)
        for _ in range(rounds):
            for tool in ("nothing", "afterfree", *others):
                with contextlib.ExitStack() as stack:
                    if tool == "afterfree":
                        watch = stack.enter_context(daemon(tmp, "watch", "--pid", str(target.pid)))
                        watch.wait_ready()
                    elif tool != "nothing":
                        stack.enter_context(_running(others[tool]))
                    said = subprocess.run(
                        [str(loops), str(SECONDS)], check=True, capture_output=True, text=True
                    )
                    for loop, ns in json.loads(said.stdout).items():
                        samples.setdefault((tool, loop), []).append(ns)
    return samples


def report(samples: Samples) -> list[str]:
    """Medians of ns per call, and of the differences to nothing attached, within each round."""
    loops = list(dict.fromkeys(loop for _, loop in samples))
    rows = [f"{'one call of a bystander, ns':28}" + "".join(f"{loop:>24}" for loop in loops)]
    for tool in dict.fromkeys(tool for tool, _ in samples):
        row = f"{tool:28}"
        for loop in loops:
            taken, base = samples[tool, loop], samples["nothing", loop]
            more = statistics.median(a - b for a, b in zip(taken, base, strict=True))
            row += f"{statistics.median(taken):14.1f} ({more:+7.1f})"
        rows.append(row)
    return rows
