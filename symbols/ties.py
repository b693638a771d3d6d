# Owns the way from the object that a dispatch probe sees to its slot: the object is the slot (or lies in it,
# or is one of its base classes), or the slot points to it. What cannot be tied is said, not guessed.
from __future__ import annotations

from symbols import dwarf_const as dw
from symbols.castto import taken_for
from symbols.dwarf import Die, Dwarf
from symbols.errors import ProfileError
from symbols.fieldpath import find_field
from symbols.instances import Instance
from symbols.layout import Tie, find_pointers, parts_of, same_type
from symbols.parameters import parameter
from symbols.plan import Site
from symbols.pointers import pointee, strip, type_text
from symbols.profile import Profile
from symbols.qualified import complete_type
from symbols.scopes import Scopes
from symbols.search import Search
from symbols.types import Types, member_offset

_MAX_BASES = 8  # levels of inheritance
_REMEDY = 'say it in the profile: is = "slot", or is = "slot.FIELD" with the field that points to the object'


class Ties:
    """Ties of one image's dispatches to its slots. slot: the slot's type, where it is known."""

    def __init__(
        self, dwarf: Dwarf, scopes: Scopes, search: Search, profile: Profile, slot: Die | None
    ) -> None:
        self._dwarf = dwarf
        self._scopes = scopes
        self._search = search
        self._profile = profile
        self._slot = slot

    def of(self, instance: Instance, sites: list[Site]) -> Tie | str:
        """The tie of an instance of dispatch, or why there is none. Raises ProfileError for a wrong `is`."""
        variable = parameter(self._dwarf, self._scopes, instance)
        if variable is None:
            return self._said(instance, None) or "its parameter is not in the debug information"
        target = pointee(self._dwarf, variable)
        if target is not None and target.tag in dw.RECORD_TAGS:
            target = complete_type(self._dwarf, self._search, target)
        said = self._said(instance, target)
        if said is not None:
            return said
        name = instance.spec.argument
        if self._slot is None:
            return f"cannot be tied to a slot: the slot's type is not known; {_REMEDY}"
        if target is None or target.tag not in dw.RECORD_TAGS:
            cast = self._by_cast(instance, sites)
            if cast is not None:
                return cast
            kind = type_text(self._dwarf, variable)
            return f"cannot be tied to a slot: {name!r} is a {kind}, which does not say of what; {_REMEDY}"
        found = self.between(target)
        if found is None:
            slot = self._dwarf.name(self._slot)
            shown = self._dwarf.name(target)
            return (
                f"cannot be tied to a slot: {name!r} points to {shown!r}, which is not {slot!r}, no part and"
                f" no base class of it, and {slot!r} has no pointer to it; {_REMEDY}"
            )
        return found

    def between(self, target: Die) -> Tie | None:
        """How an object of a type is tied to the slot, by the two types."""
        slot, dwarf = self._slot, self._dwarf
        if slot is None:
            return None
        name = dwarf.name(target)
        if same_type(dwarf, slot, target):
            return Tie(is_slot=True, type_name=name)
        base = self._base_offset(slot, target)
        if base is not None:
            return Tie(is_slot=True, delta=base, type_name=name)
        derived = self._base_offset(target, slot)
        if derived is not None:
            return Tie(is_slot=True, delta=-derived, type_name=name)
        found = find_pointers(dwarf, slot, target)
        if found:
            offset, path, pointer = found[0]
            # Zig's own backend names the struct without its namespace, the pointer with it.
            named = pointer.lstrip("?*").removeprefix("const ") if pointer.endswith(name or "?") else name
            others = tuple(other for at, other, _pointer in found[1:] if at != offset)
            return Tie(is_slot=False, offset=offset, field=path, type_name=named, others=others)
        parts = sorted({offset for offset, die in parts_of(dwarf, slot) if same_type(dwarf, die, target)})
        if len(parts) == 1:
            return Tie(is_slot=True, delta=parts[0], type_name=name)
        return None

    # -- what the profile says -------------------------------------------------------------------

    def _said(self, instance: Instance, target: Die | None) -> Tie | None:
        tie = instance.spec.tie
        if tie is None:
            return None
        record = target is not None and target.tag in dw.RECORD_TAGS
        name = self._dwarf.name(target) if target is not None and record else None
        if tie == "slot":
            found = self.between(target) if target is not None and record else None
            delta = found.delta if found is not None and found.is_slot else 0
            return Tie(is_slot=True, delta=delta, type_name=name)
        if self._slot is None:
            raise self._wrong("the slot's type is not known: nothing says where its fields are")
        types = Types(self._dwarf)
        field = find_field(types, types.of(self._slot), tie.removeprefix("slot."))
        if isinstance(field, str):
            raise self._wrong(field)
        if field.type.size != 8:
            raise self._wrong(f"{tie} is of type {field.type.name!r}, which is no pointer")
        return Tie(is_slot=False, offset=field.offset, field=tie.removeprefix("slot."), type_name=name)

    def _wrong(self, detail: str) -> ProfileError:
        return ProfileError(f"slot.dispatch.is: {detail}", path=self._profile.path, key="slot.dispatch.is")

    # -- types -----------------------------------------------------------------------------------

    def _by_cast(self, instance: Instance, sites: list[Site]) -> Tie | None:
        """void *arg: the one type that the function takes it for, where it copies it into a variable."""
        found: set[Tie] = set()
        for local in taken_for(self._dwarf, self._scopes, instance, sites):
            target = pointee(self._dwarf, local)
            if target is None or target.tag not in dw.RECORD_TAGS:
                continue
            tie = self.between(complete_type(self._dwarf, self._search, target))
            if tie is not None:
                found.add(tie)
        return found.pop() if len(found) == 1 else None

    def _base_offset(self, derived: Die, base: Die, depth: int = 0) -> int | None:
        """Where a base class lies in a class; None: it is none, or where depends on the object (virtual)."""
        dwarf = self._dwarf
        for child in dwarf.children(derived):
            if child.tag != dw.TAG_inheritance or child.has(dw.AT_virtuality):
                continue
            offset, kind = member_offset(child), strip(dwarf, dwarf.target(child, dw.AT_type))
            if offset is None or kind is None:
                continue
            kind = complete_type(dwarf, self._search, kind)
            if same_type(dwarf, kind, base):
                return offset
            inner = self._base_offset(kind, base, depth + 1) if depth < _MAX_BASES else None
            if inner is not None:
                return offset + inner
        return None
