# Owns the bytes to look for: a regular expression that stands on an entry's first byte and reaches up to a
# value in it, for values too short to be searched for alone. Must not search or parse.
from __future__ import annotations

import re

from symbols import dwarf_const as dw
from symbols.abbrevs import Abbrev
from symbols.units import Unit

SHORT = 2
"""Bytes: a value of so few is everywhere; it is found with its entry's code before it."""
REACH = 512
"""Bytes that one of these expressions can span, at most."""

_LEB = rb"[\x80-\xff]{0,18}[\x00-\x7f]"
_FRAME_BASE = b"(?:" + b"|".join(b"[\\x%02x].{%d}" % (size, size) for size in range(1, 17)) + b")"


def entry_regex(unit: Unit, abbrev: Abbrev, index: int, value: bytes) -> re.Pattern[bytes] | None:
    """Where an entry with this abbreviation may start whose attribute number `index` has this value.

    Matches without taking a byte. None where an attribute before it is of no bounded length.
    """
    parts, length = [b"(?=", re.escape(dw.uleb_bytes(abbrev.code))], 16
    for attribute, form, _const in abbrev.attrs[:index]:
        size = unit.sizes.get(form)
        if size is not None:
            parts.append(b".{%d}" % size)
        elif form in dw.LEB_FORMS:
            size, piece = 19, _LEB
            parts.append(piece)
        elif form == dw.FORM_exprloc and attribute == dw.AT_frame_base:
            size = 17
            parts.append(_FRAME_BASE)
        else:
            return None
        length += size
    if length > REACH:
        return None
    return re.compile(b"".join((*parts, re.escape(value), b")")), re.DOTALL)
