# Owns finding the instances of one wanted function: out-of-line copies and inlined ones, each with its
# scopes and code. Must not choose probe addresses (sites.py, creates.py do).
from __future__ import annotations

import posixpath
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from symbols import dwarf_const as dw
from symbols.code import FunctionCode
from symbols.copies import reentries, repeats
from symbols.dwarf import Die, Dwarf
from symbols.expressions import Unsupported
from symbols.globs import matches
from symbols.image import Image
from symbols.lists import Range, ranges_of
from symbols.plan import Addr, InstanceKind, Role, SourceLine, Unprobed
from symbols.profile import FunctionSpec
from symbols.qualified import fits, split_name
from symbols.scopes import Function, Scopes
from symbols.search import FUNCTION_TAGS, Search
from symbols.stackcheck import behind_stack_check

_MAX_INSTANCES = 4096
_MAX_OTHERS = 64  # functions of one name


@dataclass(slots=True)
class Instance:
    """One place where a wanted function's code is."""

    spec: FunctionSpec
    name: str  # linkage name of the wanted function
    kind: InstanceKind
    die: Die
    function: Function  # the out-of-line function that holds it
    path: list[Die]  # scopes from function.die down to die
    ranges: list[Range]
    entry: int
    code: FunctionCode
    call_site: SourceLine | None
    declared_at: SourceLine | None

    @property
    def role(self) -> Role:
        return self.spec.role

    def unprobed(self, reason: str, address: int | None = None) -> Unprobed:
        return Unprobed(
            role=self.role,
            function=self.name,
            kind=self.kind,
            address=Addr(self.entry if address is None else address),
            enclosing=self.function.name,
            call_site=self.call_site,
            reason=reason,
        )


def entry_points(instance: Instance) -> tuple[list[int], set[int]]:
    """(addresses at which control enters, addresses reachable without the instance).

    Compilers write no entry_pc, sort ranges by address, and place code of others in between: the
    function's control flow tells where an instance begins, its lowest address does not.
    """
    code = instance.code
    inside = code.inside(instance.ranges)
    roots = {instance.function.low} | code.orphans
    elsewhere = code.reach(roots, avoid=inside)
    points = {a for a in inside if a in roots or any(p in elsewhere for p in code.preds.get(a, ()))}
    return sorted(points, key=lambda a: (a != instance.entry, a)), elsewhere


def check_entries(instance: Instance, entries: list[int], births: Iterable[int]) -> None:
    """Raises Unsupported where control can enter the instance and no birth follows before the next entry.

    One entry of the debug information covers all copies that loop unrolling made: each needs its own.
    """
    code, inside, wanted = instance.code, instance.code.inside(instance.ranges), set(births)
    back = reentries(code, inside, entries)
    entries = [*entries, *(at for at in back if repeats(code, inside, entries, at, back))]
    for entry in entries:
        others = set(entries) - {entry}
        if entry in wanted or wanted & code.reach([entry], avoid=others):
            continue
        here = code.reach([entry], avoid=others, within=inside)
        leaving = {s for a in here for s in code.succ(a)} - here
        if not leaving or not leaving <= others:
            raise Unsupported("a copy of it has no visible result")


class Finder:
    """Instances of functions of one image."""

    def __init__(self, image: Image, dwarf: Dwarf, search: Search, scopes: Scopes) -> None:
        self._image = image
        self._dwarf = dwarf
        self._search = search
        self._scopes = scopes
        # Instances keep the code of their functions; of others only the last few stay in memory.
        self._codes: WeakValueDictionary[int, FunctionCode] = WeakValueDictionary()
        self._recent: deque[FunctionCode] = deque(maxlen=4)
        self.matched: dict[Role, list[str]] = {}
        self.narrowed: dict[Role, int] = {}  # instances that in, not_in and file leave out

    def code_of(self, function: Function) -> FunctionCode:
        code = self._codes.get(function.low)
        if code is None:
            self._dwarf.spend(sum(hi - lo for lo, hi in function.ranges) // 8)
            code = self._codes[function.low] = FunctionCode(self._image, function.ranges)
        self._recent.append(code)
        return code

    def find(self, spec: FunctionSpec) -> tuple[list[Instance], list[Unprobed]]:
        """Every instance of the functions a spec matches, by address; and those beyond reach."""
        queue = self._named(spec.pattern)
        self.matched[spec.role] = sorted({self._dwarf.linkage_name(die) for die in queue})
        instances, lost = self._instances(spec, queue)
        if spec.within is None and spec.not_within is None and spec.file is None:
            return instances, lost
        kept = [instance for instance in instances if self._meant(spec, instance)]
        self.narrowed[spec.role] = len(instances) - len(kept)
        return kept, lost

    def _named(self, pattern: str) -> list[Die]:
        """Entries whose name, linkage name or name with its namespaces matches."""
        found = self._search.named(pattern, FUNCTION_TAGS)
        last = split_name(pattern)[-1]
        if found or last == pattern or not last.strip("*?"):
            return found
        return [die for die in self._search.named(last, FUNCTION_TAGS) if fits(self._dwarf, die, pattern)]

    def _meant(self, spec: FunctionSpec, instance: Instance) -> bool:
        """Whether the profile's in, not_in and file mean the instance."""
        if spec.file is not None:
            declared = instance.declared_at.file if instance.declared_at is not None else ""
            if not (matches(spec.file, declared) or matches(spec.file, posixpath.basename(declared))):
                return False
        if spec.within is not None and not self._inside(instance, spec.within):
            return False
        return spec.not_within is None or not self._inside(instance, spec.not_within)

    def _inside(self, instance: Instance, pattern: str) -> bool:
        """Whether a function that the instance's code is in, or is, has such a name or symbol."""
        symbol = self._scopes.symbols.function_at(instance.function.low)
        around = instance.path if instance.kind is InstanceKind.OUT_OF_LINE else instance.path[:-1]
        return (symbol is not None and matches(pattern, symbol.name)) or any(
            matches(pattern, self._dwarf.linkage_name(die)) or fits(self._dwarf, die, pattern)
            for die in around
            if die.tag in FUNCTION_TAGS
        )

    def others(self, spec: FunctionSpec, name: str) -> list[Instance]:
        """Instances of functions with this name, or a generic's of it, that the spec does not match."""
        found = {
            die.offset: die for glob in (name, f"{name}<*") for die in self._search.named(glob, FUNCTION_TAGS)
        }
        wanted = {die.offset for die in self._named(spec.pattern)}
        queue = [die for offset, die in sorted(found.items()) if offset not in wanted]
        return self._instances(spec, queue[:_MAX_OTHERS])[0]

    def _instances(self, spec: FunctionSpec, queue: list[Die]) -> tuple[list[Instance], list[Unprobed]]:
        instances: dict[int, Instance] = {}
        lost: list[Unprobed] = []
        seen: set[int] = set()
        while queue and len(seen) < _MAX_INSTANCES:
            die = queue.pop()
            if die.offset in seen:
                continue
            seen.add(die.offset)
            queue += self._search.referring(die.offset, FUNCTION_TAGS)
            made = self._instance(spec, die)
            if isinstance(made, Instance):
                instances[die.offset] = made
            elif made is not None:
                lost.append(made)
        return sorted(instances.values(), key=lambda i: (i.entry, i.die.offset)), lost

    def _instance(self, spec: FunctionSpec, die: Die) -> Instance | Unprobed | None:
        dwarf, scopes = self._dwarf, self._scopes
        name = dwarf.linkage_name(die)
        if die.tag == dw.TAG_subprogram:
            function = scopes.as_function(die)
            if function is None:
                return None  # declaration or abstract instance
            declared = scopes.declared_at(die) or self._declared_by_lines(die, function.low)
            code = self.code_of(function)
            entry = behind_stack_check(code, function.low, self._symbol_at)
            return Instance(
                spec, name, InstanceKind.OUT_OF_LINE, die, function, [die], function.ranges, entry, code,
                None, declared,
            )  # fmt: skip
        ranges = ranges_of(dwarf, die)
        low = dwarf.address(die, dw.AT_low_pc)
        if not ranges:
            if low is None or not self._image.executable(low):
                return None  # inlined and then optimized away entirely: no code, nothing to probe
            ranges = [(low, low + 1)]
        entry = self._entry_pc(die, ranges)
        holder = scopes.function_of(entry)
        path = scopes.path_to(holder, die.offset) if holder is not None else None
        if holder is None or path is None:
            return self._orphan(spec, name, die, entry, holder)
        return Instance(
            spec, name, InstanceKind.INLINED, die, holder, path, ranges, entry, self.code_of(holder),
            scopes.call_site(die, holder), scopes.declared_at(die),
        )  # fmt: skip

    def _symbol_at(self, address: int) -> str:
        symbol = self._scopes.symbols.function_at(address)
        return symbol.name if symbol is not None else ""

    def _declared_by_lines(self, die: Die, low: int) -> SourceLine | None:
        return self._scopes.declared_at(die, low)

    def _entry_pc(self, die: Die, ranges: list[Range]) -> int:
        """DW_AT_entry_pc (an address, or DWARF 5: an offset from the low address), low_pc, first range."""
        entry = die.values.get(dw.AT_entry_pc)
        if entry is not None and isinstance(entry[1], int):
            address = self._dwarf.address(die, dw.AT_entry_pc)
            if address is None:
                address = ranges[0][0] + entry[1]
            if any(lo <= address < hi for lo, hi in ranges):
                return address
        low = self._dwarf.address(die, dw.AT_low_pc)
        return low if low is not None and any(lo == low for lo, _hi in ranges) else ranges[0][0]

    def _orphan(
        self, spec: FunctionSpec, name: str, die: Die, entry: int, holder: Function | None
    ) -> Unprobed | None:
        if not self._image.executable(entry):
            return None  # code the linker dropped (addresses 0 or -1), or a false hit
        return Unprobed(
            role=spec.role,
            function=name,
            kind=InstanceKind.INLINED,
            address=Addr(entry),
            enclosing=holder.name if holder else "?",
            call_site=self._scopes.call_site(die, holder) if holder else None,
            reason="no function in the debug information holds this instance",
        )
