"""Location expressions: evaluated as DWARF says, or refused by name."""

from __future__ import annotations

import contextlib
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symbols.dwarf import Part, Unit
from symbols.expressions import FrameBase, Unsupported, to_source
from symbols.image import Data
from symbols.plan import Add, ArgSource, Deref

NOTHING = Data(b"", 0, 0, ".debug_info", "none")
UNIT = Unit(0, 0, 5, 4, 8, 1, 12, {}, {}, NOTHING, cast("Part", None))
RBP = FrameBase("rbp", 0)


def test_supported() -> None:
    cases = {
        b"\x53": ArgSource(register="rbx"),
        b"\x90\x0c": ArgSource(register="r12"),
        b"\x73\x00": ArgSource(register="rbx", steps=(Deref(8),)),
        b"\x76\x78": ArgSource(register="rbp", steps=(Add(-8), Deref(8))),
        b"\x91\x70": ArgSource(register="rbp", steps=(Add(-16), Deref(8))),
        b"\x73\x10\x9f": ArgSource(register="rbx", steps=(Add(16),)),
        b"\x91\x68\x06\x23\x90\x06\x9f": ArgSource(register="rbp", steps=(Add(-24), Deref(8), Add(0x310))),
        b"\x30\x9f": ArgSource(constant=0),
        b"\x0a\x34\x12\x9f": ArgSource(constant=0x1234),
        b"\x11\x7f\x9f": ArgSource(constant=0xFFFF_FFFF_FFFF_FFFF),
        b"\x53\x93\x08": ArgSource(register="rbx"),
        b"\x73\x00\x94\x04\x9f": ArgSource(register="rbx", steps=(Deref(4),)),
        b"\x73\x08\x38\x1c\x9f": ArgSource(register="rbx"),
        b"\x9e\x04\x01\x00\x00\x00": ArgSource(constant=1),
    }
    for expr, source in cases.items():
        assert to_source(expr, UNIT, RBP) == source, expr.hex()


@pytest.mark.parametrize(
    ("expr", "word"),
    [
        (b"\xf3\x01\x55\x9f", "DW_OP_GNU_entry_value"),
        (b"\xa3\x01\x55\x9f", "DW_OP_entry_value"),
        (b"\x53\x93\x04\x54\x93\x04", "DW_OP_piece"),
        (b"\x61", "register 17"),
        (b"\x03" + bytes(8), "DW_OP_addr"),
        (b"\xf2" + bytes(5), "DW_OP_GNU_implicit_pointer"),
        (b"", "optimized out"),
        (b"\x06", "malformed"),
        (b"\x91", "malformed"),
    ],
)
def test_refused_by_name(expr: bytes, word: str) -> None:
    with pytest.raises(Unsupported, match=word):
        to_source(expr, UNIT, RBP)


def test_frame_base_reason_is_passed_on() -> None:
    with pytest.raises(Unsupported, match="location list"):
        to_source(b"\x91\x00", UNIT, FrameBase(reason="the frame base is a location list"))


@given(st.binary(max_size=24))
def test_any_bytes_are_a_source_or_refused(expr: bytes) -> None:
    with contextlib.suppress(Unsupported):
        assert isinstance(to_source(expr, UNIT, RBP), ArgSource)
