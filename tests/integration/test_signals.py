"""However the daemon ends, the probes and the helpers go with it and the target serves on."""

from __future__ import annotations

import fcntl
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.integration.harness import (
    Daemon,
    Server,
    alive,
    attachments,
    bpftool,
    daemon,
    descendants,
    kernel_ids,
    load,
    map_ids,
    server,
    wait_for,
    watched,
)

pytestmark = pytest.mark.bpf

GONE_S = 10.0
MOMENTS = random.Random(20261122)


def programs(attached: dict[str, set[int]]) -> set[int]:
    return set().union(*attached.values())


def assert_probes_are_in_place(watch: Daemon, target: Server) -> tuple[set[int], set[int]]:
    """Program ids and map ids of a daemon that watches: what has to be gone afterwards."""
    attached = attachments(watch.pid)
    assert len(attached["tracepoint"]) >= 15, attached
    assert len(attached["uprobe"]) >= 4, attached
    assert watched(watch.pid) == {target.pid}
    return programs(attached), map_ids(watch.pid)


def assert_nothing_is_left(program_ids: set[int], maps: set[int], children: Iterable[int]) -> None:
    """The kernel frees programs and maps a little after their last user (RCU)."""

    def left() -> list[str]:
        listed = [f"program {number}" for number in program_ids & kernel_ids("program")]
        listed += [f"map {number}" for number in maps & kernel_ids("map")]
        return listed + [f"process {pid}" for pid in alive(children)]

    deadline = time.monotonic() + GONE_S
    while left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left() == []
    assert not [link for link in bpftool("link", "show") if link.get("prog_id") in program_ids]
    assert not [entry for entry in bpftool("perf", "show") if entry["prog_id"] in program_ids]


def assert_no_program_without_owner() -> None:
    """Programs of ours whose maps nobody holds: other sessions on this machine hold theirs."""

    def ownerless() -> list[int]:
        ours = [p for p in bpftool("prog", "show") if p.get("name", "").startswith("af_")]
        held = set().union(*(map_ids(int(d.name)) for d in Path("/proc").iterdir() if d.name.isdigit()))
        return [p["id"] for p in ours if not held & set(p.get("map_ids", ()))]

    deadline = time.monotonic() + GONE_S
    while ownerless() and time.monotonic() < deadline:
        time.sleep(1)
    assert ownerless() == []


def assert_not_stopped(target: Server) -> None:
    for task in Path(f"/proc/{target.pid}/task").iterdir():
        assert (task / "stat").read_text().rsplit(")", 1)[1].split()[0] in "RSD"
    assert "TracerPid:\t0\n" in Path(f"/proc/{target.pid}/status").read_text()


def finished(client: subprocess.Popen[str]) -> dict[str, int]:
    """What the load client saw; raises when a single request failed."""
    out, err = client.communicate(timeout=120)
    assert client.returncode == 0, err
    seen: dict[str, int] = json.loads(out)
    failed = ("connect_failures", "short", "timeouts", "responses_other", "responses_400", "unfinished")
    assert {key: seen[key] for key in failed} == dict.fromkeys(failed, 0)
    assert seen["responses"] == seen["requests"] > 0
    return seen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_watch_with_a_summary(number: signal.Signals, tmp_path: Path) -> None:
    with (
        server("ReleaseSafe", tmp_path) as target,
        daemon(tmp_path, "watch", "--pid", str(target.pid)) as watch,
    ):
        watch.wait_ready()
        program_ids, maps = assert_probes_are_in_place(watch, target)
        finished(load(target.port, "keepalive", connections=200))
        going_on = load(target.port, "keepalive", "--requests", "2000", connections=64)
        time.sleep(0.3)
        children = descendants(watch.pid)
        assert watch.end(number) == 0, watch.said()
        assert_nothing_is_left(program_ids, maps, children)
        finished(going_on)
        assert target.stop()["connections"] == 264
    summary = watch.out.read_text()
    assert "no finding above warning" in summary
    deliveries = int(summary.split(" deliveries")[0].split()[-1].replace(",", ""))
    assert deliveries > 2000
    assert "Traceback" not in watch.said()


def test_a_signal_while_attaching_ends_the_watch_as_well(tmp_path: Path) -> None:
    with (
        server("ReleaseSafe", tmp_path) as target,
        daemon(tmp_path, "watch", "--pid", str(target.pid)) as watch,
    ):
        loader = attaching(watch)
        children = [loader, *descendants(watch.pid)]
        assert watch.end(signal.SIGTERM) == 0, watch.said()
        assert "1 target" in watch.out.read_text()
        assert_nothing_is_left(set(), set(), children)
        assert_no_program_without_owner()
        finished(load(target.port, "churn", connections=200))


@pytest.mark.parametrize("signals", [1, 2])
def test_a_watch_whose_output_nobody_reads_ends_when_it_is_told(signals: int, tmp_path: Path) -> None:
    """A full pipe blocks the write of a line: the second signal ends that, or the limit after the first."""
    bundles = ("--bundles", str(tmp_path / "bundles"))
    options = ("--timeline", "--timeline-rate", "100000", "--capture", "always", *bundles)
    with server("ReleaseSafe", tmp_path) as target:
        with (tmp_path / "err").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "agent.cli", "watch", "--pid", str(target.pid), *options],
                stdout=subprocess.PIPE,
                stderr=err,
            )
        watch = Daemon(process, tmp_path / "none", tmp_path / "err")  # type: ignore[arg-type]
        try:
            assert process.stdout is not None
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
            watch.wait_ready()
            program_ids, maps = assert_probes_are_in_place(watch, target)
            client = load(target.port, "keepalive", "--requests", "100", connections=64)
            wait_for(
                lambda: Path(f"/proc/{watch.pid}/wchan").read_text().endswith("pipe_write"), 30, "a full pipe"
            )
            children = descendants(watch.pid)
            process.send_signal(signal.SIGTERM)
            if signals == 2:
                time.sleep(1)
                process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 1, watch.said()
            assert "standard output takes nothing" in watch.said()
            assert_nothing_is_left(program_ids, maps, children)
            finished(client)
            assert_not_stopped(target)
        finally:
            process.kill()
            process.communicate()
        assert target.stop()["summary"]


def attaching(watch: Daemon) -> int:
    """Waits for the loader child and returns its pid."""

    def loader() -> list[int]:
        return [pid for pid, command in descendants(watch.pid).items() if "probes.loader_main" in command]

    wait_for(loader, 30, f"a loader child ({watch.said()})")
    return loader()[0]


@pytest.mark.parametrize("after_s", [0.0, *(round(MOMENTS.uniform(0.1, 1.6), 2) for _ in range(4))])
def test_killed_while_attaching_it_leaves_nothing(after_s: float, tmp_path: Path) -> None:
    with server("ReleaseSafe", tmp_path) as target:
        client = load(target.port, "keepalive", "--requests", "3000", connections=64)
        with daemon(tmp_path, "watch", "--pid", str(target.pid)) as watch:
            loader = attaching(watch)
            time.sleep(after_s)
            children = [loader, *descendants(watch.pid)]
            maps = map_ids(loader) | map_ids(watch.pid)
            program_ids = programs({"": set(), **attachments(loader), **attachments(watch.pid)})
            assert watch.end(signal.SIGKILL) == -signal.SIGKILL
            assert_nothing_is_left(program_ids, maps, children)
            assert_no_program_without_owner()
        finished(client)
        assert_not_stopped(target)
        finished(load(target.port, "churn", connections=200))
        assert target.stop()["summary"]


@pytest.mark.parametrize("after_s", [round(MOMENTS.uniform(0.0, 1.5), 2) for _ in range(3)])
def test_killed_under_load_it_leaves_nothing(after_s: float, tmp_path: Path) -> None:
    with (
        server("ReleaseSafe", tmp_path) as target,
        daemon(tmp_path, "watch", "--pid", str(target.pid)) as watch,
    ):
        watch.wait_ready()
        program_ids, maps = assert_probes_are_in_place(watch, target)
        clients = [
            load(target.port, "keepalive", "--requests", "4000", connections=64, concurrency=16),
            load(target.port, "churn", connections=30_000, concurrency=16),
        ]
        time.sleep(after_s)
        assert [client.poll() for client in clients] == [None, None], "the load ended too early"
        children = descendants(watch.pid)
        assert any("probes.proc_helper" in command for command in children.values()), children
        assert watch.end(signal.SIGKILL) == -signal.SIGKILL
        assert_nothing_is_left(program_ids, maps, children)
        for client in clients:
            finished(client)
        assert_not_stopped(target)
        assert target.stop()["connections"] == 30_064


@pytest.mark.parametrize("after_s", [round(MOMENTS.uniform(0.0, 1.0), 2) for _ in range(2)])
def test_killed_in_a_storm_of_findings_it_leaves_nothing(after_s: float, tmp_path: Path) -> None:
    bug = ("--bug", "double-close", "--survive")
    with server("ReleaseSafe", tmp_path, *bug) as target:
        command = ("watch", "--pid", str(target.pid), "--format", "json")
        with daemon(tmp_path, *command) as watch:
            watch.wait_ready()
            program_ids, maps = assert_probes_are_in_place(watch, target)
            storm = load(target.port, "churn", connections=15_000)
            wait_for(watch.lines, 20, "a first finding")
            time.sleep(after_s)
            assert storm.poll() is None, "the storm was over too early"
            children = descendants(watch.pid)
            assert any("agent.symbolize_keeper" in command for command in children.values()), children
            assert watch.end(signal.SIGKILL) == -signal.SIGKILL
            assert_nothing_is_left(program_ids, maps, children)
        finished(storm)
        assert {line["rule"] for line in watch.lines()} == {"bad-close"}
        assert_not_stopped(target)
        assert target.stop()["bad_closes"] > 1000
