"""What bcc left in tracefs is removed where its creator is gone and the name is ours, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from probes import preflight, uprobe_events

LINES = (
    "p:uprobes/af_76ad3_28602_bcc_28613 /proc/28603/fd/7:0x0000000000076ad3\n"
    "p:uprobes/af_11b7_-1_bcc_4711 /proc/4711/fd/6:0x00000000000011b7\n"
    "p:uprobes/af_14ae_9_bcc_29000 /bin/x:0x00000000000014ae\n"
    "p:uprobes/p__bin_bash_0x9_bcc_28613 /bin/bash:0x0000000000000009\n"
    "p:perf/af_14ae_9_bcc_28613 /bin/x:0x00000000000014ae\n"
    "r:uprobes/af_14ae_9_bcc_28613 /bin/x:0x00000000000014ae\n"
)


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, ...]:
    (tmp_path / "tracing").mkdir()
    (tmp_path / "tracing" / "uprobe_events").write_text(LINES)
    return (tmp_path / "none", tmp_path / "tracing")


def test_only_ours_and_only_of_processes_that_are_gone(roots: tuple[Path, ...], tmp_path: Path) -> None:
    (tmp_path / "proc" / "29000").mkdir(parents=True)
    found = uprobe_events.left(tmp_path / "proc", roots)
    assert found == ("uprobes/af_76ad3_28602_bcc_28613", "uprobes/af_11b7_-1_bcc_4711")
    assert uprobe_events.remove(found, roots) == 2
    written = (roots[1] / "uprobe_events").read_text()
    assert written == LINES + "-:uprobes/af_76ad3_28602_bcc_28613\n-:uprobes/af_11b7_-1_bcc_4711\n"


def test_no_tracefs_is_nothing_left(tmp_path: Path) -> None:
    assert uprobe_events.left(roots=(tmp_path,)) == ()
    assert uprobe_events.remove(("uprobes/af_1_2_bcc_3",), roots=(tmp_path,)) == 0


def test_doctor_says_what_it_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [("uprobes/af_1_2_bcc_3",), ()]
    monkeypatch.setattr(uprobe_events, "left", lambda: names.pop(0))
    monkeypatch.setattr(uprobe_events, "remove", len)
    check = preflight._left_behind()
    assert check.ok
    assert check.detail == "1 in uprobe_events by earlier runs, removed: uprobes/af_1_2_bcc_3"


def test_doctor_says_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uprobe_events, "left", lambda: ("uprobes/af_1_2_bcc_3",))
    monkeypatch.setattr(uprobe_events, "remove", lambda _names: 0)
    check = preflight._left_behind()
    assert not check.ok
    assert not check.required
    assert "echo '-:uprobes/af_1_2_bcc_3' >> /sys/kernel/tracing/uprobe_events" in check.remedy
