# Owns the step from untrusted text (names of programs, threads, files, symbols) to text that may be
# printed. Must not know what the text is for.
from __future__ import annotations

import re
import unicodedata

# C0, DEL, C1 (which hold ESC and the 8-bit CSI), line and paragraph separators, and the controls that
# reorder or hide text (Unicode TR 36 section 3.2; "Trojan Source", CVE-2021-42574).
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def printable(text: object, limit: int = 0) -> str:
    """`text` with every character that is not safe on a terminal written as an escape.

    limit > 0 shortens the result to that many characters, ending in "…". Combining characters beyond
    a few per base character are dropped: they can cover neighbouring lines.
    """
    result = _UNSAFE.sub(_escape, str(text))
    if not result.isascii():
        result = _calm(result)
    if limit and len(result) > limit:
        result = result[: max(limit - 1, 0)] + "…"
    return result


def _calm(text: str, most: int = 4) -> str:
    kept: list[str] = []
    run = 0
    for character in text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run <= most:
            kept.append(character)
    return "".join(kept)


def shell(text: object) -> str:
    """`text` quoted for a command line that the user may copy; control characters escaped."""
    plain = printable(text)
    if plain and re.fullmatch(r"[\w@%+=:,./-]+", plain, re.ASCII):
        return plain
    return "'" + plain.replace("'", "'\\''") + "'"


def markup(text: object) -> str:
    """`printable` text in which rich sees no markup: for the few places that hand rich a string."""
    return re.sub(r"(\\*)(\[[a-z#/@][^[]*?])", r"\1\1\\\2", printable(text))
