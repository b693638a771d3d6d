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
from symbols.profile import (
    _EXTRA,
    _NARROWING,
    _USERDATA,
    load_profile,
    matches,
    parse_profile,
    shipped_profiles,
)
from tests.unit.symbols.builds import C_PROFILE


def test_shipped_http_zig() -> None:
    (profile,) = [p for p in shipped_profiles() if p.name == "http.zig"]
    assert set(profile.functions) == set(Role)
    assert profile.userdata.reserved == (0, 1, 2)
    assert profile.freelist_offset == 0
    linkage = "heap.memory_pool.Extra(worker.Conn(httpz.W),.{ .alignment = null, .growable = true }).destroy"
    assert matches(profile.functions[Role.DESTROY].pattern, linkage)
    assert not matches(profile.functions[Role.DESTROY].pattern, linkage.replace("Conn(httpz.W)", "HTTPConn"))
    older = linkage.replace("memory_pool.Extra(", "memory_pool.MemoryPoolExtra(")  # Zig 0.15
    assert matches(profile.functions[Role.DESTROY].pattern, older)


DESTROY = "[slot]\ndestroy = { function = 'f', slot = 'p' }\n"
MINIMAL = "name = 'x'\n" + DESTROY


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
        ("", "slot", 0),
        ("slots = 3\n" + MINIMAL, "slots", 1),
        ("slot = 'a'", "slot", 1),
        ("name = 3\n" + DESTROY, "name", 1),
        ('name = "a\\u0001"\n' + DESTROY, "name", 1),
        ("description = 3\n" + MINIMAL, "description", 1),
        ("guard = ''\n" + MINIMAL, "guard", 1),
        (MINIMAL + "type = [1]\n", "slot.type", 4),
        (MINIMAL + "freelist_link = {}\n", "slot.freelist_link.offset", 4),
        (MINIMAL + "freelist_link = { offset = true }\n", "slot.freelist_link.offset", 4),
        (MINIMAL + "freelist_link = { offset = 0, x = 1 }\n", "slot.freelist_link.x", 4),
        (MINIMAL + "[slot.freelist_link]\noffset = 1048577\n", "slot.freelist_link.offset", 5),
        (MINIMAL + "create = { function = 'c' }\n", "slot.create.returns", 4),
        (MINIMAL + "create = { function = 'c', object = 'x' }\n", "slot.create.object", 4),
        (MINIMAL + "create = { function = 'c', returns = 'slot', slot = 'x' }\n", "slot.create.slot", 4),
        (MINIMAL + "create = { function = 'c', slot = '' }\n", "slot.create.slot", 4),
        (MINIMAL + "create = { returns = 'slot' }\n", "slot.create.function", 4),
        (MINIMAL.replace("'p' }", "'p', count = 3 }"), "slot.destroy.count", 3),
        (MINIMAL.replace("'p' }", "'p', frees_at = 0 }"), "slot.destroy.frees_at", 3),
        (MINIMAL.replace("'p' }", "'p', count = 'r', frees_at = -1 }"), "slot.destroy.frees_at", 3),
        (MINIMAL.replace("'p' }", "'p', in = '' }"), "slot.destroy.in", 3),
        (MINIMAL + "dispatch = { function = 'c', object = 'x', is = 'it' }\n", "slot.dispatch.is", 4),
        (MINIMAL + "dispatch = { function = 'c', object = 'x', is = 'slot.' }\n", "slot.dispatch.is", 4),
        (MINIMAL + "disown = { function = 'c', slot = 'x', is = 'slot' }\n", "slot.disown.is", 4),
        (MINIMAL + "[userdata]\noffset = -1\n", "userdata.offset", 5),
        (MINIMAL + "[userdata]\noffset = true\n", "userdata.offset", 5),
        (MINIMAL + "[userdata]\noffset = ''\n", "userdata.offset", 5),
        (MINIMAL + "[userdata]\nkind = 'fd'\noffset = 8\n", "userdata.offset", 6),
        (MINIMAL + "disown = { function = 'c', object = 'x' }\n", "slot.disown.object", 4),
        (MINIMAL + "[slot.dispatch]\nfunction = 'q'\n", "slot.dispatch.object", 4),
        (MINIMAL + "[slot.dispatch]\nfunction = '?*'\nobject = 'a'\n", "slot.dispatch.function", 5),
        ("userdata = [1]\n" + MINIMAL, "userdata", 1),
        (MINIMAL + "[userdata]\nkind = 'fd'\nmasks = 3\n", "userdata.masks", 6),
        (MINIMAL + "[userdata]\nmask = '0xff'\n", "userdata.mask", 5),
        (MINIMAL + "[userdata]\nmask = 0x1_0000_0000_0000_0000\n", "userdata.mask", 5),
        (MINIMAL + "[userdata]\nreserved = 3\n", "userdata.reserved", 5),
        (MINIMAL + f"[userdata]\nreserved = {[1] * 1025}\n", "userdata.reserved", 5),
        # Where the key is written: not in strings and comments, whichever way TOML allows.
        ("name = '[slot] destroy = x'\n# [slot]\n[slot]\ndestroy = 3\n", "slot.destroy", 4),
        ("name = 'x#y'\n[slot]\n\"destroy\" = { function = '#', \"slot\" = 3 }\n", "slot.destroy.slot", 3),
        ("name = 'x'\nslot.destroy.function = 'f'\nslot.destroy.slot = 3\n", "slot.destroy.slot", 3),
    ],
)
def test_errors_name_key_and_line(text: str, key: str, line: int) -> None:
    with pytest.raises(ProfileError) as caught:
        parse_profile(text, "p.toml")
    assert caught.value.key == key
    assert caught.value.line == line
    assert caught.value.path == "p.toml"
    assert not line or caught.value.detail.startswith(f"line {line}: ")
    assert key in caught.value.detail


def test_unreadable_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ProfileError):
        load_profile(tmp_path / "none.toml")
    (tmp_path / "bin.toml").write_bytes(b"name = 'x'\n\xff\xfe")
    with pytest.raises(ProfileError) as caught:
        load_profile(tmp_path / "bin.toml")
    assert caught.value.line == 2


def test_a_number_of_thousands_of_digits() -> None:
    with pytest.raises(ProfileError):
        parse_profile(f"name = {'9' * 5000}")


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


def test_the_page_about_profiles_names_every_key_and_shows_a_valid_one() -> None:
    page = (Path(symbols.__file__).parent.parent / "docs" / "profiles.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([a-z._*]+)` \|", page, re.MULTILINE))
    fields = {*(f"slot.{role.value}" for role in Role), "slot.type", "slot.freelist_link"}
    fields |= {f"slot.*.{key}" for key in _NARROWING - {"function"}}
    fields |= {f"slot.{role.value}.{key}" for role, keys in _EXTRA.items() for key in keys}
    assert rows == {
        "name",
        "description",
        "guard",
        *fields,
        *(f"userdata.{k}" for k in _USERDATA),
    }
    whole = [text for text in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if text.startswith("name")]
    assert [parse_profile(text).name for text in whole] == ["cserver"]
    bundled = load_profile(Path(__file__).parents[2] / "targets" / "cserver.toml")
    assert parse_profile(whole[0], bundled.path) == bundled
