# Owns our globs and finding the strings of a string section that match one. The strings are untrusted: the
# time is linear in them whatever they are. Must not know DWARF.
from __future__ import annotations

import re
from collections.abc import Callable

from symbols.data import Data

_MAX_HITS = 100_000
_LONGEST = 1 << 16  # bytes of a name that is looked at; mangled names have a few thousand at most
_MAX_WORK = 32 << 20  # bytes compared for a glob that opens with *


def matches(pattern: str, name: str) -> bool:
    return glob_regex(pattern).match(name) is not None


def glob_regex(pattern: str) -> re.Pattern[str]:
    """Our globs: only * and ? are special; [ ] { } ( ) . , are themselves."""
    return re.compile(_regex(pattern, ".", re.escape) + r"\Z", re.DOTALL)


def _strings_regex(pattern: str) -> re.Pattern[bytes]:
    """The same for strings that end with a NUL."""
    text = _regex(pattern, r"[^\0]", lambda part: re.escape(part.encode()).decode("latin-1"))
    return re.compile(text.encode("latin-1") + rb"\0", re.DOTALL)


def _regex(pattern: str, any_char: str, escape: Callable[[str], str]) -> str:
    """A regular expression that never goes back to an earlier *: the first place where a part fits is as good
    as any later one, except for the last part, which stands at the end. Trying all of them would cost the
    name's length to the power of the number of stars."""

    def literal(part: str) -> str:
        return any_char.join(escape(piece) for piece in part.split("?"))

    first, *rest = re.split(r"\*+", pattern)
    middle = "".join(f"(?>{any_char}*?{literal(part)})" for part in rest[:-1])
    return literal(first) + middle + (f"{any_char}*{literal(rest[-1])}" if rest else "")


def longest_literal(pattern: str) -> bytes:
    """The longest piece without * and ?, which every match holds."""
    return max(re.split(r"[*?]+", pattern), key=len).encode()


def string_offsets(data: Data, pattern: str) -> set[int] | None:
    """Offsets in a string section at which a string that matches the glob starts.

    Also inside of another string, whose end it is: linkers merge them. None: the glob is too wide to tell.
    Raises MalformedImage.
    """
    if not data.size:
        return set()
    start = re.match(r"[^*?]*", pattern)
    prefix = start.group().encode() if start else b""
    return _with_prefix(data, pattern, prefix) if prefix else _anywhere(data, pattern)


def _with_prefix(data: Data, pattern: str, prefix: bytes) -> set[int]:
    regex, found, left = _strings_regex(pattern), set[int](), 4 * data.size + (1 << 20)
    at = data.position(prefix, data.base, data.end)
    while at >= 0 and len(found) < _MAX_HITS:
        end = data.buf.find(b"\0", at, min(at + _LONGEST, data.end))
        left -= end - at if end >= 0 else _LONGEST // 4  # the search alone is cheaper
        if left < 0:
            raise data.bad("its strings overlap more than any linker makes them")
        if end >= 0 and regex.match(data.buf, at, end + 1):
            found.add(at - data.base)
        at = data.position(prefix, at + 1, data.end)
    return found


def _anywhere(data: Data, pattern: str) -> set[int] | None:
    """For a glob that opens with * or ?: strings with its longest literal, and their ends that match."""
    literal = longest_literal(pattern)
    if not literal:
        return None
    regex, found, left, done = _strings_regex(pattern), set[int](), _MAX_WORK, -1
    for hit in data.find_all(literal):
        at = data.base + hit
        if at < done:
            continue
        low = data.buf.rfind(b"\0", max(data.base, at - _LONGEST), at) + 1 or max(data.base, at - _LONGEST)
        done = data.buf.find(b"\0", at, min(at + _LONGEST, data.end))
        left -= max(done - low, 1) ** 2
        if left < 0 or len(found) > _MAX_HITS or done < 0:
            return None
        found.update(p - data.base for p in range(low, at + 1) if regex.match(data.buf, p, done + 1))
    return found
