"""Every shape of tests/shapes at -O0 and -O2: correct programs draw nothing, broken ones are named."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import pytest

from tests.integration import shapes

pytestmark = pytest.mark.bpf


@pytest.fixture(scope="module")
def verdicts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[shapes.Run, shapes.Verdict]:
    """All that were selected, at once: one after the other they would take half an hour."""
    wanted = [
        item.callspec.params["run"]
        for item in request.session.items
        if item.path == request.path and isinstance(item, pytest.Function)
    ]
    return shapes.verdicts(wanted, tmp_path_factory.mktemp("shapes"))


@pytest.mark.timeout(2400)  # the first test waits for all of them
@pytest.mark.parametrize("run", shapes.runs(), ids=str)
def test_shape_is_judged_right(run: shapes.Run, verdicts: Mapping[shapes.Run, shapes.Verdict]) -> None:
    verdict = verdicts[run]
    if verdict.first:
        warnings.warn(f"right only when run alone; before that {verdict.first}", stacklevel=1)
    assert not verdict.failure, verdict.failure
