from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.sanitize import markup, printable, shell


def test_escape_sequences_and_controls_become_visible() -> None:
    assert printable("a\x1b[31mred\r\n\x9b2J") == "a\\x1b[31mred\\x0d\\x0a\\x9b2J"
    assert printable("tab\there") == "tab\\x09here"


def test_bidi_controls_are_escaped() -> None:
    assert printable("user\u202etxt.exe") == "user\\u202etxt.exe"
    assert printable("\U000e0041") == "\\U000e0041"


def test_ordinary_text_stays() -> None:
    assert printable("größe ☃ 服务器") == "größe ☃ 服务器"


def test_limit_counts_the_ellipsis() -> None:
    assert printable("abcdefgh", 5) == "abcd…"
    assert printable("abcde", 5) == "abcde"


def test_stacked_combining_characters_are_cut() -> None:
    assert printable("a" + "\u0301" * 50) == "a" + "\u0301" * 4


def test_shell_quotes_only_what_needs_it() -> None:
    assert shell("/usr/bin/node") == "/usr/bin/node"
    assert shell("my server's") == "'my server'\\''s'"


def test_rich_sees_no_markup() -> None:
    from rich.text import Text

    assert Text.from_markup(markup("[red]x[/red] \\[bold]")).plain == "[red]x[/red] \\[bold]"


@given(st.text())
def test_nothing_unsafe_survives(text: str) -> None:
    result = printable(text)
    assert all(ord(c) >= 0x20 and not 0x7F <= ord(c) <= 0x9F for c in result)
    result.encode("utf-8")
