# Owns names with their namespaces: DWARF gives C++ and Rust the last part only, Zig all of it with dots.
# Reads the entries above one; must not judge what a name means.
from __future__ import annotations

from symbols import dwarf_const as dw
from symbols.dwarf import Die, Dwarf
from symbols.globs import matches
from symbols.search import Search

_SCOPES = frozenset((dw.TAG_namespace, *dw.RECORD_TAGS))
_CLOSERS = {")": "(", ">": "<", "]": "["}


def split_name(name: str) -> list[str]:
    """`app::Pool<a::B>::take` -> app, Pool<a::B>, take: only at the colons outside of brackets."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(name):
        char = name[at]
        if char in _CLOSERS.values():
            depth += 1
        elif char in _CLOSERS:
            depth -= 1
        elif depth == 0 and name.startswith("::", at):
            parts.append(name[start:at])
            start, at = at + 2, at + 1
        at += 1
    return [*parts, name[start:]]


def without_namespace(name: str) -> str:
    """Zig's `worker.Conn(a.B)` -> `Conn(a.B)`; others by their colons."""
    last = split_name(name)[-1]
    head, bracket, rest = last.partition("(")
    return head.rpartition(".")[2] + bracket + rest


def qualified(dwarf: Dwarf, die: Die) -> str:
    """The name with the namespaces and classes around its declaration: `app::net::Conn`."""
    declared = list(dwarf.origin_chain(die))[-1]
    names = [dwarf.name(outer) for outer in _around(dwarf, declared)]
    return "::".join([*(name for name in names if name), dwarf.name(die)])


def fits(dwarf: Dwarf, die: Die, pattern: str) -> bool:
    """Whether a glob means the entry: by its name (or a typedef's), with its namespaces, or without them."""
    name = dwarf.name(die)
    if any(matches(pattern, known) for known in (name, *dwarf.typedefs(die))):
        return True
    parts = split_name(pattern)
    if len(parts) > 1:
        whole = qualified(dwarf, die) if matches(parts[-1], without_namespace(name)) else ""
        return bool(whole) and (matches(pattern, whole) or matches(f"*::{pattern}", whole))
    return "." not in pattern.partition("(")[0] and matches(pattern, without_namespace(name))


def complete_type(dwarf: Dwarf, search: Search, die: Die) -> Die:
    """The full description of a type that is only declared here (another unit has it), if there is one."""
    if not die.has(dw.AT_declaration) or not dwarf.name(die):
        return die
    full = [
        other
        for other in search.named(dwarf.name(die), (die.tag,))
        if not other.has(dw.AT_declaration) and dwarf.name(other) == dwarf.name(die)
    ]
    if len(full) > 1:
        wanted = qualified(dwarf, die)
        full = [other for other in full if qualified(dwarf, other) == wanted]
    return full[0] if full else die


def _around(dwarf: Dwarf, die: Die) -> list[Die]:
    """The namespaces and classes around an entry, outermost first."""
    found: list[Die] = []
    outer = dwarf.root(die.unit)
    at = outer.end
    stack = [outer]
    while stack and at <= die.offset:
        if at == die.offset:
            break
        entry = dwarf.die(at, die.unit)
        if entry is None:
            stack.pop()
            at += 1
            continue
        at = entry.end
        if entry.abbrev.children:
            sibling = _sibling(dwarf, entry)
            if sibling is not None and at < sibling <= die.offset:
                at = sibling
            else:
                stack.append(entry)
    found += (entry for entry in stack if entry.tag in _SCOPES)
    return found


def _sibling(dwarf: Dwarf, die: Die) -> int | None:
    value = die.values.get(dw.AT_sibling)
    if value is None or not isinstance(value[1], int):
        return None
    return dwarf.reference(die.unit, value[0], value[1])
