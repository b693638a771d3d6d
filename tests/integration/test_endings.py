"""How a target ended is what wait(2) says, whatever came before."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from probes import errors, events, loader, uprobe_events
from probes.session import LiveSession
from symbols.profile import parse_profile
from symbols.resolve import resolve
from tests.integration.harness import Run, pump_until
from tests.requirements import require_program

pytestmark = pytest.mark.bpf

SOURCE = Path(__file__).parent / "programs" / "endings.c"
PROFILE = """
name = "endings"
[slot]
type = "conn"
create = { function = "conn_create", returns = "slot" }
destroy = { function = "conn_destroy", slot = "c" }
freelist_link = { offset = 0 }
"""
ENDINGS = {
    "zero": "exited",
    "three": "exited with status 3",
    "handled": "exited",
    "fault": "killed by signal 11",
    "abort": "killed by signal 6",
    "killed": "killed by signal 9",
    "leaderless": "exited with status 7",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    exe = tmp_path_factory.mktemp("endings") / "endings"
    command = [require_program("gcc"), "-g", "-O1", "-pthread", "-o", str(exe), str(SOURCE)]
    subprocess.run(command, check=True)
    return exe


@contextmanager
def following(program: Path) -> Iterator[tuple[LiveSession, Run]]:
    session = LiveSession.open(resolve(program, parse_profile(PROFILE)), pids=[], follow=True)
    try:
        yield session, Run()
    finally:
        session.close()


def gone(run: Run) -> dict[int, str]:
    return {event.tgid: event.reason for event in run.events if isinstance(event, events.TargetGone)}


def test_a_target_ends_as_its_parent_is_told(program: Path) -> None:
    with following(program) as (session, run):
        began = {how: subprocess.Popen([str(program), how], stdin=subprocess.PIPE) for how in ENDINGS}
        try:
            pump_until(session, run, lambda: len(session.targets) == len(ENDINGS), "every process")
            for process in began.values():
                assert process.stdin is not None
                process.stdin.close()
            pump_until(session, run, lambda: len(gone(run)) == len(ENDINGS), "the end of every process")
        finally:
            for process in began.values():
                process.kill()
                process.wait()
    assert {how: gone(run)[process.pid] for how, process in began.items()} == ENDINGS
    crashed = {event.tgid for event in run.events if isinstance(event, events.CrashSeen)}
    assert crashed == {began[how].pid for how in ("handled", "fault", "abort")}


EVENTS = Path("/sys/kernel/tracing/uprobe_events")


def test_a_target_that_is_gone_before_it_is_attached_leaves_nothing_in_tracefs(program: Path) -> None:
    with subprocess.Popen([str(program)], stdin=subprocess.DEVNULL) as gone_already:
        gone_already.wait()
    plan = resolve(program, parse_profile(PROFILE))
    options = loader.LoadOptions(max_slots=1024)
    with pytest.raises(errors.ProbeError, match="exited"):
        loader.load(plan, image=str(program), pids=(gone_already.pid,), options=options)
    assert f"_{gone_already.pid}_bcc_" not in EVENTS.read_text()


def test_what_an_earlier_version_left_goes_at_the_next_start(program: Path) -> None:
    with subprocess.Popen([str(program)], stdin=subprocess.DEVNULL) as creator:
        creator.wait()
    plan = resolve(program, parse_profile(PROFILE))
    offset = plan.sites[0].file_offset
    ours, others = (f"uprobes/{name}_{offset:x}_1_bcc_{creator.pid}" for name in ("af", "somebody"))
    file = os.open(EVENTS, os.O_WRONLY | os.O_APPEND)
    try:
        for name in (ours, others):
            os.write(file, f"p:{name} {program}:{offset:#x}\n".encode())
        assert ours in EVENTS.read_text()
        loader.load(plan, image=str(program), pids=(os.getpid(),), options=loader.LoadOptions()).close()
        assert ours not in EVENTS.read_text()
        assert others in EVENTS.read_text()
    finally:
        os.close(file)
        uprobe_events.remove((others,))
