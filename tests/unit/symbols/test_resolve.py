"""Plans of real binaries, against what the program itself says it did (gdb stops at each site)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from symbols.errors import (
    DebugFileMismatch,
    NoDebugInfo,
    NoDestroySite,
    NoProfileMatch,
    NotElf,
    NotReadable,
    WrongMachine,
)
from symbols.plan import InstanceKind, Price, Role
from symbols.profile import load_profile, parse_profile
from symbols.resolve import resolve
from tests.targets.build import C_MODES, SOURCE_DIR
from tests.unit.symbols.builds import C_PROFILE, ZIG_PROFILE, build_c, build_cserver, build_zig
from tests.unit.symbols.oracle import check_against_truth

C = parse_profile(C_PROFILE)
ZIG = parse_profile(ZIG_PROFILE)


@pytest.mark.parametrize("mode", ["Debug", "ReleaseSafe", "ReleaseFast"])
def test_zig_program_resolves_and_gdb_agrees(mode: str, tmp_path: Path) -> None:
    path = build_zig(mode)
    plan = resolve(path, ZIG)
    assert plan.unprobed == ()
    assert plan.warnings == ()
    assert all(plan.complete(role) for role in Role)
    assert (plan.slot.size, plan.slot.object_offset, plan.slot.object_field) == (32, 0, "protocol.http")
    assert plan.slot.object_type == "pool.HTTPConn"
    check_against_truth(path, plan, tmp_path)


def test_zig_debug_probes_entries_by_register(tmp_path: Path) -> None:
    """Stack homes are empty at entry; the register they are filled from is the cheap and right source."""
    plan = resolve(build_zig("Debug"), ZIG)
    (destroy,) = plan.by_role(Role.DESTROY)
    assert destroy.kind is InstanceKind.OUT_OF_LINE
    assert destroy.price is Price.EMULATED
    assert destroy.source.register is not None
    assert destroy.source.steps == ()


def test_second_pool_of_another_type_is_left_alone() -> None:
    plan = resolve(build_zig("ReleaseSafe"), ZIG)
    assert all("HTTPConn" not in site.function for site in plan.by_role(Role.DESTROY))
    lines = sorted(site.call_site.line for site in plan.by_role(Role.DESTROY) if site.call_site)
    source = (Path(__file__).parent / "programs" / "pool.zig").read_text().splitlines()
    assert [".pool.destroy" in source[line - 1] for line in lines] == [True] * len(lines)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("dwarf", ["4", "5"])
@pytest.mark.parametrize("level", ["-O0", "-O1", "-O2", "-Os"])
def test_c_program_agrees_with_gdb(compiler: str, dwarf: str, level: str, tmp_path: Path) -> None:
    path = build_c("-g", f"-gdwarf-{dwarf}", level, compiler=compiler)
    plan = resolve(path, C)
    assert plan.complete(Role.CREATE)
    assert plan.complete(Role.DESTROY)
    assert plan.pie
    roles = "CDO" + ("S" if plan.complete(Role.DISPATCH) else "")
    check_against_truth(path, plan, tmp_path, roles=roles)
    for lost in plan.unprobed:
        assert lost.role is Role.DISPATCH
        assert "optimized out" in lost.reason


def test_image_without_build_id_and_without_pie_is_identified_by_content() -> None:
    path = build_c("-g", "-O2", "-no-pie", "-Wl,--build-id=none")
    plan = resolve(path, C)
    assert plan.identity.startswith("sha256:")
    assert not plan.pie
    assert resolve(build_c("-g", "-O2"), C).identity.startswith("build-id:")


def test_compressed_sections_read_the_same() -> None:
    plain, packed = build_c("-g", "-O2"), build_c("-g", "-O2", "-gz=zlib")
    sites = [(s.role, s.address, s.source) for s in resolve(plain, C).sites]
    assert [(s.role, s.address, s.source) for s in resolve(packed, C).sites] == sites


def test_separate_debug_file(tmp_path: Path) -> None:
    path = build_c("-g", "-O2")
    stripped, debug = tmp_path / "stripped", tmp_path / "stripped.debug"
    subprocess.run(["objcopy", "--only-keep-debug", path, debug], check=True)
    subprocess.run(["strip", "-o", stripped, path], check=True)
    with pytest.raises(NoDebugInfo) as missing:
        resolve(stripped, C)
    assert "--debug-file" in missing.value.remedy
    plan = resolve(stripped, C, debug_file=debug)
    assert [s.address for s in plan.sites] == [s.address for s in resolve(path, C).sites]
    with pytest.raises(DebugFileMismatch):
        resolve(stripped, C, debug_file=build_c("-g", "-O1"))


def test_refusals(tmp_path: Path) -> None:
    path = build_c("-g", "-O2")
    with pytest.raises(NotReadable):
        resolve(tmp_path / "nothing")
    with pytest.raises(NotElf):
        resolve(tmp_path)
    text = tmp_path / "script"
    text.write_text("#!/bin/sh\n")
    with pytest.raises(NotElf):
        resolve(text)
    riscv = bytearray(path.read_bytes())
    riscv[18] = 243
    (tmp_path / "riscv").write_bytes(riscv)
    with pytest.raises(WrongMachine) as wrong:
        resolve(tmp_path / "riscv")
    assert wrong.value.machine == "riscv"
    with pytest.raises(NoProfileMatch):
        resolve(path)
    with pytest.raises(NoDestroySite) as none:
        resolve(path, parse_profile(C_PROFILE.replace('"conn_destroy"', '"no_such_function"')))
    assert none.value.found == ()
    with pytest.raises(NoDestroySite) as lost:
        resolve(path, parse_profile(C_PROFILE.replace('slot = "conn" }', 'slot = "con" }')))
    assert any("no parameter 'con'" in line for line in lost.value.found)


MERGED = parse_profile(
    """
name = "merged"
[slot]
type = "conn"
destroy = { function = "conn_destroy", slot = "conn" }
disown = { function = "conn_disown", slot = "conn" }
freelist_link = { offset = 0 }
"""
)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("level", ["-O0", "-O1", "-O2", "-O3", "-Os"])
def test_copies_that_the_compiler_merged_hit_once(compiler: str, level: str, tmp_path: Path) -> None:
    """Tail merging and cross-jumping: entries vanish, or one copy runs into the middle of another."""
    path = build_c("-g", level, compiler=compiler, source="merged.c")
    plan = resolve(path, MERGED)
    assert plan.complete(Role.DESTROY)
    check_against_truth(path, plan, tmp_path, roles="DO")


@pytest.mark.parametrize("mode", C_MODES)
def test_c_server_resolves_completely(mode: str) -> None:
    """gcc -O2 begins conn_retire with a constant that it loads before its caller's prologue."""
    plan = resolve(build_cserver(mode), load_profile(SOURCE_DIR / "cserver.toml"))
    assert all(plan.complete(role) for role in Role), plan.unprobed
    assert plan.warnings == ()
    assert (plan.slot.object_offset, plan.slot.object_field) == (0, "session")
    inlined = [site for site in plan.by_role(Role.DESTROY) if site.kind is InstanceKind.INLINED]
    assert len(inlined) == (0 if mode.endswith("O0") else 3)
