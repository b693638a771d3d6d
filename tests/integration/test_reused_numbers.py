"""A number that another thread takes the moment close(2) frees it: the close is accounted for all the same,
before the thread that closed goes on, and only once.
"""

from __future__ import annotations

import select
import subprocess

import pytest

from probes import abi
from probes.session import LiveSession
from symbols.profile import parse_profile
from symbols.resolve import resolve
from tests.integration.harness import Run, pump_until
from tests.unit.symbols.builds import build_c

pytestmark = pytest.mark.bpf

PROFILE = """
name = "renumbered"
[slot]
type = "conn"
create = { function = "conn_create", returns = "slot" }
destroy = { function = "conn_destroy", slot = "c" }
freelist_link = { offset = 0 }
"""
LIVES = 8000


def finished(process: subprocess.Popen[str]) -> bool:
    return bool(select.select([process.stdout], [], [], 0)[0])


def test_every_close_is_known_before_the_destroy_that_follows() -> None:
    exe = build_c("-g", "-O1", "-pthread", source="renumbered.c")
    plan = resolve(exe, parse_profile(PROFILE))
    run = Run()
    with subprocess.Popen(
        [str(exe), str(LIVES)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            session = LiveSession.open(plan, pids=[process.pid], follow=False)
            try:
                process.stdin.write("g")
                process.stdin.flush()
                pump_until(session, run, lambda: finished(process), "the end of every life")
                for _ in range(5):
                    run.feed(list(session.poll(0.1)))
            finally:
                session.close()
        finally:
            process.kill()
    assert run.lost() == {}
    outlives = run.suspicions(abi.Suspect.OUTLIVES_CLOSE)
    freed = run.suspicions(abi.Suspect.FREED_REGISTERED)
    assert (len(outlives), len(freed)) == (LIVES, LIVES)
