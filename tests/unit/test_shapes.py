"""What an EXPECT file of tests/shapes means, and that every shape has one that says something."""

from __future__ import annotations

import pytest

from agent.correlator.findings import RuleId
from tests.integration.shapes import FOLDER, Said

UNCERTAIN = {"rule": "freed-in-open-batch", "severity": "warning", "confidence": "uncertain"}
CERTAIN = {"rule": "stale-delivery", "severity": "critical", "confidence": "observed"}
INFO = {"rule": "implicit-removal", "severity": "info", "confidence": "observed"}


@pytest.mark.parametrize(
    ("expect", "unmet"),
    [
        ("=none", ["=none"]),
        ("+stale-delivery\n-stale-delivery  # cannot be", ["-stale-delivery"]),
        ("+double-destroy\n+freed-in-open-batch", ["+double-destroy"]),
        ("+double-destroy | ~no registration", []),
        ("~no destroy | +aliased-slot", ["~no destroy | +aliased-slot"]),
        ("# nothing\n", []),
    ],
)
def test_expectations_hold_line_by_line(expect: str, unmet: list[str]) -> None:
    said = Said(findings=(UNCERTAIN, CERTAIN), text="watch says: no registration", truth="bug")
    assert said.unmet(expect) == unmet


def test_what_is_uncertain_or_information_is_no_accusation() -> None:
    assert not Said(findings=(UNCERTAIN, INFO), text="", truth="correct").unmet("=none")


@pytest.mark.parametrize("folder", sorted(FOLDER.glob("*/")), ids=lambda folder: folder.name)
def test_every_shape_says_what_it_is_and_expects_it(folder) -> None:
    source = next(path for name in ("prog.c", "prog.cc", "main.c") if (path := folder / name).exists())
    expect = [line.split("#")[0].strip() for line in (folder / "EXPECT").read_text().splitlines()]
    tokens = [token.strip() for line in expect if line for token in line.split("|")]
    assert tokens
    for token in tokens:
        assert token == "=none" or token[0] == "~" or token[1:] in set(RuleId), token
    claim = source.read_text().split("\n#")[0]
    assert claim.startswith(("// CORRECT", "// BUG")), claim
    assert ("=none" in tokens) <= ("CORRECT" in claim), claim
