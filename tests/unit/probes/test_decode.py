"""Bytes to events: every field arrives where it belongs, and nothing else is trusted."""

from __future__ import annotations

import ctypes
from dataclasses import fields

import pytest

from probes import abi, decode
from probes.abi import RegFlag, RegState, SlotFlag, SlotState, Suspect
from probes.decode import BadRecord
from probes.events import Moment, Registration, SlotLife, SuspicionRaised

NOT_DECODED = {
    "held_batch", "held_index", "last_events", "dispatch_site", "doubtful", "again", "progressed",
    "taken", "arrived",
    "epoch", "idle_reported", "adder", "reserved", "links",  # of a slot: for the kernel side alone
}  # fmt: skip
RENAMED = {"del_": "removed"}


def numbered(kind: type[ctypes.LittleEndianStructure], start: int) -> ctypes.LittleEndianStructure:
    """Every field another number; of moments every member."""
    made = kind()
    number = start
    for name, hint in kind._fields_:
        if hint is abi.At:
            for member, _ in abi.At._fields_:
                setattr(getattr(made, name), member, number)
                number += 1
        elif isinstance(getattr(made, name), int):
            setattr(made, name, number)
            number += 1
    return made


def expected(made: ctypes.LittleEndianStructure, name: str) -> object:
    value = getattr(made, name)
    if isinstance(value, abi.At):
        return Moment(value.enter, value.ts, value.ip, value.tid, value.stack)
    return value


def a_slot() -> abi.Slot:
    made = numbered(abi.Slot, 100)
    assert isinstance(made, abi.Slot)
    made.state = SlotState.FREE
    return made


def a_reg(state: int = RegState.ORPHAN) -> abi.Reg:
    made = numbered(abi.Reg, 500)
    assert isinstance(made, abi.Reg)
    made.state = state
    return made


def test_every_field_of_a_slot() -> None:
    made = a_slot()
    life = decode.slot(bytes(made))
    ours = {field.name for field in fields(SlotLife)}
    theirs = {RENAMED.get(name, name) for name, _ in abi.Slot._fields_} - NOT_DECODED
    assert ours == theirs
    for name, _ in abi.Slot._fields_:
        if name not in NOT_DECODED:
            assert getattr(life, RENAMED.get(name, name)) == expected(made, name), name


def test_every_field_of_a_registration() -> None:
    made = a_reg()
    reg = decode.registration(bytes(made))
    assert reg is not None
    hidden = {"ep", "item", "epoch"}  # the kernel's own addresses say nothing to a reader
    assert {field.name for field in fields(Registration)} == {name for name, _ in abi.Reg._fields_} - hidden
    for field in fields(Registration):
        assert getattr(reg, field.name) == expected(made, field.name), field.name


@pytest.mark.parametrize("state", [RegState.NONE, 99])
def test_no_registration(state: int) -> None:
    assert decode.registration(bytes(a_reg(state))) is None


def test_a_state_and_flags_that_this_build_does_not_know() -> None:
    made = a_slot()
    made.state, made.flags = 77, 1 << 60 | SlotFlag.INFERRED
    life = decode.slot(bytes(made))
    assert life.state is SlotState.UNKNOWN
    assert life.flags & SlotFlag.INFERRED
    reg = a_reg()
    reg.flags = 1 << 31 | RegFlag.NOT_ASKED
    found = decode.registration(bytes(reg))
    assert found is not None
    assert found.flags & RegFlag.NOT_ASKED


def suspicion(**head: int) -> bytes:
    made = abi.SuspicionMessage()
    made.head.type, made.head.version = abi.UrgentType.SUSPICION, abi.ABI_VERSION
    made.head.size, made.head.what, made.head.nbytes = ctypes.sizeof(made), Suspect.OUTLIVES_CLOSE, 5
    for name, value in head.items():
        setattr(made.head, name, value)
    made.trigger.kind, made.trigger.ts, made.trigger.tgid = abi.Kind.CLOSED, 77, 4711
    made.forks, made.last_child, made.forked_at = 3, 4712, 70
    made.batch_open = 2
    made.slot, made.reg = a_slot(), a_reg()
    made.comm = (ctypes.c_uint8 * 16)(*b"na\xffme\0rest".ljust(16, b"x"))
    made.bytes = (ctypes.c_uint8 * abi.SLOT_BYTES)(*range(abi.SLOT_BYTES))
    return bytes(made)


def test_a_suspicion_with_the_children_that_may_share_descriptions() -> None:
    event = decode.urgent(suspicion())
    assert isinstance(event, SuspicionRaised)
    assert event.suspect is Suspect.OUTLIVES_CLOSE
    assert (event.forks, event.last_child, event.forked_at) == (3, 4712, 70)
    assert (event.trigger.kind, event.trigger.ts, event.trigger.tgid) == (abi.Kind.CLOSED, 77, 4711)
    assert event.batch_open is True
    assert event.slot == decode.slot(bytes(a_slot()))
    assert (event.reg, event.other) == (decode.registration(bytes(a_reg())), None)
    assert event.comm == "na\\xffme"
    assert event.memory == bytes(range(5))


def test_no_more_memory_than_there_is() -> None:
    event = decode.urgent(suspicion(nbytes=1 << 31))
    assert isinstance(event, SuspicionRaised)
    assert len(event.memory) == abi.SLOT_BYTES


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ({"version": 1}, "ABI version 1, this build reads 4"),
        ({"type": 9}, "type 9"),
        ({"what": 99}, "unknown suspicion 99"),
    ],
)
def test_what_does_not_fit_is_refused(head: dict[str, int], said: str) -> None:
    with pytest.raises(BadRecord, match=said):
        decode.urgent(suspicion(**head))


def test_every_length_that_is_too_short_is_refused() -> None:
    whole = suspicion()
    for length in range(0, len(whole), 7):
        with pytest.raises(BadRecord):
            decode.urgent(whole[:length])
    for read, kind in (
        (decode.slot, abi.Slot),
        (decode.registration, abi.Reg),
        (decode.lifetime, abi.Lifetime),
    ):
        with pytest.raises(BadRecord):
            read(bytes(ctypes.sizeof(kind) - 1))
