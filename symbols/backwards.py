# Owns how much earlier than the debug information says a register holds a value: compilers give a variable a
# location where it is first needed, though its register was not written since long before.
from __future__ import annotations

from collections.abc import Callable

from symbols.code import FunctionCode
from symbols.lists import Located
from symbols.plan import ArgSource

_MOST = 48  # instructions


def held_before(
    code: FunctionCode, inside: set[int], located: list[Located], source_at: Callable[[int], ArgSource | None]
) -> list[Located]:
    """The locations, begun earlier where the one way to them passes code of the instance (inside) that leaves
    the register alone."""
    found = []
    for low, high, expr in located:
        source = source_at(low)
        if source is None or not source.is_register:
            found.append((low, high, expr))
            continue
        first = at = low
        for _ in range(_MOST):
            preds = code.preds.get(at, [])
            if at in code.targets or len(preds) != 1 or code.succ(preds[0]) != (at,):
                break
            at = preds[0]
            other = any(lo <= at < hi for lo, hi, _expr in located)
            if other or code.insns[at].mnemonic.startswith(("call", "syscall")):
                break
            if not code.passes(at, source, harmless=True):
                break
            first = at if at in inside else first
        found.append((first, high, expr))
    return found
