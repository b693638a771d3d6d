# Owns functions that were split in two: gcc's partial inlining leaves the test at the head inlined into
# every caller, and the rest as `name.part.N`, described as another copy of the function. One call
# must hit one probe. Must not look for new sites.
from __future__ import annotations

import re
from collections.abc import Callable

from symbols.dwarf import Dwarf
from symbols.image import Image
from symbols.instances import Instance
from symbols.plan import ArgSource, InstanceKind
from symbols.tangles import Placed


def without_parts(placed: list[Placed], symbols: Image) -> list[Placed]:
    """Without the sites of parts whose heads are probed; where a head cannot be, the part stands for all.

    What tells a part from a function that calls itself is its symbol (gcc, ipa-split.cc: "part").
    """
    left: set[int] = set()
    for one in placed:
        part = one.instance
        if part.kind is not InstanceKind.OUT_OF_LINE or not _is_part(part, symbols):
            continue
        heads = [other for other in placed if other is not one and _calls(other.instance, part.entry)]
        if not heads:
            continue
        if all(head.sites for head in heads) or not one.sites:
            left.add(id(one))
            continue
        for head in heads:
            if head.sites:
                head.sites = []
                head.reason = "only what follows its first test is probed, in the part that copies share"
    return [one for one in placed if id(one) not in left]


def without_nested(
    placed: list[Placed],
    holds: Callable[[Instance, int, ArgSource], bool],
    dwarf: Dwarf,
) -> list[Placed]:
    """Without instances inside another instance of the function that work on the same slot.

    That is a part which was inlined after its head. A function that calls itself has another slot there.
    Destructors that run another copy of themselves do so for their own `this` (D0 runs D2).
    holds(instance, address, source): whether its argument is in source there.
    """
    probed = {one.instance.die.offset: one.instance for one in placed if one.sites}

    def repeats(one: Placed) -> bool:
        for die in one.instance.path[:-1]:
            outer = probed.get(die.offset)
            if outer is None:
                continue
            if _variants(dwarf, outer, one.instance):
                return True
            if one.sites and all(holds(outer, site.address, site.source) for site in one.sites):
                return True
        return False

    return [one for one in placed if not repeats(one)]


def _variants(dwarf: Dwarf, outer: Instance, inner: Instance) -> bool:
    """Whether both come from one declared constructor or destructor (Itanium ABI: C1, C2, D0, D1, D2)."""
    declared = [list(dwarf.origin_chain(one.die))[-1] for one in (outer, inner)]
    linkage = dwarf.linkage_name(inner.die)
    special = dwarf.name(declared[0]).startswith("~") or bool(re.search(r"C[1-5]I?E", linkage))
    return special and declared[0].offset == declared[1].offset and inner.die is not outer.die


def _is_part(instance: Instance, symbols: Image) -> bool:
    symbol = symbols.function_at(instance.entry)
    return symbol is not None and symbol.address == instance.entry and ".part." in symbol.name


def _calls(instance: Instance, target: int) -> bool:
    code, wanted = instance.code, f"{target:#x}"
    return any(
        code.insns[at].operands == wanted and code.insns[at].mnemonic.startswith(("call", "j"))
        for at in code.inside(instance.ranges)
    )
