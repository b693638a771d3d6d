# Owns the fields of a slot that a profile names by path ("w", "peer.refs") and what else can be pointed to in
# it. Reads types only; must not decode bytes (types.py does).
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from symbols.plan import MAX_EMBEDDED
from symbols.types import Member, Type, Types

_MAX_DEPTH = 8
_SHOWN = 12
_STRUCTS = frozenset(("struct", "union", "tagged"))
_NUMBERS = frozenset(("unsigned", "signed"))


@dataclass(frozen=True, slots=True)
class Field:
    offset: int  # bytes from the start of the type
    type: Type


def find_field(types: Types, kind: Type, path: str) -> Field | str:
    """The field of a dotted path, or in words why there is none.

    Through anonymous members, base classes and alternatives without naming them.
    """
    at, here = 0, kind
    for part in path.split("."):
        found = _named(types, here, part)
        if found is None:
            return f"{here.name!r} has no field {part!r}; it has: {_names(types, here)}"
        at, here = at + found.offset, found.type
    return Field(at, here)


def counter(types: Types, kind: Type, path: str) -> Field | str:
    """The integer that a path names, also inside of wrappers such as std::atomic, or why it is none."""
    found = find_field(types, kind, path)
    if isinstance(found, str):
        return found
    at, here = found.offset, found.type
    for _ in range(_MAX_DEPTH):
        if here.kind in _NUMBERS and here.size in (1, 2, 4, 8):
            return Field(at, here)
        inner = [m for m in types.members(here) if m.type.size and not m.bits]
        if here.kind not in _STRUCTS or len(inner) != 1:
            break
        at, here = at + inner[0].offset, inner[0].type
    return f"{path!r} is of type {found.type.name!r}, which is no integer that could count references"


def embedded(types: Types, kind: Type) -> tuple[int, ...]:
    """Offsets at which other structs lie in a type: base classes, members, elements of arrays."""
    found: set[int] = set()
    for offset in _embedded(types, kind, 0):
        if offset:
            found.add(offset)
        if len(found) >= 4 * MAX_EMBEDDED:
            break
    return tuple(sorted(found)[:MAX_EMBEDDED])


def _embedded(types: Types, kind: Type, depth: int) -> Iterator[int]:
    for member in types.members(kind):
        if member.bits or depth > _MAX_DEPTH:
            continue
        if member.type.kind == "array":
            element, count = types.element(member.type)
            if element.kind in _STRUCTS:
                yield from (member.offset + i * element.size for i in range(min(count, MAX_EMBEDDED)))
        elif member.type.kind in _STRUCTS:
            yield member.offset
            if not member.name or member.base:
                yield from (member.offset + inner for inner in _embedded(types, member.type, depth + 1))


def _named(types: Types, kind: Type, name: str) -> Field | None:
    """A member by name, breadth first through what needs no name."""
    queue: list[tuple[Type, int, int]] = [(kind, 0, 0)]
    for here, base, depth in queue:
        for member in types.members(here):
            if member.name == name and not member.bits:
                return Field(base + member.offset, member.type)
            if _transparent(member) and depth < _MAX_DEPTH:
                queue.append((member.type, base + member.offset, depth + 1))
    return None


def _transparent(member: Member) -> bool:
    return (not member.name or member.base) and member.type.kind in _STRUCTS


def _names(types: Types, kind: Type) -> str:
    names: list[str] = []
    queue = [kind]
    for here in queue:
        for member in types.members(here):
            if _transparent(member) and len(queue) < _SHOWN:
                queue.append(member.type)
            elif member.name:
                names.append(member.name)
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more]) or "none"
