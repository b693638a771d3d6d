# Owns memory that never grows with the event rate: a bounded map that forgets its oldest entries, counted.
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedMap(Generic[K, V]):
    """A map of at most `limit` entries; the entry written longest ago goes first and `evicted` counts it."""

    __slots__ = ("_entries", "_limit", "evicted")

    def __init__(self, limit: int) -> None:
        self._limit = max(1, limit)
        self._entries: OrderedDict[K, V] = OrderedDict()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K) -> V | None:
        return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)
            self.evicted += 1
