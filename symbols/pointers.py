# Owns what a variable points to, without the typedefs and qualifiers on the way.
from __future__ import annotations

from symbols import dwarf_const as dw
from symbols.dwarf import Die, Dwarf

_WRAPPERS = frozenset(
    (dw.TAG_const_type, dw.TAG_volatile_type, dw.TAG_typedef, dw.TAG_restrict_type, dw.TAG_atomic_type)
)


def pointee(dwarf: Dwarf, variable: Die) -> Die | None:
    """The type a pointer variable points to, without const, volatile and typedef."""
    for die in dwarf.origin_chain(variable):
        if die.has(dw.AT_type):
            kind = strip(dwarf, dwarf.target(die, dw.AT_type))
            if kind is not None and kind.tag in (dw.TAG_pointer_type, dw.TAG_reference_type):
                return strip(dwarf, dwarf.target(kind, dw.AT_type))
            return None
    return None


def strip(dwarf: Dwarf, die: Die | None) -> Die | None:
    """A type without its qualifiers and typedefs; None for void and endless chains."""
    for _ in range(32):
        if die is None or die.tag not in _WRAPPERS:
            return die
        die = dwarf.target(die, dw.AT_type)
    return None
