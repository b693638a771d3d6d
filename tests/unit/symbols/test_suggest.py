"""A guessed profile is valid TOML, resolves, and names the pool that is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cli import run
from symbols.errors import NoDebugInfo, NoProfileMatch
from symbols.plan import Role
from symbols.profile import matches, parse_profile
from symbols.resolve import resolve
from symbols.suggest import suggest
from tests.unit.symbols.builds import C_PROFILE, ZIG_PROFILE, build_c, build_zig
from tests.unit.symbols.test_debugfiles import stripped


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("flags", [("-gdwarf-4", "-O0"), ("-gdwarf-5", "-O2")])
def test_c_pool(compiler: str, flags: tuple[str, str]) -> None:
    exe = build_c("-g", *flags, compiler=compiler)
    text = suggest(exe)
    profile = parse_profile(text)
    assert profile.slot_type == "conn"
    assert profile.functions[Role.CREATE].pattern == "conn_create"
    assert (profile.functions[Role.DESTROY].pattern, profile.functions[Role.DESTROY].argument) == (
        "conn_destroy",
        "conn",
    )
    known = resolve(exe, parse_profile(C_PROFILE))
    guessed = resolve(exe, profile)
    for role in (Role.CREATE, Role.DESTROY):
        assert [s.address for s in guessed.by_role(role)] == [s.address for s in known.by_role(role)]


@pytest.mark.parametrize("mode", ["Debug", "ReleaseSafe"])
def test_zig_pool(mode: str) -> None:
    exe = build_zig(mode)
    profile = parse_profile(suggest(exe))
    known = parse_profile(ZIG_PROFILE)
    for role in (Role.CREATE, Role.DESTROY):
        assert matches(known.functions[role].pattern, profile.functions[role].pattern)
    assert profile.freelist_offset == 0
    sites = [s.address for s in resolve(exe, profile).by_role(Role.DESTROY)]
    assert sites == [s.address for s in resolve(exe, known).by_role(Role.DESTROY)]


def test_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["symbols", "--suggest", str(build_c("-g", "-O2"))]) == 0
    assert parse_profile(capsys.readouterr().out).slot_type == "conn"


def test_refusals(tmp_path: Path) -> None:
    exe, debug = stripped(build_c("-g", "-O2"), tmp_path)
    with pytest.raises(NoDebugInfo):
        suggest(exe)
    assert parse_profile(suggest(exe, debug_file=debug)).slot_type == "conn"
    source = tmp_path / "plain.c"
    source.write_text("int main(void) { return 0; }\n")
    with pytest.raises(NoProfileMatch, match="no function"):
        suggest(build_c("-g", source=str(source)))
