"""The daemon's end of the /proc helper: what it makes of a slow, a hung and a dying one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from probes import helper
from probes.helper import ProcHelper

BEGIN = "import sys, os, time; sys.path[:0] = sys.argv[1].split(os.pathsep); "
SERVE = "from probes.proc_helper import main; main()"


@pytest.fixture
def asked() -> Iterator[ProcHelper]:
    made = ProcHelper()
    yield made
    made.close()


def test_it_answers(asked: ProcHelper) -> None:
    who = asked.identity(os.getpid())
    assert who is not None
    assert who.pid == os.getpid()
    assert asked.identity(2**30) is None
    assert (asked.failures, asked.silent) == (0, False)


def test_a_slow_start_is_not_the_end_of_the_process(
    asked: ProcHelper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seconds are not enough for an interpreter's start on a machine under load."""
    monkeypatch.setattr(helper, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(helper, "_START", f"{BEGIN}time.sleep(0.6); {SERVE}")
    assert asked.identity(os.getpid()) is not None
    assert asked.failures == 0


def test_one_that_dies_is_replaced(asked: ProcHelper) -> None:
    assert asked.comm(os.getpid(), os.getpid())
    assert asked._child is not None
    asked._child.kill()
    assert asked.identity(os.getpid()) is not None
    assert not asked.silent


def test_a_hung_one_is_given_up_and_says_nothing_of_the_process(
    asked: ProcHelper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helper, "START_S", 0.3)
    monkeypatch.setattr(helper, "_START", f"{BEGIN}time.sleep(60)")
    assert asked.identity(os.getpid()) is None
    assert (asked.failures, asked.silent) == (2, True)
    assert asked.identity(os.getpid()) is None
    assert asked.failures == 3, "one that was silent is not asked twice"
    monkeypatch.undo()
    assert asked.identity(os.getpid()) is not None
    assert not asked.silent


def test_one_that_nobody_waits_for_ends_quietly(asked: ProcHelper, capfd: pytest.CaptureFixture[str]) -> None:
    assert asked.identity(os.getpid()) is not None
    child = asked._child
    assert child is not None
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.close()
    child.stdin.write(b'{"op": "identity", "args": [1]}\n')
    child.stdin.flush()
    assert child.wait(10) == 0
    assert capfd.readouterr().err == ""
