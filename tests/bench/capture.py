"""What the capture by ptrace costs: a seized target under load against a free one, and how long a stop lasts.

By hand, as root: python -m tests.bench.capture [--rounds N]. Ratios are of neighbours in time, as medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from probes.capture.capturer import Capturer
from probes.capture.facts import Captured, CaptureOptions, MemoryRange, Seized
from tests.bench.target import LOADS, Sample, _churn, _keep_alive, _sample
from tests.integration.capturing import Crasher, captured, crasher
from tests.integration.harness import descendants, rss_kb, server

THREADS = (0, 4, 49, 499)
ASKED_S = 1.0


def under_load(rounds: int, tmp: Path) -> list[str]:
    """Throughput and processor time of the bundled server, seized and not, in turn."""
    samples: dict[tuple[bool, str], list[Sample]] = {}
    seizing: list[float] = []
    helper_kb = 0
    arguments = ("--max-conn", "1024")
    with server("ReleaseSafe", tmp, *arguments) as target, Capturer(tmp) as capturer:
        _keep_alive(target.port)
        for number in range(rounds):
            for seized in (number % 2 == 0, number % 2 == 1):
                if seized:
                    answer = capturer.seize(target.pid)
                    assert isinstance(answer, Seized), answer
                    seizing.append(answer.took_ns / 1e6)
                    helper_kb = max(helper_kb, sum(map(rss_kb, descendants(capturer.helper_pid))))
                for kind, run in zip(LOADS, (_keep_alive, _churn), strict=True):
                    samples.setdefault((seized, kind), []).append(_sample(target, run))
                capturer.release(target.pid)
                capturer.poll()
    lines = [f"seizing: {statistics.median(seizing):.2f} ms; the tracing process: {helper_kb:,} KiB resident"]
    for kind in LOADS:
        pairs = list(zip(samples[True, kind], samples[False, kind], strict=True))
        rate = statistics.median(a.rate / b.rate for a, b in pairs)
        cpu = statistics.median(a.cpu_us / b.cpu_us for a, b in pairs)
        free = statistics.median(b.rate for _, b in pairs)
        lines.append(f"{kind}: {rate:.4f} of the throughput ({free:,.0f}/s), {cpu:.4f} of the processor time")
        lines.append("    by round: " + " ".join(f"{a.rate / b.rate:.2f}" for a, b in pairs))
    return lines


def _asked(target: Crasher, what: str) -> float:
    """Answers per second on one connection."""
    done, began = 0, time.monotonic()
    with target.connect() as connection:
        while time.monotonic() - began < ASKED_S:
            connection.sendall(what.encode())
            assert connection.recv(1) == what.encode()
            done += 1
    return done / (time.monotonic() - began)


def per_event(rounds: int, tmp: Path) -> list[str]:
    """What a signal and a new thread cost more, in microseconds each."""
    lines = []
    with crasher(4) as target, Capturer(tmp) as capturer:
        for what, name in (("u", "signal"), ("t", "new thread")):
            more = []
            for _ in range(rounds):
                free = _asked(target, what)
                capturer.seize(target.pid)
                more.append(1e6 / _asked(target, what) - 1e6 / free)
                capturer.release(target.pid)
                capturer.poll()
            lines.append(f"one {name}: {statistics.median(more):.0f} µs more")
    return lines


def pauses(rounds: int, tmp: Path, memory: int) -> list[str]:
    """The stop as the tracer sees it, and as a client of the target does."""
    lines = []
    for threads in THREADS:
        events: list[Captured] = []
        waits = []
        with crasher(threads) as target, Capturer(tmp) as capturer:
            for _ in range(2 * rounds):
                capturer.seize(target.pid)
                capturer.ranges(target.pid, [MemoryRange(target.slot - target.slot % 4096, memory)])
                time.sleep(0.02)
                began = time.monotonic()
                assert target.ask("s") == b"s"
                waits.append(1000 * (time.monotonic() - began))
                events.append(captured(capturer))
                while capturer.seized:
                    capturer.poll(0.1)
        stopped = [max(one.stopped_ns for one in event.threads) / 1e6 for event in events]
        pause = [event.pause_ns / 1e6 for event in events]
        client = statistics.median(waits)
        lines.append(
            f"{threads + 1} threads: pause {statistics.median(pause):.1f} ms (most {max(pause):.1f}), all "
            f"stopped after {statistics.median(stopped):.2f} ms, a client waited {client:.1f} ms, "
            f"{events[-1].copied_bytes / 1e6:.1f} MB copied, "
            f"{statistics.median(event.write_ns for event in events) / 1e6:.1f} ms to write, "
            f"left out {events[-1].left_out_bytes:,} bytes"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.capture", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    if os.geteuid() != 0:
        sys.stderr.write("bench: this needs root\n")
        return 3
    with tempfile.TemporaryDirectory(prefix="afterfree-bench-") as name:
        tmp = Path(name)
        most = CaptureOptions().limit_bytes
        lines = [
            f"{rounds} rounds; {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; limit {most >> 20} MiB",
            *under_load(rounds, tmp),
            *per_event(rounds, tmp),
            *pauses(rounds, tmp, 64 << 10),
        ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
