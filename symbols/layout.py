# Owns SlotLayout: the slot's size and where in it the pointer lies that dispatch probes see.
# Reads types through typewalk-free DWARF calls only; must not decode bytes (types.py does).
from __future__ import annotations

from symbols import dwarf_const as dw
from symbols.dwarf import Die, Dwarf
from symbols.globs import matches
from symbols.plan import SlotLayout
from symbols.profile import Profile
from symbols.sites import strip
from symbols.types import Types, member_offset

_MAX_FIELDS = 4096
_AGGREGATES = frozenset((dw.TAG_structure_type, dw.TAG_union_type, dw.TAG_class_type))


def slot_layout(
    dwarf: Dwarf, profile: Profile, slot: Die | None, target: Die | None
) -> tuple[SlotLayout, list[str]]:
    """(layout, warnings). slot and target: the types that destroy's and dispatch's parameters point to."""
    warnings = []
    name = dwarf.name(slot) if slot is not None else ""
    if slot is not None and not matches(profile.slot_type, name):
        warnings.append(f"destroy's argument is a pointer to {name!r}, not to {profile.slot_type!r}")
    size = (slot.number(dw.AT_byte_size) or 0) if slot is not None else 0
    offset, path = None, None
    named = dwarf.name(target) if target is not None else None
    if slot is not None and target is not None:
        found = find_pointer(dwarf, slot, target)
        if found is not None:
            offset, path, pointer = found
            # Zig's own backend names the struct without its namespace, the pointer with it.
            named = pointer.lstrip("?*").removeprefix("const ") if pointer.endswith(named or "?") else named
        else:
            warnings.append(
                f"{name!r} has no pointer to {dwarf.name(target)!r}: dispatch cannot be tied to slots"
            )
    types = Types(dwarf)
    layout = SlotLayout(
        type_name=name or profile.slot_type,
        size=size,
        freelist_offset=profile.freelist_offset,
        object_offset=offset,
        object_field=path,
        object_type=named,
        fields=types.leaves(types.of(slot)) if slot is not None else (),
    )
    return layout, warnings


def find_pointer(dwarf: Dwarf, slot: Die, target: Die) -> tuple[int, str, str] | None:
    """(offset, dotted path, the pointer type) of the first member, breadth first, that points there."""
    queue: list[tuple[Die, int, str, int]] = [(slot, 0, "", 0)]
    for step, (die, base, path, depth) in enumerate(queue):
        if step > _MAX_FIELDS:
            break
        for child in dwarf.children(die):
            if child.tag in (dw.TAG_variant_part, dw.TAG_variant) and depth < 8:
                queue.append((child, base, path, depth + 1))
                continue
            offset = member_offset(child)
            if child.tag != dw.TAG_member or offset is None:
                continue
            name = dwarf.name(child)
            dotted = f"{path}.{name}" if path and name else path or name
            kind = strip(dwarf, dwarf.target(child, dw.AT_type))
            if kind is None:
                continue
            if kind.tag == dw.TAG_pointer_type:
                pointed = strip(dwarf, dwarf.target(kind, dw.AT_type))
                if pointed is not None and same_type(dwarf, pointed, target):
                    return base + offset, _plain(dotted), dwarf.name(kind)
            elif kind.tag in _AGGREGATES and depth < 8:
                queue.append((kind, base + offset, dotted, depth + 1))
    return None


def same_type(dwarf: Dwarf, a: Die, b: Die) -> bool:
    """One entry, or the same name and size in two units."""
    if a.offset == b.offset:
        return True
    name = dwarf.name(a)
    return bool(name) and name == dwarf.name(b) and a.number(dw.AT_byte_size) == b.number(dw.AT_byte_size)


def _plain(path: str) -> str:
    """Without the member that Zig (LLVM) puts between a tagged union and its fields."""
    return ".".join(part for part in path.split(".") if part != "payload")
