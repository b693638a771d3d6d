# Owns finding the slot that a crash is about, and what its bytes are. Reads evidence through a View; every
# way that leads to the slot is kept as its own reason. Must not judge.
from __future__ import annotations

from collections import deque
from dataclasses import replace

from agent.correlator.findings import RuleId
from agent.forensics.facts import BatchSeen, Load, SlotSeen
from agent.forensics.faultsite import Site
from agent.forensics.objects import Objects, Part
from agent.forensics.view import View
from symbols.layout import same_type
from symbols.overlay import describe_bytes
from symbols.plan import SlotLayout
from symbols.types import Type

_MOST_BYTES = 4096
_MOST_LIVE = 4096
_MOST_POINTERS = 256
_FILL = 0xAA
_LOWEST = 0x1000  # no slot lies below: vm.mmap_min_addr
_STALE = (RuleId.STALE_DELIVERY, RuleId.STALE_DISPATCH, RuleId.RECYCLED_DELIVERY)


class Slots:
    """Slots of one crashed process."""

    def __init__(self, view: View, objects: Objects, slot_type: Type | None) -> None:
        self._view = view
        self._objects = objects
        self._type = slot_type
        self._layout: SlotLayout = view.plan.slot
        self._parts: tuple[Part, ...] = objects.parts(slot_type) if slot_type is not None else ()
        tops = [thread.registers.get("rsp", 0) for thread in view.evidence.threads]
        self._stacks = [r for r in view.evidence.regions if any(r.start <= top < r.end for top in tops)]

    # -- which slot ------------------------------------------------------------------------------

    def find(
        self, site: Site | None, loads: tuple[Load, ...], batches: tuple[BatchSeen, ...]
    ) -> SlotSeen | None:
        """The slot whose pointer faulted; `by` says how it was found."""
        if site is None:
            return None
        ways: dict[int, list[tuple[str, str]]] = {}  # address -> (way, field)
        value = site.fault.base_value
        behind = [self._behind(load, site) for load in loads if not _ruled_out(load, value)]
        # which of several ways the program came is not known: they must lead to one slot, all of them
        same = all(found and found == behind[0] for found in behind)
        for address, field in dict.fromkeys(pair for found in behind for pair in found):
            ways.setdefault(address, []).append(("code" if same else "one way", field))
        for address, field in self._in_variables(site, loads):
            ways.setdefault(address, []).append(("variable", field))
        delivered = self._delivered(batches)
        for address in delivered:
            if address in ways or (value is not None and self._object_of(address) == value):
                ways.setdefault(address, []).append(("batch", self._layout.object_field or ""))
            elif site.fault.aborted and len(delivered) == 1:
                ways.setdefault(address, []).append(("batch", ""))
        if not ways:
            for address, field in self._in_registers(site, delivered):
                ways.setdefault(address, []).append(("register", field))
        for address, field in self._found(site, loads, frozenset(ways)):
            ways.setdefault(address, []).append(("finding", field))
        ways = {address: found for address, found in ways.items() if address >= _LOWEST}
        if not ways:
            return None
        # The way of the code comes first: it was walked from the very instruction.
        best = max(ways, key=lambda address: self._weight(ways[address]))
        by = tuple(dict.fromkeys(way for way, _field in ways[best]))
        field = next((field for _way, field in ways[best] if field), "")
        return self.look(best, field, by)

    def _weight(self, ways: list[tuple[str, str]]) -> tuple[bool, bool, int]:
        """What the code loaded from is proof; what was found in the batch that was open outranks guesses."""
        names = {way for way, _field in ways}
        return "code" in names, "finding" in names, len(names)

    def _behind(self, load: Load, site: Site) -> list[tuple[int, str]]:
        """Slots such that the load read one of their pointer fields."""
        if load.address is None or load.address < _LOWEST or load.agrees is False:
            return []
        found = []
        wanted = site.type
        for part in self._parts:
            address = load.address - part.offset
            target = self._view.variables.pointee(part.type)
            if target is None or (load.base_value is not None and address != load.base_value):
                continue
            if wanted is None or self._same(target, wanted):
                found.append((address, _plain(part.path)))
        return found[:1]

    def _in_variables(self, site: Site, loads: tuple[Load, ...]) -> list[tuple[int, str]]:
        """Pointers to slots among the variables of the faulting frame and its callers."""
        found = []
        value = site.fault.base_value
        for spot in site.spots[:4]:
            for variable in self._view.in_scope(spot):
                target = self._view.variables.pointee(variable.type)
                if target is None or self._type is None or not self._same(target, self._type):
                    continue
                address = variable.value(spot.frame.registers, self._view.read)
                if not address or self._view.read(address, 8) is None:
                    continue
                field = self._field_with(address, value, loads)
                if field is not None or address == value or site.fault.aborted:
                    found.append((address, field or ""))
        return found

    def _field_with(self, slot: int, value: int | None, loads: tuple[Load, ...]) -> str | None:
        """The pointer field of a slot that holds the faulting pointer, and from which it was loaded."""
        for part in self._parts:
            if self._view.variables.pointee(part.type) is None or value is None:
                continue
            address = slot + part.offset
            known = [load.address for load in loads if load.address is not None]
            read = not known or address in known
            if read and self._view.word(address) == value:
                return _plain(part.path)
        return None

    def _delivered(self, batches: tuple[BatchSeen, ...]) -> tuple[int, ...]:
        userdata = self._view.plan.userdata
        if userdata.kind != "pointer":
            return ()
        known = [pair for batch in self._view.evidence.batches for pair in batch.deliveries]
        known += [pair for batch in batches for pair in batch.entries]
        values = (
            (value & userdata.mask) - userdata.offset
            for value, _events in known
            if value not in userdata.reserved
        )
        return tuple(dict.fromkeys(value for value in values if value >= _LOWEST))

    def _in_registers(self, site: Site, delivered: tuple[int, ...]) -> list[tuple[int, str]]:
        """A delivered or watched slot in a register, or one whose object is the faulting pointer."""
        history = self._view.evidence.history
        watched = {life.addr for life in history.lives} if history is not None else set()
        value = site.fault.base_value
        found = []
        for number in site.spots[0].frame.registers.values():
            if number in watched or number in delivered:
                same = value is not None and self._object_of(number) == value
                found.append((number, (self._layout.object_field or "") if same else ""))
        return found

    def _found(self, site: Site, loads: tuple[Load, ...], known: frozenset[int]) -> list[tuple[int, str]]:
        """Slots that were gone when the crashed thread got their events, in its open batch."""
        evidence, tid = self._view.evidence, site.fault.tid
        number = next((batch.batch for batch in evidence.batches if batch.tid == tid), 0)
        if evidence.history is None or not number:
            return []
        lives = [life for life in evidence.history.lives if (life.last_tid, life.last_batch) == (tid, number)]
        gone = {life.addr: life.last_delivery for life in lives if life.stale or life.stale_dispatches}
        for finding in evidence.history.findings:
            told = [a.moment.tid for a in finding.actors if a.role in ("delivered", "dispatched")]
            if finding.rule in _STALE and finding.batch == number and finding.slot and tid in told:
                gone.setdefault(finding.slot, finding.last_ts)
        wanted = {site.fault.base_value, *(load.base_value for load in loads)} - {None}
        through = {slot: self._object_of(slot) in wanted for slot in gone}
        fits = [slot for slot in gone if through[slot] or slot in known]
        chosen = fits or sorted(gone, key=lambda slot: gone[slot])[-1:]
        return [(slot, (self._layout.object_field or "") if through[slot] else "") for slot in chosen]

    def _object_of(self, slot: int) -> int | None:
        offset = self._layout.object_offset
        return self._view.word(slot + offset) if offset is not None else None

    # -- what it holds ---------------------------------------------------------------------------

    def look(self, address: int, field: str, by: tuple[str, ...]) -> SlotSeen:
        """A slot with its bytes decoded."""
        layout = self._layout
        size = min(layout.size or 64, _MOST_BYTES)
        data = self._view.evidence.memory.read(address, size) or b""
        link: int | None = None
        at = layout.freelist_offset
        rest = data
        aliases = ""
        if at is not None and len(data) >= at + 8:
            link = int.from_bytes(data[at : at + 8], "little")
            rest = data[:at] + data[at + 8 :]
            aliases = next((_plain(p.path) for p in self._parts if p.offset == at and p.path), "")
        filled = sum(byte == _FILL for byte in rest) * 4 >= 3 * len(rest) and len(rest) >= 8
        lines = describe_bytes(layout, data) if data else ()
        return SlotSeen(
            address=address, field=field, by=by, data=data, lines=lines, link=link,
            filled=filled, link_aliases=aliases.removeprefix("."),
        )  # fmt: skip

    # -- the others ------------------------------------------------------------------------------

    def reachable(self, slot: int | None, pool: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """(slots that the program's own pointers lead to, paths of those that lead to this slot).

        pool: path of the pool, whose own pointers are no use of a slot.
        """
        if self._type is None:
            return (), ()
        queue: deque[int] = deque()
        holders: list[str] = []
        for count, found in enumerate(self._objects.find(self._to_slot)):
            if count >= _MOST_POINTERS:
                break
            value = self._view.word(found.address)
            if not value or (pool and found.path.rpartition(".")[0] == pool):
                continue
            if "free" in found.path.rpartition(".")[2].lower():
                continue
            queue.append(value)
            if value == slot:
                holders.append(found.path)
        seen: set[int] = set()
        while queue and len(seen) < _MOST_LIVE:
            address = queue.popleft()
            if address in seen or not (address == slot or self._believable(address)):
                continue
            seen.add(address)
            for part in self._parts:
                if self._to_slot(part.type) and part.offset != self._layout.freelist_offset:
                    value = self._view.word(address + part.offset)
                    if value:
                        queue.append(value)
        return tuple(sorted(seen)), tuple(dict.fromkeys(holders))

    def _believable(self, address: int) -> bool:
        """Whether a slot in use can lie there: stacks also hold variables that were never set."""
        data = (
            self._view.evidence.memory.read(address, max(self._layout.size, 8)) if not address % 8 else None
        )
        if data is None or 2 * data.count(_FILL) > len(data):
            return False
        if any(stack.start <= address < stack.end for stack in self._stacks):
            return False  # a pool's slots lie elsewhere
        for field in self._layout.fields:
            if field.kind == "union" and field.tag_offset is not None and field.variants:
                tag = int.from_bytes(data[field.tag_offset : field.tag_offset + field.tag_size], "little")
                known = {variant.tag for variant in field.variants}
                if tag not in known and not (
                    field.tag_mask and tag & field.tag_mask in known and tag != 0xAA
                ):
                    return False
        target = self._object_of(address)
        return target is None or (target >= _LOWEST and self._view.read(target, 8) is not None)

    def _to_slot(self, kind: Type) -> bool:
        target = self._view.variables.pointee(kind)
        return target is not None and self._type is not None and self._same(target, self._type)

    def _same(self, a: Type, b: Type) -> bool:
        if a.die is None or b.die is None:
            return False
        return same_type(self._view.session.dwarf, a.die, b.die)


def _ruled_out(load: Load, value: int | None) -> bool:
    """The memory there holds something else, and what faulted is no value that is found everywhere.

    It may have been overwritten since: with a null pointer nothing is ruled out.
    """
    return load.agrees is False and value is not None and value >= _LOWEST


def with_way(slot: SlotSeen, way: str) -> SlotSeen:
    """The same slot with one more reason."""
    return slot if way in slot.by else replace(slot, by=(*slot.by, way))


def _plain(path: str) -> str:
    return path.removeprefix(".")
