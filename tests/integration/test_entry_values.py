"""A destroy whose argument is only a DW_OP_entry_value: read live through a probe at the function's entry.

The program says itself which slots it destroyed; its calls nest and run in two threads, and four of them are
under way when the watch begins.
"""

from __future__ import annotations

import subprocess

import pytest

from probes import abi, events
from probes.session import LiveSession, SessionOptions
from symbols.plan import ArgSource
from symbols.profile import parse_profile
from symbols.resolve import resolve
from tests.integration.harness import Run, pump_until
from tests.unit.symbols.builds import build_c

pytestmark = pytest.mark.bpf

PROFILE = """
name = "entered"
[slot]
type = "conn"
destroy = { function = "conn_destroy", slot = "c" }
freelist_link = { offset = 0 }
"""
UNDER_WAY = 4  # calls that the program is in when it is ready
TOTAL = 64


def destroyed(run: Run) -> list[abi.Record]:
    records = (
        abi.Record(*record)
        for event in run.events
        if isinstance(event, events.RecordsRead)
        for record in event.records
    )
    return [record for record in records if record.kind == abi.Kind.DESTROYED]


def test_values_are_those_of_the_call_that_is_under_way() -> None:
    exe = build_c("-g", "-O2", "-pthread", source="entered.c")
    plan = resolve(exe, parse_profile(PROFILE))
    assert [site.source for site in plan.sites] == [ArgSource(entry=ArgSource(register="rdi"))]
    process = subprocess.Popen([str(exe)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    run = Run()
    try:
        assert process.stdout.readline() == "ready\n"
        options = SessionOptions(stream=True)
        session = LiveSession.open(plan, pids=[process.pid], follow=False, options=options)
        try:
            process.stdin.write("g")
            process.stdin.flush()
            pump_until(session, run, lambda: len(destroyed(run)) >= TOTAL - UNDER_WAY, "every destroy")
            process.stdin.write("e")
            process.stdin.flush()
            pump_until(session, run, lambda: bool(run.lost()), "the calls under way")
        finally:
            session.close()
        said = [int(line.split()[1], 16) for line in process.stdout.read().splitlines()]
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert len(said) == TOTAL == len(set(said))
    first = min(said)
    threads = {record.tid for record in destroyed(run)}
    assert len(threads) == 2
    assert run.lost() == {"calls-entered-before-watching": UNDER_WAY}
    for tid in threads:
        seen = [record.addr for record in destroyed(run) if record.tid == tid]
        mine = [address for address in said if (address - first < 32 * 64) == (tid == process.pid)]
        assert seen == (mine[UNDER_WAY:] if tid == process.pid else mine)
