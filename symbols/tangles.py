# Owns destroys that share code: gcc's cross-jumping and LLVM's tail merging leave copies of which one
# runs into the middle of another. One destroy must hit one probe. Must not look for new sites.
from __future__ import annotations

from dataclasses import dataclass

from capstone import x86_const as x86

from symbols.code import FunctionCode, full_register
from symbols.instances import Instance, entry_points
from symbols.plan import InstanceKind, Site


@dataclass(slots=True)
class Placed:
    """An instance with its sites; none when it could not be probed (reason says why)."""

    instance: Instance
    sites: list[Site]
    reason: str = ""


def untangle(placed: list[Placed]) -> list[Placed]:
    """Without the sites (and the unprobed instances) that always run on into another one's site.

    Two destroys one after the other are something else: the first has put its slot on the list before
    the second begins. A copy that runs into shared code has not.
    """
    groups: dict[int, list[Placed]] = {}
    for one in placed:
        if one.instance.kind is InstanceKind.INLINED:
            groups.setdefault(one.instance.function.low, []).append(one)
    covered: set[int] = set()
    for group in groups.values():
        if len(group) > 1:
            _untangle(group, covered)
    return [one for one in placed if id(one) not in covered]


def _untangle(group: list[Placed], covered: set[int]) -> None:
    code = group[0].instance.code
    union = {address for one in group for address in code.inside(one.instance.ranges)}
    for one in group:
        if not one.sites:
            starts = entry_points(one.instance)[0]
            registers = {s.source.register for other in group for s in other.sites if s.source.register}
            if starts and all(
                _runs_into(code, start, group, one, union, registers)
                or _continues(code, start, group, union, registers)
                for start in starts
            ):
                covered.add(id(one))
            continue
        kept = [
            site
            for site in one.sites
            if not _runs_into(code, site.address, group, one, union, {site.source.register or ""}, site)
        ]
        if not kept:
            covered.add(id(one))
        one.sites = kept


def _runs_into(
    code: FunctionCode,
    start: int,
    group: list[Placed],
    own: Placed,
    union: set[int],
    registers: set[str],
    site: Site | None = None,
) -> bool:
    """Whether every way on from start reaches a site of the group before the slot is on the list."""
    targets = {s.address for one in group for s in one.sites if s is not site} - {start}
    if not targets or (site is None and own.sites):
        return False
    between = code.reach([start], avoid=targets, within=union)
    leaving = {s for a in between for s in code.succ(a)} - between
    if not leaving or not leaving <= targets:
        return False
    return not any(_stores_register(code, address, registers) for address in between)


def _continues(
    code: FunctionCode, start: int, group: list[Placed], union: set[int], registers: set[str]
) -> bool:
    """Whether start is only the rest of a destroy whose site has been passed already."""
    function = group[0].instance.function
    sites = {site.address for one in group for site in one.sites}
    if start in code.reach({function.low} | code.orphans, avoid=sites):
        return False
    pushing = {address for address in union if _stores_register(code, address, registers)}
    return start in code.reach(sites, avoid=pushing, within=union)


def _stores_register(code: FunctionCode, address: int, registers: set[str]) -> bool:
    """`mov [memory], register`: the slot's address goes somewhere, as a push on a list does.

    "" among the registers: the slot's is not known, any may be it.
    """
    insn = code.detail(address)
    if insn is None or len(insn.operands) != 2 or insn.operands[0].type != x86.X86_OP_MEM:
        return False
    value = insn.operands[1]
    if value.type != x86.X86_OP_REG:
        return False
    return "" in registers or full_register(insn.reg_name(value.reg)) in registers
