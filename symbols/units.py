# Owns units: where each unit of a section begins, and which file's sections it reads. Parses headers only;
# must not read entries (dwarf.py does) nor their layout (abbrevs.py).
from __future__ import annotations

from dataclasses import dataclass, field

from symbols import dwarf_const as dw
from symbols.abbrevs import Abbrev, Abbrevs, Shared
from symbols.data import Data
from symbols.image import Image

_MAX_UNITS = 1_000_000

UT_TYPE, UT_SKELETON, UT_SPLIT, UT_SPLIT_TYPE = 2, 4, 5, 6


class Part:
    """The debug sections that a unit reads: of the main file, a .dwo, a .dwp's share, a supplementary file.

    Entries of all files have one number space: an entry's number is its offset in its section plus shift.
    """

    __slots__ = ("_windows", "abbrev", "image", "line_str", "shift", "str", "suffix", "supplement")

    def __init__(
        self, image: Image, *, shift: int = 0, suffix: str = "", windows: dict[str, Data] | None = None
    ) -> None:
        self.image = image
        self.shift = shift
        self.suffix = suffix
        self.supplement: Part | None = None
        self._windows = windows or {}
        self.abbrev = self.section(".debug_abbrev")
        self.str = self.section(".debug_str")
        self.line_str = self.section(".debug_line_str")

    def section(self, name: str) -> Data:
        found = self._windows.get(name)
        return self.image.section(name + self.suffix) if found is None else found

    def same_file(self, other: Part | None) -> bool:
        return other is not None and other.image is self.image and other.shift == self.shift


@dataclass(slots=True)
class Unit:
    """One unit. Offsets are entry numbers: section offsets plus the part's shift."""

    offset: int
    end: int
    version: int
    offset_size: int
    addr_size: int
    kind: int  # DW_UT_*, 1 for a DWARF 4 compile unit
    first: int  # offset of the root DIE
    abbrevs: Abbrevs = field(repr=False)
    sizes: dict[int, int] = field(repr=False)  # form -> bytes, for forms of fixed size
    info: Data = field(repr=False)  # the section it is in; its base counts in entry numbers
    part: Part = field(repr=False)
    ident: int = 0  # type signature, or the dwo_id of a DWARF 5 skeleton and of its split unit
    type_at: int = 0  # the entry number of a type unit's type
    skeleton: Unit | None = field(default=None, repr=False)  # of a split unit
    root: Die | None = field(default=None, repr=False)

    @property
    def home(self) -> Unit:
        """The unit in the main file that has the addresses and the line table."""
        return self.skeleton or self


@dataclass(slots=True)
class Die:
    """A parsed entry. values: attribute -> (form, value); bytes for blocks and inline strings."""

    unit: Unit = field(repr=False)
    offset: int
    abbrev: Abbrev = field(repr=False)
    values: dict[int, tuple[int, int | bytes]]
    end: int  # where the next entry starts

    @property
    def tag(self) -> int:
        return self.abbrev.tag

    def has(self, attribute: int) -> bool:
        return attribute in self.values

    def number(self, attribute: int) -> int | None:
        entry = self.values.get(attribute)
        return entry[1] if entry is not None and isinstance(entry[1], int) else None


Tables = dict[tuple[int, int, int, int, int], tuple[Abbrevs, dict[int, int]]]
"""Abbreviation tables by (their section's base, offset, offset size, address size, version)."""


class UnitReader:
    """Reads unit headers; keeps abbreviation tables, which units share."""

    def __init__(self) -> None:
        self._tables: Tables = {}
        self._shared = Shared()
        self._sizes: dict[tuple[int, int, int], dict[int, int]] = {}

    def read(
        self, part: Part, info: Data, *, types: bool = False, span: tuple[int, int] = (0, 0)
    ) -> list[Unit]:
        """The units of a .debug_info (types: .debug_types) window. span: only from one offset to another."""
        shifted = Data(info.buf, info.base - part.shift, info.size + part.shift, info.name, info.path)
        units: list[Unit] = []
        at, limit = span if span[1] else (0, info.size)
        while at + 4 <= limit and len(units) < _MAX_UNITS:
            length, offset_size, pos = info.uint(at, 4), 4, at + 4
            if length == 0xFFFFFFFF:
                length, offset_size, pos = info.uint(pos, 8), 8, pos + 8
            elif length >= 0xFFFFFFF0:
                raise info.bad(f"unit at {at:#x} has a reserved length")
            end = pos + length
            if length < 7 or end > info.size:
                raise info.bad(f"unit at {at:#x} ends beyond the section")
            version, kind, ident, type_at = info.uint(pos, 2), 1, 0, 0
            pos += 2
            if version == 5:
                kind, addr_size = info.uint(pos, 1), info.uint(pos + 1, 1)
                abbrev_at = info.uint(pos + 2, offset_size)
                pos += 2 + offset_size
                if kind in (UT_TYPE, UT_SPLIT_TYPE, UT_SKELETON, UT_SPLIT):
                    ident, pos = info.uint(pos, 8), pos + 8
            elif 2 <= version <= 4:
                abbrev_at, addr_size = info.uint(pos, offset_size), info.uint(pos + offset_size, 1)
                pos += offset_size + 1
                if types:
                    kind, ident, pos = UT_TYPE, info.uint(pos, 8), pos + 8
            else:
                at = end  # a version from the future: nothing in it is ours
                continue
            if kind in (UT_TYPE, UT_SPLIT_TYPE):
                type_at, pos = at + part.shift + info.uint(pos, offset_size), pos + offset_size
            if addr_size not in (4, 8):
                raise info.bad(f"unit at {at:#x} has {addr_size}-byte addresses")
            table, sizes = self._abbrevs(part.abbrev, abbrev_at, offset_size, addr_size, version)
            shift = part.shift
            units.append(
                Unit(
                    at + shift, end + shift, version, offset_size, addr_size, kind, pos + shift, table, sizes,
                    shifted, part, ident, type_at,
                )
            )  # fmt: skip
            at = end
        return units

    def _abbrevs(
        self, section: Data, offset: int, offset_size: int, addr_size: int, version: int
    ) -> tuple[Abbrevs, dict[int, int]]:
        key = (id(section.buf) ^ section.base, offset, offset_size, addr_size, version)
        if key not in self._tables:
            sizes = self._sizes_of(offset_size, addr_size, version)
            self._tables[key] = (Abbrevs(section, offset, sizes, self._shared), sizes)
        return self._tables[key]

    def _sizes_of(self, offset_size: int, addr_size: int, version: int) -> dict[int, int]:
        key = (offset_size, addr_size, version)
        if key not in self._sizes:
            sizes = dict(dw.FIXED_SIZES)
            sizes[dw.FORM_addr] = addr_size
            sizes.update(dict.fromkeys(dw.OFFSET_FORMS, offset_size))
            sizes[dw.FORM_ref_addr] = addr_size if version == 2 else offset_size
            self._sizes[key] = sizes
        return self._sizes[key]
