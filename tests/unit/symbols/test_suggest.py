"""A guessed profile is valid TOML, resolves, and names the pool that is meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import symbols
from agent.cli import run
from symbols.errors import NoDebugInfo, NoProfileMatch
from symbols.plan import Role
from symbols.profile import load_profile, matches, parse_profile
from symbols.resolve import resolve
from symbols.suggest import suggest
from tests.targets.build import C_MODES, SOURCE_DIR
from tests.unit.symbols.builds import C_PROFILE, ZIG_PROFILE, build_c, build_cserver, build_zig
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


@pytest.mark.parametrize("mode", C_MODES)
def test_server_nobody_prepared(mode: str) -> None:
    """What is printed resolves completely, at the places that the profile made by hand finds."""
    exe = build_cserver(mode)
    profile = parse_profile(suggest(exe))
    guessed, known = resolve(exe, profile), resolve(exe, load_profile(SOURCE_DIR / "cserver.toml"))
    assert profile.slot_type == "conn"
    assert profile.freelist_offset == 0, "next_free shares its place in an anonymous union; next_done is none"
    for role in (Role.CREATE, Role.DESTROY):
        assert guessed.complete(role)
        assert [s.address for s in guessed.by_role(role)] == [s.address for s in known.by_role(role)]


def test_template_is_a_starting_point(tmp_path: Path) -> None:
    """The generic template with only names changed, as its comments tell, watches the C server."""
    template = (Path(symbols.__file__).parent / "profiles/templates/generic.toml").read_text()
    for line, changed in (
        ('slot = "conn" }', 'slot = "c" }'),
        ('# disown = { function = "conn_detach"', 'disown = { function = "conn_retire"'),
        ('# dispatch = { function = "conn_handle", object = "conn" }',
         'dispatch = { function = "session_state", object = "s" }'),
        ("# freelist_link", "freelist_link"),
        ("# reserved = [0, 1] ", "reserved = [0, 1, 2]"),
    ):  # fmt: skip
        assert line in template
        template = template.replace(line, changed)
    exe = build_cserver("gcc-O2")
    made = resolve(exe, parse_profile(template))
    known = resolve(exe, load_profile(SOURCE_DIR / "cserver.toml"))
    assert (made.sites, made.slot, made.userdata) == (known.sites, known.slot, known.userdata)
    assert not made.unprobed


def test_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["symbols", "--suggest", str(build_c("-g", "-O2"))]) == 0
    assert parse_profile(capsys.readouterr().out).slot_type == "conn"


def test_command_tells_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["symbols", "--suggest", "--format", "json", str(build_c("-g", "-O2"))]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "afterfree.suggestion/1"
    assert parse_profile(told["profile"]).slot_type == told["chosen"]["type"] == "conn"
    assert told["chosen"]["resolves"] is True
    assert told["chosen"]["create"] == {"function": "conn_create"}
    assert told["chosen"]["destroy"] == {"function": "conn_destroy", "slot": "conn"}
    assert all(other["type"] != "conn" for other in told["others"])


def test_refusals(tmp_path: Path) -> None:
    exe, debug = stripped(build_c("-g", "-O2"), tmp_path)
    with pytest.raises(NoDebugInfo):
        suggest(exe)
    assert parse_profile(suggest(exe, debug_file=debug)).slot_type == "conn"
    source = tmp_path / "plain.c"
    source.write_text("int main(void) { return 0; }\n")
    with pytest.raises(NoProfileMatch, match="no function"):
        suggest(build_c("-g", source=str(source)))
