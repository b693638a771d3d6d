"""What `afterfree watch` keeps of a crash: whole bundles, explained as the target itself knows it."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard

from agent.forensics.bundle import Bundle, open_bundle
from agent.forensics.explanation import Explanation
from tests.integration.crashing import SWITCHES, Switch, assert_like_truth, rows
from tests.integration.harness import Daemon, Server, cli, daemon, load, server, wait_for
from tests.requirements import require_program
from tests.targets.build import SOURCE_DIR, build

pytestmark = pytest.mark.bpf

DUP = ("--bug", "dup-outlives-close")


def crashed(
    target: Server, watch: Daemon, *, mix: str = "dup", concurrency: int = 1, timeout: float = 60.0
) -> None:
    """Drive the target until it dies, and wait for the end of the watch."""
    watch.wait_ready()
    if "always" in watch.process.args and "--redact" not in watch.process.args:  # type: ignore[operator]
        wait_for(lambda: seized(target), what="a seized target")
    client = load(target.port, mix, connections=4000, concurrency=concurrency)
    try:
        assert target.process.wait(timeout) < 0
        watch.process.wait(timeout)
    finally:
        client.kill()
        client.communicate()


def seized(target: Server) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{target.pid}/status").read_text()


def the_bundle(folder: Path, scratch: Path) -> Bundle:
    names = sorted(folder.glob("crash-*.tar.zst"))
    assert len(names) == 1, list(folder.iterdir())
    scratch.mkdir()
    opened = open_bundle(names[0], scratch)
    assert opened.damaged == ()
    return opened


def truth_of(target: Server, slot: int, generation: int) -> dict[str, Any]:
    """What the target wrote of that life before it died; its last line may be cut."""
    found: dict[str, Any] = {}
    for line in target.truth_file.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if row.get("life") and (row["slot"], row["generation"]) == (slot, generation):
            found = row
    return found


def assert_explained(
    told: dict[str, Any], target: Server, *, field: str, offset: int, slot_field: str
) -> None:
    slot = int(told["slot"], 16)
    real = truth_of(target, slot, told["generation"])
    assert real, f"the target knows no life {slot:#x} generation {told['generation']}"
    assert (told["field"].rpartition(".")[2], told["offset"], told["slot_field"]) == (
        field,
        offset,
        slot_field,
    )
    assert (told["closer"], told["destroyer"]) == (real["close_tid"], real["destroy_tid"])
    assert told["cause"] == "description-survived-close"
    assert told["fix_kind"] == "del-before-close"
    assert told["certainty"] in ("confirmed", "observed")


@pytest.mark.parametrize(
    ("mode", "capture"),
    [("ReleaseSafe", "never"), ("ReleaseSafe", "always"), ("ReleaseFast", "always"), ("Debug", "always")],
)
def test_a_crash_of_the_bundled_server(mode: str, capture: str, tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    command = ("--bundles", str(bundles), "--capture", capture)
    with (
        server(mode, tmp_path, *DUP) as target,
        daemon(tmp_path, "watch", "--pid", str(target.pid), *command) as watch,
    ):
        crashed(target, watch)
    opened = the_bundle(bundles, tmp_path / "scratch")
    told = opened.value("explanation.json")
    assert_explained(told, target, field="_state", offset=0x2F8, slot_field="protocol.http")
    assert "getState" in opened.text("report.txt")
    assert not any("CodePlace" in opened.text(name) for name in opened.files if name != "core")
    assert " CRASH  SIGSEGV at 0x2f8 in getState" in watch.out.read_text()
    assert "EPOLL_CTL_DEL" in opened.text("report.txt")
    names = set(opened.files)
    assert {"recording.afrec", "findings.jsonl", "threads.json", "slots.json", "manifest.json"} <= names
    assert opened.manifest["configuration"]["capture"] == capture
    assert ("core" in names) == (capture == "always")
    by_topic = {row["topic"]: row for row in told["statements"]}
    if capture == "never":
        assert any("free list" in sentence for sentence in told["unknown"])
        return
    assert told["slot"] in by_topic["free list"]["text"]
    assert by_topic["free list"]["certainty"] == "confirmed"
    assert len(opened.value("threads.json")) >= 3
    assert all(row["registers"] and row["frames"] for row in opened.value("threads.json"))
    capture_facts = opened.value("capture.json")
    assert 0 < capture_facts["pause_ns"] < 2_000_000_000
    gdb = [require_program("gdb"), "-nx", "-batch", "-ex", "bt", "-ex", "info threads"]
    said = subprocess.run(
        [*gdb, str(target.exe), str(opened.files["core"])],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    ).stdout
    assert "getState" in said
    assert said.count("LWP") >= len(capture_facts["threads"])


@pytest.mark.parametrize("switch", SWITCHES[1:], ids=lambda switch: switch.name)
def test_every_other_crash_with_a_mini_core(switch: Switch, tmp_path: Path) -> None:
    mode = os.environ.get("AFTERFREE_MODE", "ReleaseSafe")
    if mode not in switch.modes:
        pytest.skip(f"{switch.name} does not kill a {mode} build")  # by design, not by lack
    # One that was recycled or swept may end in a circle of links instead, and spin: it is tried anew.
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        bundles = folder / "bundles"
        command = ("--bundles", str(bundles), "--capture", "always")
        with (
            server(mode, folder, "--workers", "3", *switch.server) as target,
            daemon(folder, "watch", "--pid", str(target.pid), *command) as watch,
        ):
            try:
                crashed(target, watch, mix=switch.mix, concurrency=switch.concurrency, timeout=30)
            except subprocess.TimeoutExpired:
                assert target.process.poll() is None, "it died, and its bundle did not come"
                continue
        break
    opened = the_bundle(bundles, tmp_path / "scratch")
    assert "core" in opened.files
    item = Explanation.from_json(opened.value("explanation.json"))
    assert_like_truth(item, rows(target.truth_file), switch)


@pytest.mark.parametrize("capture", ["never", "always"])
def test_a_crash_of_a_program_nobody_prepared(capture: str, tmp_path: Path) -> None:
    require_program("gcc")
    bundles = tmp_path / "bundles"
    profile = ("--profile", str(SOURCE_DIR / "cserver.toml"))
    command = ("--bundles", str(bundles), "--capture", capture, *profile)
    with (
        server("gcc-O2", tmp_path, *DUP, name="cserver") as target,
        daemon(tmp_path, "watch", "--pid", str(target.pid), *command) as watch,
    ):
        crashed(target, watch)
    opened = the_bundle(bundles, tmp_path / "scratch")
    told = opened.value("explanation.json")
    assert_explained(told, target, field="state", offset=0xC8, slot_field="session")


def test_a_report_needs_neither_root_nor_the_machine(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    with (
        server("ReleaseSafe", tmp_path, *DUP) as target,
        daemon(tmp_path, "watch", "--pid", str(target.pid), "--bundles", str(bundles)) as watch,
    ):
        crashed(target, watch)
    path = next(bundles.glob("crash-*.tar.zst"))
    assert (bundles.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    shown = cli("report", str(path))
    assert shown.returncode == 0, shown.stderr
    assert "EPOLL_CTL_DEL" in shown.stdout
    anew = cli("report", str(path), "--exe", str(target.exe), "--format", "json")
    as_written = json.loads(cli("report", str(path), "--format", "json").stdout)
    assert json.loads(anew.stdout)["explanation"] == as_written["explanation"]
    other = cli("report", str(path), "--exe", str(build("poolserver", "ReleaseFast")))
    assert other.returncode == 1
    assert "another build" in other.stderr
    # a folder that anybody may read, and a user who is nobody
    away = Path("/tmp") / f"afterfree-report-{os.getpid()}"
    shutil.copytree(SOURCE_DIR.parent.parent / "agent", away / "agent")
    for package in ("probes", "symbols"):
        shutil.copytree(SOURCE_DIR.parent.parent / package, away / package)
    shutil.copy(path, away / "crash.tar.zst")
    try:
        subprocess.run(["chmod", "-R", "a+rX", str(away)], check=True)
        said = subprocess.run(
            [sys.executable, "-m", "agent.cli", "report", "crash.tar.zst"],
            cwd=away,
            user=65534,
            group=65534,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        shutil.rmtree(away)
    assert said.returncode == 0, said.stderr
    assert said.stdout == shown.stdout


def everything_in(path: Path) -> bytes:
    with path.open("rb") as file:
        raw = zstandard.ZstdDecompressor().stream_reader(file).read()
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        members = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        return b"".join(file.read() for file in members.values() if file is not None)


@pytest.mark.parametrize("redact", [False, True])
def test_redaction_leaves_other_memory_out(redact: bool, tmp_path: Path) -> None:
    bundles, secret = tmp_path / "bundles", b"Authorization-tok3n-0f-a-client"
    command = ("--bundles", str(bundles), "--capture", "always", *(["--redact"] if redact else []))
    with (
        server("ReleaseSafe", tmp_path, *DUP) as target,
        daemon(tmp_path, "watch", "--pid", str(target.pid), *command) as watch,
    ):
        watch.wait_ready()
        with socket.create_connection(("127.0.0.1", target.port), 5) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Secret: " + secret + b"\r\n\r\n")
            client.recv(4096)
            crashed(target, watch)
    path = next(bundles.glob("crash-*.tar.zst"))
    assert (secret in everything_in(path)) is not redact
    opened = the_bundle(bundles, tmp_path / "scratch")
    told = opened.value("explanation.json")
    assert_explained(told, target, field="_state", offset=0x2F8, slot_field="protocol.http")


def test_a_crash_loop_makes_one_bundle(tmp_path: Path) -> None:
    exe = Path(shutil.copy(build("poolserver", "ReleaseSafe"), tmp_path))
    bundles = tmp_path / "bundles"
    with daemon(tmp_path, "watch", "--exe", str(exe), "--bundles", str(bundles)) as watch:
        watch.wait_ready()
        for number in range(4):
            folder = tmp_path / str(number)
            folder.mkdir()
            with server("ReleaseSafe", folder, *DUP, exe=exe) as target:
                wait_for(lambda pid=target.pid: os.path.exists(f"/proc/{pid}"))
                time.sleep(0.5)
                client = load(target.port, "dup", connections=4000, concurrency=1)
                assert target.process.wait(60) < 0
                client.kill()
                client.communicate()
        wait_for(lambda: "times by now" in watch.said(), 30, "no counter of the crash loop")
        assert watch.end(signal.SIGINT, 120) == 0
    assert len(list(bundles.glob("crash-*.tar.zst"))) == 1
    counters = json.loads((bundles / "counters.json").read_text())
    (place,) = (row for key, row in counters.items() if "|" not in key)  # the other is its explanation's
    assert place[3] == 4


def test_a_bundle_can_be_replayed(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    with (
        server("ReleaseSafe", tmp_path, *DUP) as target,
        daemon(
            tmp_path, "watch", "--pid", str(target.pid), "--bundles", str(bundles), "--format", "json"
        ) as watch,
    ):
        crashed(target, watch)
    opened = the_bundle(bundles, tmp_path / "scratch")
    live = {line["rule"] for line in watch.lines()}
    kept = {json.loads(line)["rule"] for line in opened.text("findings.jsonl").splitlines()}
    assert kept == live
    replayed = cli("replay", str(opened.files["recording.afrec"]), "--format", "json")
    assert replayed.returncode == 0, replayed.stderr
    assert {json.loads(line)["rule"] for line in replayed.stdout.splitlines()} == live
