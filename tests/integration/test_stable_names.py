"""The same bug has the same name in every process of a position-independent program."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from probes.session import LiveSession
from symbols.profile import load_profile
from symbols.resolve import resolve
from tests.integration.harness import Run, pump_until
from tests.integration.shapes import FOLDER

pytestmark = pytest.mark.bpf


def _groups(session: LiveSession, exe: Path, go: Path) -> tuple[set[tuple[str, str]], int]:
    """((rule, group) of all that one run of the program draws, where its executable was)."""
    run, bias = Run(), 0
    go.unlink(missing_ok=True)
    program = subprocess.Popen([exe], stdout=subprocess.PIPE, text=True, env={**os.environ, "GO": str(go)})
    try:
        pump_until(session, run, lambda: program.pid in session.targets, "the session sees no exec")
        bias = session.targets[program.pid].bias
        go.touch()
        pump_until(session, run, lambda: run.count("bad-close") >= 5, "no bad close is told")
    finally:
        program.kill()
        program.communicate()
    pump_until(session, run, lambda: program.pid not in session.targets, "the session keeps a dead target")
    return {(finding.rule.value, finding.group) for finding in run.findings()}, bias


@pytest.mark.parametrize("level", ["O0", "O2"])
def test_two_processes_of_a_pie_program_name_a_bug_alike(level: str, tmp_path: Path) -> None:
    """Its closes are libc's, which lies elsewhere each time."""
    exe = tmp_path / "double_close"
    source = FOLDER / "double_close" / "prog.c"
    command = ["gcc", "-g", f"-{level}", "-pie", "-fPIE", f"-I{FOLDER}", "-w", "-pthread"]
    subprocess.run([*command, "-o", str(exe), str(source)], check=True)
    plan = resolve(exe, load_profile(FOLDER / "base.toml"))
    session = LiveSession.open(plan, pids=[], follow=True)
    try:
        first, here = _groups(session, exe, tmp_path / "go")
        second, there = _groups(session, exe, tmp_path / "go")
    finally:
        session.close()
    assert here != there, "the kernel does not randomise addresses here"
    assert first
    assert first == second
