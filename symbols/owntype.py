# Owns the slot's type: which functions work on it, told apart from those of other pools that have the same
# names by the type that the wanted parameter, or the result, points to. Only what is proved to differ is left
# alone; a profile that means two types is refused.
from __future__ import annotations

from symbols import dwarf_const as dw
from symbols.dwarf import Die, Dwarf
from symbols.errors import ProfileError
from symbols.instances import Instance
from symbols.plan import Role
from symbols.pointers import pointee, strip
from symbols.profile import Profile
from symbols.qualified import complete_type, fits, qualified, split_name
from symbols.scopes import Scopes
from symbols.search import Search


def of_slot_type(
    dwarf: Dwarf, scopes: Scopes, instances: list[Instance], profile: Profile
) -> tuple[list[Instance], list[str]]:
    """(instances without those of other types, "function (type)" of the ones left out).

    Nothing is left out unless some instance has the slot's type: the profile's type may be misspelt.
    Raises ProfileError where a plain name means types of several namespaces.
    """
    own: list[Instance] = []
    unknown: list[Instance] = []
    foreign: dict[str, None] = {}
    meant: dict[int, Die] = {}
    for instance in instances:
        kind = None if instance.role is Role.DISPATCH else _type_of(dwarf, scopes, instance)
        if kind is None:
            unknown.append(instance)
        elif fits(dwarf, kind, profile.slot_type):
            meant[kind.offset] = kind
            own.append(instance)
        else:
            foreign[f"{instance.name} ({dwarf.name(kind)})"] = None
    _one_type(dwarf, list(meant.values()), profile)
    if not own:
        return instances, []
    kept = {id(instance) for instance in (*own, *unknown)}
    return [instance for instance in instances if id(instance) in kept], list(foreign)


def slot_type_by_name(dwarf: Dwarf, search: Search, profile: Profile) -> Die | None:
    """The type that the profile names, for programs whose destroy takes a void pointer."""
    glob = split_name(profile.slot_type)[-1]
    if not glob.strip("*?"):
        return None
    dies = search.named(glob, dw.RECORD_TAGS) or search.named(f"*.{glob}", dw.RECORD_TAGS)
    if not dies:  # a nameless struct with a typedef
        named = (strip(dwarf, typedef) for typedef in search.named(glob, (dw.TAG_typedef,)))
        dies = [die for die in named if die is not None and die.tag in dw.RECORD_TAGS]
    found = [die for die in dies if not die.has(dw.AT_declaration) and fits(dwarf, die, profile.slot_type)]
    _one_type(dwarf, found, profile)
    return found[0] if found else None


def _one_type(dwarf: Dwarf, kinds: list[Die], profile: Profile) -> None:
    """Raises ProfileError where a name without * and ? means several types."""
    if len(kinds) < 2 or set(profile.slot_type) & {"*", "?"}:
        return
    names = sorted({qualified(dwarf, kind) for kind in kinds})
    if len(names) > 1:
        raise ProfileError(
            f"slot.type: {profile.slot_type!r} means several types here: {', '.join(names[:8])}",
            path=profile.path,
            key="slot.type",
            remedy="write the name with its namespace",
        )


def _type_of(dwarf: Dwarf, scopes: Scopes, instance: Instance) -> Die | None:
    """The type the argument points to; None where that is not said, or said of raw memory."""
    for die in dwarf.origin_chain(instance.die):
        if instance.spec.returned:
            typed = [die] if die.has(dw.AT_type) else []
        else:
            typed = [v for v in scopes.variables(die) if dwarf.name(v) == instance.spec.argument]
        for one in typed:
            target = pointee(dwarf, one)
            if target is None or target.tag not in dw.RECORD_TAGS:
                return None
            return complete_type(dwarf, scopes.search, target)
    return None
