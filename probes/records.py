# Owns stream records in their stored form: what is asked of them is unpacked, and only when it is asked.
from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import overload

from probes import abi

_SEEN_AT = struct.Struct("<4xH26xII8xi12x")
"""kind, tgid, tid and epfd of struct af_rec."""


class StoredRecords(Sequence[tuple[int, ...]]):
    """Records of one read as the kernel wrote them; a tuple of them in all but the memory they take."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        """raw: whole records. Raises ValueError."""
        if len(raw) % abi.RECORD.size:
            raise ValueError(f"{len(raw)} bytes are not whole records")
        self._raw = raw

    def __len__(self) -> int:
        return len(self._raw) // abi.RECORD.size

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return abi.RECORD.iter_unpack(self._raw)

    @overload
    def __getitem__(self, index: int) -> tuple[int, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[int, ...], ...]: ...

    def __getitem__(self, index: int | slice) -> tuple[int, ...] | tuple[tuple[int, ...], ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        at = range(len(self))[index]
        return abi.RECORD.unpack_from(self._raw, at * abi.RECORD.size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(other) == len(self) and tuple(other) == tuple(self)

    __hash__ = None  # type: ignore[assignment]

    def seen_at(self) -> Iterator[tuple[int, int, int, int]]:
        """(kind, tgid, tid, epfd) of each."""
        return _SEEN_AT.iter_unpack(self._raw)


def seen_at(records: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """(kind, tgid, tid, epfd) of each record."""
    if isinstance(records, StoredRecords):
        return records.seen_at()
    return ((record[1], record[6], record[7], record[10]) for record in records)
