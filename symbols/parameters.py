# Owns the parameter that a profile names: its entry, and what there is instead where it has another name.
from __future__ import annotations

from symbols import dwarf_const as dw
from symbols.dwarf import Die, Dwarf
from symbols.instances import Instance
from symbols.pointers import type_text
from symbols.scopes import Scopes

_SHOWN = 12


def parameter(dwarf: Dwarf, scopes: Scopes, instance: Instance) -> Die | None:
    """The parameter's entry in the instance; falls back to the abstract one (without location)."""
    for die in dwarf.origin_chain(instance.die):
        for variable in scopes.variables(die):
            if dwarf.name(variable) == instance.spec.argument:
                return variable
    return None


def no_parameter(dwarf: Dwarf, scopes: Scopes, instance: Instance) -> str:
    """What is wrong with the profile's parameter name, and which names there are."""
    for die in dwarf.origin_chain(instance.die):
        named = {
            dwarf.name(one): type_text(dwarf, one)
            for one in scopes.variables(die)
            if one.tag == dw.TAG_formal_parameter and dwarf.name(one)
        }
        if named:
            has = ", ".join(f"{name} ({kind})" for name, kind in list(named.items())[:_SHOWN])
            plain = dwarf.name(instance.die) or instance.name
            return f"{plain} has no parameter {instance.spec.argument!r}; it has: {has}"
    return f"no parameter {instance.spec.argument!r} in its debug information, which names none"
