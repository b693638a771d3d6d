"""Programs joined with the functions that they call."""

from __future__ import annotations

import struct

import pytest

from probes import linked
from probes.linked import CALL_BASE, FUNCTIONS, INSTRUCTION

MOV_EXIT = bytes.fromhex("b7000000000000009500000000000000")


def _call(number: int) -> bytes:
    return struct.pack("<BBhi", 0x85, 0, 0, CALL_BASE + number)


def _calls(code: bytes) -> list[tuple[int, int]]:
    """(instruction, the one it leads to) of each call of a function."""
    found = []
    for index in range(len(code) // INSTRUCTION):
        opcode, registers, _, immediate = struct.unpack_from("<BBhi", code, index * INSTRUCTION)
        if opcode == 0x85 and registers >> 4 == 1:
            found.append((index, index + 1 + immediate))
    return found


def test_a_program_that_calls_nothing_stays_as_it_is() -> None:
    assert linked.called(MOV_EXIT) == []
    assert linked.link("main", MOV_EXIT, {}) == linked.Linked(MOV_EXIT, ((0, "main"),))


def test_each_function_is_there_once_and_called_where_it_is() -> None:
    functions = {FUNCTIONS[0]: _call(1) + MOV_EXIT, FUNCTIONS[1]: MOV_EXIT}
    made = linked.link("main", _call(0) + _call(1) + _call(0) + MOV_EXIT, functions)
    assert made.starts == ((0, "main"), (5, FUNCTIONS[0]), (8, FUNCTIONS[1]))
    assert _calls(made.code) == [(0, 5), (1, 8), (2, 5), (5, 8)]


def test_helpers_of_the_kernel_are_not_calls_of_ours() -> None:
    helper = struct.pack("<BBhi", 0x85, 0, 0, 14)
    beyond = struct.pack("<BBhi", 0x85, 0, 0, CALL_BASE + len(FUNCTIONS))
    assert linked.called(helper + beyond + MOV_EXIT) == []


def test_a_function_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        linked.link("main", _call(0) + MOV_EXIT, {})


def test_the_types_name_each_function_and_the_size_of_its_argument() -> None:
    made = linked.link("main", _call(0) + MOV_EXIT, {FUNCTIONS[0]: MOV_EXIT})
    btf, infos = linked.types(made, 4711)
    magic, version, _, header, type_at, types, names_at, names = struct.unpack_from("<HBBIIIII", btf)
    assert (magic, version, header, type_at, names_at) == (0xEB9F, 1, 24, 0, types)
    assert len(btf) == header + types + names
    assert struct.pack("<I", 4711) in btf[header : header + types]
    assert f"main\0{FUNCTIONS[0]}\0".encode() in btf[header + types :]
    assert [struct.unpack_from("<II", infos, 8 * i)[0] for i in range(2)] == [0, 3]
