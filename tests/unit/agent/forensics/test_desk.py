"""From the crash to the bundle: through the real child process, on a real disk."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.forensics import bundler, layout, spool
from agent.forensics.bundle import open_bundle
from agent.forensics.bundler import events_of
from agent.forensics.casework import Explained
from agent.forensics.desk import BundleDone, CrashDesk
from agent.forensics.store import BundleStore
from probes import children, procfs
from probes.events import CrashSeen, TargetGone, ThreadSeen, Tick
from symbols.safefiles import Folder, UnsafePath
from tests.disks import filled, small_disk
from tests.unit.agent.correlator.playbook import TGID
from tests.unit.agent.forensics.cases import case, crash, history


class Desk:
    """A desk with what it said."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.notices: list[str] = []
        self.done: list[BundleDone] = []
        self.store = BundleStore(folder / "bundles")
        self.desk = CrashDesk(
            self.store,
            configuration={"pids": [TGID]},
            on_notice=self.notices.append,
            on_bundle=self.done.append,
            **options,  # type: ignore[arg-type]
        )

    def crash(self) -> None:
        for event in [*history(), crash(), TargetGone(ts=1100, tgid=TGID, reason="killed by signal 11")]:
            self.desk.feed(event)
        self.desk.finding(TGID, '{"rule":"stale-delivery"}')


def test_a_crash_becomes_a_bundle(tmp_path: Path) -> None:
    held = Desk(tmp_path)
    held.crash()
    held.desk.finish(60)
    assert [path.name for path in held.store.bundles()] == [Path(held.done[0].path).name]
    assert not list(held.store.folder.glob(".crash*"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    opened = open_bundle(held.done[0].path, scratch)
    assert opened.damaged == ()
    assert {
        "manifest.json",
        "report.txt",
        "findings.jsonl",
        "recording.afrec",
        "threads.json",
        "maps",
    } <= set(opened.files)
    assert opened.text("fdinfo/5").startswith("pos:")
    assert opened.manifest["signal"] == 11
    assert opened.manifest["identity"] == "build-id:cafe"
    assert opened.manifest["configuration"]["pids"] == [TGID]
    assert json.loads(opened.text("findings.jsonl")) == {"rule": "stale-delivery"}
    events, broken = events_of(opened.files["recording.afrec"])
    assert not broken
    assert [event for event in events if isinstance(event, CrashSeen)] == [crash()]


def test_the_loop_is_not_held_up(tmp_path: Path) -> None:
    held = Desk(tmp_path)
    held.crash()
    began = time.monotonic()
    held.desk.pump()
    held.desk.pump()
    assert time.monotonic() - began < 2
    assert held.done == []
    held.desk.finish(60)
    assert len(held.done) == 1


@pytest.mark.parametrize("found", [True, False])
def test_a_signal_that_was_handled_is_a_crash_only_with_a_finding(tmp_path: Path, found: bool) -> None:
    held = Desk(tmp_path)
    for event in [*history(), crash(), Tick(ts=1000), ThreadSeen(tgid=TGID, tid=1, comm="x")]:
        held.desk.feed(event)
    if found:
        held.desk.finding(TGID, '{"rule":"stale-delivery"}')
    held.desk.feed(Tick(ts=20_000_000_000))
    held.desk.pump()
    held.desk.finish(60)
    assert len(held.store.bundles()) == found
    assert any("handled signal 11 and lives on" in notice for notice in held.notices) is not found


def test_a_crash_loop_makes_one_bundle_and_a_counter(tmp_path: Path) -> None:
    held = Desk(tmp_path)
    for _ in range(5):
        held.crash()
        held.desk.pump()
    held.desk.finish(60)
    assert len(held.store.bundles()) == 1
    assert [notice.partition(": ")[2].split(" ")[0] for notice in held.notices] == ["2", "4"]
    (bundle,) = held.store.bundles()
    assert [notice.endswith(f" s: {bundle}") for notice in held.notices] == [True, True]
    held.notices.clear()
    again = Desk(tmp_path)  # the next run knows it, too
    bundle.unlink()
    for _ in range(3):
        again.crash()
        again.desk.pump()
    again.desk.finish(60)
    assert [notice.endswith(f"{bundle}, which was removed since") for notice in again.notices] == [True]


def test_another_crash_during_a_bundle_is_not_lost(tmp_path: Path) -> None:
    held = Desk(tmp_path)
    held.crash()
    held.desk.pump()
    other = [*history(), crash(fault_addr=0x300), TargetGone(ts=1, tgid=TGID, reason="killed")]
    for event in other:
        held.desk.feed(event)
    held.desk.pump()
    held.desk.finish(60)
    assert len(held.store.bundles()) == 2


def test_what_a_killed_run_left_is_finished_by_the_next(tmp_path: Path) -> None:
    store = BundleStore(tmp_path / "bundles")
    spool.write(store.spool("crash-x"), case(), {})
    store.close()
    held = Desk(tmp_path)
    assert "a crash of an earlier run" in held.notices[0]
    held.desk.finish(60)
    assert [path.name for path in store.bundles()] == ["crash-x.tar.zst"]


def test_a_crash_is_on_the_disk_before_its_process_has_ended(tmp_path: Path) -> None:
    held = Desk(tmp_path)
    for event in [*history(), crash()]:
        held.desk.feed(event)
    held.desk.pump(waiting=frozenset({TGID}))
    (folder,) = held.store.folder.glob(".crash-*.case")
    held.store.close()  # killed here
    another = Desk(tmp_path)
    assert "a crash of an earlier run" in another.notices[0]
    another.desk.finish(60)
    opened = open_bundle(another.done[0].path, new(tmp_path / "scratch"))
    assert opened.damaged == ()
    assert any("killed right after the crash" in note for note in opened.manifest["notes"])
    events, broken = events_of(opened.files["recording.afrec"])
    assert not broken
    assert [event for event in events if isinstance(event, CrashSeen)] == [crash()]
    assert not folder.exists()


def test_what_comes_later_replaces_what_was_written_first(tmp_path: Path) -> None:
    held = Desk(tmp_path)
    for event in [*history(), crash()]:
        held.desk.feed(event)
    held.desk.pump(waiting=frozenset({TGID}))
    held.desk.feed(TargetGone(ts=1100, tgid=TGID, reason="killed by signal 11"))
    held.desk.finding(TGID, '{"rule":"stale-delivery"}')
    held.desk.pump(waiting=frozenset({TGID}))
    assert not held.store.bundles()
    held.desk.finish(60)
    opened = open_bundle(held.done[0].path, new(tmp_path / "scratch"))
    assert json.loads(opened.text("findings.jsonl")) == {"rule": "stale-delivery"}
    assert not any("killed" in note for note in opened.manifest["notes"])
    assert not list(held.store.folder.glob(".crash*"))


def test_a_mini_core_is_taken_over_when_it_comes(tmp_path: Path) -> None:
    folder, core, made = tmp_path / ".crash-x.case", tmp_path / "core", case()
    made.whole = False
    spool.write(folder, made, {})
    core.write_bytes(b"core")
    made.core = str(core)
    spool.write(folder, made, {})
    made.whole = True
    spool.write(folder, made, {})  # the keeper still names the old place
    assert (folder / layout.CORE).read_bytes() == b"core"
    assert not core.exists()
    assert json.loads((folder / layout.CASE).read_text())["notes"] == made.notes


@pytest.mark.parametrize("name", [layout.RECORDING, layout.FINDINGS, layout.CASE])
def test_a_disk_that_fails_keeps_the_first_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    held = Desk(tmp_path)
    for event in [*history(), crash()]:
        held.desk.feed(event)
    held.desk.pump(waiting=frozenset({TGID}))
    rename = Folder.rename

    def full(folder: Folder, what: str, to: str) -> None:
        if to == name:
            raise OSError(28, os.strerror(28))
        rename(folder, what, to)

    held.desk.feed(TargetGone(ts=1100, tgid=TGID, reason="killed by signal 11"))
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "rename", full)
        held.desk.pump()
    held.desk.finish(60)
    assert len(held.store.bundles()) == 1
    said = "kept without recording.afrec" if name == layout.RECORDING else "only what was written right after"
    assert any(said in notice for notice in held.notices), held.notices


@pytest.mark.parametrize("found", [True, False])
def test_a_survivor_of_a_killed_run_is_no_crash(tmp_path: Path, found: bool) -> None:
    """The process handled its signal after all: it is this one, and runs."""
    store = BundleStore(tmp_path / "bundles")
    made = case()
    me = procfs.identity(os.getpid())
    assert me is not None
    made.whole, made.findings = False, ["{}"] if found else []
    made.crash = replace(made.crash, tgid=me.pid)
    made.target = replace(made.target, start_time=me.start_time)
    spool.write(store.spool("crash-x"), made, {})
    store.close()
    held = Desk(tmp_path)
    held.desk.finish(60)
    assert len(held.store.bundles()) == found


def test_one_explanation_has_one_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At another place, but for the same cause."""
    held = Desk(tmp_path)
    told = Explained(text="because", value={"cause": "x"}, key="build|x|f|a.b|c")
    script = (
        "import sys; from agent.forensics import bundler; from agent.forensics.casework import Explained; "
    )
    script += f"bundler.explained = lambda *a, **k: {told!r}; sys.exit(bundler.main())"
    monkeypatch.setattr(children, "command", lambda _module, *given: [sys.executable, "-c", script, *given])
    for at in (0x2F8, 0x300, 0x308):
        for event in [*history(), crash(fault_addr=at), TargetGone(ts=1100, tgid=TGID, reason="killed")]:
            held.desk.feed(event)
        held.desk.pump()
    held.desk.finish(60)
    assert len(held.store.bundles()) == len(held.done) == 1
    assert ["crashed like one before" in notice for notice in held.notices] == [True]
    assert held.notices[0].endswith(str(held.store.bundles()[0]))


def new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_case_that_kills_its_explainer_is_bundled_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Desk(tmp_path)
    held.crash()
    real = children.command

    def command(module: str, *given: str) -> list[str]:
        if "--plain" not in given:
            return [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
        return real(module, *given)

    monkeypatch.setattr(children, "command", command)
    held.desk.finish(60)
    assert len(held.store.bundles()) == 1
    assert any("could not be explained" in note for note in held.done[0].notes)


def test_one_that_dies_twice_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Desk(tmp_path)
    held.crash()
    code = "import sys, os; print('half an upgrade', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)"
    monkeypatch.setattr(children, "command", lambda *_: [sys.executable, "-c", code])
    held.desk.finish(60)
    notes = held.done[0].notes
    assert "was killed by signal 9 (SIGKILL)" in notes[0]
    assert notes[1:] == ("half an upgrade",)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as made:
        yield made


def test_a_full_disk_loses_the_newest_detail_and_says_so(disk: Path) -> None:
    store = BundleStore(disk / "bundles")
    older = store.path("crash-older")
    older.write_bytes(b"older")
    made = case()
    core = store.folder / "core"
    core.write_bytes(os.urandom(300_000))  # what no compressor makes smaller
    made.core = str(core)
    spool.write(store.spool("crash-x"), made, {})
    filled(disk, 150_000)
    answer = bundler.make(store.spool("crash-x"), store.path("crash-x"), plain=True)
    assert [note for note in answer["notes"] if "disk is full" in note] == [
        "left out, the disk is full: core"
    ]
    assert older.read_bytes() == b"older"
    opened = open_bundle(store.path("crash-x"), new(disk.parent / "scratch"))
    assert opened.manifest["left_out"] == ["core"]
    assert opened.damaged == ()
    assert answer["size"] == store.path("crash-x").stat().st_size
    assert not list(store.folder.glob(".crash*"))


def test_a_disk_too_full_for_the_bundle_keeps_the_case_and_makes_it_later(disk: Path) -> None:
    held = Desk(disk)
    held.crash()
    held.desk.pump()  # the case is written, its bundle begun or about to be
    ballast = filled(disk, 0)
    held.desk.finish(5)
    if not held.done:
        assert any("no room for its bundle, the crash is kept" in notice for notice in held.notices)
        assert [path.name for path in held.store.folder.glob(".crash-*")] == [
            path.name for path in held.store.folder.glob(".crash-*.case")
        ], "nothing half-written is left"
        ballast.unlink()
        held.store.close()
        held = Desk(disk)
        held.desk.finish(60)
    assert [Path(done.path).exists() for done in held.done] == [True]
    opened = open_bundle(held.done[0].path, new(disk.parent / "scratch"))
    assert opened.damaged == ()
    assert opened.manifest["pid"] == TGID


def test_a_disk_with_room_for_nothing_loses_no_crash(disk: Path) -> None:
    held = Desk(disk)
    older = held.store.path("crash-older")
    older.write_bytes(b"older")
    ballast = filled(disk, 0)
    held.crash()
    held.desk.pump()
    assert held.done == []
    assert f"process {TGID}" in held.notices[0], "its essentials are said at once"
    assert "signal 11" in held.notices[0]
    ballast.unlink()
    held.desk.finish(60)
    assert [Path(done.path).exists() for done in held.done] == [True]
    assert older.exists()


def test_a_disk_that_stays_full_says_what_is_lost(disk: Path) -> None:
    held = Desk(disk)
    filled(disk, 0)
    held.crash()
    held.desk.finish(2)
    assert "the disk stayed full" in held.done[0].notes[0]
    assert f"process {TGID}" in held.done[0].notes[0]
    assert not list(held.store.folder.glob(".crash*"))


SOMEBODY = 12345
root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files to somebody else needs root")


@root
def test_a_link_that_was_planted_in_a_case_is_followed_neither_for_reading_nor_for_writing(
    tmp_path: Path,
) -> None:
    """What this project's first bundler did: it wrote through `bundle`, and packed what `core` led to."""
    store, secret = BundleStore(tmp_path / "bundles"), new(tmp_path / "secret")
    (secret / "core").write_text("root's alone")
    case_folder = store.spool("crash-x")
    spool.write(case_folder, case(), {})
    (case_folder / "bundle").symlink_to(secret)
    (case_folder / layout.CORE).symlink_to(secret / "core")
    with pytest.raises(OSError, match="symbolic links"):
        bundler.make(case_folder, store.path("crash-x"), plain=True)
    assert [path.name for path in secret.iterdir()] == ["core"]
    assert not store.bundles()
    (case_folder / layout.CORE).unlink()
    (case_folder / layout.CAPTURE).write_text("planted")
    os.chown(case_folder / layout.CAPTURE, SOMEBODY, SOMEBODY)
    with pytest.raises(UnsafePath, match=f"user {SOMEBODY}"):
        bundler.make(case_folder, store.path("crash-x"), plain=True)


@root
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [layout.CASE, layout.RECORDING, layout.CORE])
def test_a_fifo_in_a_case_holds_nobody_up(tmp_path: Path, name: str) -> None:
    store = BundleStore(tmp_path / "bundles")
    case_folder = store.spool("crash-x")
    spool.write(case_folder, case(), {})
    (case_folder / name).unlink(missing_ok=True)
    os.mkfifo(case_folder / name)
    with pytest.raises(UnsafePath, match="it is a FIFO"):
        bundler.make(case_folder, store.path("crash-x"), plain=True)


@root
def test_a_temporary_name_made_before_us_is_not_taken(tmp_path: Path) -> None:
    """The finished bundle belongs to us, whatever lay there before it."""
    store = BundleStore(tmp_path / "bundles")
    planted = store.folder / f".crash-x{layout.SUFFIX}.tmp"
    planted.touch()
    os.chown(planted, SOMEBODY, SOMEBODY)
    store.path("crash-x").symlink_to(planted)
    spool.write(store.spool("crash-x"), case(), {})
    bundler.make(store.spool("crash-x"), store.path("crash-x"), plain=True)
    status = store.path("crash-x").lstat()
    assert (status.st_uid, status.st_mode & 0o777, stat.S_ISREG(status.st_mode)) == (0, 0o600, True)
    assert planted.stat().st_size == 0
