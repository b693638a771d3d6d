# Owns functions that were split in two: gcc's partial inlining leaves the test at the head inlined into
# every caller, and the rest as `name.part.N`, described as another copy of the function. One call
# must hit one probe. Must not look for new sites.
from __future__ import annotations

from symbols.image import Image
from symbols.instances import Instance
from symbols.plan import InstanceKind
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


def _is_part(instance: Instance, symbols: Image) -> bool:
    symbol = symbols.function_at(instance.entry)
    return symbol is not None and symbol.address == instance.entry and ".part." in symbol.name


def _calls(instance: Instance, target: int) -> bool:
    code, wanted = instance.code, f"{target:#x}"
    return any(
        code.insns[at].operands == wanted and code.insns[at].mnemonic.startswith(("call", "j"))
        for at in code.inside(instance.ranges)
    )
