"""What a mutation needs to know of a base binary: where its headers, entries and attribute values lie.

Owns the map of a good file. Must not change it (mutations.py does).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from symbols import dwarf_const as dw
from symbols.dwarf import Dwarf
from symbols.errors import SymbolError
from symbols.image import Image
from symbols.leb import uleb

HEADER = struct.Struct("<IIQQQQIIQQ")


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    offset: int
    size: int
    header: int  # file offset of its header
    flags: int
    type: int


@dataclass(frozen=True, slots=True)
class Value:
    """One attribute value of an entry, in the file."""

    at: int
    size: int
    attribute: int
    form: int
    tag: int
    unit: int  # file offset of its unit


@dataclass(slots=True)
class Base:
    """A good file, and companions beside it (a .dwo, a .dwp, a supplementary file) by name."""

    name: str
    path: Path
    raw: bytes
    profile: str  # "c" or "zig": whose functions are in it
    companions: dict[str, Base] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    entries: list[tuple[int, int]] = field(default_factory=list)  # (file offset, offset in its unit)
    abbreviations: list[tuple[int, str]] = field(default_factory=list)  # (file offset, what is there)
    functions: list[int] = field(default_factory=list)  # addresses

    def named(self, *prefixes: str) -> list[Section]:
        """Sections with bytes whose name starts with one of the prefixes."""
        return [s for s in self.sections if s.size and s.type != 8 and s.name.startswith(prefixes)]

    @property
    def shoff(self) -> int:
        return int(struct.unpack_from("<Q", self.raw, 40)[0])

    @property
    def phoff(self) -> int:
        return int(struct.unpack_from("<Q", self.raw, 32)[0])

    @property
    def phnum(self) -> int:
        return int(struct.unpack_from("<H", self.raw, 56)[0])


def read(
    path: Path, profile: str, companions: dict[str, Base] | None = None, name: str | None = None
) -> Base:
    """The map of a good file."""
    base = Base(name or path.name, path, path.read_bytes(), profile, companions or {})
    with Image(path, relocatable=True) as image:
        for index, header in enumerate(image.sections):
            base.sections.append(
                Section(
                    header.name,
                    header.offset,
                    header.size,
                    base.shoff + 64 * index,
                    header.flags,
                    header.type,
                )
            )
        base.functions = [symbol.address for symbol in image.functions]
        if any(s.name == ".debug_info" and not s.flags & 0x800 for s in base.sections):
            try:
                dwarf = Dwarf(image)
            except SymbolError:
                return base
            try:
                _entries(base, image, dwarf)
            finally:
                dwarf.close()
    return base


def _entries(base: Base, image: Image, dwarf: Dwarf) -> None:
    info = next(s for s in base.sections if s.name == ".debug_info")
    for unit in dwarf.units:
        if unit.part.image is not image or unit.end > info.size:
            continue
        at = unit.first
        while at < unit.end:
            start, where = at, info.offset + at
            die = dwarf.die(at, unit)
            if die is None:
                at += 1
                continue
            base.entries.append((where, start - unit.offset))
            _code, pos = uleb(unit.info.buf, unit.info.base + at, unit.info.base + unit.end)
            for index, (attribute, form, _const) in enumerate(die.abbrev.attrs):
                low = dwarf.skip(unit, die.abbrev, pos, index)
                high = dwarf.skip(unit, die.abbrev, pos, index + 1)
                if index + 1 == len(die.abbrev.attrs):
                    high = unit.info.base + die.end
                if high > low:
                    value = Value(low, high - low, attribute, form, die.tag, info.offset + unit.offset)
                    base.values.append(value)
            at = die.end
        dwarf.refill()
    for section in base.named(".debug_abbrev"):
        _abbreviations(base, section)


def _abbreviations(base: Base, section: Section) -> None:
    pos, end, raw = section.offset, section.offset + section.size, base.raw
    while pos < end:
        base.abbreviations.append((pos, "code"))
        code, pos = uleb(raw, pos, end)
        if not code:
            continue
        base.abbreviations.append((pos, "tag"))
        _tag, pos = uleb(raw, pos, end)
        base.abbreviations.append((pos, "children"))
        pos += 1
        while pos < end:
            at = pos
            attribute, pos = uleb(raw, pos, end)
            middle = pos
            form, pos = uleb(raw, pos, end)
            if form == dw.FORM_implicit_const:
                base.abbreviations.append((pos, "const"))
                _const, pos = uleb(raw, pos, end)
            if not attribute and not form:
                base.abbreviations.append((at, "end"))
                break
            base.abbreviations += [(at, "attribute"), (middle, "form")]
