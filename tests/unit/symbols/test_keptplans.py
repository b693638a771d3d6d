"""A plan is at hand for the very file it was made of, and for no other."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from symbols.keptplans import KeptPlans

LATER = 3600 * 10**9
PLAN = {"image": "/old", "sites": [{"address": 1}]}


@pytest.fixture
def exe(tmp_path: Path) -> Path:
    path = tmp_path / "exe"
    path.write_bytes(b"\x7fELF one")
    return path


@pytest.fixture
def kept(tmp_path: Path) -> KeptPlans:
    """An hour later: what was written now is old."""
    return KeptPlans(str(tmp_path / "cache"), lambda: time.time_ns() + LATER)


def test_a_plan_comes_back_under_the_path_that_was_asked_for(kept: KeptPlans, exe: Path) -> None:
    key = kept.key(str(exe), None)
    assert kept.get(key, str(exe)) is None
    kept.put(key, PLAN)
    assert kept.get(kept.key(str(exe), None), str(exe)) == PLAN | {"image": str(exe)}


def test_a_file_that_was_changed_just_now_is_not_kept(tmp_path: Path, exe: Path) -> None:
    """It may change again within one tick of the clock that its times are of."""
    kept = KeptPlans(str(tmp_path / "cache"))
    assert kept.key(str(exe), None) == ""
    kept.put("", PLAN)
    assert kept.get("", str(exe)) is None


def test_rewritten_with_the_old_time_and_size_it_is_another_file(kept: KeptPlans, exe: Path) -> None:
    """Times of modification are the user's to set (utimensat(2)), that of the inode's change is not."""
    before, status = kept.key(str(exe), None), exe.stat()
    while exe.stat().st_ctime_ns == status.st_ctime_ns:
        exe.write_bytes(b"\x7fELF two")
    os.utime(exe, ns=(status.st_atime_ns, status.st_mtime_ns))
    now = exe.stat()
    assert (now.st_ino, now.st_size, now.st_mtime_ns) == (status.st_ino, status.st_size, status.st_mtime_ns)
    assert kept.key(str(exe), None) not in ("", before)


def test_times_of_packed_images_say_nothing(
    kept: KeptPlans, exe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mksquashfs gives every build the same ones, in whole seconds."""
    status = exe.stat()
    whole = SimpleNamespace(
        st_dev=1, st_ino=2, st_size=3, st_mtime_ns=10**18, st_ctime_ns=10**18, st_mode=status.st_mode
    )
    assert kept.key(str(exe), None) or not status.st_ctime_ns % 10**9
    monkeypatch.setattr(os, "stat", lambda _path: whole)
    assert kept.key(str(exe), None) == ""


def test_profiles_tell_plans_apart(kept: KeptPlans, exe: Path) -> None:
    given = [None, ("p.toml", b"a"), ("p.toml", b"b"), ("q.toml", b"a")]
    keys = {kept.key(str(exe), profile) for profile in given}
    assert len(keys) == len(given)
    assert "" not in keys


@pytest.mark.parametrize("path", ["/nowhere/exe", "nul\0", ""])
def test_what_is_no_file_has_no_plan(kept: KeptPlans, path: str) -> None:
    assert kept.key(path, None) == ""


def test_an_entry_that_others_may_write_is_not_believed(kept: KeptPlans, exe: Path, tmp_path: Path) -> None:
    key = kept.key(str(exe), None)
    kept.put(key, PLAN)
    (entry,) = (tmp_path / "cache").glob("*.kept")
    entry.chmod(0o666)
    assert kept.get(key, str(exe)) is None


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"[" * 100_000])
def test_a_damaged_entry_is_none(kept: KeptPlans, exe: Path, text: bytes) -> None:
    key = kept.key(str(exe), None)
    kept._folder.put(key, text)
    assert kept.get(key, str(exe)) is None
