"""The folder of bundles: limits, crash loops, what a killed process left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agent.errors import OutputFailed
from agent.forensics.store import BundleStore, Limits


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def store(folder: Path, clock: Clock | None = None, **limits: float) -> BundleStore:
    return BundleStore(folder / "bundles", Limits(**limits), clock or Clock())  # type: ignore[arg-type]


def written(held: BundleStore, name: str, *, size: int = 10, age: float = 0.0) -> Path:
    path = held.path(name)
    path.write_bytes(bytes(size))
    os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
    return path


def test_the_folder_is_private(tmp_path: Path) -> None:
    assert store(tmp_path).folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "bundles").write_text("a file")
    with pytest.raises(OutputFailed, match="cannot keep crash bundles") as caught:
        store(tmp_path)
    assert "--no-bundles" in caught.value.remedy


def test_names_are_safe_and_unique(tmp_path: Path) -> None:
    held = store(tmp_path)
    name = held.name("../../etc \x1b[31m", 77)
    assert name == "crash-20231114T221320Z-______etc___31m-77"
    held.path(name).touch()
    assert held.name("../../etc \x1b[31m", 77) == f"{name}-2"


def test_the_oldest_goes_first_and_never_the_newest(tmp_path: Path) -> None:
    held = store(tmp_path, most=2)
    written(held, "crash-a", age=30)
    kept = written(held, "crash-b", age=20)
    newest = written(held, "crash-c", age=40)
    assert held.rotate(newest) == ["crash-a.tar.zst"]
    assert held.bundles() == [newest, kept]


def test_size_and_age_are_limits_too(tmp_path: Path) -> None:
    held = store(tmp_path, size=25)
    written(held, "crash-a", age=30)
    written(held, "crash-b", age=20)
    newest = written(held, "crash-c")
    assert held.rotate(newest) == ["crash-a.tar.zst"]
    old = store(tmp_path, age=15.0)
    assert old.rotate(newest) == ["crash-b.tar.zst"]


def test_a_crash_loop_is_bundled_once_in_a_period(tmp_path: Path) -> None:
    clock = Clock()
    held = store(tmp_path, clock, period=60.0)
    assert [held.again("k") for _ in range(3)] == [0, 2, 3]
    assert held.again("other") == 0
    restarted = store(tmp_path, clock, period=60.0)
    assert restarted.again("k") == 4
    clock.now += 61
    assert restarted.again("k") == 0
    restarted.forget("k")
    assert restarted.again("k") == 0


def test_damaged_counters_begin_anew(tmp_path: Path) -> None:
    store(tmp_path).again("k")
    counters = tmp_path / "bundles" / "counters.json"
    assert json.loads(counters.read_text())
    for text in ("", "[]", '{"k": 3}', '{"k": [1, 2]}', "\0"):
        counters.write_text(text)
        assert store(tmp_path).again("k") == 0


def test_counters_are_bounded(tmp_path: Path) -> None:
    held = store(tmp_path)
    for number in range(1030):
        held.again(f"k{number}")
    assert len(json.loads((held.folder / "counters.json").read_text())) == 1024


def test_what_another_process_is_at_is_left_alone(tmp_path: Path) -> None:
    first = store(tmp_path)
    first.spool("crash-c").mkdir()
    (first.spool("crash-c") / "case.json").write_text("{}")
    second = store(tmp_path)
    assert (first.sole, second.sole) == (True, False)
    assert second.leftovers() == []
    assert first.leftovers() == [first.spool("crash-c")]


def test_half_written_things_are_removed_and_whole_cases_found(tmp_path: Path) -> None:
    held = store(tmp_path)
    half = held.folder / ".crash-a.tar.zst.tmp"
    half.touch()
    held.spool("crash-b").mkdir()
    held.spool("crash-c").mkdir()
    (held.spool("crash-c") / "case.json").write_text("{}")
    assert held.leftovers() == [held.spool("crash-c")]
    assert not half.exists()
    assert not held.spool("crash-b").exists()
