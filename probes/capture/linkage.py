# Owns where a process keeps what debuggers find its shared objects by: program headers, the dynamic
# section, r_debug and the chain of link_map (glibc's link.h, System V gABI). Reads through the function it
# is given. Memory of the target is untrusted: every chain is bounded.
from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

Read = Callable[[int, int], bytes]
Place = tuple[int, int]  # address, bytes

_AT_PHDR, _AT_PHENT, _AT_PHNUM = 3, 4, 5
_PT_LOAD, _PT_DYNAMIC, _PT_PHDR = 1, 2, 6
_DT_NULL, _DT_DEBUG = 0, 21
_MOST_ENTRIES = 256
_MOST_OBJECTS = 4096
_NAME = 256
_MASK = (1 << 64) - 1


def places(auxv: bytes, read: Read) -> Iterator[Place]:
    """Memory that finding the shared objects needs. Ends early where something cannot be read."""
    known = dict(struct.iter_unpack("<QQ", auxv[: len(auxv) // 16 * 16]))
    table, size, count = (known.get(key, 0) for key in (_AT_PHDR, _AT_PHENT, _AT_PHNUM))
    if not table or size != 56 or not 0 < count <= _MOST_ENTRIES:
        return
    yield table, size * count
    dynamic = _dynamic(table, read(table, size * count))
    if dynamic is None:
        return
    yield dynamic
    debug = _entry(read(*dynamic), _DT_DEBUG)
    if debug:
        yield debug, 40
        yield from _objects(_word(read(debug, 16), 8), read)


def _dynamic(table: int, raw: bytes) -> Place | None:
    """Where PT_DYNAMIC is: the headers' own place tells what the loader added."""
    bias, found = 0, None
    for at in range(0, len(raw) - 55, 56):
        kind, _flags, _offset, vaddr, _paddr, _filesz, memsz, _align = struct.unpack_from(
            "<IIQQQQQQ", raw, at
        )
        if kind == _PT_PHDR:
            bias = table - vaddr
        elif kind == _PT_DYNAMIC:
            found = (vaddr, min(memsz, 16 * _MOST_ENTRIES))
    return ((found[0] + bias) & _MASK, found[1]) if found is not None else None


def _entry(raw: bytes, wanted: int) -> int:
    for tag, value in struct.iter_unpack("<qQ", raw[: len(raw) // 16 * 16]):
        if tag == wanted:
            return int(value)
        if tag == _DT_NULL:
            break
    return 0


def _word(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 8], "little") if len(raw) >= at + 8 else 0


def _objects(at: int, read: Read) -> Iterator[Place]:
    """struct link_map: l_addr, l_name, l_ld, l_next, l_prev."""
    for _ in range(_MOST_OBJECTS):
        if not at:
            return
        raw = read(at, 40)
        yield at, 40
        if len(raw) < 40:
            return
        name, dynamic, following = _word(raw, 8), _word(raw, 16), _word(raw, 24)
        if name:
            yield name, _NAME
        if dynamic:
            yield dynamic, 16 * 32
        at = following
