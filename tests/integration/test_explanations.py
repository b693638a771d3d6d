"""Every crashing switch of the bundled target, watched: the kernel's capture explained, with the truth."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.forensics.casework import images_of
from agent.forensics.examine import examine
from agent.forensics.explain import explain
from agent.forensics.explanation import Cause, Explanation
from agent.forensics.from_events import evidence, gather
from symbols.image import Image
from symbols.plan import ProbePlan, Role
from symbols.resolve import close_session, open_session
from tests.integration.crashing import (
    C_SWITCHES,
    CONNECTIONS,
    SMALL,
    SWITCHES,
    Switch,
    Truth,
    assert_like_truth,
    cause,
    life,
    rows,
)
from tests.integration.harness import Run, Watch, conclude, load, plan_of, pump_until, watching
from tests.requirements import require_bpf
from tests.targets.build import SOURCE_DIR

pytestmark = pytest.mark.bpf

DUP = SWITCHES[0]


@pytest.fixture(scope="module", params=["Debug", "ReleaseSafe", "ReleaseFast"])
def watch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    require_bpf()
    with watching(request.param, tmp_path_factory.mktemp("watched")) as watch:
        yield watch


def _explained(watch: Watch, run: Run, pid: int) -> Explanation:
    case = gather(event for event in run.events if getattr(event, "tgid", pid) == pid)
    known = evidence(case, findings=tuple(f for f in run.findings() if f.tgid == pid))
    assert known is not None, "no crash was captured"
    with ExitStack() as stack:
        image = stack.enter_context(Image(watch.exe))
        session = open_session(image)
        stack.callback(close_session, session)
        return explain(known, examine(known, plan_of(watch.exe), session, images_of(known, stack)))


def _died(watch: Watch, switch: Switch, tmp: Path) -> tuple[Explanation, Truth]:
    """Watch the target until it dies; what is explained of it, and what it knew itself.

    One that was recycled or swept may end in a circle of links instead, and spin: it is tried anew.
    """
    for attempt in range(8):
        folder, run = tmp / str(attempt), Run()
        folder.mkdir()
        with watch.target(folder, run, *SMALL, *switch.server) as target:
            client = load(target.port, switch.mix, connections=CONNECTIONS, concurrency=switch.concurrency)
            try:
                pump_until(
                    watch.session,
                    run,
                    lambda pid=target.pid: pid not in watch.session.targets,  # type: ignore[misc]
                    "the target lives on",
                    timeout=8,
                )
            except AssertionError:
                assert target.process.poll() is None, "it died, and the session did not see it"
                continue
            finally:
                client.kill()
                client.communicate()
            return _explained(watch, run, target.pid), rows(target.truth_file)
    raise AssertionError("the target does not die")


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.name)
def test_like_the_truth(watch: Watch, switch: Switch, tmp_path: Path) -> None:
    if watch.mode not in switch.modes:
        pytest.skip(f"{switch.name} does not kill a {watch.mode} build")  # by design, not by lack
    item, truth = _died(watch, switch, tmp_path)
    assert_like_truth(item, truth, switch)
    _created_where_the_plan_says(item, plan_of(watch.exe))


def _created_where_the_plan_says(item: Explanation, plan: ProbePlan) -> None:
    """Not where the probe was moved to. A create that is not inlined has no stack."""
    calls = [site.call_site for site in plan.sites if site.role is Role.CREATE]
    if all(calls):
        places = [f"({Path(call.file).name}:{call.line})" for call in calls if call is not None]
        steps = [step for step in item.steps if step.role == "created" and step.ts]
        assert all(any(place in step.place for place in places) for step in steps), (places, steps)


NOISY = ("--bug", "dup-outlives-close", "--every", "1", "--survive")
"""Each of which is a message of its own; most other rules are counted by call site."""


def test_a_storm_leaves_room_for_the_crash(watch: Watch, tmp_path: Path) -> None:
    """Nobody reads while more is suspected of one target than the ring holds; then another one dies."""
    run = Run()
    for name in ("noisy", "dying"):
        (tmp_path / name).mkdir()
    with (
        watch.target(tmp_path / "noisy", run, *NOISY) as noisy,
        watch.target(tmp_path / "dying", run, *DUP.server) as dying,
    ):
        out, err = load(noisy.port, DUP.mix, connections=10_000).communicate(timeout=100)
        assert json.loads(out)["completed"] == 10_000, err
        client = load(dying.port, DUP.mix, connections=CONNECTIONS, concurrency=DUP.concurrency)
        dying.process.wait(30)
        pump_until(watch.session, run, lambda: dying.pid not in watch.session.targets, "it lives on")
        client.kill()
        client.communicate()
        conclude(watch.session, run, noisy)
    found = run.count("description-outlives-close")
    assert found >= 300, "it has its share of the ring"
    assert run.lost()["urgent"] >= 1_000, "what does not fit is counted"
    item = _explained(watch, run, dying.pid)
    assert item.slot_field == "protocol.http"
    assert life(rows(dying.truth_file), item.slot)["destroys"] == 1


@pytest.fixture(scope="module", params=["gcc-O0", "gcc-O2"])
def c_watch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    require_bpf()
    folder, profile = tmp_path_factory.mktemp("watched"), SOURCE_DIR / "cserver.toml"
    with watching(request.param, folder, name="cserver", profile=profile) as watch:
        yield watch


def test_a_program_that_ends_itself_is_tied_to_the_slot_on_its_stack(c_watch: Watch, tmp_path: Path) -> None:
    """No access faults, no batch holds the slot, and by the time of the SIGABRT no register does."""
    mode = ("gcc-O0", "gcc-O2")
    switch = Switch("assert", ("--bug", "assert-after-destroy"), "close", 1, mode, "cserver")
    item, _truth = _died(c_watch, switch, tmp_path)
    assert (item.signal, item.function) == (signal.SIGABRT, "check_finished")
    assert (item.cause, item.fix_kind) == (Cause.STALE_LINK, "unlink-first")
    assert item.closer == item.destroyer == item.tid
    assert [step.role for step in item.steps[-3:]] == ["closed", "destroyed", "crashed"]
    assert "was already destroyed" in item.headline


@pytest.mark.parametrize("switch", C_SWITCHES, ids=lambda switch: switch.name)
def test_the_c_server(c_watch: Watch, switch: Switch, tmp_path: Path) -> None:
    item, truth = _died(c_watch, switch, tmp_path)
    real = life(truth, item.slot, item.generation)
    assert item.cause is cause(real)
    assert (item.closer, item.destroyer) == (real["close_tid"], real["destroy_tid"])
    assert (item.field, item.offset, item.slot_field) == ("session.state", 0xC8, "session")
    assert item.fix_kind == ("deferred-free" if item.cause is Cause.FREED_IN_BATCH else "del-before-close")
