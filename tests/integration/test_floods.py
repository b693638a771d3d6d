"""One rule broken at full speed while nobody reads the urgent ring: its total is exact, and it hides nothing."""

from __future__ import annotations

import subprocess
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
TIMES = 20_000  # of which the ring holds some 6,000
RULES = {"closes": ("bad-close", "double-destroy"), "destroys": ("double-destroy", "bad-close")}


@pytest.mark.parametrize("kind", ["closes", "destroys"])
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
    if kind == "closes":
        assert run.count(flooding) == TIMES
        assert run.lost() == {}
    else:
        assert 0 < run.count(flooding) <= TIMES
