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
    names: list[str] = []
    for _ in range(32):
        if die is None or die.tag not in _WRAPPERS:
            if die is not None and die.tag in dw.RECORD_TAGS:
                dwarf.called(die, names)
            return die
        if die.tag == dw.TAG_typedef:
            names.append(dwarf.name(die))
        die = dwarf.target(die, dw.AT_type)
    return None


def type_text(dwarf: Dwarf, variable: Die) -> str:
    """A variable's type, shortly: `struct conn *`, `void *`, `int`."""
    stars, die = "", None
    for entry in dwarf.origin_chain(variable):
        if entry.has(dw.AT_type):
            die = dwarf.target(entry, dw.AT_type)
            break
    for _ in range(16):
        if die is not None and die.tag in (dw.TAG_const_type, dw.TAG_volatile_type, dw.TAG_restrict_type):
            die = dwarf.target(die, dw.AT_type)
        elif die is not None and die.tag == dw.TAG_pointer_type and not dwarf.name(die):
            stars, die = stars + "*", dwarf.target(die, dw.AT_type)
        elif die is not None and die.tag == dw.TAG_reference_type:
            stars, die = stars + "&", dwarf.target(die, dw.AT_type)
        else:
            break
    name = dwarf.name(die) or "?" if die is not None else "void"
    keyword = _KEYWORDS.get(die.tag, "") if die is not None and _is_c(dwarf, die) else ""
    return f"{keyword}{name} {stars}".strip()


_KEYWORDS = {
    dw.TAG_structure_type: "struct ",
    dw.TAG_union_type: "union ",
    dw.TAG_enumeration_type: "enum ",
}
_C = frozenset((0x01, 0x02, 0x0C, 0x1D, 0x2C, 0x3E))  # DWARF 5, table 7.17: C89, C, C99, C11, C17, C23


def _is_c(dwarf: Dwarf, die: Die) -> bool:
    return dwarf.root(die.unit).number(dw.AT_language) in _C
