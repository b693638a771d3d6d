# Owns what the compiler makes of probes/bpf in a form that needs no compiler: the shapes of the maps,
# the instructions, and where they name a map. Kept on disk, so that only the first start waits for LLVM.
# Must not import bcc, create maps or load programs (loader_bcc.py does).
from __future__ import annotations

import hashlib
import json
import platform
import struct
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from symbols.cachefolder import CacheFolder

INSTRUCTION = 8  # bytes
_LOAD_IMM64 = 0x18  # BPF_LD | BPF_DW | BPF_IMM, of two instructions (linux/bpf.h)
_MAP_FD = 1  # BPF_PSEUDO_MAP_FD in src_reg: the immediate is the descriptor of a map
_MOST_INSTRUCTIONS = 1 << 20
_MOST_INFLATED = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MapShape:
    """The arguments of BPF_MAP_CREATE. key, value: bytes."""

    kind: int
    key: int
    value: int
    entries: int
    flags: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """code: instructions with map descriptors 0; maps: (index of the instruction, map that it names)."""

    code: bytes
    maps: tuple[tuple[int, str], ...]

    def bound(self, fds: Mapping[str, int]) -> bytes:
        """The instructions for these descriptors of the maps."""
        code = bytearray(self.code)
        for index, name in self.maps:
            struct.pack_into("<i", code, index * INSTRUCTION + 4, fds[name])
        return bytes(code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """All of the kernel side for one plan."""

    maps: dict[str, MapShape]
    programs: dict[str, Program]


def unbound(code: bytes, names: Mapping[int, str]) -> Program:
    """A program from instructions with descriptors in them. names: descriptor -> map. Raises ValueError."""
    found: list[tuple[int, str]] = []
    plain = bytearray(code)
    index, count = 0, len(code) // INSTRUCTION
    while index < count:
        opcode, registers, _, immediate = struct.unpack_from("<BBhi", code, index * INSTRUCTION)
        wide = opcode == _LOAD_IMM64
        if wide and registers >> 4 == _MAP_FD:
            if immediate not in names:
                raise ValueError(f"instruction {index} names a map that is not there")
            found.append((index, names[immediate]))
            struct.pack_into("<i", plain, index * INSTRUCTION + 4, 0)
        elif wide and registers >> 4:
            raise ValueError(f"instruction {index} loads an address of kind {registers >> 4}")
        index += 2 if wide else 1
    return Program(code=bytes(plain), maps=tuple(found))


class ProgramCache:
    """Compiled programs on disk, by everything that the compiler is given."""

    def __init__(self, entries: CacheFolder | None = None) -> None:
        self._entries = entries or CacheFolder(
            magic=b"afterfree-programs/2\n", suffix=".bpf", most_entries=64, most_bytes=32 << 20
        )

    def load(self, key: str) -> Compiled | None:
        """None: compile."""
        raw = self._entries.get(key)
        if raw is None:
            return None
        try:
            inflate = zlib.decompressobj()
            compiled = _from_json(json.loads(inflate.decompress(raw, _MOST_INFLATED)))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, zlib.error):
            return None
        self._entries.used(key)
        return compiled

    def store(self, key: str, compiled: Compiled) -> None:
        text = json.dumps(_to_json(compiled), separators=(",", ":"))
        self._entries.put(key, zlib.compress(text.encode(), 6))


def cache_key(text: str, flags: tuple[str, ...], compiler: str, folders: tuple[Path, ...]) -> str:
    """Changes with the source, the headers in `folders`, the flags, the compiler and the kernel."""
    key = hashlib.sha256()
    parts = [text, *flags, compiler, platform.release(), platform.version(), platform.machine()]
    for folder in folders:
        for path in sorted(folder.rglob("*.h")):
            parts += [str(path.relative_to(folder)), path.read_text(encoding="utf-8")]
    for part in parts:
        raw = part.encode()
        key.update(len(raw).to_bytes(8, "little") + raw)
    return key.hexdigest()[:40]


def _to_json(compiled: Compiled) -> dict[str, Any]:
    return {
        "maps": {
            name: [shape.kind, shape.key, shape.value, shape.entries, shape.flags]
            for name, shape in compiled.maps.items()
        },
        "programs": {
            name: [b64encode(program.code).decode(), program.maps]
            for name, program in compiled.programs.items()
        },
    }


def _from_json(value: Any) -> Compiled:
    """Raises ValueError, LookupError, TypeError."""
    maps = {
        str(name): MapShape(
            kind=int(kind), key=int(key), value=int(size), entries=int(count), flags=int(flags)
        )
        for name, (kind, key, size, count, flags) in value["maps"].items()
    }
    programs = {}
    for name, (code, named) in value["programs"].items():
        raw = b64decode(code, validate=True)
        links = tuple((int(index), str(to)) for index, to in named)
        count = len(raw) // INSTRUCTION
        if len(raw) % INSTRUCTION or not 0 < count <= _MOST_INSTRUCTIONS:
            raise ValueError("not whole instructions")
        if any(not 0 <= index < count or to not in maps for index, to in links):
            raise ValueError("a map that is not there")
        programs[str(name)] = Program(code=raw, maps=links)
    return Compiled(maps=maps, programs=programs)
