"""Live and replayed: the same findings, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.harness import cli, daemon, load, server

pytestmark = [pytest.mark.bpf, pytest.mark.slow]

REPLAYED = {
    "correct": ("correct", ()),
    "dup-outlives-close": ("dup", ("--every", "4")),
    "double-destroy": ("churn", ("--every", "50")),
    "close-on-worker": ("close", ("--window-us", "50")),
}


def _bug(name: str) -> tuple[str, ...]:
    return () if name == "correct" else ("--bug", name)


@pytest.mark.parametrize("command", ["record", "watch"])
@pytest.mark.parametrize("bug", REPLAYED)
def test_replay_gives_the_findings_of_the_live_run(bug: str, command: str, tmp_path: Path) -> None:
    mix, options = REPLAYED[bug]
    file, findings = tmp_path / "run.afrec", tmp_path / "live.jsonl"
    output = ("-o", str(file)) if command == "record" else ("--record", str(file))
    with (
        server("ReleaseSafe", tmp_path, *_bug(bug), *options, "--survive") as target,
        daemon(
            tmp_path, command, "--pid", str(target.pid), *output, "--format", "json",
            "--findings", str(findings), "--fail-on", "high",
        ) as live,
    ):  # fmt: skip
        live.wait_ready()
        _, err = (client := load(target.port, mix, connections=3000)).communicate(timeout=150)
        assert client.returncode == 0, err
        target.stop()
        code = live.process.wait(30)
    said = live.out.read_text()
    again = tmp_path / "replayed.jsonl"
    replay = cli("replay", str(file), "--format", "json", "--findings", str(again), "--fail-on", "high")

    assert "lost" not in live.said(), live.said()
    assert replay.stdout == said
    assert again.read_bytes() == findings.read_bytes() == said.encode()
    assert replay.returncode == code, replay.stderr
    assert code == (0 if bug in ("correct", "close-on-worker") else 10)
    assert bool(said) == (bug != "correct")
