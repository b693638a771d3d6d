# Owns widths and margins in bounded memory: buckets of an eighth of an octave, exact minimum and maximum.
from __future__ import annotations

from typing import Any

_SUB = 8  # buckets per power of two: a quantile is at most 12.5 % too low
_TOP = 64  # octaves


class Histogram:
    """Non-negative integers (ns). At most 64 x 8 buckets whatever is added."""

    __slots__ = ("_buckets", "count", "max", "min")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.min = 0
        self.max = 0

    def add(self, value: int) -> None:
        value = max(0, value)
        self.min = value if not self.count else min(self.min, value)
        self.max = max(self.max, value)
        self.count += 1
        bucket = _bucket(value)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    def quantile(self, share: float) -> int:
        """The lower edge of the bucket that holds the quantile, within [min, max]; 0 when empty."""
        if not self.count:
            return 0
        if share >= 1:
            return self.max
        rank = max(1, round(share * self.count))
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return min(self.max, max(self.min, _edge(bucket)))
        return self.max

    def to_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "min": self.min,
            "p50": self.quantile(0.5),
            "p99": self.quantile(0.99),
            "max": self.max,
        }


def _bucket(value: int) -> int:
    if value < _SUB:
        return value
    octave = value.bit_length() - 1
    if octave >= _TOP:
        return _TOP * _SUB - 1
    return (octave - 2) * _SUB + ((value >> (octave - 3)) & (_SUB - 1))


def _edge(bucket: int) -> int:
    if bucket < _SUB:
        return bucket
    octave, part = divmod(bucket, _SUB)
    return (_SUB + part) << (octave - 1)
