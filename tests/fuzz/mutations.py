"""Mutations of executables that know what they damage. Each takes a base and gives its changed bytes.

Owns the damage only. Must not run anything of symbols/.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable

from symbols import dwarf_const as dw
from tests.fuzz.model import Base, Section

Mutation = Callable[[Base, bytearray, random.Random], None]

_FORMS = [getattr(dw, name) for name in dir(dw) if name.startswith("FORM_")]
_FORMS = [form for form in _FORMS if isinstance(form, int)]
_TAGS = [getattr(dw, name) for name in dir(dw) if name.startswith("TAG_")]
_ATTRIBUTES = [value for name in dir(dw) if name.startswith("AT_") and (value := getattr(dw, name)) < 0x80]
_REFS = (dw.FORM_ref1, dw.FORM_ref2, dw.FORM_ref4, dw.FORM_ref8, dw.FORM_ref_udata)
_TIMES = (1, 1, 1, 2, 4, 12)


def number(rng: random.Random, size: int, near: int = 0) -> int:
    """An interesting value of `size` bytes; near: one that has a meaning in the file."""
    bits = 8 * size
    choices = (
        0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << (bits - 1), (1 << (bits - 1)) - 1,
        -1, -2, -16, near, near - 1, near + 1, near * 2, near // 2, 1 << 20, 1 << 30, 1 << 40,
        rng.getrandbits(bits),
        rng.randrange(1 << min(bits, 12)),
    )  # fmt: skip
    return rng.choice(choices) & ((1 << bits) - 1)


def put(data: bytearray, at: int, size: int, value: int) -> None:
    if at >= 0 and at + size <= len(data):
        data[at : at + size] = (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little")


def scribble(data: bytearray, start: int, size: int, rng: random.Random, times: int) -> None:
    """Some bytes of a span become others."""
    for _ in range(times):
        at = start + rng.randrange(max(size, 1))
        if at < len(data):
            width = rng.choice((1, 1, 1, 2, 4, 8))
            if width == 1:
                data[at] = rng.choice(
                    (0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1 << rng.randrange(8), rng.randrange(256))
                )
            else:
                put(data, at, width, number(rng, width, size))


def replace_section(data: bytearray, section: Section, content: bytes, flags: int | None = None) -> None:
    """The section's bytes are these from now on, at the file's end."""
    place = len(data)
    data += content
    put(data, section.header + 24, 8, place)
    put(data, section.header + 32, 8, len(content))
    if flags is not None:
        put(data, section.header + 8, 8, flags)


# -- headers -----------------------------------------------------------------------------------------


def elf_header(base: Base, data: bytearray, rng: random.Random) -> None:
    fields = (
        (4, 1), (5, 1), (16, 2), (18, 2), (24, 8), (32, 8), (40, 8), (52, 2), (54, 2), (56, 2), (58, 2),
        (60, 2), (62, 2),
    )  # fmt: skip
    for _ in range(rng.choice(_TIMES)):
        at, size = rng.choice(fields)
        put(data, at, size, number(rng, size, len(data)))


def section_headers(base: Base, data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice(_TIMES)):
        section = rng.choice(base.sections)
        other = rng.choice(base.sections)
        if rng.random() < 0.15:  # one section poses as another
            data[section.header + 4 : section.header + 64] = data[other.header + 4 : other.header + 64]
            continue
        at, size = rng.choice(
            ((0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (32, 8), (40, 4), (44, 4), (56, 8))
        )
        put(
            data,
            section.header + at,
            size,
            number(rng, size, rng.choice((section.size, other.offset, len(data)))),
        )


def program_headers(base: Base, data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice(_TIMES)):
        index = rng.randrange(max(1, base.raw[56]))
        at, size = rng.choice(((0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 8)))
        put(data, base.phoff + 56 * index + at, size, number(rng, size, len(data)))


def symbols(base: Base, data: bytearray, rng: random.Random) -> None:
    _sections(base, data, rng, ".symtab", ".strtab", ".dynsym", ".dynstr")


# -- entries -----------------------------------------------------------------------------------------


def abbreviations(base: Base, data: bytearray, rng: random.Random) -> None:
    if not base.abbreviations:
        _sections(base, data, rng, ".debug_abbrev")
        return
    for _ in range(rng.choice(_TIMES)):
        at, what = rng.choice(base.abbreviations)
        value = rng.randrange(256)
        if what == "form":
            value = rng.choice(_FORMS) & 0x7F
        elif what == "attribute":
            value = rng.choice(_ATTRIBUTES)
        elif what == "tag":
            value = rng.choice(_TAGS) & 0x7F
        elif what == "children":
            value = 1 - (base.raw[at] & 1)
        put(data, at, 1, value if rng.random() < 0.9 else rng.randrange(256))


def forms(base: Base, data: bytearray, rng: random.Random) -> None:
    """Only forms, to others of the same size or not: entries keep their bytes and change their meaning."""
    places = [at for at, what in base.abbreviations if what == "form"]
    if not places:
        _sections(base, data, rng, ".debug_abbrev")
        return
    for _ in range(rng.choice(_TIMES)):
        put(data, rng.choice(places), 1, rng.choice(_FORMS) & 0x7F)


def values(base: Base, data: bytearray, rng: random.Random) -> None:
    """Attribute values: other numbers, references to any other entry (or to themselves)."""
    if not base.values:
        _sections(base, data, rng, ".debug_info")
        return
    for _ in range(rng.choice(_TIMES)):
        value = rng.choice(base.values)
        if value.form in _REFS and rng.random() < 0.8:
            put(data, value.at, value.size, rng.choice(base.entries)[1])
        elif value.size <= 8:
            put(data, value.at, value.size, number(rng, value.size, len(data)))
        else:
            scribble(data, value.at, value.size, rng, rng.choice(_TIMES))


def expressions(base: Base, data: bytearray, rng: random.Random) -> None:
    places = [v for v in base.values if v.form in (dw.FORM_exprloc, dw.FORM_block1)]
    if not places:
        _sections(base, data, rng, ".debug_loc", ".debug_info")
        return
    for _ in range(rng.choice(_TIMES)):
        value = rng.choice(places)
        for at in range(value.at + 1, value.at + value.size):
            if rng.random() < 0.6:
                known = rng.choice((0x03, 0x06, 0x10, 0x91, 0x93, 0x9C, 0x9F, 0xA3))
                put(data, at, 1, rng.choice((rng.randrange(256), known)))


def entries(base: Base, data: bytearray, rng: random.Random) -> None:
    """Bytes of .debug_info and .debug_types, whatever they are."""
    _sections(base, data, rng, ".debug_info", ".debug_types")


def splice(base: Base, data: bytearray, rng: random.Random) -> None:
    """A piece of a section is cut out, doubled or moved; the section header follows."""
    places = base.named(".debug", ".zdebug", ".eh_frame", ".symtab", ".strtab")
    if not places:
        scribble(data, 0, len(data), rng, 4)
        return
    section = rng.choice(places)
    content = bytes(data[section.offset : section.offset + section.size]) or b"\0"
    low = rng.randrange(len(content))
    high = min(len(content), low + rng.choice((1, 2, 8, 64, 1024)))
    piece = content[low:high]
    where = rng.randrange(len(content))
    changed = rng.choice(
        (
            content[:low] + content[high:],
            content[:high] + piece * rng.choice((1, 2, 50)) + content[high:],
            content[:where] + piece + content[where:],
            content[:low],
            content[low:],
            rng.randbytes(rng.choice((1, 16, 300))) + content,
        )
    )
    replace_section(data, section, changed)


def strings(base: Base, data: bytearray, rng: random.Random) -> None:
    if rng.random() < 0.3:  # no terminators
        for section in base.named(".debug_str", ".debug_line_str", ".shstrtab", ".strtab"):
            if rng.random() < 0.5:
                span = data[section.offset : section.offset + section.size]
                data[section.offset : section.offset + len(span)] = span.replace(b"\0", b"_")
    _sections(base, data, rng, ".debug_str", ".debug_line_str", ".debug_str_offsets", ".debug_addr")


# -- tables ------------------------------------------------------------------------------------------


def lists(base: Base, data: bytearray, rng: random.Random) -> None:
    _sections(
        base, data, rng, ".debug_loc", ".debug_rnglists", ".debug_ranges", ".debug_addr", ".debug_aranges"
    )


def lines(base: Base, data: bytearray, rng: random.Random) -> None:
    for section in base.named(".debug_line"):
        if rng.random() < 0.5:
            scribble(data, section.offset, min(section.size, 48), rng, rng.choice(_TIMES))  # the header
    _sections(base, data, rng, ".debug_line")


def frames(base: Base, data: bytearray, rng: random.Random) -> None:
    _sections(base, data, rng, ".eh_frame", ".eh_frame_hdr", ".debug_frame")


def code(base: Base, data: bytearray, rng: random.Random) -> None:
    for section in base.named(".text"):
        if rng.random() < 0.5:
            at = section.offset + rng.randrange(section.size)
            size = min(rng.choice((8, 64, 512)), section.offset + section.size - at)
            if at + size <= len(data):
                data[at : at + size] = rng.randbytes(size)
    _sections(base, data, rng, ".text")


def links(base: Base, data: bytearray, rng: random.Random) -> None:
    _sections(
        base, data, rng, ".gnu_debuglink", ".note.gnu.build-id", ".gnu_debugaltlink", ".debug_sup", ".note"
    )


def compressed(base: Base, data: bytearray, rng: random.Random) -> None:
    """Compression headers and streams that lie, and sections that inflate to far more than they are."""
    section = rng.choice(base.named(".debug", ".zdebug") or base.sections)
    content = bytearray(data[section.offset : section.offset + section.size]) or bytearray(1)
    if section.flags & 0x800 or section.name.startswith(".zdebug"):
        scribble(data, section.offset, min(section.size, 30 if rng.random() < 0.7 else section.size), rng, 2)
        return
    claimed = len(content)
    kind = rng.choice(("true", "true", "damaged", "lie", "bomb"))
    if kind == "bomb":
        content = bytearray(rng.choice((b"\0", b"\x01", b"conn_destroy", b"\0\0\0\0\0\0\0\x01"))) * (
            1 << rng.randrange(10, 23)
        )
        claimed = len(content)
    elif kind == "damaged":
        scribble(content, 0, len(content), rng, 3)
    elif kind == "lie":
        claimed = number(rng, 8, claimed)
    packed = bytearray(zlib.compress(bytes(content), 1))
    if rng.random() < 0.3:
        scribble(packed, 0, len(packed), rng, 1)
    kind_code = rng.choice((1, 1, 1, 1, 1, 2, 0, 99))
    head = struct.pack("<IIQQ", kind_code, 0, claimed, rng.choice((1, 8, 0, 1 << 63)))
    replace_section(data, section, head + bytes(packed), section.flags | 0x800)


def swollen(base: Base, data: bytearray, rng: random.Random) -> None:
    """A section grows to a megabyte or more of itself: what is not linear shows."""
    section = rng.choice(base.named(".debug", ".eh_frame", ".symtab", ".strtab") or base.sections)
    content = bytes(data[section.offset : section.offset + section.size]) or b"\0"
    size = rng.choice((1 << 18, 1 << 20, 1 << 21))
    pattern = rng.choice((content, content, b"conn_destroy", b"\x01", content[: rng.randrange(1, 40)]))
    if section.name == ".debug_str" and rng.random() < 0.5:
        pattern = b"conn_destroy"
    replace_section(data, section, content + pattern * (size // len(pattern)) + b"\0")


# -- anything ----------------------------------------------------------------------------------------


def anywhere(base: Base, data: bytearray, rng: random.Random) -> None:
    scribble(data, 0, len(data), rng, rng.choice((1, 8, 64, 400)))


def truncated(base: Base, data: bytearray, rng: random.Random) -> None:
    del data[
        rng.choice((rng.randrange(max(len(data), 1)), rng.randrange(128), base.shoff + rng.randrange(256))) :
    ]


def noise(base: Base, data: bytearray, rng: random.Random) -> None:
    """Random bytes, with the head of a real file so that they are looked at, or without."""
    keep = rng.choice((0, 4, 16, 64, 64 + 56 * 13))
    data[keep:] = rng.randbytes(rng.choice((0, 1, 60, 64, 400, 8000)))


def _sections(base: Base, data: bytearray, rng: random.Random, *prefixes: str) -> None:
    places = base.named(*prefixes)
    if not places:
        scribble(data, 0, len(data), rng, 4)
        return
    for _ in range(rng.choice((1, 1, 2))):
        section = rng.choice(places)
        scribble(data, section.offset, section.size, rng, rng.choice(_TIMES))


MUTATIONS: dict[str, Mutation] = {
    "elf-header": elf_header, "section-headers": section_headers, "program-headers": program_headers,
    "symbols": symbols, "abbreviations": abbreviations, "forms": forms, "values": values,
    "expressions": expressions, "entries": entries, "splice": splice, "strings": strings, "lists": lists,
    "lines": lines, "frames": frames, "code": code, "links": links, "compressed": compressed,
    "swollen": swollen, "anywhere": anywhere, "truncated": truncated, "noise": noise,
}  # fmt: skip
