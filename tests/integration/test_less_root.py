"""What reads hostile files has no rights, and reads all the same what only root can read."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from agent.forensics.bundle import open_bundle
from tests.integration.harness import Daemon, daemon, descendants, load, server
from tests.targets.build import build

pytestmark = [pytest.mark.bpf, pytest.mark.timeout(240)]

NOBODY = "65534"
READERS = ("agent.symbolize_keeper", "agent.forensics.bundler")
KEYS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")


def status(pid: int) -> dict[str, str]:
    with contextlib.suppress(OSError):
        rows = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return {key: " ".join(value.split()) for key, _, value in rows if key in KEYS}
    return {}


def confined(watch: Daemon, seen: dict[str, dict[str, str]]) -> None:
    """Note the state of each reader that has given up its rights by now."""
    for pid, command in descendants(watch.pid).items():
        for name in READERS:
            if name in command and name not in seen:
                found = status(pid)
                if found.get("Seccomp") == "2":
                    seen[name] = found


def test_readers_of_debug_information_are_nobody_and_read_what_is_roots(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    exe = Path(shutil.copy(build("poolserver", "ReleaseSafe"), closed / "server"))
    exe.chmod(0o700)
    findings, bundles = tmp_path / "findings.jsonl", tmp_path / "bundles"
    seen: dict[str, dict[str, str]] = {}
    with (
        server("ReleaseSafe", tmp_path, "--bug", "dup-outlives-close", exe=exe) as target,
        daemon(
            tmp_path,
            "watch",
            "--pid",
            str(target.pid),
            "--bundles",
            str(bundles),
            "--findings",
            str(findings),
        ) as watch,
    ):
        watch.wait_ready()
        client = load(target.port, "dup", connections=4000, concurrency=1)
        try:
            while watch.process.poll() is None:
                confined(watch, seen)
        finally:
            client.kill()
            client.communicate()
    assert set(seen) == set(READERS)
    for found in seen.values():
        assert set(found["Uid"].split()) == set(found["Gid"].split()) == {NOBODY}
        assert found["Groups"] == ""
        assert {found[key] for key in KEYS if key.startswith("Cap")} == {"0" * 16}
        assert found["NoNewPrivs"] == "1"
    told = findings.read_text()
    assert "worker.zig" in told
    assert "ermission" not in told
    assert "more rights than needed" not in watch.said()
    (name,) = bundles.glob("crash-*.tar.zst")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    opened = open_bundle(name, scratch)
    assert opened.damaged == ()
    assert "worker.zig" in opened.text("report.txt")
    assert not [note for note in opened.manifest["notes"] if "rights" in note or "not explained" in note]
