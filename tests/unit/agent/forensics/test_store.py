"""The folder of bundles: limits, crash loops, what a killed process left."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
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


HOSTILE_COUNTERS: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "folder": Path.mkdir,
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "huge": lambda path: path.open("wb").truncate(1 << 40),
    "nested": lambda path: path.write_text("[" * 200_000),
    "infinite": lambda path: path.write_text('{"k": [1e999, 1e999, 1e999, 1e999]}'),
    "beyond floats": lambda path: path.write_text('{"k": [1' + "0" * 400 + ", 1, 1, 1]}"),
    "not a number": lambda path: path.write_text('{"k": [NaN, NaN, NaN, 1]}'),
    "nothing": lambda path: path.write_text('{"k": null, "l": {}, "m": [[], {}, null, "x"]}'),
}


@pytest.mark.parametrize("what", HOSTILE_COUNTERS)
@pytest.mark.timeout(30)
def test_hostile_counters_begin_anew(tmp_path: Path, what: str) -> None:
    store(tmp_path).close()
    HOSTILE_COUNTERS[what](tmp_path / "bundles" / "counters.json")
    held = store(tmp_path)
    assert [held.again("k"), held.again("k")] == [0, 2]


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files to somebody else needs root")
def test_counters_of_somebody_else_do_not_count(tmp_path: Path) -> None:
    held = store(tmp_path)
    held.again("k")
    held.close()
    os.chown(tmp_path / "bundles" / "counters.json", 12345, 12345)
    assert store(tmp_path).again("k") == 0


HOSTILE_LOCKS: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "folder": Path.mkdir,
    "link": lambda path: path.symlink_to("elsewhere"),
    "somebody else's": lambda path: (path.touch(), os.chown(path, 12345, 12345)),
    "for all": lambda path: (path.touch(), path.chmod(0o666)),
}


@pytest.mark.parametrize("what", HOSTILE_LOCKS)
@pytest.mark.timeout(30)
def test_a_hostile_lock_is_a_message(tmp_path: Path, what: str) -> None:
    if what == "somebody else's" and os.geteuid():
        pytest.skip("giving files to somebody else needs root")
    (tmp_path / "bundles").mkdir(mode=0o700)
    HOSTILE_LOCKS[what](tmp_path / "bundles" / ".lock")
    with pytest.raises(OutputFailed, match="cannot keep crash bundles") as caught:
        store(tmp_path)
    assert "--bundles DIR" in caught.value.remedy
    assert not (tmp_path / "bundles" / "elsewhere").exists()


@pytest.mark.parametrize("bits", [0o755, 0o711], ids="{:03o}".format)
def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path, bits: int) -> None:
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles").chmod(bits)
    store(tmp_path)
    assert (tmp_path / "bundles").stat().st_mode & 0o7777 == bits


def test_a_folder_for_all_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles").chmod(0o1777)
    with pytest.raises(OutputFailed, match="everybody may write it") as caught:
        store(tmp_path)
    assert "--bundles DIR" in caught.value.remedy
    assert (tmp_path / "bundles").stat().st_mode & 0o7777 == 0o1777


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files to somebody else needs root")
def test_a_planted_case_is_left_alone_and_named(tmp_path: Path) -> None:
    """It was put there while the folder was open to others."""
    held = store(tmp_path)
    planted = held.spool("crash-planted")
    planted.mkdir()
    (planted / "case.json").write_text("{}")
    os.chown(planted, 12345, 12345)
    linked = held.spool("crash-linked")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "case.json").write_text("{}")
    linked.symlink_to(tmp_path / "secret")
    assert held.leftovers() == []
    assert held.strange == [linked, planted]
    assert (tmp_path / "secret" / "case.json").exists()


def test_a_rotation_takes_nothing_that_is_no_file(tmp_path: Path) -> None:
    held = store(tmp_path, most=1)
    held.path("crash-a").symlink_to("/etc/hostname")
    held.path("crash-b").mkdir()
    newest = written(held, "crash-c")
    assert held.rotate(newest) == []
    assert held.bundles() == [newest]


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
