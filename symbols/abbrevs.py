# Owns .debug_abbrev: the tables that say how entries are laid out (DWARF 5, section 7.5.3). A table is read
# as far as it is asked for: of most units of a large program only the root is ever looked at.
from __future__ import annotations

from collections.abc import ItemsView, ValuesView
from dataclasses import dataclass

from symbols import dwarf_const as dw
from symbols.data import Data
from symbols.errors import MalformedImage
from symbols.leb import Truncated, sleb, uleb

_MAX_ABBREVS = 100_000
_MAX_ATTRS = 512

Attribute = tuple[int, int, int]
"""(attribute, form, implicit constant)"""


@dataclass(frozen=True, slots=True)
class Abbrev:
    """One abbreviation."""

    code: int
    tag: int
    children: bool
    attrs: tuple[Attribute, ...]
    fixed: int  # bytes of the attribute values; -1 when one of them varies

    def has(self, attribute: int) -> bool:
        return any(entry[0] == attribute for entry in self.attrs)


class Shared:
    """Equal parts of tables, kept once: the tables of a program's units are much alike."""

    def __init__(self) -> None:
        self.attributes: dict[Attribute, Attribute] = {}
        self.rows: dict[tuple[Attribute, ...], tuple[Attribute, ...]] = {}


class Abbrevs:
    """One table: code -> Abbrev. Every method that reads on raises MalformedImage where it is truncated."""

    __slots__ = ("_at", "_known", "_section", "_shared", "_sizes", "_whole")

    def __init__(self, section: Data, offset: int, sizes: dict[int, int], shared: Shared) -> None:
        """sizes: form -> bytes, of forms of fixed size."""
        self._section = section
        self._at = section.base + offset
        self._sizes = sizes
        self._shared = shared
        self._known: dict[int, Abbrev] = {}
        self._whole = False

    def get(self, code: int) -> Abbrev | None:
        found = self._known.get(code)
        while found is None and not self._whole:
            self._read()
            found = self._known.get(code)
        return found

    def __getitem__(self, code: int) -> Abbrev:
        found = self.get(code)
        if found is None:
            raise KeyError(code)
        return found

    def __contains__(self, code: int) -> bool:
        return self.get(code) is not None

    def __bool__(self) -> bool:
        if not self._known and not self._whole:
            self._read()
        return bool(self._known)

    def __len__(self) -> int:
        """How many have been read so far."""
        return len(self._known)

    def values(self) -> ValuesView[Abbrev]:
        return self._all().values()

    def items(self) -> ItemsView[int, Abbrev]:
        return self._all().items()

    def _all(self) -> dict[int, Abbrev]:
        while not self._whole:
            self._read()
        return self._known

    def _read(self) -> None:
        """The next one."""
        try:
            found = self._next()
        except Truncated:
            section = self._section
            self._whole = True
            raise MalformedImage(
                f"table before {self._at - section.base:#x} is truncated",
                path=section.path,
                where=section.name,
            ) from None
        if found is None or len(self._known) >= _MAX_ABBREVS:
            self._whole = True
        else:
            self._known[found.code] = found

    def _next(self) -> Abbrev | None:
        buf, end, pos = self._section.buf, self._section.end, self._at
        attributes, sizes = self._shared.attributes, self._sizes
        code, pos = uleb(buf, pos, end)
        if code == 0:
            return None
        tag, pos = uleb(buf, pos, end)
        if pos >= end:
            raise Truncated
        children = buf[pos] != 0
        pos += 1
        attrs: list[Attribute] = []
        total = 0
        while True:
            attribute, pos = uleb(buf, pos, end)
            form, pos = uleb(buf, pos, end)
            const = 0
            if form == dw.FORM_implicit_const:
                const, pos = sleb(buf, pos, end)
            if attribute == 0 and form == 0:
                break
            if len(attrs) >= _MAX_ATTRS:
                raise Truncated
            entry = (attribute, form, const)
            attrs.append(attributes.setdefault(entry, entry))
            size = sizes.get(form, -1)
            total = -1 if size < 0 or total < 0 else total + size
        row = tuple(attrs)
        self._at = pos
        return Abbrev(code, tag, children, self._shared.rows.setdefault(row, row), total)
