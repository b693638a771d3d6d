"""What is said of a mini core that is not to be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.forensics.capture import CaptureControl, CaptureMode
from probes.capture.facts import CaptureOptions, Refusal, Refused
from tests.unit.agent.scenario import ATTACHED, PID, finding


class Nobody:
    """Stands for the capture helper: every process has gone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seized: frozenset[int] = frozenset()

    def start(self) -> None: ...
    def stop(self) -> None: ...

    def poll(self) -> list[Any]:
        return []

    def seize(self, pid: int, _options: CaptureOptions, *, start_time: int) -> Refused:
        assert start_time == ATTACHED.start_time
        return Refused(pid=pid, why=Refusal.GONE, detail="it is exiting")


@pytest.mark.parametrize("mode", [CaptureMode.ON_SUSPICION, CaptureMode.ALWAYS])
def test_a_process_that_is_gone_names_the_option_that_is_early_enough(
    mode: CaptureMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.forensics.capture.Capturer", Nobody)
    said: list[str] = []
    control = CaptureControl(tmp_path, mode, CaptureOptions(), said.append)
    control.feed(ATTACHED)
    control.judged(finding())
    (core,) = control.take()
    control.close()
    assert core.note.startswith(f"process {PID} cannot be seized for a mini core (gone: it is exiting)")
    early = mode is CaptureMode.ALWAYS
    for text in (core.note, *said):
        assert ("--capture always" in text) == (not early)
    assert len(said) == 1
