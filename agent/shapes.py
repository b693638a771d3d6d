# Owns the JSON lines of a frame: their values, and what is known of the types without a look at each value.
# Trusts nothing; must not know events.
from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_MOST_SHAPES = 512
_LONGEST_SHAPE = 1024
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG = b"0" * 19  # 18 digits are always of 64 bits


class ShapedLines:
    """Reads frames of JSON lines. The shape of a line is its text without strings and digits, `b""` when none
    is told: two values of one shape have the same types at the same places, integers of 64 bits among them.
    Most lines of a recording are of a dozen shapes, so that the types of few have to be looked at."""

    def __init__(self) -> None:
        self._whole: set[bytes] = set()  # shapes of lines that are one value each, not a part of a value

    def values(self, payload: bytes) -> Iterator[tuple[Any, bytes]]:
        """(value, shape) of each line. Raises ValueError or RecursionError at the line that is no JSON."""
        lines = payload.split(b"\n")
        try:
            # All at once, which is faster. That lines and values are the same is certain where each line is
            # known to be one value; a shape is told only then.
            shapes = self._checked(payload, lines)
            values = json.loads(b"[%b]" % b",".join(lines))
        except (ValueError, RecursionError):
            values = []
        if len(values) == len(lines):
            yield from zip(values, shapes, strict=True)
            return
        for line in lines:
            yield json.loads(line), b""

    def _checked(self, payload: bytes, lines: list[bytes]) -> list[bytes]:
        shapes = _shapes(payload)
        if len(shapes) != len(lines):
            return [b""] * len(lines)
        for unknown in set(shapes) - self._whole:
            for line, shape in zip(lines, shapes, strict=True):
                if shape == unknown:
                    json.loads(line)
                    break
            if len(unknown) > _LONGEST_SHAPE or len(self._whole) >= _MOST_SHAPES:
                return [b""] * len(lines)
            self._whole.add(unknown)
        return shapes


def _shapes(payload: bytes) -> list[bytes]:
    """One for each line, in bulk; none at all where text is escaped or spaced, which our own is not."""
    if b"\\" in payload:
        return []
    text = b'"'.join(payload.split(b'"')[::2])
    if b" " in text or b"\t" in text or b"\r" in text:
        return []
    # An empty list is not to look like a list of one number.
    text = text.replace(b"[]", b"[E]").translate(_DIGITS).replace(_LONG, b"L")
    return text.translate(None, b"0-").split(b"\n")
