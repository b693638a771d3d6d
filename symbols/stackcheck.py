# Owns Go's prologue: `if the stack is too small { morestack(); start again }` runs a function's first
# instructions twice for one call. Must not know DWARF.
from __future__ import annotations

from collections.abc import Callable

from symbols.code import FunctionCode

_CHECKS = 3  # large frames check for an underflow first


def behind_stack_check(code: FunctionCode, low: int, name_at: Callable[[int], str]) -> int:
    """Where a function that starts again after growing its stack is entered once; low for all others."""
    entry = low
    for _ in range(_CHECKS if code.preds.get(low) else 0):
        behind = _behind(code, low, entry, name_at)
        if behind is None:
            break
        entry = behind
    return entry


def _behind(code: FunctionCode, low: int, start: int, name_at: Callable[[int], str]) -> int | None:
    """Where it goes on behind the branch that ends the straight run from start, if the other way grows."""
    run = list(code.straight(start))
    ways = code.succ(run[-1]) if run else ()
    for grows, goes_on in (ways, ways[::-1]) if len(ways) == 2 else ():
        called = [code.insns[at].operands for at in code.straight(grows) if code.insns[at].mnemonic == "call"]
        if not called or code.preds.get(goes_on) != [run[-1]] or low not in code.reach([grows]):
            continue
        if called[0].startswith("0x") and "morestack" in name_at(int(called[0], 16)):
            return goes_on
    return None
