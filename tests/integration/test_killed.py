"""SIGKILL at random moments of attach, seize, capture and write: the target runs on, nothing half stays.

AFTERFREE_KILLS sets how many (12): `AFTERFREE_KILLS=200 python -m pytest tests/integration/test_killed.py`.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.forensics.bundle import open_bundle
from agent.forensics.desk import CrashDesk
from agent.forensics.store import BundleStore
from tests.integration.harness import Daemon, Server, alive, daemon, descendants, load, server, wait_for
from tests.integration.test_bundles import DUP, seized
from tests.integration.test_signals import assert_not_stopped, finished

pytestmark = [pytest.mark.bpf, pytest.mark.slow, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("AFTERFREE_KILLS", "12"))
MOMENTS = random.Random(20261122)


def killed(watch: Daemon, *, bundler: bool = False, may_be_done: bool = False) -> None:
    """SIGKILL; what it had started ends with it. The bundler alone may finish its bundle, unless it is
    killed as well, as systemd does. may_be_done: its target is dead, and it may end by itself just now."""
    children = descendants(watch.pid)
    packing = [pid for pid, command in children.items() if "forensics.bundler" in command]
    assert watch.end(signal.SIGKILL) in ((-signal.SIGKILL, 0) if may_be_done else (-signal.SIGKILL,))
    for pid in packing:
        if bundler:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        else:
            del children[pid]
    wait_for(lambda: not alive(children), 20, f"children that end: {children}")


def while_attaching(target: Server, watch: Daemon) -> None:
    client = load(target.port, "keepalive", "--requests", "1500", connections=32, concurrency=16)
    time.sleep(MOMENTS.uniform(0.0, 2.5))
    killed(watch)
    finished(client)
    assert_not_stopped(target)


def while_seized(target: Server, watch: Daemon) -> None:
    watch.wait_ready()
    client = load(target.port, "keepalive", "--requests", "1500", connections=32, concurrency=16)
    time.sleep(MOMENTS.uniform(0.0, 0.4))
    killed(watch)
    finished(client)
    assert_not_stopped(target)


def while_it_crashes(target: Server, watch: Daemon) -> None:
    """The target dies of itself, by the very signal, whatever happens to its tracer."""
    watch.wait_ready()
    wait_for(lambda: seized(target), what="a seized target")
    client = load(target.port, "dup", connections=4000, concurrency=1)
    time.sleep(MOMENTS.uniform(0.0, MOMENTS.choice((0.3, 1.5))))
    kill_and_see_it_die(target, watch, client)


def while_it_writes(target: Server, watch: Daemon) -> None:
    """From the first file about the crash on."""
    kill_after(target, watch, ".crash-*.case", MOMENTS.uniform(0.0, 5.0))


def while_it_packs(target: Server, watch: Daemon) -> None:
    """While the bundler is at it."""
    kill_after(target, watch, ".crash-*.tar.zst.*.tmp", MOMENTS.uniform(0.0, 0.4))


def kill_after(target: Server, watch: Daemon, pattern: str, seconds: float) -> None:
    watch.wait_ready()
    wait_for(lambda: seized(target), what="a seized target")
    client = load(target.port, "dup", connections=4000, concurrency=1)
    bundles = target.truth_file.parent / "bundles"
    wait_for(lambda: [*bundles.glob(pattern), *bundles.glob("crash-*.tar.zst")], 30, pattern)
    time.sleep(seconds)
    kill_and_see_it_die(target, watch, client, bundler=MOMENTS.random() < 0.5)


def kill_and_see_it_die(
    target: Server, watch: Daemon, client: subprocess.Popen[str], *, bundler: bool = False
) -> None:
    if watch.process.poll() is None:  # otherwise its bundle was quicker
        killed(watch, bundler=bundler, may_be_done=True)
    try:
        assert target.process.wait(20) == -signal.SIGABRT, "Zig's handler aborts"
    finally:
        client.kill()
        client.communicate()
    said = target.stderr_file.read_text(encoding="utf-8", errors="replace")
    assert "Segmentation fault at address 0x2f8" in said


PHASES: tuple[Callable[[Server, Daemon], None], ...] = (
    while_attaching,
    while_seized,
    while_it_crashes,
    while_it_writes,
    while_it_packs,
)


def bundlers(folder: Path) -> list[str]:
    """Processes that still make a bundle in `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(errors="replace"))
    return [line for line in found if "forensics.bundler" in line and str(folder) in line]


def assert_only_whole_bundles(folder: Path, scratch: Path) -> str:
    """What lies there, and what the next start makes of it."""
    if not folder.is_dir():
        return "no folder yet"
    wait_for(lambda: not bundlers(folder), 60, "the end of the bundler")
    partly = {path.name for path in folder.glob(".crash-*.tar.zst.*.tmp")}
    before = {path.name.removesuffix(".tar.zst") for path in folder.glob("crash-*.tar.zst")}
    cases = {
        path.name.removeprefix(".").removesuffix(".case")
        for path in folder.glob(".crash-*.case")
        if (path / "case.json").exists()
    }
    CrashDesk(BundleStore(folder), configuration={}).finish(60)
    names = sorted(folder.glob("crash-*.tar.zst"))
    for number, name in enumerate(names):
        room = scratch / str(number)
        room.mkdir(parents=True)
        assert open_bundle(name, room).damaged == ()
    assert not list(folder.glob(".crash*")), "what was begun is finished or gone"
    assert before | cases <= {path.name.removesuffix(".tar.zst") for path in names}, (
        "a whole case is not lost"
    )
    return f"{len(before)} bundled, {len(cases - before)} to be finished ({len(partly)} partly packed)"


def test_killed_at_any_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes: Counter[str] = Counter()
    for number in range(KILLS):
        phase = PHASES[number % len(PHASES)]
        folder = tmp_path / str(number)
        folder.mkdir()
        bundles = folder / "bundles"
        command = ("watch", "--bundles", str(bundles), "--capture", "always", "--pid")
        with (
            server("ReleaseSafe", folder, *DUP) as target,
            daemon(folder, *command, str(target.pid)) as watch,
        ):
            phase(target, watch)
        outcomes[f"{phase.__name__}: {assert_only_whole_bundles(bundles, folder / 'scratch')}"] += 1
    with capsys.disabled():
        for outcome, count in sorted(outcomes.items()):
            print(f"\n  {count:4} {outcome}", end="")
