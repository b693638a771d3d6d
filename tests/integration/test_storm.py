"""Storms: a loop that spins at full speed costs the daemon next to nothing and makes one finding.

AFTERFREE_STORM_S: seconds of each storm (60).
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import Daemon, Server, cpu_seconds, daemon, descendants, load, rss_kb, server

pytestmark = [pytest.mark.bpf, pytest.mark.slow]

STORM_S = float(os.environ.get("AFTERFREE_STORM_S", "60"))
SETTLED_S = 5.0
FLAT_KB = 2048
MOST_KB = 40_000
MOST_CPU = 0.05  # of one core
# A slot's run is reported when it has doubled, a finding is printed when its count has, and the target spins
# on while the daemon ends.
LEAST = 2 * 2 * 2


@dataclass(slots=True)
class Storm:
    rss: list[int]
    cpu: float  # of one core, of the daemon itself
    helpers_cpu: float
    target_cpu: float

    def assert_bearable(self) -> None:
        print(
            f"rss {min(self.rss)}..{max(self.rss)} KiB, cpu {100 * self.cpu:.2f} % "
            f"(helpers {100 * self.helpers_cpu:.2f} %), target {100 * self.target_cpu:.0f} %"
        )
        assert max(self.rss) - min(self.rss) <= FLAT_KB, self.rss
        assert max(self.rss) < MOST_KB
        assert self.cpu < MOST_CPU
        assert self.helpers_cpu < MOST_CPU


def storm(watch: Daemon, target: Server, seconds: float) -> Storm:
    """Watches the daemon while the target spins; the first seconds may grow."""
    time.sleep(SETTLED_S)
    helpers = descendants(watch.pid)
    began, cpu, other = time.monotonic(), cpu_seconds(watch.pid), {p: cpu_seconds(p) for p in helpers}
    spinning = cpu_seconds(target.pid)
    rss = [rss_kb(watch.pid)]
    while time.monotonic() - began < seconds - SETTLED_S:
        time.sleep(0.5)
        rss.append(rss_kb(watch.pid))
    took = time.monotonic() - began
    still = [pid for pid in helpers if pid in descendants(watch.pid)]
    return Storm(
        rss,
        (cpu_seconds(watch.pid) - cpu) / took,
        sum(cpu_seconds(pid) - other[pid] for pid in still) / took,
        (cpu_seconds(target.pid) - spinning) / took,
    )


def drop_registered(target: Server) -> None:
    """200 connections, of which the target forgets 8 while they are registered: from then on it spins."""
    client = load(target.port, "close", connections=200)
    out, err = client.communicate(timeout=60)
    assert client.returncode == 0, err
    assert json.loads(out)["timeouts"] == 8


def hot(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The one grouped hot-redelivery in its last state."""
    findings = [line for line in lines if line["rule"] == "hot-redelivery"]
    assert findings, lines
    assert len({line["group"] for line in findings}) == 1
    assert [line["update"] for line in findings] == [False, *[True] * (len(findings) - 1)]
    assert len(findings) <= 40  # doublings of the count
    counts = [line["count"] for line in findings]
    # at doublings, and exactly at the end
    assert all(b >= 2 * a for a, b in itertools.pairwise(counts[:-1])), counts
    assert counts[-1] > counts[-2]
    return findings[-1]


def test_a_spinning_loop_is_one_finding_and_costs_nothing(tmp_path: Path) -> None:
    with (
        server("ReleaseSafe", tmp_path, "--bug", "drop-registered", "--survive") as target,
        daemon(tmp_path, "watch", "--pid", str(target.pid), "--format", "json") as watch,
    ):
        watch.wait_ready()
        drop_registered(target)
        seen = storm(watch, target, STORM_S)
        assert watch.end() == 0, watch.said()
        truth = target.stop()
    seen.assert_bearable()
    assert seen.target_cpu > 0.3, "the target did not spin"
    assert truth["leaked_registered"] == 8
    finding = hot(watch.lines())
    assert {line["rule"] for line in watch.lines()} == {"hot-redelivery"}
    assert (finding["severity"], finding["confidence"]) == ("warning", "observed")
    assert 100 < finding["rate"] < truth["deliveries"] / STORM_S
    assert truth["deliveries"] / LEAST < finding["count"] <= truth["deliveries"]
    assert watch.said().count("hot-redelivery") == 1, "one line in the summary"


def test_a_loop_that_spun_before_the_attach_is_inferred(tmp_path: Path) -> None:
    with server("ReleaseSafe", tmp_path, "--bug", "drop-registered", "--survive") as target:
        drop_registered(target)
        with daemon(tmp_path, "watch", "--pid", str(target.pid), "--format", "json") as watch:
            watch.wait_ready()
            seen = storm(watch, target, STORM_S)
            assert watch.end() == 0, watch.said()
        assert target.stop()["leaked_registered"] == 8
    seen.assert_bearable()
    assert seen.target_cpu > 0.3, "the target did not spin"
    finding = hot(watch.lines())
    assert {line["rule"] for line in watch.lines()} == {"hot-redelivery"}
    assert (finding["severity"], finding["confidence"]) == ("warning", "inferred")
    assert any("since when it spins cannot be known" in reason for reason in finding["reasons"])
    assert finding["rate"] > 100
    registered = next(actor for actor in finding["actors"] if actor["role"] == "registered")
    assert not registered["seen"]


def stale_load(target: Server) -> subprocess.Popen[str]:
    return load(
        target.port, "dup", "--timeout-ms", "500", "--duration-s", str(int(STORM_S)),
        connections=64, concurrency=8,
    )  # fmt: skip


def test_a_storm_of_stale_deliveries_is_a_finding_for_each_call_site(tmp_path: Path) -> None:
    hold = str(int(1000 * (STORM_S + 30)))
    bug = ("--bug", "dup-outlives-close", "--survive", "--orphan", "keep", "--dup-hold-ms", hold)
    with (
        server("ReleaseSafe", tmp_path, *bug, "--limit", "8") as target,
        daemon(tmp_path, "watch", "--pid", str(target.pid), "--format", "json") as watch,
    ):
        watch.wait_ready()
        client = stale_load(target)
        seen = storm(watch, target, STORM_S)
        client.kill()
        client.wait()
        assert watch.end() == 0, watch.said()
        truth = target.stop()
    seen.assert_bearable()
    assert seen.target_cpu > 0.3, "the target did not spin"
    stale = [line for line in watch.lines() if line["rule"] == "stale-delivery"]
    assert stale
    # a group per call site of the close and the destroy: the target has two ways to end a connection
    groups = {line["group"]: line for line in stale}
    assert len(groups) <= 4
    assert len(stale) <= 40 * len(groups)
    found = sum(line["count"] for line in groups.values())
    assert truth["stale_deliveries"] > 10_000
    assert truth["stale_deliveries"] / LEAST < found <= truth["stale_deliveries"]
    assert {line["severity"] for line in groups.values()} == {"critical"}
