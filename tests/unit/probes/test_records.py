"""Records in their stored form are what a tuple of them is, and are unpacked only when somebody looks."""

from __future__ import annotations

import pytest

from probes import abi
from probes.records import StoredRecords, seen_at

ROWS = tuple((n, n % 7, 0, n, n + 1, n << 32, 10 + n, 20 + n, 1, -1, n - 3, -2, 5, -1) for n in range(9))
RAW = b"".join(abi.RECORD.pack(*row) for row in ROWS)


def test_they_look_like_a_tuple() -> None:
    stored = StoredRecords(RAW)
    assert len(stored) == len(ROWS)
    assert tuple(stored) == ROWS
    assert stored[-1] == ROWS[-1]
    assert stored[2:5] == ROWS[2:5]
    assert stored == ROWS
    assert stored == ROWS
    assert stored != ROWS[:-1]
    with pytest.raises(IndexError):
        stored[len(ROWS)]


def test_who_was_seen_where_is_the_same_either_way() -> None:
    fields = [abi.Record(*row) for row in ROWS]
    wanted = [(record.kind, record.tgid, record.tid, record.epfd) for record in fields]
    assert list(seen_at(StoredRecords(RAW))) == list(seen_at(ROWS)) == wanted


def test_a_part_of_a_record_is_refused() -> None:
    with pytest.raises(ValueError, match="not whole"):
        StoredRecords(RAW[:-1])
