"""A program that afterfree has no code for: a C server with its own free list, and a profile.

What is found equals what the server knows it did, and names the functions and lines that did it.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.correlator.core import CorrelatorOptions
from agent.correlator.findings import RuleId as R
from tests.integration.harness import (
    Run,
    Watch,
    conclude,
    daemon,
    drive,
    load,
    server,
    wait_for,
    watched,
    watching,
)
from tests.integration.test_ground_truth import Case, Ledger, compare
from tests.requirements import require_program, skip_or_fail
from tests.targets.build import C_MODES, SOURCE_DIR, build

pytestmark = pytest.mark.bpf

PROFILE = SOURCE_DIR / "cserver.toml"
SURVIVES = (R.DESCRIPTION_OUTLIVES_CLOSE, R.FREED_WHILE_REGISTERED, R.STALE_DELIVERY)
CASES = (
    Case("dup-outlives-close", ("dup-outlives-close",), "dup", SURVIVES, ("--every", "4")),
    Case(
        "close-on-worker",
        ("close-on-worker",),
        "close",
        (R.IMPLICIT_REMOVAL, R.CLOSE_IN_OPEN_BATCH),
        ("--window-us", "50"),
    ),
    Case("double-destroy", ("double-destroy",), "churn", (R.DOUBLE_DESTROY,), ("--every", "50")),
    Case(
        "free-in-batch",
        ("free-in-batch",),
        "poke",
        (R.FREED_IN_OPEN_BATCH,),
        ("--window-us", "300", "--workers", "8"),
        ("--slow-us", "1000"),
        concurrency=64,
    ),
)
CONNECTIONS = 3000


@pytest.fixture(scope="module", params=["gcc-O2", pytest.param("clang-O2", marks=pytest.mark.slow)])
def watch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    require_program(C_MODES[request.param][0])
    folder = tmp_path_factory.mktemp("watched")
    with watching(request.param, folder, name="cserver", profile=PROFILE) as watch:
        yield watch


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_findings_equal_the_truth(
    watch: Watch, case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(CorrelatorOptions())
    run = Run(correlator=ledger)
    bugs = [word for bug in case.bugs for word in ("--bug", bug)]
    with watch.target(tmp_path, run, *bugs, "--survive", *case.server) as target:
        client = load(
            target.port, case.mix, *case.client, connections=CONNECTIONS, concurrency=case.concurrency
        )
        drive(watch.session, run, client)
        summary = conclude(watch.session, run, target)
        truth = target.truth()
    outcome = compare(case, run, ledger, truth)
    with capsys.disabled():
        print(
            f"\n  {case.name:19} {watch.mode:9} {summary['connections']:6,}  {'  '.join(outcome.line)}",
            end="",
        )

    assert run.lost() == {}
    assert summary["connections"] >= CONNECTIONS
    assert not outcome.wrong, "\n".join([f"{case.name}, {watch.mode}:", *outcome.wrong])
    silent = [str(rule) for rule in case.fires if not run.count(rule)]
    assert not silent, f"the switch was meant to raise {silent}: the test has proved nothing about them"


def test_nothing_is_found_without_a_bug(watch: Watch, tmp_path: Path) -> None:
    run = Run()
    with watch.target(tmp_path, run) as target:
        drive(watch.session, run, load(target.port, "correct", connections=2 * CONNECTIONS))
        summary = conclude(watch.session, run, target)
    assert run.lost() == {}
    assert run.correlator.census.total == summary["destroyed"] == 2 * CONNECTIONS
    assert [f"{finding.rule} x{finding.count}" for finding in run.findings()] == []


def test_the_stale_delivery_is_named_before_the_crash(tmp_path: Path) -> None:
    """As a user would: `afterfree watch --exe EXE --profile FILE` on a running server, which then dies."""
    exe = Path(shutil.copy(build("cserver", "gcc-O2"), tmp_path))
    arguments = ("--exe", str(exe), "--profile", str(PROFILE), "--format", "json")
    with (
        server("gcc-O2", tmp_path, "--bug", "dup-outlives-close", exe=exe) as target,
        daemon(tmp_path, "watch", *arguments) as afterfree,
    ):
        afterfree.wait_ready()
        client = load(target.port, "dup", connections=200, concurrency=1)
        died = target.process.wait(20)
        client.communicate(timeout=30)
        wait_for(lambda: R.STALE_DISPATCH in rules(afterfree.lines()), 20, "the last finding")
        assert afterfree.end() == 0, afterfree.said()
        (stale,) = [line for line in afterfree.lines() if line["rule"] == R.STALE_DELIVERY]
        (truth,) = [line for line in target.truth() if line.get("event") == "stale_delivery"]
    assert died == -signal.SIGSEGV
    assert "profile cserver" in afterfree.said()
    assert (int(stale["slot"], 0), stale["generation"]) == (truth["slot"], truth["generation"])
    assert stale["confidence"] == "confirmed"
    assert any("the kernel had the registration" in reason for reason in stale["reasons"])
    by_others = {"duplicated"}  # a worker keeps the description open
    assert {a["thread"] for a in stale["actors"] if a["role"] not in by_others} == {"loop"}
    named = {actor["role"]: places(actor["frames"]) for actor in stale["actors"]}
    setup = ("conn_setup", line_of("int error = control(EPOLL_CTL_ADD, watched, EPOLLIN, (uintptr_t)c);"))
    finish = ("conn_finish", line_of("conn_close(c);"))
    assert setup in named["registered"]
    assert ("accept_one", line_of("if (conn_setup(c) == 0) return;")) in named["registered"]
    assert finish in named["closed"]
    assert ("conn_finish", line_of("conn_destroy(&server.pool, c);", after=finish[1])) in named["destroyed"]
    assert named["destroyed"][0][0] == "conn_destroy"
    wait = line_of("int count = epoll_wait(server.epoll, events, MAX_EVENTS, 100);")
    assert ("run_loop", wait) in named["delivered"]
    assert stale["memory_as"]["type"] == "conn"
    assert stale["memory_as"]["lines"][0].endswith("free-list link (null)")


@pytest.mark.slow
def test_a_unit_is_watched_through_its_restart(tmp_path: Path, service: Path) -> None:
    exe = Path(shutil.copy(build("cserver", "gcc-O2"), tmp_path))
    arguments = ("--unit", service.name, "--profile", str(PROFILE), "--format", "json")
    bug = ("--bug", "dup-outlives-close", "--survive")
    with server("gcc-O2", tmp_path, *bug, exe=exe) as target:
        (service / "cgroup.procs").write_text(str(target.pid))
        with daemon(tmp_path, "watch", *arguments) as afterfree:
            afterfree.wait_ready()
            assert watched(afterfree.pid) == {target.pid}
            target.stop()
            with server("gcc-O2", tmp_path, *bug, exe=exe) as again:
                (service / "cgroup.procs").write_text(str(again.pid))
                wait_for(lambda: watched(afterfree.pid) == {again.pid}, 20, "the new process")
                client = load(again.port, "dup", connections=50)
                client.communicate(timeout=30)
                wait_for(lambda: R.STALE_DELIVERY in rules(afterfree.lines()), 20, "the finding")
            assert afterfree.end() == 0, afterfree.said()
    assert {line["tgid"] for line in afterfree.lines() if line["type"] == "finding"} == {again.pid}


@pytest.fixture
def service() -> Iterator[Path]:
    """A control group of version 2 where the one of a unit would be."""
    root = next((Path(r) for r in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified") if is_v2(r)), None)
    if root is None or not os.access(root, os.W_OK):
        skip_or_fail("a writable control group hierarchy of version 2")
        return
    folder = root / "system.slice" / f"afterfree-test-{os.getpid()}.service"
    made = not folder.parent.exists()
    folder.mkdir(parents=True)
    yield folder
    wait_for(lambda: not (folder / "cgroup.procs").read_text(), what="an empty control group")
    folder.rmdir()
    if made:
        folder.parent.rmdir()


def is_v2(root: str) -> bool:
    return Path(root, "cgroup.controllers").is_file()


def rules(lines: list[dict[str, Any]]) -> set[str]:
    return {line["rule"] for line in lines}


def places(frames: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """(function, line) of the frames that have them."""
    return [(frame["function"], frame["line"]) for frame in frames if "function" in frame]


def line_of(text: str, *, after: int = 0) -> int:
    """Where a line stands in cserver.c."""
    rows = (SOURCE_DIR / "cserver.c").read_text(encoding="utf-8").splitlines()
    return next(number for number, row in enumerate(rows, 1) if number > after and row.strip() == text)
