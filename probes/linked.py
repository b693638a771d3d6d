# Owns joining a BPF program with the functions that it calls, as the kernel takes them: global functions that
# the verifier looks at once each instead of on every path that leads to them. Must not import bcc.
from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from probes.compiled import INSTRUCTION

CALL_BASE = 0x7F000000
"""AF_CALL_BASE of 10-maps.c: a call of function n of FUNCTIONS is written as one of helper CALL_BASE + n."""

FUNCTIONS = (
    "af_settle_slot",
    "af_find_existing",
    "af_find_remembered",
    "af_send_settled",
    "af_find_stack",
    "af_add_stack",
    "af_report_one",
    "af_progress_of",
    "af_restored",
    "af_taken",
    "af_known_slot",
    "af_crash_delivered",
)
"""By number. Each takes a pointer to struct af_scratch and returns a number."""

ARGUMENT = "af_scratch"

_CALL = 0x85  # BPF_JMP | BPF_CALL
_PSEUDO_CALL = 1  # BPF_PSEUDO_CALL in src_reg: the immediate is the distance to a function (linux/bpf.h)
_INT, _PTR, _STRUCT, _FUNC, _FUNC_PROTO = 1, 2, 4, 12, 13  # BTF_KIND_* (linux/btf.h)
_GLOBAL = 1  # BTF_FUNC_GLOBAL
_MAGIC, _HEADER = 0xEB9F, 24


@dataclass(frozen=True, slots=True)
class Linked:
    """code: instructions of the program and of all functions it needs. starts: (first instruction, name) of
    each, the program first; alone, the kernel needs no type of it."""

    code: bytes
    starts: tuple[tuple[int, str], ...]


def called(code: bytes) -> list[tuple[int, int]]:
    """(index of the instruction, number in FUNCTIONS) of each call."""
    found = []
    for index in range(len(code) // INSTRUCTION):
        opcode, registers, _, immediate = struct.unpack_from("<BBhi", code, index * INSTRUCTION)
        if opcode == _CALL and not registers >> 4 and 0 <= immediate - CALL_BASE < len(FUNCTIONS):
            found.append((index, immediate - CALL_BASE))
    return found


def link(name: str, code: bytes, functions: Mapping[str, bytes]) -> Linked:
    """The program with what it calls behind it, each once. Raises KeyError: a function that is not there."""
    parts, starts, at = [code], {name: 0}, len(code) // INSTRUCTION
    open_ = [code]
    while open_:
        for _, number in called(open_.pop()):
            function = FUNCTIONS[number]
            if function not in starts:
                starts[function] = at
                parts.append(functions[function])
                open_.append(functions[function])
                at += len(functions[function]) // INSTRUCTION
    whole = bytearray(b"".join(parts))
    for index, number in called(bytes(whole)):
        struct.pack_into(
            "<BBhi", whole, index * INSTRUCTION,
            _CALL, _PSEUDO_CALL << 4, 0, starts[FUNCTIONS[number]] - index - 1,
        )  # fmt: skip
    return Linked(bytes(whole), tuple((start, name) for name, start in starts.items()))


def types(linked: Linked, size: int) -> tuple[bytes, bytes]:
    """(BTF of the functions, struct bpf_func_info of each). size: bytes of the argument."""
    names, offsets = bytearray(b"\0"), {}
    for word in ("int", "s", ARGUMENT, *(name for _, name in linked.starts)):
        offsets[word] = len(names)
        names += word.encode() + b"\0"

    def kind(of: int, vlen: int = 0) -> int:
        return of << 24 | vlen

    rows = [
        struct.pack("<IIII", offsets["int"], kind(_INT), 4, 1 << 24 | 32),  # 1: signed, 32 bits
        struct.pack("<III", offsets[ARGUMENT], kind(_STRUCT), size),  # 2: its members are nobody's business
        struct.pack("<III", 0, kind(_PTR), 2),  # 3
        struct.pack("<IIIII", 0, kind(_FUNC_PROTO, 1), 1, offsets["s"], 3),  # 4
        struct.pack("<III", 0, kind(_PTR), 0),  # 5: void *
        struct.pack("<IIIII", 0, kind(_FUNC_PROTO, 1), 1, offsets["s"], 5),  # 6
    ]
    infos = b""
    for number, (start, name) in enumerate(linked.starts):
        rows.append(struct.pack("<III", offsets[name], kind(_FUNC, _GLOBAL), 4 if number else 6))
        infos += struct.pack("<II", start, len(rows))
    body = b"".join(rows)
    header = struct.pack("<HBBIIIII", _MAGIC, 1, 0, _HEADER, 0, len(body), len(body), len(names))
    return header + body + bytes(names), infos
