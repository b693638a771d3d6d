"""Constructors and destructors by the names that the source gives them, in all the copies compilers make."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from symbols.errors import ProfileError
from symbols.plan import InstanceKind, ProbePlan, Role, Site
from symbols.profile import parse_profile
from symbols.resolve import resolve
from symbols.serial import plan_from_json, plan_to_json
from tests.unit.symbols.builds import build_c
from tests.unit.symbols.test_ties import CPP_FLAGS

ALL = [*CPP_FLAGS, ("g++", "-O1"), ("g++", "-O3"), ("clang++", "-Os")]


def resolved(path: Path, slot: str) -> ProbePlan:
    plan = resolve(path, parse_profile(f"name = 'special'\n[slot]\n{slot}"))
    assert plan_from_json(plan_to_json(plan)) == plan
    return plan


def symbols(path: Path, *parts: str) -> dict[int, str]:
    """Address -> names, of the functions whose mangled names hold one of the parts."""
    said = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in said.splitlines()]
    return {
        int(row[0], 16): row[2] for row in rows if len(row) == 3 and any(part in row[2] for part in parts)
    }


def entered(plan: ProbePlan, role: Role) -> list[Site]:
    return [site for site in plan.by_role(role) if site.kind is InstanceKind.OUT_OF_LINE]


@pytest.mark.parametrize(("compiler", "level"), ALL)
@pytest.mark.parametrize("name", ["~Conn", "app::net::Conn::~Conn", "Conn::~Conn"])
def test_every_copy_of_a_destructor(compiler: str, level: str, name: str) -> None:
    path = build_c("-g", level, compiler=compiler, source="ties.cpp")
    kind = "type = 'app::net::Conn'\n"
    plan = resolved(path, f"{kind}destroy = {{ function = '{name}', slot = 'this' }}")
    assert plan.complete(Role.DESTROY), plan.unprobed
    wanted = symbols(path, "_ZN3app3net4ConnD")
    assert {site.ranges[0][0] for site in entered(plan, Role.DESTROY)} == set(wanted)
    for site in entered(plan, Role.DESTROY):
        assert site.at_entry
        assert any(low <= site.address < high for low, high in site.ranges)
    assert plan.slot.type_name == "Conn"
    assert plan.slot.embedded == (16,)  # its second base class


@pytest.mark.parametrize(("compiler", "level"), ALL)
def test_constructors_create(compiler: str, level: str) -> None:
    path = build_c("-g", level, compiler=compiler, source="ties.cpp")
    slot = """
    type = "app::net::Conn"
    create = { function = "Conn::Conn", slot = "this" }
    destroy = { function = "~Conn", slot = "this" }
    """
    plan = resolved(path, slot)
    assert plan.complete(Role.CREATE), plan.unprobed
    wanted = symbols(path, "_ZN3app3net4ConnC")
    assert wanted
    assert {site.ranges[0][0] for site in entered(plan, Role.CREATE)} == set(wanted)
    for site in entered(plan, Role.CREATE):
        assert site.at_entry
        assert (site.argument, str(site.source)) == ("this", "rdi")


@pytest.mark.parametrize(("compiler", "level"), ALL)
def test_a_plain_name_that_means_two_classes(compiler: str, level: str) -> None:
    path = build_c("-g", level, compiler=compiler, source="ties.cpp")
    with pytest.raises(ProfileError) as caught:
        resolved(path, "type = 'Conn'\ndestroy = { function = '~Conn', slot = 'this' }")
    assert "'Conn' means several types here: app::net::Conn, other::Conn" in caught.value.detail
    assert "namespace" in caught.value.remedy
    plan = resolved(path, "type = 'other::Conn'\ndestroy = { function = '~Conn', slot = 'this' }")
    assert plan.slot.size == 8
    assert {site.ranges[0][0] for site in entered(plan, Role.DESTROY)} == set(
        symbols(path, "_ZN5other4ConnD")
    )
