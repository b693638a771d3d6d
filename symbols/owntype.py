# Owns telling the slot pool's functions from those of other pools that have the same names: by the type
# that the wanted parameter, or the result, points to. Only what is proved to differ is left alone.
from __future__ import annotations

from symbols import dwarf_const as dw
from symbols.dwarf import Dwarf
from symbols.globs import matches
from symbols.instances import Instance
from symbols.plan import Role
from symbols.scopes import Scopes
from symbols.sites import pointee


def of_slot_type(
    dwarf: Dwarf, scopes: Scopes, instances: list[Instance], slot_type: str
) -> tuple[list[Instance], list[str]]:
    """(instances without those of other types, "function (type)" of the ones left out).

    Nothing is left out unless some instance has the slot's type: the profile's type may be misspelt.
    """
    own: list[Instance] = []
    unknown: list[Instance] = []
    foreign: dict[str, None] = {}
    for instance in instances:
        name = "" if instance.role is Role.DISPATCH else _type_name(dwarf, scopes, instance)
        if not name:
            unknown.append(instance)
        elif matches(slot_type, name):
            own.append(instance)
        else:
            foreign[f"{instance.name} ({name})"] = None
    if not own:
        return instances, []
    kept = {id(instance) for instance in (*own, *unknown)}
    return [instance for instance in instances if id(instance) in kept], list(foreign)


def _type_name(dwarf: Dwarf, scopes: Scopes, instance: Instance) -> str:
    """Name of the type the argument points to; "" where that is not said, or said of raw memory."""
    for die in dwarf.origin_chain(instance.die):
        if instance.role is Role.CREATE:
            typed = [die] if die.has(dw.AT_type) else []
        else:
            typed = [v for v in scopes.variables(die) if dwarf.name(v) == instance.spec.argument]
        for one in typed:
            target = pointee(dwarf, one)
            return dwarf.name(target) if target is not None and target.tag in dw.RECORD_TAGS else ""
    return ""
