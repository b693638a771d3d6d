"""Location expressions: evaluated as DWARF says, or refused by name."""

from __future__ import annotations

import contextlib
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.plan_text import source_text
from symbols.abbrevs import Abbrev
from symbols.data import Data
from symbols.dwarf import Dwarf, Part, Unit
from symbols.expressions import Place, Unsupported, to_source, value_of
from symbols.plan import Add, Apply, ArgSource, Deref, Extend, Op
from symbols.registers import AARCH64
from symbols.serial import source_to_json
from symbols.units import Die

NOTHING = Data(b"", 0, 0, ".debug_info", "none")
UNIT = Unit(0, 1 << 16, 5, 4, 8, 1, 12, {}, {}, NOTHING, cast("Part", None))


BASES = {0x20: (4, 5), 0x21: (4, 7), 0x22: (8, 5), 0x23: (4, 4), 0x24: (1, 7), 0x25: (8, 7)}


class Types:
    """What an expression asks of a Dwarf: base types by offset, the unit's address table."""

    TABLE = (0x401000, 0x404040)

    def die(self, offset: int, unit: Unit) -> Die | None:
        size, encoding = BASES[offset]
        values: dict[int, tuple[int, int | bytes]] = {0x0B: (0x0B, size), 0x3E: (0x0B, encoding)}
        return Die(unit, offset, Abbrev(1, 0x24, False, (), -1), values, offset + 3)

    def name(self, die: Die) -> str:
        return "float" if die.number(0x3E) == 4 else "integer"

    def indexed_address(self, unit: Unit, index: int) -> int:
        return self.TABLE[index]


DWARF = cast("Dwarf", Types())
RBP = ArgSource(register="rbp")
CFA = ArgSource(register="rsp", steps=(Add(32),))
ENTRY = Place(at_entry=True, cfa=ArgSource(register="rsp", steps=(Add(8),)), dwarf=DWARF)
BODY = Place(base=RBP, cfa=CFA, entry=ENTRY, dwarf=DWARF)


def reg(name: str, *steps: Add | Deref | Extend | Apply) -> ArgSource:
    return ArgSource(register=name, steps=steps)


SUPPORTED = {
    "53": reg("rbx"),
    "90 0c": reg("r12"),
    "73 00": reg("rbx", Deref(8)),
    "92 0c 08": reg("r12", Add(8), Deref(8)),
    "76 78": reg("rbp", Add(-8), Deref(8)),
    "91 70": reg("rbp", Add(-16), Deref(8)),
    "9c": reg("rsp", Add(32), Deref(8)),
    "9c 23 10 06 9f": reg("rsp", Add(48), Deref(8)),
    "73 10 9f": reg("rbx", Add(16)),
    "91 68 06 23 90 06 9f": reg("rbp", Add(-24), Deref(8), Add(0x310)),
    "73 00 94 04 9f": reg("rbx", Deref(4)),
    # constants
    "30 9f": ArgSource(),
    "0a 34 12 9f": ArgSource(constant=0x1234),
    "11 7f 9f": ArgSource(constant=0xFFFF_FFFF_FFFF_FFFF),
    "0d ff ff ff ff 9f": ArgSource(constant=0xFFFF_FFFF_FFFF_FFFF),
    "9e 04 01 00 00 00": ArgSource(constant=1),
    "9e 08 01 02 03 04 05 06 07 08": ArgSource(constant=0x0807060504030201),
    "a2 00 9f": ArgSource(constant=0x401000),  # constx
    # a link-time address moves with the image
    "03 40 40 40 00 00 00 00 00": reg("bias", Add(0x404040), Deref(8)),
    "03 40 40 40 00 00 00 00 00 9f": reg("bias", Add(0x404040)),
    "a1 01": reg("bias", Add(0x404040), Deref(8)),  # addrx
    "fb 01": reg("bias", Add(0x404040), Deref(8)),  # GNU_addr_index
    # one piece that holds the whole pointer, whatever follows
    "53 93 08": reg("rbx"),
    "53 93 08 54 93 08": reg("rbx"),
    "73 08 93 08": reg("rbx", Add(8), Deref(8)),
    # arithmetic; constants are folded
    "73 08 38 1c 9f": reg("rbx"),
    "38 73 08 22 9f": reg("rbx", Add(16)),
    "38 34 1e 9f": ArgSource(constant=32),
    "73 00 75 00 08 30 1e 22 9f": reg(
        "rbx", Apply(Op.PLUS, reg("rdi", Apply(Op.TIMES, ArgSource(constant=48))))
    ),
    "73 00 75 00 1c 9f": reg("rbx", Apply(Op.MINUS, reg("rdi"))),
    "73 00 08 f0 1a 9f": reg("rbx", Apply(Op.AND, ArgSource(constant=0xF0))),
    "75 00 08 20 24 08 20 26 9f": reg(
        "rdi",
        Apply(Op.SHIFT_LEFT, ArgSource(constant=32)),
        Apply(Op.SHIFT_RIGHT_SIGNED, ArgSource(constant=32)),
    ),
    "73 00 1f 9f": ArgSource(steps=(Apply(Op.MINUS, reg("rbx")),)),
    "73 00 20 9f": reg("rbx", Apply(Op.XOR, ArgSource(constant=0xFFFF_FFFF_FFFF_FFFF))),
    "73 00 12 30 2d 9f": reg("rbx", Apply(Op.LESS, ArgSource())),
    "73 00 75 00 16 9f": reg("rbx"),  # swap
    "73 00 75 00 14 9f": reg("rbx"),  # over
    "73 00 75 00 15 01 9f": reg("rbx"),  # pick
    "31 73 00 75 00 17 9f": reg("rbx"),  # rot
    "73 00 75 00 13 9f": reg("rbx"),  # drop
    "96 53": reg("rbx"),
    # typed values
    "75 00 a8 21 a8 25 9f": reg("rdi", Extend(4, False)),  # convert to u32, then u64
    "75 00 a8 20 a8 22 9f": reg("rdi", Extend(4, True)),
    "75 00 f7 20 f7 00 9f": reg("rdi", Extend(4, True)),  # GNU_convert, to the generic type
    "f5 05 24 f7 00 9f": reg("rdi", Extend(1, False)),  # GNU_regval_type
    "73 00 a6 04 20 a8 00 9f": reg("rbx", Deref(4), Extend(4, True)),  # deref_type
    "a4 20 04 ff ff ff ff a8 00 9f": ArgSource(constant=0xFFFF_FFFF_FFFF_FFFF),  # const_type
    "75 00 a8 20 a4 20 04 03 00 00 00 22 a8 00 9f": reg("rdi", Extend(4, True), Add(3), Extend(4, True)),
    "75 00 a8 20 a9 21 a8 00 9f": reg("rdi", Extend(4, True), Extend(4, False)),  # reinterpret
    # what the function was entered with
    "f3 01 55 9f": ArgSource(entry=reg("rdi")),
    "a3 01 55 9f": ArgSource(entry=reg("rdi")),
    "a3 01 55 23 10 9f": ArgSource(entry=reg("rdi"), steps=(Add(16),)),
    "a3 01 55": ArgSource(entry=reg("rdi"), steps=(Deref(8),)),
    "a3 03 77 08 06 9f": ArgSource(entry=reg("rsp", Add(8), Deref(8))),
    "75 00 a3 01 54 22 9f": reg("rdi", Apply(Op.PLUS, ArgSource(entry=reg("rsi")))),
}  # fmt: skip

REFUSED = {
    "53 93 04 54 93 04": "DW_OP_piece",
    "93 08 53 93 08": "optimized out",
    "53 9d 40 00": "DW_OP_bit_piece",
    "61": "register 17",
    "a0 20 00 00 00 00": "DW_OP_implicit_pointer",
    "f2 20 00 00 00 00": "DW_OP_GNU_implicit_pointer",
    "fa 20 00 00 00": "DW_OP_GNU_parameter_ref",
    "fd 20 00 00 00": "DW_OP_GNU_variable_value",
    "0e 00 00 00 00 00 00 00 00 9b": "DW_OP_form_tls_address",
    "0e 00 00 00 00 00 00 00 00 e0": "DW_OP_GNU_push_tls_address",
    "97": "DW_OP_push_object_address",
    "98 00 00": "DW_OP_call2",
    "99 00 00 00 00": "DW_OP_call4",
    "9a 00 00 00 00": "DW_OP_call_ref",
    "73 00 18": "DW_OP_xderef",
    "73 00 19 9f": "DW_OP_abs",
    "73 00 28 00 00 9f": "DW_OP_bra",
    "2f 00 00 53": "DW_OP_skip",
    "73 00 94 03 9f": "DW_OP_deref_size of 3 bytes",
    "73 00 f7 23 9f": "DW_OP_GNU_convert to 'float'",
    "f5 11 23 9f": "register 17",
    "75 00 a8 20 73 00 22 9f": "DW_OP_plus of values of different types",
    "75 00 a8 20 a9 22 9f": "DW_OP_reinterpret between sizes",
    "31 30 1b 9f": "divides by zero",
    "e3": "operation 0xe3",
    "": "optimized out",
    "06": "malformed",
    "91": "malformed",
    "a3 05 55": "malformed",
    "53 53": "DW_OP_reg3 behind a complete location",
    "73 00" + " 12 22" * 40 + " 9f": "takes more than 32 steps",
}  # fmt: skip


@pytest.mark.parametrize("expr", SUPPORTED)
def test_supported(expr: str) -> None:
    assert to_source(bytes.fromhex(expr), UNIT, BODY) == SUPPORTED[expr]


@pytest.mark.parametrize("expr", REFUSED)
def test_refused_by_name(expr: str) -> None:
    with pytest.raises(Unsupported, match=REFUSED[expr]):
        to_source(bytes.fromhex(expr), UNIT, BODY)


@pytest.mark.parametrize("source", SUPPORTED.values(), ids=str)
def test_a_plan_is_shown_the_way_its_sources_print(source: ArgSource) -> None:
    assert source_text(source_to_json(source)) == str(source)


def test_sources_as_text() -> None:
    assert str(SUPPORTED["91 68 06 23 90 06 9f"]) == "*(rbp-0x18)+0x310"
    assert str(SUPPORTED["73 00 75 00 08 30 1e 22 9f"]) == "(rbx + (rdi * 0x30))"
    assert str(SUPPORTED["a3 01 55 23 10 9f"]) == "entry(rdi)+0x10"
    assert str(SUPPORTED["75 00 f7 20 f7 00 9f"]) == "(i32)(rdi)"
    assert str(SUPPORTED["73 00 94 04 9f"]) == "*(u32)(rbx)"


def test_at_the_entry_an_entry_value_is_the_register_itself() -> None:
    assert to_source(b"\xa3\x01\x55\x9f", UNIT, ENTRY) == reg("rdi")


def test_without_an_entry_there_is_no_entry_value() -> None:
    with pytest.raises(Unsupported, match="DW_OP_entry_value"):
        to_source(b"\xa3\x01\x55\x9f", UNIT, Place())


def test_the_reason_why_there_is_no_frame_base_is_passed_on() -> None:
    with pytest.raises(Unsupported, match="no location there"):
        to_source(b"\x91\x00", UNIT, Place(base_reason="the frame base has no location there"))


def test_a_computed_frame_base() -> None:
    """gcc's main with a realigned stack: the CFA is *(rbp - 8)."""
    base = value_of(b"\x76\x78\x06", None, Place())
    assert base == reg("rbp", Add(-8), Deref(8))
    assert to_source(b"\x91\x68", UNIT, Place(base=base)) == reg("rbp", Add(-8), Deref(8), Add(-24), Deref(8))


def test_the_other_machine_has_its_own_names() -> None:
    place = Place(machine=AARCH64)
    assert to_source(b"\x63", UNIT, place) == reg("x19")
    assert to_source(b"\x8f\x08", UNIT, place) == reg("sp", Add(8), Deref(8))
    with pytest.raises(Unsupported, match="register 64"):
        to_source(b"\x90\x40", UNIT, place)


@given(st.binary(max_size=24))
def test_any_bytes_are_a_source_or_refused(expr: bytes) -> None:
    with contextlib.suppress(Unsupported):
        assert isinstance(
            to_source(expr, UNIT, Place(base=RBP, cfa=CFA, entry=Place(at_entry=True))), ArgSource
        )
