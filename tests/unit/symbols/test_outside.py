"""Functions that are probed where they are called, against what gdb sees the program do."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from symbols.image import Image
from symbols.plan import ProbePlan, Role
from symbols.profile import parse_profile
from symbols.resolve import resolve
from symbols.serial import plan_from_json, plan_to_json
from tests.requirements import require_program
from tests.unit.symbols.builds import build_c

FLAGS = [
    *((compiler, level) for compiler in ("gcc", "clang") for level in ("-O0", "-O1", "-O2", "-O3", "-Os")),
    ("gcc", "-O2 -no-pie"),
    ("clang", "-O2 -no-pie"),
    ("gcc", "-O2 -fcf-protection=full"),
]


def plan_of(path: Path, create: str, *, destroy: str = "conn_destroy") -> ProbePlan:
    text = f"""
    name = "outside"
    [slot]
    type = "conn"
    create = {{ function = "{create}", returns = "slot" }}
    destroy = {{ function = "{destroy}", slot = "c" }}
    """
    plan = resolve(path, parse_profile(text))
    assert plan_from_json(plan_to_json(plan)) == plan
    return plan


def passed(path: Path, plan: ProbePlan, tmp_path: Path, role: Role = Role.CREATE) -> int:
    """How often the sites of a role are passed with an address, in one run under gdb."""
    script = tmp_path / "count.gdb"
    lines = ["set auto-load no", "set pagination off", "set breakpoint pending off", "starti"]
    base = 0x555555554000 if plan.pie else 0
    for site in plan.by_role(role):
        register = f"${site.source.register}"
        lines += [f"break *{base + site.address:#x}", "commands", "silent"]
        lines += [f'printf "passed %d\\n", {register} != 0', "continue", "end"]
    script.write_text("\n".join([*lines, "continue", ""]))
    command = [require_program("gdb"), "-nx", "-batch", "-x", str(script), str(path)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "exited normally" in said
    return said.count("passed 1")


@pytest.mark.parametrize(("compiler", "flags"), FLAGS)
@pytest.mark.parametrize(("create", "times"), [("plain", 9), ("pooled", 8), ("inner", 1), ("outer", 1)])
def test_every_result_of_a_tail_call_is_seen_once(
    compiler: str, flags: str, create: str, times: int, tmp_path: Path
) -> None:
    path = build_c("-g", *flags.split(), compiler=compiler, source="tails.c")
    plan = plan_of(path, create)
    assert plan.complete(Role.CREATE), plan.unprobed
    assert passed(path, plan, tmp_path) == times


@pytest.mark.parametrize(("compiler", "flags"), FLAGS)
@pytest.mark.parametrize(
    ("create", "reason"),
    [
        ("pointed", "its address is taken: calls through a pointer cannot be told"),
        ("mixed_inner", "mixed hands its result on by a tail call, and other results too"),
    ],
)
def test_what_callers_do_not_show_is_listed(compiler: str, flags: str, create: str, reason: str) -> None:
    plan = plan_of(build_c("-g", *flags.split(), compiler=compiler, source="tails.c"), create)
    if flags in ("-O0", "-O1"):
        assert plan.complete(Role.CREATE)  # no tail calls there
        return
    assert not plan.complete(Role.CREATE)
    assert any(reason in lost.reason for lost in plan.unprobed), plan.unprobed
    assert all(lost.role is Role.CREATE for lost in plan.unprobed)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_where_two_ways_meet_behind_the_call(compiler: str) -> None:
    """`old ? old : create()`: where the call returns to, the register may hold the old one."""
    plan = plan_of(build_c("-g", "-Os", compiler=compiler, source="tails.c"), "joined")
    assert not plan.complete(Role.CREATE)
    assert [lost.enclosing for lost in plan.unprobed] == ["pick"]


@pytest.mark.parametrize(("compiler", "flags"), FLAGS)
def test_the_return_address_is_on_top_of_the_stack_at_an_entry(
    compiler: str, flags: str, tmp_path: Path
) -> None:
    """Who called a destroy is told by it; ranges say whether that was another destroy."""
    path = build_c("-g", *flags.split(), compiler=compiler, source="tails.c")
    plan = plan_of(path, "plain")
    (site,) = plan.by_role(Role.DESTROY)
    assert site.at_entry
    base = 0x555555554000 if plan.pie else 0
    script = tmp_path / "top.gdb"
    lines = ["set auto-load no", "starti", f"break *{base + site.address:#x}", "commands", "silent"]
    lines += ['printf "from %lx\\n", *(long *)$rsp', "continue", "end", "continue"]
    script.write_text("\n".join([*lines, ""]))
    command = [require_program("gdb"), "-nx", "-batch", "-x", str(script), str(path)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    callers = {int(line.split()[1], 16) - base for line in said.splitlines() if line.startswith("from ")}
    assert len(callers) >= 5
    with Image(path) as image:
        for back in callers:
            call = image.code(back - 5, 5)
            assert call[0] == 0xE8
            assert back + int.from_bytes(call[1:], "little", signed=True) == site.ranges[0][0]


LOCKED = [("gcc", "-O1"), ("gcc", "-O2"), ("gcc", "-O3"), ("clang", "-O2")]


@pytest.mark.parametrize(("compiler", "level"), LOCKED)
def test_a_destroy_that_begins_with_a_locked_instruction(compiler: str, level: str) -> None:
    """The kernel refuses uprobes on lock-prefixed instructions (arch/x86/kernel/uprobes.c: is_prefix_bad)."""
    path = build_c("-g", level, compiler=compiler, source="counted.c")
    text = "name = 'x'\n[slot]\ndestroy = { function = 'atomic', slot = 'o' }"
    plan = resolve(path, parse_profile(text))
    assert plan.complete(Role.DESTROY)
    (site,) = plan.sites
    assert site.enclosing == "main"
    assert site.instruction.startswith("call")
    assert not site.at_entry
    assert "the kernel takes no probe" in site.note


@pytest.mark.parametrize(("compiler", "level"), LOCKED)
def test_an_inlined_destroy_that_begins_with_a_locked_instruction(compiler: str, level: str) -> None:
    """Probed before it, where there is something before it in its function; else at that function's calls."""
    path = build_c("-g", level, compiler=compiler, source="counted.c")
    text = "name = 'x'\n[slot]\ndestroy = { function = 'unref', slot = 'o' }"
    plan = resolve(path, parse_profile(text))
    assert plan.destroy_counts
    assert plan.complete(Role.DESTROY)
    assert {site.enclosing for site in plan.sites} == {"by_hand", "main"}


@pytest.mark.parametrize(("compiler", "level"), [("gcc", "-O0"), ("gcc", "-O2"), ("clang", "-O2")])
@pytest.mark.parametrize(
    ("narrowing", "enclosing"),
    [
        ("", {"on_close", "on_error", "at_exit"}),
        (", in = 'on_*'", {"on_close", "on_error"}),
        (", not_in = 'at_exit'", {"on_close", "on_error"}),
        (", in = 'on_*', not_in = 'on_close'", {"on_error"}),
        (", file = 'twice.c'", {"on_close", "on_error", "at_exit"}),
    ],
)
def test_which_instances_are_meant(compiler: str, level: str, narrowing: str, enclosing: set[str]) -> None:
    path = build_c("-g", level, compiler=compiler, source="twice.c")
    text = f"name = 'x'\n[slot]\ndestroy = {{ function = 'conn_destroy', slot = 'c'{narrowing} }}"
    plan = resolve(path, parse_profile(text))
    assert {site.enclosing for site in plan.sites} == enclosing
    assert plan.complete(Role.DESTROY)


@pytest.mark.parametrize(("compiler", "flags"), FLAGS)
@pytest.mark.parametrize(("destroy", "times"), [("conn_destroy", 20), ("conn_unref", 40)])
def test_destroys_whose_loads_are_scheduled_among_other_code(
    compiler: str, flags: str, destroy: str, times: int, tmp_path: Path
) -> None:
    path = build_c("-g", *flags.split(), compiler=compiler, source="scheduled.c")
    plan = plan_of(path, "conn_create", destroy=destroy)
    assert plan.destroy_counts == (destroy == "conn_unref")
    hits = passed(path, plan, tmp_path, Role.DESTROY)
    assert hits == times if plan.complete(Role.DESTROY) else hits < times
    if destroy == "conn_destroy":
        assert plan.complete(Role.DESTROY), plan.unprobed
