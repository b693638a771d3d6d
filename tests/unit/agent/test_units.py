"""Which processes belong to a unit: a tree of files, a systemctl that is asked, and a real control group."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from agent.errors import Misused, NoSuchTarget, PrerequisiteMissing
from agent.units import Units


def group(root: Path, place: str, *pids: int) -> None:
    folder = root / place
    folder.mkdir(parents=True, exist_ok=True)
    for parent in [folder, *folder.parents]:
        if not (parent / "cgroup.procs").exists():
            (parent / "cgroup.procs").write_text("")
        if parent == root:
            break
    (folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))


def systemctl(folder: Path, script: str) -> str:
    path = folder / "systemctl"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_processes_of_the_group_and_of_those_below(tmp_path: Path) -> None:
    group(tmp_path, "system.slice/node.service", 12, 10)
    group(tmp_path, "system.slice/node.service/workers/a", 11, 0)
    group(tmp_path, "system.slice/other.service", 99)
    units = Units([str(tmp_path)], systemctl=None)
    assert units.processes("node") == units.processes("node.service") == (10, 11, 12)
    group(tmp_path, "system.slice/node.service", 13)
    assert units.processes("node") == (11, 13)


def test_systemd_is_asked_first(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    group(root, "system.slice/node.service", 1)
    group(root, "system.slice/system-node.slice/node@1.service", 7)
    asked = tmp_path / "asked"
    told = systemctl(tmp_path, f'echo "$@" >> {asked}; echo /system.slice/system-node.slice/node@1.service')
    units = Units([str(root)], systemctl=told)
    assert units.processes("node@1") == units.processes("node@1") == (7,)
    assert asked.read_text() == "show -p ControlGroup --value -- node@1.service\n"


@pytest.mark.parametrize("script", ["exit 1", "echo", "echo /../../etc", "echo /gone.slice/node.service"])
def test_without_an_answer_of_systemd_the_usual_place_is_taken(tmp_path: Path, script: str) -> None:
    group(tmp_path / "cgroup", "system.slice/node.service", 5)
    units = Units([str(tmp_path / "cgroup")], systemctl=systemctl(tmp_path, script))
    assert units.processes("node") == (5,)


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    group(tmp_path, "system.slice/idle.service")
    units = Units([str(tmp_path)], systemctl=None)
    for name in ("absent", "idle"):
        with pytest.raises(NoSuchTarget, match="has no processes") as caught:
            units.processes(name)
        assert "afterfree watch --exe" in caught.value.remedy
    for name in ("", "../x", "a/b", "-x", "a\n", "x" * 300):
        with pytest.raises(Misused):
            units.processes(name)
    with pytest.raises(PrerequisiteMissing, match="control groups"):
        Units([str(tmp_path / "none")], systemctl=None).processes("node")


def test_real_control_group() -> None:
    root = next((r for r in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified") if _is_v2(r)), "")
    if not root or not os.access(root, os.W_OK):
        pytest.skip("no writable control group hierarchy of version 2")
    slice_ = Path(root, "system.slice")
    made = not slice_.exists()
    folder = slice_ / f"afterfree-test-{os.getpid()}.service"
    folder.mkdir(parents=True)
    process = subprocess.Popen(["sleep", "60"])
    try:
        (folder / "cgroup.procs").write_text(str(process.pid))
        assert Units(systemctl=None).processes(folder.name) == (process.pid,)
    finally:
        process.kill()
        process.wait()
        folder.rmdir()
        if made:
            slice_.rmdir()


def _is_v2(root: str) -> bool:
    return Path(root, "cgroup.controllers").is_file()
