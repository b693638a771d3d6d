"""Copies with some fields changed are what dataclasses.replace() makes."""

from __future__ import annotations

import dataclasses

import pytest

from agent.correlator.context import Target
from agent.correlator.copies import replace


def test_a_copy_is_what_dataclasses_would_make() -> None:
    target = Target(tgid=7, image="n")
    made = replace(target, bias=3, attached=1)
    assert made == dataclasses.replace(target, bias=3, attached=1)
    assert target == Target(tgid=7, image="n")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.image = "x"  # type: ignore[misc]


def test_unknown_fields_and_other_classes_are_refused() -> None:
    with pytest.raises(TypeError, match="no such field"):
        replace(Target(tgid=7), gap=3)
    with pytest.raises(TypeError, match="cannot be copied"):
        replace(Exception(), gap=3)
