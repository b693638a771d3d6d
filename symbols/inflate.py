# Owns inflating compressed sections (ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD), in pieces: a large section goes
# to a nameless temporary file and is mapped from there, so memory does not grow with it. Must not know ELF.
from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, cast

from symbols.errors import MalformedImage
from symbols.files import files

if TYPE_CHECKING:
    from symbols.data import Data

_CHUNK = 1 << 20
_IN_MEMORY = 8 << 20  # sections up to this size stay in memory
_ZLIB, _ZSTD = 1, 2
_RATIO = 1100  # no more than what deflate can reach; zstd is held to four times that


def inflate(raw: Data, start: int, size: int, kind: int) -> bytes | mmap.mmap:
    """The `size` bytes that a section's compressed part (from start on) holds. Raises MalformedImage."""
    if kind not in (_ZLIB, _ZSTD):
        raise MalformedImage(
            f"compressed by method {kind}, only zlib (1) and zstd (2) are supported",
            path=raw.path,
            where=raw.name,
            remedy="objcopy --decompress-debug-sections IN OUT, then give OUT with --debug-file",
        )
    if size > (raw.size - start) * _RATIO * (4 if kind == _ZSTD else 1) + 64:
        raise raw.bad(f"claims {size} bytes uncompressed, more than can come of {raw.size - start}")
    pieces = _zlib(raw, start) if kind == _ZLIB else _zstd(raw, start)
    if size <= _IN_MEMORY:
        return b"".join(_exactly(raw, pieces, size))
    with os.fdopen(files().scratch(), "w+b") as file:
        for piece in _exactly(raw, pieces, size):
            file.write(piece)
        file.flush()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _exactly(raw: Data, pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > size:
            break
        yield piece
    if total != size:
        raise raw.bad("does not decompress to the size it claims")


def _zlib(raw: Data, start: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj()
    try:
        for at in range(start, raw.size, _CHUNK):
            piece = inflater.decompress(raw.read(at, min(_CHUNK, raw.size - at)), _CHUNK)
            while piece:
                yield piece
                piece = inflater.decompress(inflater.unconsumed_tail, _CHUNK)
        yield inflater.flush(_CHUNK)
    except zlib.error as error:
        raise raw.bad(f"does not decompress ({error})") from error


class _Reader:
    """The compressed part as a file: zstandard asks for pieces and keeps none of the map's memory."""

    def __init__(self, raw: Data, start: int) -> None:
        self._raw = raw
        self._at = start

    def read(self, count: int = -1) -> bytes:
        left = self._raw.size - self._at
        piece = self._raw.read(self._at, left if count < 0 else min(count, left))
        self._at += len(piece)
        return piece


def _zstd(raw: Data, start: int) -> Iterator[bytes]:
    import zstandard  # lazily: few files need it

    # 2**27: what the zstd program itself takes as the largest window without being told.
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    try:
        reader = unpacker.stream_reader(cast("IO[bytes]", _Reader(raw, start)), read_across_frames=True)
        while piece := reader.read(_CHUNK):
            yield piece
    except zstandard.ZstdError as error:
        raise raw.bad(f"does not decompress ({error})") from error
