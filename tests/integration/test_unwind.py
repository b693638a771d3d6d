"""Every thread of the bundled server, idle and under load, in every build mode: our frames are gdb's."""

from __future__ import annotations

from pathlib import Path

import pytest

from symbols.unwind import Step
from tests.integration.harness import load, server
from tests.targets.build import MODES
from tests.unit.symbols import backtraces


@pytest.mark.parametrize("mode", MODES)
def test_like_gdb(mode: str, tmp_path: Path) -> None:
    with server(mode, tmp_path, "--port", "0", "--workers", "4") as target:
        core, wanted = backtraces.dump(target.pid, tmp_path)
        mine = backtraces.ours(core)
        assert backtraces.differences(wanted, mine) == []
        assert len(mine) == 6
        assert {frame.step for trace in mine.values() for frame in trace.frames} == {Step.START, Step.CFI}
        # caught anywhere: in prologues, epilogues and leaf functions as well
        busy = load(target.port, "correct", connections=100_000, concurrency=4)
        try:
            for _ in range(4):
                core, wanted = backtraces.dump(target.pid, tmp_path)
                assert backtraces.differences(wanted, backtraces.ours(core)) == []
                core.unlink()
        finally:
            busy.kill()
            busy.communicate()
