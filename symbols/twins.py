# Owns the question which calls go to the same callee: what a return address is confused with where a stack
# was recorded without it. x86-64, by bytes; must not know stacks or DWARF.
from __future__ import annotations

from symbols.image import Image

_CALL = b"\xe8"  # call rel32 (Intel SDM, CALL)
_JUMP = b"\xe9"  # jmp rel32: a tail call
_INDIRECT = b"\xff\x15"  # call [rip + disp32]: through the global offset table, with -fno-plt
_INDIRECT_JUMP = b"\xff\x25"
_MOST_CODE = 1 << 20  # bytes of one function that are looked through
_MOST_TEXT = 32 << 20  # bytes of one file that are
MOST = 16
"""Calls that are told; of more, the first ones."""


def twins(image: Image, low: int, high: int, back: int) -> list[int]:
    """Return addresses of the other calls in [low, high) of what the call that returns to `back` calls.

    Image addresses. Bytes that only look like such a call are as rare as a displacement by chance.
    """
    called = _called(image, low, high, back)
    if called is None:
        return []
    opcode, target = called
    code = image.code(low, high - low)
    return [low + end for end in _ends(code, opcode, target - low) if low + end != back][:MOST]


def elsewhere(image: Image, low: int, high: int, back: int) -> bool:
    """Whether code outside of [low, high) may call the same as well: another function does, or the call goes
    through a register or memory, of which nobody can tell."""
    called = _called(image, low, high, back)
    if called is None:
        return True
    opcode, target = called
    for segment in image.segments:
        if not segment.executable:
            continue
        size = min(segment.filesz, _MOST_TEXT)
        code = image.code(segment.vaddr, size)
        for kind in (opcode, _JUMP if opcode == _CALL else _INDIRECT_JUMP):
            for end in _ends(code, kind, target - segment.vaddr):
                if not low <= segment.vaddr + end - 1 < high:
                    return True
    return False


def _called(image: Image, low: int, high: int, back: int) -> tuple[bytes, int] | None:
    """(opcode, what its displacement leads to) of the call that returns to `back`."""
    if image.machine != "x86_64" or not low < back <= high or high - low > _MOST_CODE:
        return None
    code = image.code(low, high - low)
    at = back - low
    for opcode, length in ((_CALL, 5), (_INDIRECT, 6)):
        if code[max(0, at - length) : at - 4] == opcode:
            return opcode, back + int.from_bytes(code[at - 4 : at], "little", signed=True)
    return None


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
