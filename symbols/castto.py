# Owns what a function takes a `void *` for: the variables that its code copies the parameter into. The code
# proves it, not the names. Must not judge types (ties.py does).
from __future__ import annotations

from collections.abc import Iterator

from symbols import dwarf_const as dw
from symbols.copies import place_of, step_places
from symbols.dwarf import Die, Dwarf
from symbols.expressions import Unsupported, to_source
from symbols.instances import Instance
from symbols.lists import Located, locations_of
from symbols.plan import Site
from symbols.registers import X86_64
from symbols.scopes import Scopes

_MAX_LOCALS = 64
_MAX_STEPS = 400  # instructions


def taken_for(dwarf: Dwarf, scopes: Scopes, instance: Instance, sites: list[Site]) -> list[Die]:
    """Variables of the instance that hold what its sites take, on some way on from there."""
    if instance.code.machine is not X86_64:
        return []
    locals_ = [(die, locations_of(dwarf, die)) for die in _locals(dwarf, instance.die)]
    found: dict[int, Die] = {}
    for site in sites:
        start = place_of(site.source)
        work: list[tuple[int, frozenset[str]]] = [(site.address, frozenset({start} if start else ()))]
        seen: set[int] = set()
        while work and len(seen) < _MAX_STEPS:
            at, places = work.pop()
            if at in seen or not places:
                continue
            seen.add(at)
            for die, located in locals_:
                if die.offset not in found and _held(scopes, instance, die, located, at) in places:
                    found[die.offset] = die
            after = step_places(instance.code, instance.code.detail(at), places)
            work += ((to, after) for to in instance.code.succ(at))
    return list(found.values())


def _locals(dwarf: Dwarf, scope: Die, depth: int = 0) -> Iterator[Die]:
    for count, child in enumerate(dwarf.children(scope)):
        if count > _MAX_LOCALS or depth > 4:
            return
        if child.tag == dw.TAG_variable:
            yield child
        elif child.tag == dw.TAG_lexical_block:
            yield from _locals(dwarf, child, depth + 1)


def _held(scopes: Scopes, instance: Instance, die: Die, located: list[Located], at: int) -> str | None:
    for low, high, expr in located:
        if low <= at < high:
            try:
                return place_of(to_source(expr, die.unit, scopes.place(instance.function, at)))
            except Unsupported:
                return None
    return None
