# Owns finding free-list pushes in machine code by their bytes: `mov X, [head]; mov [slot + link], X;
# mov [head], slot`. Finds candidates, quickly, over all code; what they mean is judged elsewhere.
from __future__ import annotations

import re
from collections.abc import Iterator

from symbols.image import Image

_TEXT = 1 << 20  # bytes of code searched at a time
_WINDOW = 48  # bytes between the three instructions of a push


def pushes(image: Image, link: int) -> Iterator[int]:
    """Addresses of instructions that look like the store of a list's head, the last step of a push.

    Encodings: Intel SDM 2.1, 2.2.1 (REX.W 89 /r and REX.W 8B /r, ModRM, SIB without index).
    """
    pattern = _link_store(link)
    for segment in image.segments:
        if not segment.executable:
            continue
        for base in range(segment.vaddr, segment.vaddr + segment.filesz, _TEXT):
            low = max(segment.vaddr, base - _WINDOW)
            text = image.code(low, _TEXT + 3 * _WINDOW)
            for match in pattern.finditer(text, base - low, _TEXT + base - low):
                yield from _around(text, match.start(), match.end(), low)


def _link_store(link: int) -> re.Pattern[bytes]:
    """A store of a 64-bit register to [register + link]."""
    signed = link.to_bytes(4, "little", signed=True)
    wide = rb"[\x80-\xbf]\x24?" + re.escape(signed)
    if link == 0:
        places = rb"(?:[\x00-\x3f]|[\x40-\x7f]\x24?\x00)"
    elif -128 <= link < 128:
        places = rb"(?:[\x40-\x7f]\x24?" + re.escape(signed[:1]) + rb"|" + wide + rb")"
    else:
        places = wide
    return re.compile(rb"[\x48\x49\x4c\x4d]\x89" + places, re.DOTALL)


def _around(text: bytes, start: int, end: int, low: int) -> Iterator[int]:
    """Heads' stores near the link store in text[start:end] that were loaded from before it."""
    rex, modrm = text[start], text[start + 2]
    following = modrm >> 3 & 7 | (rex & 4) << 1
    slot = modrm & 7 | (rex & 1) << 3
    at = text.find(b"\x89", max(start - _WINDOW, 0) + 1, end + _WINDOW)
    while at >= 0:
        if at != start + 1 and text[at - 1] & 0xFA == 0x48:
            stored = _operand(text, at, low)
            if stored is not None and stored[0] == slot and _loaded(text, start, low, following, stored[1]):
                yield low + at - 1
        at = text.find(b"\x89", at + 1, end + _WINDOW)


def _loaded(text: bytes, before: int, low: int, register: int, place: tuple[int, int]) -> bool:
    """Whether the register was loaded from the place shortly before."""
    at = text.find(b"\x8b", max(before - _WINDOW, 0) + 1, before)
    while at >= 0:
        if text[at - 1] & 0xFA == 0x48 and _operand(text, at, low) == (register, place):
            return True
        at = text.find(b"\x8b", at + 1, before)
    return False


def _operand(text: bytes, opcode: int, low: int) -> tuple[int, tuple[int, int]] | None:
    """(register, (base register or -1 for a fixed address, displacement)); None for other operands."""
    if opcode + 7 > len(text):
        return None
    rex, modrm = text[opcode - 1], text[opcode + 1]
    register, mode, base = modrm >> 3 & 7 | (rex & 4) << 1, modrm >> 6, modrm & 7
    if rex & 0xF8 != 0x48 or mode == 3:
        return None
    at = opcode + 2
    if base == 4:
        sib = text[at]
        at += 1
        if sib >> 3 & 7 != 4 or rex & 2:
            return None
        base = sib & 7
        if base == 5 and mode == 0:
            return register, (-1, int.from_bytes(text[at : at + 4], "little", signed=True))
    elif base == 5 and mode == 0:
        offset = int.from_bytes(text[at : at + 4], "little", signed=True)
        return register, (-1, low + at + 4 + offset)
    width = (0, 1, 4)[mode]
    return register, (base | (rex & 1) << 3, int.from_bytes(text[at : at + width], "little", signed=True))
