"""The daemon's end of the /proc helper: what it makes of a slow, a hung and a dying one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from probes import helper
from probes.children import ROOT
from probes.errors import HelperEnded, TargetNotReadable
from probes.helper import ProcHelper

SERVE = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from probes.proc_helper import main; main()"


@contextmanager
def asking(code: str = "") -> Iterator[ProcHelper]:
    """code: what the helper runs instead."""
    made = ProcHelper([sys.executable, "-c", code] if code else ())
    try:
        yield made
    finally:
        made.close()


def test_it_answers() -> None:
    with asking() as asked:
        who = asked.identity(os.getpid())
        assert who is not None
        assert who.pid == os.getpid()
        assert asked.identity(2**30) is None
        assert (asked.failures, asked.silent) == (0, False)


def test_a_slow_start_is_not_the_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is enough for an answer is not enough for an interpreter's start on a machine under load."""
    monkeypatch.setattr(helper, "TIMEOUT_S", 0.5)
    with asking(f"import time; time.sleep(0.8); {SERVE}") as asked:
        assert asked.identity(os.getpid()) is not None
        assert asked.failures == 0


def test_one_that_dies_is_replaced() -> None:
    with asking() as asked:
        assert asked.comm(os.getpid(), os.getpid())
        assert asked._child is not None
        asked._child.kill()
        assert asked.identity(os.getpid()) is not None
        assert not asked.silent


def test_one_that_dies_at_once_is_no_busy_machine() -> None:
    with asking("raise SystemExit('no module named probes')") as asked:
        assert asked.identity(os.getpid()) is None
        assert asked.silent
        refusal = asked.refusal(4711)
        assert isinstance(refusal, HelperEnded)
        assert "ended with exit status 1\nno module named probes" in refusal.detail
        assert "load" not in " ".join(refusal.causes)


def test_one_that_is_killed_says_by_which_signal() -> None:
    with asking("import os; os.kill(os.getpid(), 11)") as asked:
        assert asked.identity(os.getpid()) is None
        assert "was killed by signal 11 (SIGSEGV)" in asked.refusal(4711).detail


def test_a_hung_one_is_given_up_and_says_nothing_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper, "START_S", 0.3)
    with asking("import time; time.sleep(60)") as asked:
        assert asked.identity(os.getpid()) is None
        assert (asked.failures, asked.silent) == (2, True)
        assert isinstance(asked.refusal(4711), TargetNotReadable)
        assert asked.identity(os.getpid()) is None
        assert asked.failures == 3, "one that was silent is not asked twice"
        monkeypatch.undo()
        asked._command = ProcHelper()._command
        assert asked.identity(os.getpid()) is not None
        assert not asked.silent


def test_one_that_nobody_waits_for_ends_quietly() -> None:
    with asking() as asked:
        assert asked.identity(os.getpid()) is not None
        child = asked._child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.close()
        child.stdin.write(b'{"op": "identity", "args": [1]}\n')
        child.stdin.flush()
        assert child.wait(10) == 0
        assert child.last_words() == ""


def test_it_comes_up_while_something_else_is_done() -> None:
    with asking() as asked:
        asked.begin()
        first = asked._child
        assert first is not None
        asked.begin()
        assert asked.identity(os.getpid()) is not None
        assert asked._child is first


def test_one_that_cannot_be_started_is_reported_to_who_asks() -> None:
    made = ProcHelper(["/nonexistent"])
    made.begin()
    assert made.identity(os.getpid()) is None
    assert "could not be started" in made.ended
