"""The compiler matrix: no compiler, mode or debug format may hide a create or a destroy from the plan.

For every binary one line is printed: sites found, sites that gdb confirms (it stopped there, and the argument
by the plan was what the program itself noted), instances refused with the reason. A role of which nothing was
refused must have been seen completely, in order and value; of others, nothing that did not happen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.requirements import require_program
from tests.unit.symbols.matrix import CASES, judge, same_as_walk

pytestmark = pytest.mark.slow
Say = Callable[[str], None]


@pytest.fixture(scope="module")
def built() -> Iterator[dict[str, Future[Path]]]:
    """The binaries, built in the background in the order of the tests."""
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(case.build) for name, case in CASES.items()}
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def line(text: str) -> None:
        with capsys.disabled():
            print(text)

    return line


@pytest.mark.parametrize("name", CASES)
def test_every_instance_is_probed_or_refused_with_its_reason(
    name: str, built: dict[str, Future[Path]], say: Say, tmp_path: Path
) -> None:
    require_program("gdb")
    built[name].result()
    verdict = judge(CASES[name], tmp_path)
    say(f"\n  {name:44}{verdict}")
    assert verdict.wrong == []
    assert verdict.confirmed


@pytest.mark.parametrize("name", CASES)
def test_search_and_walk_find_the_same_instances(name: str, tmp_path: Path) -> None:
    assert same_as_walk(CASES[name], tmp_path) == []
