# Owns the question which calls of one function go to the same callee: what a return address is confused with
# where a stack was recorded without it. x86-64, by bytes; must not know stacks or DWARF.
from __future__ import annotations

from symbols.image import Image

_CALL = 0xE8  # call rel32 (Intel SDM, CALL)
_INDIRECT = b"\xff\x15"  # call [rip + disp32]: through the global offset table, with -fno-plt
_MOST_CODE = 1 << 20  # bytes of one function that are looked through
MOST = 16
"""Calls that are told; of more, the first ones."""


def twins(image: Image, low: int, high: int, back: int) -> list[int]:
    """Return addresses of the other calls in [low, high) of what the call that returns to `back` calls.

    Image addresses. Bytes that only look like such a call are as rare as a displacement by chance.
    """
    if image.machine != "x86_64" or not low < back <= high or high - low > _MOST_CODE:
        return []
    code = image.code(low, high - low)
    at = back - low
    for opcode, length in ((bytes([_CALL]), 5), (_INDIRECT, 6)):
        if code[at - length : at - 4] == opcode:
            target = at + int.from_bytes(code[at - 4 : at], "little", signed=True)
            return [low + end for end in _ends(code, opcode, target) if end != at][:MOST]
    return []


def _ends(code: bytes, opcode: bytes, target: int) -> list[int]:
    """Ends of the calls with that opcode whose displacement leads to `target`; all relative to the code."""
    found = []
    at = code.find(opcode)
    while at >= 0:
        end = at + len(opcode) + 4
        if end <= len(code) and end + int.from_bytes(code[end - 4 : end], "little", signed=True) == target:
            found.append(end)
        at = code.find(opcode, at + 1)
    return found
