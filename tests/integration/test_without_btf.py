"""A kernel without BTF cannot be asked: findings about registrations are inferred, and fdinfo must agree."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.correlator.findings import Confidence, RuleId
from probes.session import LiveSession, SessionOptions
from symbols.profile import load_profile
from symbols.resolve import resolve
from tests.integration.harness import Run, pump_until

pytestmark = pytest.mark.bpf

SHAPES = Path(__file__).resolve().parent.parent / "shapes"


def watched(shape: str, tmp_path: Path) -> Run:
    exe, go = tmp_path / shape, tmp_path / "go"
    source = SHAPES / shape / "prog.c"
    subprocess.run(["gcc", "-g", "-O1", f"-I{SHAPES}", "-w", "-pthread", "-o", exe, source], check=True)
    plan = resolve(str(exe), load_profile(SHAPES / "base.toml"))
    run = Run()
    with subprocess.Popen([exe], stdout=subprocess.PIPE, env={"GO": str(go)}) as program:
        assert program.stdout is not None
        program.stdout.readline()
        try:
            session = LiveSession.open(
                plan, pids=[program.pid], follow=False, options=SessionOptions(ask=False)
            )
            try:
                go.touch()
                pump_until(session, run, lambda: program.pid not in session.targets, "the end of the program")
                run.feed(list(session.drain()))
            finally:
                session.close()
        finally:
            program.kill()
    return run


def test_what_is_found_is_inferred_at_most(tmp_path: Path) -> None:
    run = watched("mod_moved_bug", tmp_path)
    found = {finding.rule: finding for finding in run.findings()}
    stale = found[RuleId.STALE_DELIVERY]
    assert stale.confidence.rank <= Confidence.INFERRED.rank
    assert any("could not be asked" in reason for reason in stale.reasons)
    # where the program has removed it by the time that fdinfo is read, nothing is said of the destroy
    freed = found.get(RuleId.FREED_WHILE_REGISTERED)
    refuted = run.correlator.stats.dropped.get("refuted-by-fdinfo", 0)
    assert refuted if freed is None else freed.confidence.rank <= Confidence.INFERRED.rank


@pytest.mark.parametrize("shape", ["two_fds", "mod_moved", "pool_free_then_close"])
def test_a_correct_program_draws_nothing(shape: str, tmp_path: Path) -> None:
    said = [f for f in watched(shape, tmp_path).findings() if f.confidence is not Confidence.UNCERTAIN]
    assert said == []
