# Owns the choice of probe address and argument source for destroy, disown and dispatch instances.
# A doubtful address is refused with its reason, never guessed.
from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from capstone import x86_const as x86

from symbols.backwards import held_before
from symbols.code import full_register
from symbols.copies import access, all_entries
from symbols.dwarf import Die, Dwarf
from symbols.effects import entries_by_effect
from symbols.entrytrace import EntryTrace
from symbols.entryvalues import EntryValues
from symbols.expressions import Unsupported, home_of, to_source
from symbols.image import Image
from symbols.instances import Instance, entry_points
from symbols.lists import Located, locations_of, merge, views_of
from symbols.parameters import no_parameter, parameter
from symbols.plan import MAX_RANGES, Addr, ArgSource, EntrySite, InstanceKind, Price, Role, Site
from symbols.pointers import pointee
from symbols.qualified import fits
from symbols.scopes import Function, Scopes


@dataclass(frozen=True, slots=True)
class Found:
    """A value at a pc, before the price was considered."""

    address: int
    source: ArgSource
    argument: str
    note: str = ""


class Refused(Unsupported):
    """The value is known, but the kernel takes no probe on the instruction there."""

    def __init__(self, reason: str, found: Found) -> None:
        self.found = found
        super().__init__(reason)


class SiteBuilder:
    """Sites of one image."""

    def __init__(
        self, image: Image, dwarf: Dwarf, scopes: Scopes, *, slot_type: str, link_offset: int
    ) -> None:
        self._slot_type = slot_type
        self._link_offset = link_offset
        self._image = image
        self._dwarf = dwarf
        self._scopes = scopes
        self._entries_of = EntryValues(image, scopes)
        self._named: dict[Role, bool] = {}

    def learn(self, instances: list[Instance]) -> None:
        """Whether a role's parameter exists at all, by the name that the profile gives it."""
        for one in instances:
            if not self._named.get(one.role):
                self._named[one.role] = parameter(self._dwarf, self._scopes, one) is not None

    def arguments(self, instance: Instance) -> list[Found]:
        """Where the wanted argument is, at the entry of the instance. Raises Unsupported."""
        name = instance.spec.argument
        variable = parameter(self._dwarf, self._scopes, instance)
        if variable is None:
            return self._without_parameter(instance)
        if instance.kind is InstanceKind.OUT_OF_LINE:
            homed = self._homed_at_entry(instance, variable)
            if homed is not None:
                return [Found(instance.entry, homed, name)]
        located = locations_of(self._dwarf, variable)
        try:
            return self._from_entries(instance, variable, located)
        except Unsupported:
            found = self._held_before(instance, variable, located) or self._by_effects(instance, located)
            if not found:
                raise
            return found

    def _from_entries(self, instance: Instance, variable: Die, located: list[Located]) -> list[Found]:
        entries = self._entries(instance, located)
        try:
            return [self._at_entry(instance, variable, located, entry) for entry in entries]
        except Unsupported:
            found = self._by_links(instance, entries)
            if not found:
                raise
            return found

    def _held_before(self, instance: Instance, variable: Die, located: list[Located]) -> list[Found]:
        """As _from_entries, where the argument's register held it before its location begins."""
        inside = instance.code.inside(instance.ranges)
        earlier = held_before(instance.code, inside, located, lambda at: self._value(instance, located, at))
        if earlier == located or instance.kind is not InstanceKind.INLINED:
            return []
        with contextlib.suppress(Unsupported):
            return self._from_entries(instance, variable, earlier)
        return []

    def _by_effects(self, instance: Instance, located: list[Located]) -> list[Found]:
        """Where the argument's locations begin, if each effect of destroy belongs to one of them."""
        if instance.role is not Role.DESTROY or instance.kind is not InstanceKind.INLINED:
            return []
        code = instance.code

        def source_at(address: int) -> ArgSource | None:
            return self._value(instance, located, address)

        found = []
        try:
            inside = code.inside(instance.ranges)
            for at in entries_by_effect(code, instance.function.low, inside, source_at):
                source = source_at(at)
                if source is not None:
                    note = "where its argument's location begins"
                    found.append(Found(at, source, instance.spec.argument, note))
        except Unsupported:
            return []
        return found

    def _value(self, instance: Instance, located: list[Located], address: int) -> ArgSource | None:
        """The argument at one address; None where it has no location that a probe can read."""
        for lo, hi, expr in located:
            if lo <= address < hi:
                with contextlib.suppress(Unsupported):
                    return to_source(expr, instance.die.unit, self._scopes.place(instance.function, address))
        return None

    def _without_parameter(self, instance: Instance) -> list[Found]:
        missing = Unsupported(no_parameter(self._dwarf, self._scopes, instance))
        if instance.kind is not InstanceKind.INLINED or not self._named.get(instance.role):
            raise missing
        found = self._by_links(instance, self._entries(instance, []))
        if not found:
            raise missing
        return found

    def _by_links(self, instance: Instance, entries: list[int]) -> list[Found]:
        """_by_link for every entry; nothing where one fails."""
        found = [self._by_link(instance, entry) for entry in entries]
        if instance.role is not Role.DESTROY or None in found:
            return []
        return [place for place in found if place is not None]

    def holds(self, instance: Instance, address: int, source: ArgSource) -> bool:
        """Whether the instance's argument is in source at an address behind its entry."""
        variable = parameter(self._dwarf, self._scopes, instance)
        if variable is None:
            return False
        return self._value(instance, locations_of(self._dwarf, variable), address) == source

    def site(self, instance: Instance, found: Found, index: int, *, harmless: bool = False) -> Site:
        """The cheapest site that means the same as `found`. Raises Unsupported."""
        code = instance.code
        if found.address not in code.insns:
            raise Unsupported("its address is not the start of an instruction")
        address = code.cheapest(found.address, found.source, harmless=harmless)
        if address is None:
            reason = code.refused(found.address) or "no instruction there can be probed"
            raise Refused(reason, found)
        offset = self._image.file_offset(address)
        if offset is None or not self._image.executable(address):
            raise Unsupported("its address is not in an executable segment")
        note = found.note
        if address != found.address:
            why = "cheaper" if code.price(address) is Price.EMULATED else "probeable"
            moved = f"address moved +{address - found.address:#x}: {why}"
            note = f"{note}; {moved}" if note else moved
        entry, frame = self._entries_of.keep(instance, found.source, address)
        if entry is not None:
            kept = (
                f"kept since the entry of {instance.function.name}: not known of calls begun before watching"
            )
            note = f"{note}; {kept}" if note else kept
        return Site(
            index=index,
            role=instance.role,
            function=instance.name,
            kind=instance.kind,
            address=Addr(address),
            file_offset=offset,
            enclosing=instance.function.name,
            call_site=instance.call_site,
            declared_at=instance.declared_at,
            instruction=str(code.insns[address]),
            price=code.price(address),
            argument=found.argument,
            source=found.source,
            note=note,
            entry=entry,
            frame=frame,
            at_entry=instance.kind is InstanceKind.OUT_OF_LINE and self._before_frame(instance, address),
            ranges=self.ranges(instance),
        )

    def ranges(self, instance: Instance) -> tuple[tuple[int, int], ...]:
        """At most MAX_RANGES of an instance's ranges, by address; adjoining ones are one."""
        return tuple(sorted(sorted(merge(instance.ranges), key=lambda r: r[0] - r[1])[:MAX_RANGES]))

    def _before_frame(self, instance: Instance, address: int) -> bool:
        """Whether the stack pointer is still what the caller left: no prologue has begun."""
        for at in instance.code.straight(instance.entry):
            if at == address:
                return True
            insn = instance.code.detail(at)
            if insn is None or self._scopes.machine.stack in {
                full_register(insn.reg_name(reg)) for reg in insn.regs_access()[1]
            }:
                return False
        return False

    @property
    def kept_at_entries(self) -> tuple[EntrySite, ...]:
        """Every place at which something is kept for the sites that were made."""
        return self._entries_of.sites()

    # -- entries of an instance ------------------------------------------------------------------

    def _entries(self, instance: Instance, located: list[Located]) -> list[int]:
        """Addresses at which control enters the instance. Raises Unsupported when they cannot be told."""
        code, entry = instance.code, instance.entry
        if instance.kind is InstanceKind.OUT_OF_LINE:
            if entry not in code.insns:
                raise Unsupported("its entry is not the start of an instruction")
            return [entry]
        points, elsewhere = entry_points(instance)
        if not points:
            raise Unsupported("no code leads to it")
        inside = code.inside(instance.ranges)
        points = self._collected(instance, points, elsewhere, inside)
        first = set(points)
        points = self._copies(instance, located, points, inside)
        for start in points:
            # Not through what runs without the instance: that would be its next execution.
            behind = code.reach(code.succ(start), avoid=elsewhere) & first if start in first else set()
            if any(other in behind for other in points if other != start):
                raise Unsupported("control enters it at several places that lead to each other")
            if start in code.reach(code.succ(start), within=inside):
                raise Unsupported("its entry is the head of a loop: the probe would fire more than once")
        return points

    def _copies(
        self, instance: Instance, located: list[Located], points: list[int], inside: set[int]
    ) -> list[int]:
        """With the entries of copies that are reached through others only. Raises Unsupported."""

        def source_at(address: int) -> ArgSource | None:
            values = (source for _at, source in self._values(instance, located, address))
            return next((source for source in values if isinstance(source, ArgSource)), None)

        starts = [lo for lo, _hi, _expr in located]
        once = instance.role is Role.DESTROY
        return all_entries(instance.code, inside, points, source_at, starts, once=once)

    def _values(
        self, instance: Instance, located: list[Located], entry: int
    ) -> Iterator[tuple[int, ArgSource | Unsupported]]:
        """(address, the argument there), from an entry straight on, up to the instance's first effect."""
        code, unit = instance.code, instance.die.unit
        inside = [(instance.entry, instance.entry + 1), *instance.ranges]
        for at in code.straight(entry):
            for lo, hi, expr in located:
                if lo <= at < hi:
                    try:
                        yield at, to_source(expr, unit, self._scopes.place(instance.function, at))
                    except Unsupported as error:
                        yield at, error
            # What other code does that the compiler placed in between is not the instance's effect.
            if any(lo <= at < hi for lo, hi in inside) and self._damages(instance, at):
                return

    def _collected(
        self, instance: Instance, points: list[int], elsewhere: set[int], inside: set[int]
    ) -> list[int]:
        """One entry instead of several, where all of them lead to it before anything happened.

        Compilers hoist an instance's first loads out of one of the ways that lead to it.
        """
        code = instance.code
        for target in points:
            before = code.reach([p for p in points if p != target], avoid={target}, within=inside)
            leaving = {s for a in before for s in code.succ(a)} - before - {target}
            behind = code.reach(code.succ(target), avoid=elsewhere)
            if leaving or behind & (before | {target}) or not before:
                continue
            dispatch = instance.role is Role.DISPATCH
            if any(code.writes_foreign(a) or (dispatch and self._damages(instance, a)) for a in before):
                continue
            return [target]
        return points

    # -- the argument ----------------------------------------------------------------------------

    def _homed_at_entry(self, instance: Instance, variable: Die) -> ArgSource | None:
        """Unoptimized code: the parameter's one location is its stack home, empty at entry.

        Where the prologue provably fills it from a register, that register is the value at entry.
        """
        located = locations_of(self._dwarf, variable)
        if len(located) != 1 or located[0][0] != 0:
            return None  # a location list says by itself what holds at entry
        trace = EntryTrace(instance.code, instance.entry)
        place = self._scopes.place(instance.function, instance.entry)
        home = home_of(located[0][2], variable.unit, place)
        if home is None:
            return None
        if place.base_is_cfa and located[0][2][0] == 0x91:  # rsp of the entry, not of the body
            return trace.at_cfa(home[1] - self._scopes.machine.entry_cfa)
        found = trace.at_entry(*home)
        if found is None:
            raise Unsupported("its stack home is not filled in the function's straight-line prologue")
        return found

    def _at_entry(self, instance: Instance, variable: Die, located: list[Located], entry: int) -> Found:
        """The argument at an entry, or where it first has a location behind it. Raises Unsupported."""
        name = instance.spec.argument
        viewed = self._viewed(instance, variable, entry)
        if not located and viewed is None:
            raise Unsupported(f"parameter {name!r} was optimized out (no location)")
        reason = ""
        for at, source in self._values(instance, located, entry):
            if isinstance(source, ArgSource):
                note = "" if at == entry else f"the value has a location only from +{at - entry:#x}"
                return Found(at, source, name, note)
            reason = reason or str(source)
        if viewed is not None:
            return Found(entry, viewed, name, "the value has a location at the very first address only")
        if reason:
            raise Unsupported(f"parameter {name!r}: {reason}")
        raise Unsupported(f"parameter {name!r} has no location at the entry, nor before its first effect")

    def _viewed(self, instance: Instance, variable: Die, entry: int) -> ArgSource | None:
        """The argument at an entry by gcc's location views; None where they do not say one thing.

        Not of destroy: copies of it are told apart by locations that cover code. Of others not where the
        code does a thing twice: it may be two copies that follow each other.
        """
        exprs = {expr for lo, _hi, expr in views_of(self._dwarf, variable) if lo == entry}
        done = [access(instance.code, at) for at in instance.code.inside(instance.ranges)]
        twice = Counter(one for one in done if one).most_common(1)
        if len(exprs) != 1 or instance.role is Role.DESTROY or (twice and twice[0][1] > 1):
            return None
        with contextlib.suppress(Unsupported):
            return to_source(exprs.pop(), variable.unit, self._scopes.place(instance.function, entry))
        return None

    def _by_link(self, instance: Instance, entry: int) -> Found | None:
        """destroy whose parameter was lost: the code itself says which register is the slot.

        It stores the free-list link through it, and DWARF has a pointer to slot of an enclosing scope
        in that very register.
        """
        code, inside = instance.code, instance.code.inside(instance.ranges)
        written: set[str] = set()
        for at in code.straight(entry):
            insn = code.detail(at)
            if insn is None or at not in inside:
                return None
            if insn.mnemonic == "mov" and len(insn.operands) == 2 and insn.operands[0].type == x86.X86_OP_MEM:
                place = insn.operands[0].mem
                register = insn.reg_name(place.base) if place.base and not place.index else ""
                if (
                    register in self._scopes.machine.registers
                    and place.disp == self._link_offset
                    and register not in written
                ):
                    name = slot_variable(
                        self._dwarf, self._scopes, instance.function, entry, register, self._slot_type
                    )
                    if name is not None:
                        note = "the enclosing function's variable, which the code links into the free list"
                        return Found(entry, ArgSource(register=register), name, note)
            written |= {full_register(insn.reg_name(reg)) for reg in insn.regs_access()[1]}
        return None

    def _damages(self, instance: Instance, at: int) -> bool:
        """Whether the instruction touches memory outside the frame."""
        return not instance.code.passes(at, ArgSource(constant=0), harmless=False)


def slot_variable(
    dwarf: Dwarf, scopes: Scopes, function: Function, address: int, register: str, slot_type: str
) -> str | None:
    """A variable in scope at an address that is a pointer to slot and lives in the register."""
    for scope in reversed(scopes.chain_at(function, address)):
        for variable in scopes.variables(scope):
            target = pointee(dwarf, variable)
            if target is None or not fits(dwarf, target, slot_type):
                continue
            for lo, hi, expr in locations_of(dwarf, variable):
                if lo <= address < hi:
                    with contextlib.suppress(Unsupported):
                        place = scopes.place(function, address)
                        if to_source(expr, variable.unit, place) == ArgSource(register=register):
                            return dwarf.name(variable)
    return None
