# The finding's JSON: complete, ordered, round trip, refuses what is not one.
from __future__ import annotations

import json

import pytest

from agent.correlator import BadFindingError, Finding, RuleId, Severity
from agent.correlator.catalog import RULES
from tests.unit.agent.correlator.playbook import Playbook, attached, life

SECTION_4 = {
    "stale-delivery": "critical",
    "recycled-delivery": "critical",
    "stale-dispatch": "critical",
    "double-destroy": "critical",
    "aliased-slot": "critical",
    "freed-while-registered": "high",
    "freed-in-open-batch": "high",
    "description-outlives-close": "high",
    "failed-removal": "high",
    "bad-close": "high",
    "implicit-removal": "warning",
    "delivery-after-close": "warning",
    "close-in-open-batch": "warning",
    "hot-redelivery": "warning",
    "leaked-slot": "warning",
}


def found() -> Finding:
    play = Playbook()
    play >> attached()
    story = life().closed(30, shared=True).destroyed(40).reborn(50).with_current(60)
    (finding,) = play.correlator.feed(story.recycled_delivery(70, memory=b"\x01\x02"))
    return finding


def test_rules_and_severities_are_those_of_the_design() -> None:
    assert {rule.value: RULES[rule].severity.label for rule in RuleId} == SECTION_4


def test_severities_are_ordered() -> None:
    assert Severity.INFO < Severity.WARNING < Severity.HIGH < Severity.CRITICAL
    assert [Severity.parse(s.label) for s in Severity] == list(Severity)


def test_round_trip_through_json_text() -> None:
    finding = found()
    assert Finding.from_dict(json.loads(json.dumps(finding.to_dict()))) == finding


def test_keys_are_stable_and_begin_with_the_version() -> None:
    keys = list(found().to_dict())
    assert keys[:5] == ["schema", "type", "rule", "severity", "confidence"]
    assert keys == list(Finding.from_dict(found().to_dict()).to_dict())


def test_addresses_are_hex_and_memory_is_hex() -> None:
    value = found().to_dict()
    assert value["slot"].startswith("0x")
    assert value["memory"] == "0102"
    assert value["candidates"][0]["state"] == "orphan"


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": 2},
        {"type": "census"},
        {"rule": "no-such-rule"},
        {"severity": "fatal"},
        {"confidence": None},
        {"slot": 12},
        {"actors": [{}]},
        {"memory": "zz"},
        {"sub_classes": []},
    ],
)
def test_what_is_no_finding_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(BadFindingError):
        Finding.from_dict(found().to_dict() | damage)


def test_a_missing_key_is_refused() -> None:
    value = found().to_dict()
    del value["actors"]
    with pytest.raises(BadFindingError):
        Finding.from_dict(value)
