"""Copies of one inlined dispatch: unrolled loops, and instances in several pieces that are one copy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from symbols.plan import Role
from symbols.resolve import resolve
from tests.requirements import require_program
from tests.unit.symbols.matrix import CASES, judge, repeats_case
from tests.unit.symbols.oracle import run

_CALLS = {"same": 4, "through": 4, "each": 7, "four": 4, "chain": 7}


@pytest.mark.parametrize("level", ["-O1", "-O2", "-Os"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_every_copy_of_a_dispatch_is_probed_or_all_are_refused(
    compiler: str, level: str, tmp_path: Path
) -> None:
    require_program("gdb")
    case = repeats_case(compiler, level)
    path = case.build()
    plan = resolve(path, case.profile)
    hits, output = run(path, plan, tmp_path)
    truth = [int(value, 16) for value in re.findall(r"^S 0x([0-9a-f]+)$", output, re.MULTILINE)]
    assert len(truth) == sum(_CALLS.values())
    sites = {site.index: site for site in plan.sites}
    refused = {lost.enclosing for lost in plan.unprobed if lost.role is Role.DISPATCH}
    for function, calls in _CALLS.items():
        mine = [hit.value for hit in hits if sites[hit.index].enclosing == function]
        theirs, truth = truth[:calls], truth[calls:]
        assert mine == ([] if function in refused else theirs), function
    if level == "-O2":
        assert "same" in refused  # one object again and again: nothing but its code tells the copies apart
        assert "chain" not in refused


@pytest.mark.parametrize("name", ["g++ templates -O2", "g++ templates -O3", "gcc levels -O2 -gdwarf-5"])
def test_a_dispatch_in_pieces_or_of_one_instruction_is_one_copy(name: str, tmp_path: Path) -> None:
    """g++: the object is loaded, then read behind another instruction. gcc: its location covers no code."""
    require_program("gdb")
    verdict = judge(CASES[name], tmp_path)
    assert verdict.wrong == []
    seen, true = verdict.counts[Role.DISPATCH]
    assert seen == true > 0
