# Owns LEB128 (DWARF 5, section 7.6). Must not know what the numbers mean.
from __future__ import annotations

import mmap

Buffer = bytes | mmap.mmap


class Truncated(ValueError):
    """A read beyond a unit's end; internal, becomes MalformedImage at the module's boundary."""


def uleb(buf: Buffer, pos: int, end: int) -> tuple[int, int]:
    """(value, next position). More than 10 bytes do not occur in 64-bit DWARF."""
    value = shift = 0
    while pos < end:
        byte = buf[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7
        if shift > 133:  # padded encodings are legal, endless ones are not
            break
    raise Truncated


def sleb(buf: Buffer, pos: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while pos < end:
        byte = buf[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (value - (1 << shift) if byte & 0x40 else value), pos
        if shift > 133:
            break
    raise Truncated
