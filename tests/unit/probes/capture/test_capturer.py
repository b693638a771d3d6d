"""The daemon's end of the capture helper: whom it waits for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from probes import children
from probes.capture.capturer import Capturer
from probes.capture.facts import Refusal, Refused, Seized

SEIZED = Seized(pid=1, threads=1, took_ns=1)


def answering(capturer: Capturer, tracers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [Refused(pid=1, why=Refusal.TRACED, detail="", tracer=one) for one in tracers]
    monkeypatch.setattr(Capturer, "helper_pid", 1)
    monkeypatch.setattr(capturer, "start", lambda: None)
    monkeypatch.setattr(capturer, "_ask", lambda *_: answers.pop(0) if answers else SEIZED)


def test_a_tracer_that_has_gone_stands_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracing process of ours may be reaped after it was named, and before it can be looked at."""
    with subprocess.Popen(["true"]) as ended:
        ended.wait(10)
    capturer = Capturer(tmp_path)
    answering(capturer, [ended.pid], monkeypatch)
    assert capturer.seize(1) == SEIZED


def test_a_debugger_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capturer = Capturer(tmp_path)
    answering(capturer, [os.getpid()] * 2, monkeypatch)
    began = time.monotonic()
    answer = capturer.seize(1)
    assert isinstance(answer, Refused)
    assert answer.tracer == os.getpid()
    assert time.monotonic() - began < 0.5


def test_a_helper_that_dies_at_once_is_reported_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "raise SystemExit('half an upgrade')"
    monkeypatch.setattr(children, "command", lambda *_, **__: [sys.executable, "-c", code])
    with Capturer(tmp_path) as capturer:
        answer = capturer.seize(os.getpid())
    assert isinstance(answer, Refused)
    assert answer.why is Refusal.NO_HELPER
    assert answer.detail == "the capture helper ended with exit status 1 half an upgrade"
