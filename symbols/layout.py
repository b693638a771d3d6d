# Owns SlotLayout: the slot's size, what lies in it, and how what dispatch probes see is tied to it.
# Reads types only; must not decode bytes (types.py does).
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from symbols import dwarf_const as dw
from symbols.dwarf import Die, Dwarf
from symbols.errors import ProfileError
from symbols.fieldpath import counter, embedded, find_field
from symbols.plan import Role, SlotLayout, Userdata
from symbols.pointers import strip
from symbols.profile import Profile
from symbols.qualified import fits, qualified
from symbols.types import Types, member_offset

_MAX_FIELDS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Tie:
    """is_slot: the object lies `delta` bytes behind the slot's start. Else the slot points to it."""

    is_slot: bool
    delta: int = 0
    offset: int | None = None
    field: str | None = None
    type_name: str | None = None  # the object's
    others: tuple[str, ...] = ()  # more fields of the slot that point to such objects

    def same_place(self, other: Tie) -> bool:
        return (self.is_slot, self.delta, self.offset) == (other.is_slot, other.delta, other.offset)

    def __str__(self) -> str:
        if self.is_slot:
            return (
                f"the object lies at {self.delta:+#x} of the slot" if self.delta else "the object is the slot"
            )
        return f"the object is what the slot's {self.field} points to"


def slot_layout(
    dwarf: Dwarf, profile: Profile, slot: Die | None, tie: Tie | None
) -> tuple[SlotLayout, Userdata, list[str]]:
    """(layout, how userdata maps to it, warnings). slot: the type that destroy's parameter points to.

    Raises ProfileError for fields that the slot does not have.
    """
    warnings = []
    name = dwarf.name(slot) if slot is not None else ""
    if slot is not None and not fits(dwarf, slot, profile.slot_type):
        warnings.append(f"destroy's argument is a pointer to {name!r}, not to {profile.slot_type!r}")
    tie = tie or Tie(is_slot=False)
    types = Types(dwarf)
    kind = types.of(slot) if slot is not None else None
    layout = SlotLayout(
        type_name=name or profile.slot_type,
        size=(slot.number(dw.AT_byte_size) or 0) if slot is not None else 0,
        freelist_offset=profile.freelist_offset,
        object_offset=tie.offset,
        object_field=tie.field,
        object_type=tie.type_name,
        fields=types.leaves(kind) if kind is not None else (),
        object_is_slot=tie.is_slot,
        object_delta=tie.delta,
        embedded=embedded(types, kind) if kind is not None else (),
    )
    spec, userdata = profile.functions[Role.DESTROY], profile.userdata
    if spec.count is not None:
        found = counter(types, kind, spec.count) if kind is not None else _UNKNOWN
        if isinstance(found, str):
            raise ProfileError(f"slot.destroy.count: {found}", path=profile.path, key="slot.destroy.count")
        layout = replace(
            layout,
            count_field=spec.count,
            count_offset=found.offset,
            count_size=found.type.size,
            frees_at=spec.frees_at,
        )
    if profile.userdata_field is not None:
        named = find_field(types, kind, profile.userdata_field) if kind is not None else _UNKNOWN
        if isinstance(named, str):
            raise ProfileError(f"userdata.offset: {named}", path=profile.path, key="userdata.offset")
        userdata = replace(userdata, offset=named.offset)
    if tie.others:
        warnings.append(
            f"dispatch: {name!r} has several pointers to {tie.type_name!r}; {tie.field!r} is taken. If it is"
            f' another ({", ".join(tie.others[:8])}), say is = "slot.FIELD" in the profile'
        )
    if layout.size and userdata.offset >= layout.size:
        warnings.append(
            f"userdata.offset is {userdata.offset}, but {name!r} has {layout.size} bytes: no userdata can"
            " point into the slot there"
        )
    return layout, userdata, warnings


_UNKNOWN = "the slot's type is not known: destroy's parameter does not say it, and slot.type names none"


def find_pointers(dwarf: Dwarf, slot: Die, target: Die) -> list[tuple[int, str, str]]:
    """(offset, dotted path, the pointer type) of the members that point there, breadth first."""
    found = []
    for offset, path, kind in _members(dwarf, slot):
        if kind.tag == dw.TAG_pointer_type:
            pointed = strip(dwarf, dwarf.target(kind, dw.AT_type))
            if pointed is not None and same_type(dwarf, pointed, target):
                found.append((offset, _plain(path), dwarf.name(kind)))
    return found


def parts_of(dwarf: Dwarf, slot: Die) -> Iterator[tuple[int, Die]]:
    """(offset, type) of the structs that lie in the slot."""
    for offset, _path, kind in _members(dwarf, slot):
        if kind.tag in dw.RECORD_TAGS:
            yield offset, kind


def _members(dwarf: Dwarf, slot: Die) -> Iterator[tuple[int, str, Die]]:
    """(offset, dotted path, type) of the members of a type, its parts' and bases' too, breadth first."""
    queue: list[tuple[Die, int, str, int]] = [(slot, 0, "", 0)]
    for step, (die, base, path, depth) in enumerate(queue):
        if step > _MAX_FIELDS:
            return
        for child in dwarf.children(die):
            if child.tag in (dw.TAG_variant_part, dw.TAG_variant) and depth < 8:
                queue.append((child, base, path, depth + 1))
                continue
            offset = member_offset(child)
            if child.tag not in (dw.TAG_member, dw.TAG_inheritance) or offset is None:
                continue
            if child.has(dw.AT_external) or child.has(dw.AT_virtuality):
                continue  # a static data member; a base whose place depends on the object
            name = dwarf.name(child) if child.tag == dw.TAG_member else ""
            dotted = f"{path}.{name}" if path and name else path or name
            kind = strip(dwarf, dwarf.target(child, dw.AT_type))
            if kind is None:
                continue
            yield base + offset, dotted, kind
            if kind.tag in dw.RECORD_TAGS and depth < 8:
                queue.append((kind, base + offset, dotted, depth + 1))


def same_type(dwarf: Dwarf, a: Die, b: Die) -> bool:
    """One entry, or the same name and size in two units."""
    if a.offset == b.offset:
        return True
    name = dwarf.name(a)
    if not name or name != dwarf.name(b) or a.number(dw.AT_byte_size) != b.number(dw.AT_byte_size):
        return False
    return a.unit is not b.unit or qualified(dwarf, a) == qualified(dwarf, b)


def _plain(path: str) -> str:
    """Without the member that Zig (LLVM) puts between a tagged union and its fields."""
    return ".".join(part for part in path.split(".") if part != "payload")
