"""What is kept of the kernel's stacks."""

from __future__ import annotations

import struct

import pytest

from probes.context import walked


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ((0x401000, 0x402000, 0, 0), (0x401000, 0x402000)),
        ((0x401000, 0x402000, 8, 0x403000), (0x401000, 0x402000)),
        ((0x401000, 0xFFFF_8000_0000_0000, 0x403000, 0), (0x401000,)),
        ((8, 0x402000, 0, 0), (8, 0x402000)),  # a jump to nowhere: its caller is what matters
        ((0, 0, 0, 0), ()),
    ],
)
def test_a_walk_ends_where_no_code_can_be(raw: tuple[int, ...], kept: tuple[int, ...]) -> None:
    assert walked(struct.pack(f"<{len(raw)}Q", *raw)) == kept
