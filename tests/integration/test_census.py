"""The census of a correct server and of one that closes on a worker differ in the lines that they should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from probes.abi import Signature as Sig
from tests.integration.harness import Daemon, cli, daemon, load, server, wait_for

pytestmark = [pytest.mark.bpf, pytest.mark.slow]

CONNECTIONS = 4000
REMOVED = Sig.ADD | Sig.DELIVERED | Sig.DEL | Sig.CLOSE | Sig.WAITER_KNOWN
"""ADD@loop, deliveries, DEL@loop, CLOSE@loop, DESTROY@loop: what a correct server does."""
ON_WORKER = Sig.ADD | Sig.DELIVERED | Sig.CLOSE | Sig.CLOSE_OTHER | Sig.WAITER_KNOWN
VARIANTS = Sig.CLOSE_IN_BATCH | Sig.AFTER_CLOSE
"""What the race adds to ON_WORKER in some lifetimes."""


def _run(tmp: Path, how: str, *bugs: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(census, summary of the truth) of one run of the mix "correct"."""
    recording = tmp / "run.afrec"
    command = {
        "pid": ("census", "--format", "json"),
        "recording": ("record", "-o", str(recording)),
    }[how]
    with (
        server("ReleaseSafe", tmp, *bugs, "--survive") as target,
        daemon(tmp, command[0], "--pid", str(target.pid), *command[1:]) as live,
    ):
        wait_for(lambda: _ready(live), 60, "no probes in place")
        client = load(target.port, "correct", connections=CONNECTIONS)
        _, err = client.communicate(timeout=120)
        assert client.returncode == 0, err
        truth = target.stop()
        assert live.process.wait(30) == 0, live.said()
    if how == "pid":
        return json.loads(live.out.read_text()), truth
    counted = cli("census", str(recording), "--format", "json")
    assert counted.returncode == 0, counted.stderr
    return json.loads(counted.stdout), truth


def _ready(live: Daemon) -> bool:
    if live.process.poll() is not None:
        raise AssertionError(f"it ended with {live.process.returncode}: {live.said()}")
    return "Ctrl-C ends" in live.said()


@pytest.mark.parametrize("how", ["pid", "recording"])
def test_close_on_worker_changes_the_lines_that_it_should(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("correct", "worker"):
        (tmp_path / name).mkdir()
    correct, truth = _run(tmp_path / "correct", how)
    worker, worker_truth = _run(tmp_path / "worker", how, "--bug", "close-on-worker", "--window-us", "50")
    lines, others = ({row["signature"]: row for row in c["rows"]} for c in (correct, worker))
    with capsys.disabled():
        for title, census in (("correct", correct), ("close-on-worker", worker)):
            for row in census["rows"]:
                print(f"\n  {how:9} {title:15} {row['count']:6} {row['hazard']:20} {row['steps']}", end="")

    for census, known in ((correct, truth), (worker, worker_truth)):
        assert census["total"] == known["destroyed"] == CONNECTIONS
        assert sum(row["count"] for row in census["rows"]) == CONNECTIONS
        assert census["other"] == 0
    assert lines.keys() == {REMOVED}
    assert lines[REMOVED]["hazards"] == []
    assert REMOVED in others, "connections that the loop closes stay as they were"
    new = {signature: row for signature, row in others.items() if signature != REMOVED}
    assert {signature & ~VARIANTS for signature in new} == {ON_WORKER}
    assert all("implicit-removal" in row["hazards"] for row in new.values())
    assert sum(row["count"] for row in new.values()) == worker_truth["implicit_removal"] > 0
    in_batch = sum(row["count"] for signature, row in new.items() if signature & Sig.CLOSE_IN_BATCH)
    assert worker_truth["close_in_open_batch"] <= in_batch <= worker_truth["close_in_open_batch_possible"]
