# Owns where a created slot's address becomes visible: the births of an instance of create. No
# uretprobes; a birth must be passed exactly once per success, and never on failure, or is refused.
from __future__ import annotations

from collections.abc import Iterator

from capstone import x86_const as x86

from symbols import dwarf_const as dw
from symbols.code import full_register
from symbols.dwarf import Die, Dwarf
from symbols.expressions import Place, Unsupported, home_of, to_source
from symbols.instances import Instance, check_entries, entry_points
from symbols.lists import EVERYWHERE, Located, locations_of, merge, ranges_of
from symbols.plan import ArgSource, InstanceKind
from symbols.pointers import pointee, strip
from symbols.popped import find_popped
from symbols.qualified import fits
from symbols.scopes import Scopes
from symbols.sites import Found


class LeavesByTailCall(Unsupported):
    """The result is made by another function, which returns to the caller: only there it can be seen."""


_MEETING = 48  # instructions after create within which two ways out count as one


class Births:
    """Births of one image's slots."""

    def __init__(self, dwarf: Dwarf, scopes: Scopes, *, slot_type: str, link_offset: int) -> None:
        self._dwarf = dwarf
        self._scopes = scopes
        self._slot_type = slot_type
        self._link_offset = link_offset

    def find(self, instance: Instance, *, within: bool = False) -> list[Found]:
        """Where the result is, one entry per way to success.

        Raises Unsupported with every reason; LeavesByTailCall where callers can tell, unless asked for what
        can be found within the function.
        """
        if instance.entry not in instance.code.insns:
            raise Unsupported("its entry is not the start of an instruction")
        reasons: list[str] = []
        if instance.kind is InstanceKind.OUT_OF_LINE and self._returns_pointer(instance):
            try:
                return self._at_returns(instance)
            except LeavesByTailCall as error:
                if not within:
                    raise
                reasons.append(str(error))
        for variable, scope, whose in self._candidates(instance):
            name = self._dwarf.name(variable)
            try:
                return self._births(instance, variable, scope)
            except Unsupported as error:
                reasons.append(f"{whose} {name!r}: {error}")
        reasons = reasons or ["no variable holds the result"]
        if instance.kind is InstanceKind.INLINED:
            try:
                return find_popped(instance, self._link_offset)
            except Unsupported as error:
                reasons.append(str(error))
        raise Unsupported("; ".join(reasons))

    # -- candidates ------------------------------------------------------------------------------

    def _candidates(self, instance: Instance) -> Iterator[tuple[Die, Die, str]]:
        """(variable, its scope, whose): the instance's own first, then the caller's that the call fills."""
        yield from self._pointers(instance.die, "its variable")
        if instance.kind is not InstanceKind.INLINED:
            return
        # Outwards: each caller's variable that is declared on the line of the call, through callers
        # that were inlined themselves and hand the result on.
        line = instance.die.number(dw.AT_call_line)
        for scope in reversed(instance.path[:-1]):
            for variable, where, whose in self._pointers(scope, "the caller's", nested=False):
                declared = self._dwarf.inherited(variable, dw.AT_decl_line)
                if line and declared is not None and declared[1] == line:
                    yield variable, where, whose
            if scope.tag == dw.TAG_inlined_subroutine:
                line = scope.number(dw.AT_call_line)

    def _pointers(self, scope: Die, whose: str, *, nested: bool = True) -> Iterator[tuple[Die, Die, str]]:
        """Variables of type pointer to slot in a scope and, where nested, its lexical blocks."""
        for child in self._dwarf.children(scope):
            if child.tag == dw.TAG_variable:
                target = pointee(self._dwarf, child)
                if target is not None and fits(self._dwarf, target, self._slot_type):
                    yield child, scope, whose
            elif nested and child.tag == dw.TAG_lexical_block:
                yield from self._pointers(child, whose)

    def _returns_pointer(self, instance: Instance) -> bool:
        for die in self._dwarf.origin_chain(instance.die):
            if die.has(dw.AT_type):
                kind = strip(self._dwarf, self._dwarf.target(die, dw.AT_type))
                return kind is not None and kind.tag in (dw.TAG_pointer_type, dw.TAG_reference_type)
        return False

    # -- births ----------------------------------------------------------------------------------

    def _at_returns(self, instance: Instance) -> list[Found]:
        """A returned pointer is in the result register at every ret. Null on failure, which is no slot.

        A part without one never returns: it fails (throws), and nothing is born.
        """
        code = instance.code
        rets, leaving = [], []
        inside = code.inside(instance.ranges)
        for address in inside:
            insn = code.insns[address]
            if insn.mnemonic.startswith("ret"):
                rets.append(address)
            elif insn.mnemonic == "jmp" and not code.succ(address):
                leaving.append(address)
            elif insn.mnemonic.startswith("j") and insn.operands.startswith("0x"):
                leaving += [address] * (int(insn.operands, 16) not in code.insns)
        if leaving:
            raise LeavesByTailCall("it leaves by a tail call, where its result is not known yet")
        return [Found(at, ArgSource(register=code.machine.result), "return value") for at in sorted(rets)]

    def _births(self, instance: Instance, variable: Die, scope: Die) -> list[Found]:
        located = locations_of(self._dwarf, variable)
        if not located:
            raise Unsupported("optimized out")
        name = self._dwarf.name(variable)
        if len(located) == 1 and located[0][1] == EVERYWHERE:
            home = home_of(located[0][2], variable.unit, self._at(instance, instance.entry))
            if home is not None:
                return self._at_stores(instance, home, name)
            located = [(lo, hi, located[0][2]) for lo, hi in ranges_of(self._dwarf, scope)]
        return self._at_starts(instance, variable, located, name)

    def _at(self, instance: Instance, address: int) -> Place:
        return self._scopes.place(instance.function, address)

    def _at_starts(self, instance: Instance, variable: Die, located: list[Located], name: str) -> list[Found]:
        """The variable has locations: it is born where they begin, coming from the instance's code."""
        code = instance.code
        inside = code.inside(instance.ranges)
        if not inside:
            raise Unsupported("the instance has no instructions")
        spans = merge([(lo, hi) for lo, hi, _expr in located])
        live = code.inside(spans)
        # Born: where it becomes live on ways that all came through the instance.
        calls, elsewhere = entry_points(instance)
        births = [
            lo
            for lo, _hi in spans
            if lo in code.insns and lo not in elsewhere and any(p not in live for p in code.preds.get(lo, ()))
        ]
        if not births:
            raise Unsupported("no address behind the instance at which its location begins")
        behind = code.reach([s for c in calls for s in code.succ(c)], avoid={*births, *calls})
        if behind & (live - set(births)):
            raise Unsupported("it can become live on a way that passes no such address")
        started = {lo for lo, _hi in spans}
        after = code.reach(births, avoid=calls)
        if any(p in after - live for at in live & after - started for p in code.preds.get(at, ())):
            raise Unsupported("its location is lost and comes back")
        check_entries(instance, calls, births)
        self._once(instance, births, calls)
        self._single(instance, variable, located, inside, births)
        self._complete(instance, births, inside)
        found = []
        for at in births:
            expr = next(expr for lo, hi, expr in located if lo <= at < hi)
            source = to_source(expr, variable.unit, self._at(instance, at))
            found.append(Found(at, source, name, "the result, where its variable is born"))
        return found

    def _single(
        self, instance: Instance, variable: Die, located: list[Located], body: set[int], births: list[int]
    ) -> None:
        """Raises Unsupported where create's code gives the variable a second value.

        C: `c = pool->free; if (!c) c = malloc(...)`. An instruction that writes the register which
        holds the variable after it, and does not copy it from where it was, assigns.
        """
        code = instance.code

        def register_at(address: int) -> str | None:
            for lo, hi, expr in located:
                if lo <= address < hi:
                    try:
                        source = to_source(expr, variable.unit, self._at(instance, address))
                    except Unsupported:
                        return None
                    return source.register if source.is_register else None
            return None

        for at in body:
            insn = code.detail(at)
            after = register_at(at + insn.size) if insn is not None else None
            if insn is None or after is None or at + insn.size in births:
                continue
            before = register_at(at)
            written = {full_register(insn.reg_name(reg)) for reg in insn.regs_access()[1]}
            if insn.mnemonic.startswith("call"):
                written.add(code.machine.result)
            if (before is None or before == after) and after not in written:
                continue
            value = insn.operands[-1] if insn.mnemonic == "mov" else None
            origin = None
            if value is not None and value.type == x86.X86_OP_REG and after in written:
                origin = full_register(insn.reg_name(value.reg))
            if origin is None or origin != before:
                raise Unsupported("it is assigned more than once")

    def _complete(self, instance: Instance, births: list[int], inside: set[int]) -> None:
        """Raises Unsupported where ways with and without a birth leave create for the same place.

        A failure leaves for another place than success; a success without a birth would be missed.
        """
        code = instance.code

        def leaves_to(reached: set[int]) -> set[int]:
            outside = {s for a in reached for s in code.succ(a) if s not in inside and s not in births}
            for start in list(outside):
                at = start
                for _ in range(_MEETING):
                    succ = code.succ(at)
                    if len(succ) != 1 or succ[0] in inside or succ[0] in births:
                        break
                    at = succ[0]
                    outside.add(at)
            return outside

        without = code.reach(entry_points(instance)[0], avoid=births, within=inside)
        after = code.reach([s for b in births for s in code.succ(b)], within=inside)
        starts = {b for b in births if b not in inside}
        if leaves_to(without) & (leaves_to(after | (set(births) & inside)) | starts):
            raise Unsupported("it has no location on some of the ways to success")

    def _at_stores(self, instance: Instance, home: tuple[str, int], name: str) -> list[Found]:
        """The variable has a stack home: it is born where it is stored."""
        code = instance.code
        inside = code.inside(instance.ranges)
        stores: list[Found] = []
        for at in sorted(inside):
            insn = code.detail(at) if f"{home[0]}" in code.insns[at].operands else None
            if insn is None:
                continue
            for operand in insn.operands:
                if operand.type != x86.X86_OP_MEM or not operand.access & 2:
                    continue
                mem = operand.mem
                overlaps = mem.disp < home[1] + 8 and mem.disp + max(operand.size, 1) > home[1]
                if insn.reg_name(mem.base) != home[0] or mem.index or not overlaps:
                    continue
                value = insn.operands[-1]
                if insn.mnemonic != "mov" or operand.size != 8 or value.type != x86.X86_OP_REG:
                    raise Unsupported("its stack home is written by parts or with a constant")
                register = full_register(insn.reg_name(value.reg))
                note = "the result, where its variable is stored"
                stores.append(Found(at, ArgSource(register=register), name, note))
        if not stores:
            raise Unsupported("nothing in the function stores to its stack home")
        if home[0] == code.machine.stack and not self._steady_stack(instance, inside):
            raise Unsupported("its stack home is relative to the stack pointer, which moves in the function")
        places, calls = [store.address for store in stores], entry_points(instance)[0]
        check_entries(instance, calls, places)
        self._once(instance, places, calls)
        return stores

    def _steady_stack(self, instance: Instance, inside: set[int]) -> bool:
        """Whether the stack pointer changes only in the prologue and the epilogue."""
        changes, stack = 0, instance.code.machine.stack
        for at in inside:
            insn = instance.code.insns[at]
            if insn.operands.startswith(f"{stack},") and insn.mnemonic in ("sub", "add", "and", "lea"):
                changes += insn.mnemonic == "sub"
        return changes <= 1

    def _once(self, instance: Instance, births: list[int], calls: list[int]) -> None:
        """Raises Unsupported where one birth can follow another, or itself, without a new call of create."""
        code = instance.code
        for at in births:
            after = code.reach(code.succ(at), avoid=calls)
            if any(other in after for other in births):
                raise Unsupported("it is assigned more than once on one way through")
