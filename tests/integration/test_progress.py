"""When the calls that make progress are traced: each traced call costs every process of the machine."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from probes.session import LiveSession
from symbols.profile import parse_profile
from symbols.resolve import resolve
from tests.integration.harness import Run, finish, pump_until
from tests.integration.test_endings import PROFILE
from tests.requirements import require_program

pytestmark = pytest.mark.bpf

SOURCE = Path(__file__).parent / "programs" / "flood.c"
SUSPECT_S = 0.25  # AF_SUSPECT_NS of 10-maps.c
TRIES = 5


@contextmanager
def _bursts(exe: Path) -> Iterator[tuple[subprocess.Popen[str], LiveSession]]:
    with subprocess.Popen(
        [str(exe), "bursts", "5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        session = LiveSession.open(resolve(exe, parse_profile(PROFILE)), pids=[process.pid], follow=False)
        try:
            yield process, session
        finally:
            process.kill()
            session.close()


def _go_on(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("g")
    process.stdin.flush()
    return process.stdout.readline()


def test_short_bursts_trace_nothing_and_a_spin_does(tmp_path: Path) -> None:
    """A loop whose worker is preempted delivers one event hundreds of times within milliseconds."""
    exe = tmp_path / "flood"
    subprocess.run([require_program("gcc"), "-g", "-O1", "-o", str(exe), str(SOURCE)], check=True)
    for _ in range(TRIES):
        run = Run()
        with _bursts(exe) as (process, session):
            if float(_go_on(process)) >= SUSPECT_S:
                continue  # the machine was too busy: that was a spin
            finish(session, run)
            assert session.progress.looks == 0
            assert _go_on(process) == "spun\n"
            pump_until(session, run, lambda: session.progress.looks > 0, "a spin that nobody looks at")
            return
    pytest.fail(f"{TRIES} bursts of 700 calls took longer than {SUSPECT_S} s each")
