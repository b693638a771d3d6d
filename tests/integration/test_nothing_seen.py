"""Runs that end without having seen anything: none of them may look like a clean one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from probes import errors
from tests.integration.harness import cli, daemon, server, start_cli
from tests.targets.build import SOURCE_DIR, build

pytestmark = pytest.mark.bpf

PROFILE = str(SOURCE_DIR / "cserver.toml")


@pytest.fixture
def exe(tmp_path: Path) -> str:
    """A program that nobody runs."""
    return str(shutil.copy(build("cserver", "gcc-O2"), tmp_path / "never-run"))


def failed(text: str, exe: str) -> None:
    last = text[text.rindex("afterfree: ") :]
    assert f"no process of {exe} was ever seen" in last
    assert "\n  next\n" in last
    assert "readlink /proc/PID/exe" in last


@pytest.mark.parametrize("command", ["watch", "record"])
def test_a_program_that_never_ran(command: str, exe: str, tmp_path: Path) -> None:
    recording = tmp_path / "r.afrec"
    options = ["--no-bundles"] if command == "watch" else ["-o", str(recording)]
    wanted = [command, "--exe", exe, "--profile", PROFILE, "--duration", "0.5", *options]
    result = cli(*wanted)
    assert result.returncode == 1
    assert "no process was ever seen: nothing was judged" in result.stdout
    assert "no finding above warning" not in result.stdout
    failed(result.stderr, exe)
    result = cli(*wanted, "--format", "json", "--fail-on", "info")
    assert result.returncode == 1
    rows = [json.loads(row) for row in result.stdout.splitlines()]
    assert [row["schema"] for row in rows] == ["afterfree.failure/1"]
    assert "was ever seen" in rows[0]["error"]
    failed(result.stderr, exe)
    if command == "record":
        for replayed in (("replay", str(recording)), ("census", str(recording))):
            again = cli(*replayed)
            assert again.returncode == 1, again.stdout
            assert "no process of this recording was ever seen" in again.stderr


def test_a_census_of_a_program_that_never_ran(exe: str) -> None:
    wanted = ["census", "--exe", exe, "--profile", PROFILE, "--duration", "0.5"]
    result = cli(*wanted)
    assert (result.returncode, result.stdout) == (1, "")
    failed(result.stderr, exe)
    result = cli(*wanted, "--format", "json")
    assert result.returncode == 1
    value = json.loads(result.stdout)
    assert (value["processes"], value["total"]) == (0, 0)
    assert "was ever seen" in value["failure"]["error"]


def test_ctrl_c_while_waiting_is_no_clean_end(exe: str, tmp_path: Path) -> None:
    with daemon(tmp_path, "watch", "--exe", exe, "--profile", PROFILE) as watch:
        watch.wait_ready()
        assert watch.end() == 1
        failed(watch.said(), exe)


def test_one_program_of_two_is_named(exe: str, tmp_path: Path) -> None:
    """And a server that did nothing is no proof of anything either."""
    with server("gcc-O2", tmp_path, exe=build("cserver", "gcc-O2")) as target:
        result = cli(
            "watch", "--exe", exe, "--pid", str(target.pid), "--profile", PROFILE,
            "--duration", "1.5", "--no-bundles",
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert f"no process of {exe} was ever seen: nothing is known of it" in result.stdout
    assert "there was nothing to judge" in result.stdout


def test_a_helper_that_cannot_start_is_said_also_where_processes_come_later(
    tmp_path: Path, exe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken installation: the first process that comes ends the watch, with the helper's own words."""
    root = tmp_path / "ours"
    for part in ("agent", "probes", "symbols"):
        shutil.copytree(Path(errors.__file__).parents[1] / part, root / part)
    (root / "probes" / "proc_helper.py").write_text("raise ImportError('half an upgrade')\n")
    monkeypatch.chdir(root)
    watch = start_cli("watch", "--exe", exe, "--profile", PROFILE, "--duration", "60", "--no-bundles")
    assert watch.stderr is not None
    for row in watch.stderr:
        if "Ctrl-C ends" in row:
            break
    os.chdir("/")
    with server("gcc-O2", tmp_path, exe=Path(exe)) as target:
        _, err = watch.communicate(timeout=60)
        assert "half an upgrade" in err
        assert "the helper process that reads /proc ends instead of answering" in err
        assert "heavy load" not in err
        assert watch.returncode == 1
        monkeypatch.chdir(root)
        result = cli("watch", "--pid", str(target.pid), "--profile", PROFILE, "--no-bundles")
        assert result.returncode == 1
        assert "half an upgrade" in result.stderr
        asked = cli("doctor", "--format", "json")
    assert asked.returncode == 3
    checks = {check["name"]: check for check in json.loads(asked.stdout)["checks"]}
    assert checks["kernel side"]["ok"] is True
    assert checks["watching"]["ok"] is False
    assert "half an upgrade" in checks["watching"]["detail"]
