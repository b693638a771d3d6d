# Owns unwinding a kept stack in the symbol worker: CFI over the bytes that were kept, then what the kernel's
# walk by frame pointers says beyond them. Must not open files itself.
from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from symbols.cfi import FrameTable
from symbols.image import Image
from symbols.modules import Module, Modules
from symbols.twins import elsewhere
from symbols.unwind import Backtrace, Unwinder, UnwoundFrame

_MOST_FRAMES = 48
_RBP = 6  # its DWARF number (System V x86-64 psABI, figure 3.36)
_MOST_LOOKED = 6  # frames of a stack whose other callers are looked for
STACK_WORDS = 16
"""AF_STACK_WORDS of probes/bpf/10-maps.c."""


class Spot(NamedTuple):
    """One physical frame. lookup: the image address to symbolize."""

    pc: int
    module: Module | None
    lookup: int


def unwound(stack: Mapping[str, Any], open_image: Callable[[str, str], Image | None]) -> list[Spot]:
    """Frames of one request of agent/snapshots.py, innermost first. open_image: by identity and path.

    Raises ValueError where the kept bytes do not belong to the kernel's walk.
    """
    pcs = [int(pc) for pc in stack["pcs"]]
    registers = {str(name): int(value) for name, value in stack["registers"].items()}
    memory = bytes.fromhex(str(stack["memory"]))
    modules = _modules(stack["modules"], {*pcs, *_words(memory)}, open_image)
    base = registers.get("rsp", 0)

    def read(address: int, count: int) -> bytes | None:
        at = address - base
        return memory[at : at + count] if 0 <= at <= len(memory) - count else None

    trace = Unwinder(modules, read).unwind(registers, _MOST_FRAMES)
    return placed(merged(trace, pcs, registers, partial(framed, modules)), modules)


def in_the_id(stack: Mapping[str, Any]) -> set[int]:
    """The addresses that tell the stack's id from others' (probes/bpf/20-output.c: af_fingerprint): the
    instruction, two callers by frame pointers, and what of the stack's end may be return addresses."""
    return {*map(int, stack["pcs"][:3]), *_words(bytes.fromhex(str(stack["memory"]))[: 8 * STACK_WORDS])}


def unsure(spots: Sequence[Spot], told: set[int], elsewhere: Callable[[Spot], bool]) -> list[bool]:
    """Of each frame, whether the stack's id leaves open that another function called: only the first stack of
    an id is kept. elsewhere: whether what the call at a frame goes to is called by other functions, too."""
    found: list[bool] = []
    looked = 0
    for index, spot in enumerate(spots):
        if not index or spot.pc in told:
            found.append(False)
        elif found[-1] or looked >= _MOST_LOOKED:
            found.append(True)
        else:
            looked += 1
            found.append(elsewhere(spot))
    return found


def called_elsewhere(spot: Spot) -> bool:
    """See `unsure`. Of code that cannot be read nothing is known."""
    module = spot.module
    if module is None or module.image is None or module.table is None:
        return True
    limits = module.table.function(spot.lookup)
    return limits is None or elsewhere(module.image, *limits, spot.lookup + 1)


def placed(frames: Sequence[tuple[int, bool]], modules: Modules) -> list[Spot]:
    """Where frames are, of (pc, whether it is exact)."""
    return [_spot(pc, exact, modules) for pc, exact in frames]


def framed(modules: Modules, frame: UnwoundFrame) -> bool:
    """Whether rbp is the frame pointer of this frame's function, as its call frame information has it: with
    another's, or a register like any other, the kernel's walk leaves callers out, or makes them up."""
    module = modules.find(frame.lookup)
    row = module.table.row(frame.lookup - module.bias) if module is not None and module.table else None
    return row is not None and row.cfa_expression is None and row.cfa_register == _RBP


def merged(
    trace: Backtrace,
    pcs: Sequence[int],
    registers: Mapping[str, int],
    own: Callable[[UnwoundFrame], bool] = lambda _frame: True,
) -> list[tuple[int, bool]]:
    """(pc, whether it is exact): the frames by CFI, and from where their bytes end, the kernel's walk.

    The walk begins with the pc and goes on with the callers of the function that rbp belonged to: it follows
    the last frame only where that is its function (own).
    """
    frames = [(frame.pc, frame.exact) for frame in trace.frames]
    if not pcs or frames[0][0] != pcs[0]:
        raise ValueError("the stack's bytes are of another moment than its addresses")
    for index in range(len(frames) - 1, 0, -1):
        if frames[index][0] in pcs:
            rest = pcs[pcs.index(frames[index][0]) + 1 :]
            return [*frames[: index + 1], *((pc, False) for pc in rest)] if rest else frames
    if trace.frames[-1].registers.get("rbp") == registers.get("rbp") and own(trace.frames[-1]):
        return [*frames, *((pc, False) for pc in pcs[1:])]
    return frames


def _words(memory: bytes) -> tuple[int, ...]:
    return struct.unpack_from(f"<{len(memory) // 8}Q", memory)


def _modules(rows: Any, wanted: set[int], open_image: Callable[[str, str], Image | None]) -> Modules:
    """Only what the stack may lead through is opened."""
    found = []
    for start, end, bias, path, identity in rows:
        image = None
        if identity and any(start <= word < end for word in wanted):
            image = open_image(str(identity), str(path))
        table = FrameTable(image) if image is not None else None
        found.append(Module(int(start), int(end), int(bias), str(path), image, table))
    return Modules(found)


def _spot(pc: int, exact: bool, modules: Modules) -> Spot:
    lookup = pc if exact else pc - 1
    module = modules.find(lookup)
    return Spot(pc, module, lookup - module.bias if module is not None else 0)
