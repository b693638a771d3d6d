"""Copies with some fields changed are what dataclasses.replace() makes."""

from __future__ import annotations

import dataclasses

import pytest

from agent.correlator.copies import replace
from agent.correlator.findings import Actor
from probes.events import Moment


def test_a_copy_is_what_dataclasses_would_make() -> None:
    actor = Actor(role="closed", moment=Moment(ts=7), note="n")
    made = replace(actor, gap_ns=3, concurrent=True)
    assert made == dataclasses.replace(actor, gap_ns=3, concurrent=True)
    assert actor == Actor(role="closed", moment=Moment(ts=7), note="n")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.note = "x"  # type: ignore[misc]


def test_unknown_fields_and_other_classes_are_refused() -> None:
    with pytest.raises(TypeError, match="no such field"):
        replace(Actor(role="closed", moment=Moment()), gap=3)
    with pytest.raises(TypeError, match="cannot be copied"):
        replace(Exception(), gap=3)
