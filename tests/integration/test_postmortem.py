"""Cores of the bundled target's own crashes, explained without a history and compared with its truth."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.forensics.explanation import Cause, Certainty, Outcome, Topic
from agent.forensics.postmortem import explain_core
from tests.integration.crashing import C_SWITCHES, SWITCHES, Switch, core_of, life, panicked
from tests.targets.build import SOURCE_DIR

CASES = [(switch, mode) for switch in SWITCHES for mode in switch.modes]


@pytest.mark.parametrize(("switch", "mode"), CASES, ids=[f"{s.name}-{m}" for s, m in CASES])
def test_like_the_truth(switch: Switch, mode: str, tmp_path: Path) -> None:
    core, exe, truth = core_of(switch, mode, tmp_path)
    item = explain_core(str(core), str(exe))
    core.unlink()
    # Nothing was watching: actors and order are unknown, and it says so.
    assert (item.closer, item.destroyer, item.steps) == (0, 0, ())
    assert any("nothing was watching" in sentence for sentence in item.unknown)
    if switch.name == "double":
        # Where it dies is up to chance; that the list is broken is in the memory.
        assert item.cause in (Cause.DESTROYED_TWICE, Cause.LIST_BROKEN)
        assert item.rule == "double-destroy"
        return
    if switch.name == "sweep" and item.cause is Cause.DESTROYED_TWICE:
        # Unfilled builds survive the second destroy: the list is a ring by then.
        assert any(row.get("destroys", 0) > 1 for row in truth)
        return
    if switch.name == "sweep" and not item.field.endswith("._state"):
        # It may also die in the sweep itself, which goes on through the links of a freed slot.
        assert item.cause is Cause.FREED_BEFORE_USE
        assert item.slot_field in ("protocol.http", "next", "prev")
        return
    assert item.slot_field == "protocol.http"
    if not panicked(item):
        assert (item.field.rpartition(".")[2], item.offset) == ("_state", 0x2F8)
        assert item.function.endswith("HTTPConn.getState")
    assert (item.cause, item.certainty) == (Cause.FREED_BEFORE_USE, Certainty.CONFIRMED)
    assert life(truth, item.slot)["destroys"] >= 1
    said = {statement.topic: statement for statement in item.statements}
    assert said[Topic.FREE_LIST].certainty is Certainty.CONFIRMED
    assert f"slot {item.slot:#x} is number" in said[Topic.FREE_LIST].text
    assert "userdata" in said[Topic.DELIVERY].text
    assert said[Topic.ORDER].certainty is Certainty.UNKNOWN
    outcomes = {one.name: one.outcome for one in item.alternatives}
    assert outcomes["a pointer that was never initialised"] is Outcome.EXCLUDED
    assert outcomes["a recycled slot"] is Outcome.EXCLUDED
    # Where the program ended itself no instruction tells from where a pointer came.
    elsewhere = Outcome.UNLIKELY if panicked(item) else Outcome.EXCLUDED
    assert outcomes["a bad pointer from elsewhere"] is elsewhere


@pytest.mark.parametrize("mode", ["gcc-O0", "gcc-O2"])
@pytest.mark.parametrize("switch", C_SWITCHES, ids=lambda switch: switch.name)
def test_the_c_server(switch: Switch, mode: str, tmp_path: Path) -> None:
    core, exe, truth = core_of(switch, mode, tmp_path)
    item = explain_core(str(core), str(exe), profile=str(SOURCE_DIR / "cserver.toml"))
    assert (item.field, item.offset, item.slot_field) == ("session.state", 0xC8, "session")
    assert (item.cause, item.certainty) == (Cause.FREED_BEFORE_USE, Certainty.CONFIRMED)
    assert item.function == "session_state"
    assert life(truth, item.slot)["destroys"] >= 1
    said = {statement.topic: statement for statement in item.statements}
    assert "server.pool.head holds" in said[Topic.FREE_LIST].text
    assert f"slot {item.slot:#x} is number" in said[Topic.FREE_LIST].text
    outcomes = {one.name: one.outcome for one in item.alternatives}
    assert outcomes["a bad pointer from elsewhere"] is Outcome.EXCLUDED
