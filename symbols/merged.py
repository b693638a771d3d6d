# Owns finding destroys that have code but no debug entry: LLVM merges equal tails of inlined copies and
# gives the result line 0 in their common scope, so no DW_TAG_inlined_subroutine is left. They are
# found by what destroy does: it pushes the slot on the pool's free list. Unproven ones are unprobed.
from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Any, NamedTuple

from capstone import x86_const as x86

from symbols import dwarf_const as dw
from symbols.code import FunctionCode, full_register
from symbols.dwarf import Dwarf
from symbols.instances import Finder, Instance
from symbols.plan import ArgSource, InstanceKind, Unprobed
from symbols.pushes import pushes
from symbols.qualified import split_name
from symbols.registers import X86_64
from symbols.scopes import Function, Scopes
from symbols.search import Search
from symbols.sites import Found, slot_variable

FRAME = ("rsp", "rbp", "sp", "x29")
_NEAR = 14  # instructions around the store of the list head that belong to a push
_SHORTEST = 6  # bytes of a push before the store of the list head


class Head(NamedTuple):
    """Where the pool keeps its free list: a fixed address, or an offset from the pool's owner."""

    fixed: bool
    value: int
    frame: str = ""  # the frame's register, for a pool that is a local variable


class Push(NamedTuple):
    """load X, [head]; store [R + link], X; store [head], R - in one straight run."""

    start: int
    register: str
    addresses: tuple[int, ...]


class MergedDestroys:
    """Pushes on the free lists that the known instances of destroy push on."""

    def __init__(
        self,
        dwarf: Dwarf,
        scopes: Scopes,
        finder: Finder,
        search: Search,
        *,
        slot_type: str,
        link_offset: int,
    ) -> None:
        self._dwarf = dwarf
        self._scopes = scopes
        self._finder = finder
        self._slot_type = slot_type
        self._link = link_offset
        self._search = search
        self._typed: set[int] | None = None  # units that describe the slot's type, by offset
        self._others: set[Head] | None = None

    def find(
        self, known: list[tuple[Instance, ArgSource]], all_known: list[Instance]
    ) -> tuple[list[tuple[Instance, Found]], list[Unprobed]]:
        """(probeable ones as instances of their own, the others)."""
        sites: list[tuple[Instance, Found]] = []
        lost: list[Unprobed] = []
        if self._scopes.machine is not X86_64:
            return sites, lost  # the bytes that are searched for are x86-64's; resolve.py says so
        heads = {head for instance, source in known for head in self._heads(instance, source)}
        done: set[int] = set()
        for address in pushes(self._scopes.image, self._link):
            if any(lo <= address < hi for i in all_known for lo, hi in i.ranges):
                continue
            function = self._function_with_merged(address)
            if function is None:
                continue
            code = self._finder.code_of(function)
            insn = code.detail(address)
            head = head_of(insn, insn.operands[0]) if insn is not None and insn.operands else None
            push = self._push(code, address, head) if head is not None else None
            if head is None or push is None or push.start in done:
                continue
            if any(lo <= a < hi for i, _source in known for lo, hi in i.ranges for a in push.addresses):
                continue  # what is left of a copy's entry is probed
            if not self._unattributed(function, push):
                continue
            if head not in heads and not self._maybe_slots(function, push, head, all_known[0]):
                continue
            done.add(push.start)
            push = push._replace(start=self._before_fill(function, code, push))
            made = self._judge(function, code, push, head in heads and head.fixed, all_known)
            if isinstance(made, Unprobed):
                lost.append(made)
            elif made is not None:
                sites.append(made)
        return sites, lost

    # -- what a push looks like ------------------------------------------------------------------

    def _heads(self, instance: Instance, source: ArgSource) -> Iterator[Head]:
        """List heads that a known instance stores its argument to."""
        if source.register is None or not source.is_register:
            return
        for address in sorted(instance.code.inside(instance.ranges)):
            place = _store_of(instance.code.detail(address), source.register)
            head = head_of(instance.code.detail(address), place) if place is not None else None
            if head is not None:
                push = self._push(instance.code, address, head)
                if push is not None and push.register == source.register and not head.frame:
                    yield head

    def _push(self, code: FunctionCode, address: int, head: Head) -> Push | None:
        """The push whose store of the head lies at address."""
        insn = code.detail(address)
        if insn is None or insn.mnemonic != "mov" or len(insn.operands) != 2:
            return None
        place, value = insn.operands
        if value.type != x86.X86_OP_REG or value.size != 8 or head_of(insn, place) != head:
            return None
        register = full_register(insn.reg_name(value.reg))
        near = _neighbours(code, address)
        for link in near:
            stored = self._link_store(code.detail(link), register)
            if stored is None:
                continue
            for load in near:
                if load < link and loads(code.detail(load), stored, head):
                    addresses = tuple(sorted((load, link, address)))
                    if set(addresses) <= set(code.straight(addresses[0])):
                        return Push(addresses[0], register, addresses)
        return None

    def _link_store(self, insn: Any, register: str) -> str | None:
        """The register stored as the slot's free-list link, when this instruction does that."""
        if insn is None or insn.mnemonic != "mov" or len(insn.operands) != 2:
            return None
        place, value = insn.operands
        if place.type != x86.X86_OP_MEM or value.type != x86.X86_OP_REG or value.size != 8 or place.mem.index:
            return None
        if insn.reg_name(place.mem.base) != register or place.mem.disp != self._link:
            return None
        return full_register(insn.reg_name(value.reg))

    def _function_with_merged(self, address: int) -> Function | None:
        """The function of an address whose code may be merged: no line claims it. Cheap to say no."""
        scopes = self._scopes
        unit = scopes.unit_at(address)
        if unit is None or str(self._dwarf.string(self._dwarf.root(unit), dw.AT_producer)).startswith("GNU"):
            return None  # gcc keeps the entry of one copy (tangles.py)
        rows = scopes.lines.sequence(address, unit)
        if rows is None:
            return None
        index = bisect.bisect_right(rows.addresses, address) - 1
        if index < 0 or (rows.lines[index] and rows.addresses[index] > address - _SHORTEST):
            return None
        return scopes.function_of(address)

    # -- what it means ---------------------------------------------------------------------------

    def _maybe_slots(self, function: Function, push: Push, head: Head, model: Instance) -> bool:
        """Whether a push on an unknown list can be of slots: nothing proves that it is of something else."""
        if not self._nameless(function, push.addresses[-1]):
            return False
        if self._typed is None:
            glob = split_name(self._slot_type)[-1]
            found = self._search.named(glob, dw.RECORD_TAGS) if glob.strip("*?") else []
            shared = any(self._dwarf.root(die.unit).tag != dw.TAG_compile_unit for die in found)
            self._typed = set() if shared else {die.unit.offset for die in found}  # type units serve all
        if self._typed and function.die.unit.offset not in self._typed:
            return False  # a unit that frees slots knows their type
        if self._others is None:
            self._others = set(self._heads_of_others(model))
        return head not in self._others

    def _heads_of_others(self, model: Instance) -> Iterator[Head]:
        """Lists that functions of the same name push on, and which the profile does not want."""
        names = {self._dwarf.name(die).partition("<")[0] for die in self._dwarf.origin_chain(model.die)}
        for name in sorted(names - {""}):
            for other in self._finder.others(model.spec, name):
                for address in other.code.inside(other.ranges):
                    insn = other.code.detail(address)
                    if insn is not None and len(insn.operands) == 2:
                        head = head_of(insn, insn.operands[0])
                        if head is not None and self._push(other.code, address, head) is not None:
                            yield head

    def _unattributed(self, function: Function, push: Push) -> bool:
        """No line of the source claims the push: line 0, or not one row of the table begins in it.

        A push that somebody wrote (a pool that grows, say) has rows of its own.
        """
        if self._nameless(function, push.addresses[-1]):
            return True
        rows = self._scopes.lines.sequence(push.start, function.die.unit)
        if rows is None:
            return False
        index = bisect.bisect_left(rows.addresses, push.start)
        return index < len(rows.addresses) and rows.addresses[index] > push.addresses[-1]

    def _nameless(self, function: Function, address: int) -> bool:
        """Line 0: the compiler itself says that this code belongs to no one place."""
        row = self._scopes.lines.at(address, function.die.unit)
        return row is not None and row.line == 0

    def _before_fill(self, function: Function, code: FunctionCode, push: Push) -> int:
        """Back over merged code of the same run (safe modes fill the slot first): where it is still whole."""
        at = push.start
        for _ in range(_NEAR):
            preds = code.preds.get(at, [])
            if at in code.targets or len(preds) != 1 or len(code.succ(preds[0])) != 1 or preds[0] >= at:
                break
            insn = code.detail(preds[0])
            if insn is None or insn.mnemonic == "call" or not self._nameless(function, preds[0]):
                break
            if push.register in {full_register(insn.reg_name(reg)) for reg in insn.regs_access()[1]}:
                break
            at = preds[0]
        return at

    def _judge(
        self, function: Function, code: FunctionCode, push: Push, fixed: bool, known: list[Instance]
    ) -> tuple[Instance, Found] | Unprobed | None:
        model = known[0]
        instance = Instance(
            model.spec, model.name, InstanceKind.INLINED, function.die, function, [function.die],
            [(push.start, push.addresses[-1] + code.insns[push.addresses[-1]].size)], push.start, code,
            None, model.declared_at,
        )  # fmt: skip
        inside = {a for i in known if i.function.low == function.low for a in code.inside(i.ranges)}
        if push.start not in code.reach({function.low} | code.orphans, avoid=inside):
            return None  # the tail of a known instance
        if any(p in inside for p in code.preds.get(self._leader(code, push.start), ())):
            return instance.unprobed(
                "copies of destroy were merged in part: some ways here are probed already"
            )
        variable = slot_variable(
            self._dwarf, self._scopes, function, push.start, push.register, self._slot_type
        )
        if variable is None and not fixed:
            return instance.unprobed("merged code that pushes on a free list, of unproven type")
        note = "copies of destroy that the compiler merged, found by their code"
        found = Found(push.start, ArgSource(register=push.register), variable or model.spec.argument, note)
        return instance, found

    def _leader(self, code: FunctionCode, address: int) -> int:
        """The first address of the straight run that holds this one."""
        for _ in range(64):
            preds = code.preds.get(address, [])
            if address in code.targets or len(preds) != 1 or len(code.succ(preds[0])) != 1:
                return address
            address = preds[0]
        return address


def _neighbours(code: FunctionCode, address: int) -> list[int]:
    """Instruction addresses near one, on the straight line through it, in order."""
    before: list[int] = []
    at = address
    while len(before) < _NEAR and at not in code.targets:
        preds = code.preds.get(at, [])
        if len(preds) != 1 or len(code.succ(preds[0])) != 1 or preds[0] >= at:
            break
        at = preds[0]
        before.append(at)
    after = [a for a in code.straight(address) if a != address][:_NEAR]
    return sorted([*before, *after])


def _store_of(insn: Any, register: str) -> Any:
    """The memory operand that a `mov [mem], register` writes, else None."""
    if insn is None or insn.mnemonic != "mov" or len(insn.operands) != 2:
        return None
    place, value = insn.operands
    if place.type != x86.X86_OP_MEM or value.type != x86.X86_OP_REG:
        return None
    return place if full_register(insn.reg_name(value.reg)) == register and value.size == 8 else None


def plain_move(insn: Any) -> bool:
    """Whether the instruction is a mov from memory to a register."""
    return bool(
        insn is not None
        and insn.mnemonic == "mov"
        and len(insn.operands) == 2
        and insn.operands[0].type == x86.X86_OP_REG
        and insn.operands[1].type == x86.X86_OP_MEM
    )


def loads(insn: Any, register: str | None, head: Head, *, base: str | None = None) -> bool:
    """Whether the instruction is `mov register, [head]`; with base, `mov register, [base + head.value]`."""
    if not plain_move(insn):
        return False
    target, place = insn.operands
    if register is not None and full_register(insn.reg_name(target.reg)) != register:
        return False
    if base is not None and (not place.mem.base or insn.reg_name(place.mem.base) != base):
        return False
    return head_of(insn, place) == head


def head_of(insn: Any, place: Any) -> Head | None:
    """What a memory operand says of the list head; None for indexed operands."""
    if place is None or place.type != x86.X86_OP_MEM or place.mem.index or place.mem.segment:
        return None
    base = insn.reg_name(place.mem.base) if place.mem.base else ""
    if base == "rip":
        return Head(True, insn.address + insn.size + place.mem.disp)
    if not base:
        return Head(True, place.mem.disp)
    return Head(False, place.mem.disp, base if base in FRAME else "")
