"""One rule broken at full speed, and nobody reads the urgent ring: its total is exact, it hides nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from probes import session as session_module
from probes.session import LiveSession, SessionOptions, slots_for
from symbols.profile import parse_profile
from symbols.resolve import resolve
from tests.integration.harness import Run, finish, pump_until
from tests.integration.test_endings import PROFILE
from tests.requirements import require_program

pytestmark = pytest.mark.bpf

SOURCE = Path(__file__).parent / "programs" / "flood.c"
TIMES = 8_000  # of which the ring holds some 5,500
RULES = {
    "closes": ("bad-close", "double-destroy"),
    "removals": ("failed-removal", "double-destroy"),
    "destroys": ("double-destroy", "bad-close"),
}


@pytest.mark.parametrize("kind", ["closes", "removals", "destroys"])
def test_a_flood_of_one_rule_hides_no_other(kind: str, tmp_path: Path) -> None:
    exe = tmp_path / "flood"
    subprocess.run([require_program("gcc"), "-g", "-O1", "-o", str(exe), str(SOURCE)], check=True)
    run = Run()
    with subprocess.Popen(
        [str(exe), kind, str(TIMES)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        session = LiveSession.open(resolve(exe, parse_profile(PROFILE)), pids=[process.pid], follow=False)
        try:
            process.stdin.write("g")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"  # nobody has read the ring meanwhile
            flooding, other = RULES[kind]
            pump_until(session, run, lambda: run.count(other) == 1, f"{other} behind the flood", 30)
            finish(session, run)
        finally:
            process.kill()
            session.close()
    if kind != "destroys":
        assert run.count(flooding) == TIMES
        assert run.lost() == {}
    else:
        assert 0 < run.count(flooding) <= TIMES


def test_slots_that_were_freed_make_room(tmp_path: Path) -> None:
    """A program that never comes back to an address fills the table; what follows is seen all the same."""
    exe = tmp_path / "flood"
    subprocess.run([require_program("gcc"), "-g", "-O1", "-o", str(exe), str(SOURCE)], check=True)
    run = Run()
    options = SessionOptions(max_slots=256)
    with subprocess.Popen(
        [str(exe), "lives", "400"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        plan = resolve(exe, parse_profile(PROFILE))
        session = LiveSession.open(plan, pids=[process.pid], follow=False, options=options)
        try:
            process.stdin.write("g")
            process.stdin.flush()
            pump_until(session, run, lambda: run.lost().get("slots-forgotten", 0) > 0, "room comes back", 30)
            process.stdin.write("g")
            process.stdin.flush()
            pump_until(session, run, lambda: run.count("double-destroy") == 1, "what follows is seen", 30)
        finally:
            process.kill()
            session.close()
    assert run.lost()["slots-map-full"] > 0


def test_a_table_is_as_large_as_what_is_open_makes_likely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(session_module, "LEAST_SLOTS", 64)
    assert slots_for([]) == 64
    before = len(os.listdir("/proc/self/fd"))
    held = [os.open(tmp_path / "file", os.O_RDONLY) for _ in range(200)]
    try:
        assert slots_for([os.getpid()]) >= 2 * (before + 200 - 1)
    finally:
        for fd in held:
            os.close(fd)
    monkeypatch.setattr(session_module, "MOST_SLOTS", 32)
    assert slots_for([os.getpid()]) == 32
