"""The core of the compiler matrix: plans of real binaries against the programs' own account.

All of it: tests/integration/test_matrix.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.symbols.matrix import CASES, CORE, judge, same_as_walk


@pytest.mark.parametrize("name", CORE)
def test_plan_sees_what_the_program_did(name: str, tmp_path: Path) -> None:
    verdict = judge(CASES[name], tmp_path)
    assert verdict.wrong == [], str(verdict)
    assert verdict.confirmed


@pytest.mark.parametrize("name", [name for name in CORE if not name.startswith("rustc")])
def test_search_finds_what_a_walk_finds(name: str, tmp_path: Path) -> None:
    assert same_as_walk(CASES[name], tmp_path) == []
