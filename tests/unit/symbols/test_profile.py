"""Profiles: what is accepted, and where an error is said to be."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import symbols
from symbols.errors import ProfileError
from symbols.plan import Role
from symbols.profile import load_profile, matches, parse_profile, shipped_profiles
from tests.unit.symbols.builds import C_PROFILE


def test_shipped_http_zig() -> None:
    (profile,) = [p for p in shipped_profiles() if p.name == "http.zig"]
    assert set(profile.functions) == set(Role)
    assert profile.userdata.reserved == (0, 1, 2)
    assert profile.freelist_offset == 0
    linkage = "heap.memory_pool.Extra(worker.Conn(httpz.W),.{ .alignment = null, .growable = true }).destroy"
    assert matches(profile.functions[Role.DESTROY].pattern, linkage)
    assert not matches(profile.functions[Role.DESTROY].pattern, linkage.replace("Conn(httpz.W)", "HTTPConn"))


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("name = ", "", 1),
        ("name = 'x'\n[slot", "", 2),
        ("[slot]\ntype = 'a'", "slot.destroy", 1),
        ("name = 'x'\n[slot]\ntyp = 'a'", "slot.typ", 3),
        ("name = 'x'\n[slot]\ndestroy = 3", "slot.destroy", 3),
        ("name = 'x'\n[slot]\n\ndestroy = { function = 'f' }", "slot.destroy.slot", 4),
        ("name = 'x'\n[slot]\ndestroy = { function = '', slot = 'p' }", "slot.destroy.function", 3),
        ("name = 'x'\n[slot]\ndestroy = { function = '*', slot = 'p' }", "slot.destroy.function", 3),
        ("[slot]\ndestroy = { function = 'f', slot = 'p' }", "name", 0),
        (C_PROFILE + "[userdata]\nkind = 'ptr'", "userdata.kind", 11),
        (C_PROFILE + "[userdata]\nreserved = [-1]", "userdata.reserved", 11),
        (C_PROFILE + "[userdata]\nmask = 0", "userdata.mask", 11),
        (C_PROFILE.replace("offset = 0", "offset = -8"), "slot.freelist_link.offset", 9),
        (C_PROFILE.replace('returns = "slot"', 'returns = "it"'), "slot.create.returns", 5),
    ],
)
def test_errors_name_key_and_line(text: str, key: str, line: int) -> None:
    with pytest.raises(ProfileError) as caught:
        parse_profile(text, "p.toml")
    assert caught.value.key == key
    assert caught.value.line == line
    assert caught.value.path == "p.toml"


def test_unreadable_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ProfileError):
        load_profile(tmp_path / "none.toml")
    (tmp_path / "bin.toml").write_bytes(b"name = 'x'\n\xff\xfe")
    with pytest.raises(ProfileError) as caught:
        load_profile(tmp_path / "bin.toml")
    assert caught.value.line == 2


@given(st.text(max_size=200))
def test_any_text_is_a_profile_or_a_profile_error(text: str) -> None:
    with contextlib.suppress(ProfileError):
        parse_profile(text)


@given(st.text(alphabet="ab[]{}().*?, ", max_size=12))
def test_only_star_and_question_mark_are_special(name: str) -> None:
    if not set(name) & {"*", "?"}:
        assert matches(name, name)
        assert not matches(name, name + "x")
    assert matches("*", name)


def test_template_is_valid_and_never_picked() -> None:
    template = Path(symbols.__file__).parent / "profiles" / "templates" / "generic.toml"
    assert load_profile(template).functions[Role.DESTROY].argument == "conn"
    assert all(profile.name != "my-server" for profile in shipped_profiles())
    uncommented = "\n".join(
        line.removeprefix("# ")
        if re.match(r"# (disown|dispatch|freelist_link|mask|reserved) = ", line)
        else line
        for line in template.read_text().splitlines()
    )
    full = parse_profile(uncommented)
    assert set(full.functions) == set(Role)
    assert full.freelist_offset == 0
    assert full.userdata.reserved == (0, 1)
