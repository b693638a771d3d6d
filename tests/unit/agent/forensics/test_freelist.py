"""The walk over a pool's free list, on memory of any shape."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.forensics.facts import FreeList, ListEnd
from agent.forensics.freelist import walk

HEAD, A, B, C = 0x100, 0x7F00_0000_1000, 0x7F00_0000_1028, 0x7F00_0000_1050


def _walk(
    words: dict[int, int], *, link_offset: int = 0, slot: int | None = None, most: int = 100
) -> FreeList:
    found = walk(words.get, HEAD, "pool.free", link_offset=link_offset, slot=slot, most=most)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("words", "slot", "nodes", "end", "last", "position"),
    [
        ({HEAD: 0}, A, (), ListEnd.NULL, 0, None),
        ({HEAD: A, A: 0}, A, (A,), ListEnd.NULL, 0, 0),
        ({HEAD: A, A: B, B: C, C: 0}, C, (A, B, C), ListEnd.NULL, 0, 2),
        ({HEAD: A, A: B, B: 0}, C, (A, B), ListEnd.NULL, 0, None),
        ({HEAD: A, A: A}, A, (A,), ListEnd.CYCLE, A, 0),  # destroyed twice in a row
        ({HEAD: A, A: B, B: C, C: B}, B, (A, B, C), ListEnd.CYCLE, B, 1),
        ({HEAD: A, A: 0xAAAA_AAAA_AAAA_AAAA}, A, (A,), ListEnd.MISPLACED, 0xAAAA_AAAA_AAAA_AAAA, 0),
        ({HEAD: A, A: B + 4, B + 4: 0}, A, (A,), ListEnd.MISPLACED, B + 4, 0),
        ({HEAD: A, A: B}, A, (A,), ListEnd.UNREADABLE, B, 0),
    ],
    ids=["empty", "one", "three", "absent", "self", "ring", "fill", "misaligned", "missing"],
)
def test_how_a_walk_ends(
    words: dict[int, int],
    slot: int,
    nodes: tuple[int, ...],
    end: ListEnd,
    last: int,
    position: int | None,
) -> None:
    found = _walk(words, slot=slot)
    assert (found.nodes, found.length, found.end) == (nodes, len(nodes), end)
    assert (found.last, found.position) == (last, position)


def test_a_link_that_is_not_the_first_word() -> None:
    assert _walk({HEAD: A, A + 16: B, B + 16: 0}, link_offset=16, slot=B).position == 1


def test_a_head_that_was_not_captured_is_no_empty_list() -> None:
    assert walk({}.get, HEAD, "pool.free", link_offset=0) is None


def test_nodes_outside_of_writable_memory_are_not_believed() -> None:
    found = walk({HEAD: A, A: 0}.get, HEAD, "", link_offset=0, plausible=lambda node: node != A)
    assert found is not None
    assert (found.end, found.length) == (ListEnd.MISPLACED, 0)


def test_a_long_list_is_cut() -> None:
    words = {HEAD: 8} | {8 * n: 8 * n + 8 for n in range(1, 500) if 8 * n != HEAD}
    words[HEAD] = 0x1000
    words |= {0x1000 + 8 * n: 0x1000 + 8 * n + 8 for n in range(500)}
    found = _walk(words, most=50)
    assert (found.end, found.length) == (ListEnd.LIMIT, 50)


@given(st.dictionaries(st.integers(0, 40), st.integers(0, 40), max_size=41))
def test_any_memory_ends_the_walk_and_no_node_comes_twice(links: dict[int, int]) -> None:
    words = {HEAD + 8 * at: HEAD + 8 * to if to else 0 for at, to in links.items()}
    found = walk(words.get, HEAD, "", link_offset=0, slot=None)
    if found is not None:
        assert len(set(found.nodes)) == len(found.nodes) == found.length <= 41
        if found.end is ListEnd.NULL and found.nodes:
            assert words[found.nodes[-1]] == 0
