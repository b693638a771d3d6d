# Owns entries of a destroy that its control flow does not show: compilers hoist its loads and schedule its
# stores among other code. Accepted where each of its effects on memory provably belongs to one entry.
from __future__ import annotations

from collections.abc import Callable, Iterable

from symbols.code import FunctionCode, full_register
from symbols.copies import all_entries, effect
from symbols.expressions import Unsupported
from symbols.plan import ArgSource


def entries_by_effect(
    code: FunctionCode, low: int, inside: set[int], source_at: Callable[[int], ArgSource | None]
) -> list[int]:
    """Addresses, one of which each execution of the instance passes once, where its argument has a location.

    low: the function's entry. Raises Unsupported where one cannot be sure.
    """
    located = {at for at in inside if _register(source_at(at))}
    starts = {at for at in located if not located.issuperset(code.preds.get(at, ())) or at == low}
    roots = {low} | code.orphans
    first = {at for at in starts if at in code.reach(roots, avoid=starts - {at})}
    if not first:
        raise Unsupported("no location of its argument begins inside it")
    entries = all_entries(code, inside, first, source_at, starts)
    barriers = {_leader(code, at) for at in entries}
    effects = {at: effect(code, at) for at in inside if code.writes_foreign(at)}
    if not effects or code.reach(roots, avoid=barriers) & effects.keys():
        raise Unsupported("it has effects on ways that pass no location of its argument")
    for at, kind in effects.items():
        after = code.reach(code.succ(at), avoid=barriers)
        if any(effects[other] == kind for other in after & effects.keys()):
            raise Unsupported("it has effects that repeat without a new location of its argument")
    for at in entries:
        register = _register(source_at(at))
        for before in _run_before(code, at):
            if before in effects and _stores(code, before, register):
                raise Unsupported("its argument has a location only after the slot is linked")
        if code.reach(code.succ(at), avoid=effects.keys()) & (set(entries) - {at}):
            raise Unsupported("its argument's locations follow each other without an effect")
    return entries


def _register(source: ArgSource | None) -> str:
    return source.register or "" if source is not None and not source.steps else ""


def _leader(code: FunctionCode, address: int) -> int:
    """The first address of the straight run that leads to this one."""
    before = _run_before(code, address)
    return before[-1] if before else address


def _run_before(code: FunctionCode, address: int) -> list[int]:
    """The instructions that run right before this one and only then, backwards."""
    run: list[int] = []
    at = address
    while at not in code.targets and at not in code.orphans:
        preds = code.preds.get(at, [])
        if len(preds) != 1 or preds[0] >= at or len(code.succ(preds[0])) != 1:
            break
        at = preds[0]
        if code.insns[at].mnemonic.startswith("call"):
            break
        run.append(at)
    return run


def _stores(code: FunctionCode, at: int, register: str) -> bool:
    """Whether the instruction may write the register's value to memory."""
    insn = code.detail(at)
    operands: Iterable[object] = insn.operands if insn is not None else ()
    names = {full_register(insn.reg_name(o.reg)) for o in operands if getattr(o, "type", 0) == 1}  # type: ignore[attr-defined]
    return register in names
