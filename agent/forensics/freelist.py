# Owns the independent proof: the pool's free list, found through debug information and walked in captured
# memory. Bounded; every node is checked before it is believed; missing memory is said, never guessed.
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from agent.forensics.facts import FreeList, ListEnd
from agent.forensics.objects import Found, Objects, Part
from agent.forensics.view import View
from symbols.errors import STRAY_ERRORS, SymbolError
from symbols.layout import same_type
from symbols.plan import Role
from symbols.pointers import pointee
from symbols.search import FUNCTION_TAGS
from symbols.types import Type

_MOST_NODES = 1 << 20
_MOST_KEPT = 1 << 16
_MOST_HEADS = 32
_HIGHEST = 0x0000_7FFF_FFFF_F000

Word = Callable[[int], int | None]


def walk(
    word: Word,
    head: int,
    path: str,
    *,
    link_offset: int,
    slot: int | None = None,
    plausible: Callable[[int], bool] = lambda _node: True,
    most: int = _MOST_NODES,
) -> FreeList | None:
    """Follow the list whose head pointer lies at `head`. None when the head itself cannot be read.

    plausible: whether a slot can lie at an address. A node seen twice ends the walk: the list is a ring.
    """
    node = word(head)
    if node is None:
        return None
    nodes: list[int] = []
    seen: set[int] = set()
    position: int | None = None
    end = ListEnd.NULL
    while node:
        if node in seen:
            end = ListEnd.CYCLE
            break
        if node % 8 or node > _HIGHEST or not plausible(node):
            end = ListEnd.MISPLACED
            break
        link = word(node + link_offset)
        if link is None:
            end = ListEnd.UNREADABLE
            break
        if len(seen) >= most:
            end = ListEnd.LIMIT
            break
        if node == slot:
            position = len(seen)
        seen.add(node)
        if len(nodes) < _MOST_KEPT:
            nodes.append(node)
        node = link
    return FreeList(
        head=head, path=path, nodes=tuple(nodes), length=len(seen), end=end, last=node, position=position
    )


class Pools:
    """The free list of the slots' pool in one process."""

    def __init__(self, view: View, objects: Objects, slot_type: Type | None) -> None:
        self._view = view
        self._objects = objects
        self._slot_type = slot_type

    def free_list(self, slot: int | None) -> tuple[FreeList | None, str]:
        """(the walked list, why there is none). Where several heads are found, one with the slot on it."""
        layout = self._view.plan.slot
        if layout.freelist_offset is None:
            return None, "the profile names no free-list link"
        best: FreeList | None = None
        tried = 0
        try:
            for found in self._heads():
                tried += 1
                if tried > _MOST_HEADS:
                    break
                walked = walk(
                    self._view.word,
                    found.address,
                    found.path,
                    link_offset=layout.freelist_offset,
                    slot=slot,
                    plausible=self._plausible,
                )
                if walked is not None and walked.position is not None:
                    return walked, ""
                if walked is not None and (best is None or (not best.length and walked.length)):
                    best = walked
        except (SymbolError, *STRAY_ERRORS) as error:
            return best, f"debug information of the pool could not be read: {error}"
        if best is not None:
            return best, ""
        if tried:
            return None, "the memory that holds the pool's list head was not captured"
        return None, "no variable, on a stack or global, leads to the pool"

    def behind(self, slot: int) -> FreeList | None:
        """What follows a slot that is known to be free, where the list's head was not captured."""
        offset = self._view.plan.slot.freelist_offset
        if offset is None:
            return None
        walked = walk(
            self._view.word, slot + offset, "", link_offset=offset, slot=slot, plausible=self._plausible
        )
        return replace(walked, partial=True, position=None) if walked is not None else None

    def _plausible(self, node: int) -> bool:
        regions = self._view.evidence.regions
        if not regions:
            return True
        return any(r.start <= node < r.end and (not r.flags or "w" in r.flags) for r in regions)

    # -- the head --------------------------------------------------------------------------------

    def _heads(self) -> Iterator[Found]:
        pools = self._pool_types()
        if pools:
            for pool in self._objects.find(lambda kind: any(self._same(kind, p) for p in pools)):
                for part in self._links(pool.type):
                    yield Found(pool.path + part.path, part.type, pool.address + part.offset, pool.tid)
        # A list head that stands alone: a pointer to the slot's type called something with "free".
        for found in self._objects.find(self._to_slot):
            name = found.path.rsplit(".", 1)[-1].lower()
            if "free" in name or "pool" in name:
                yield found

    def _pool_types(self) -> list[Type]:
        """What destroy takes besides the slot; in Zig also the type that destroy is declared in."""
        view = self._view
        dwarf, scopes = view.session.dwarf, view.session.scopes
        found: list[Type] = []
        names = {(site.function, site.argument) for site in view.plan.by_role(Role.DESTROY)}
        for function, argument in sorted(names):
            dwarf.refill()
            for die in view.session.search.named(function, FUNCTION_TAGS)[:8]:
                for variable in scopes.variables(die):
                    target = pointee(dwarf, variable) if dwarf.name(variable) != argument else None
                    if target is not None:
                        found.append(view.types.of(target))
            owner = function.rpartition(".")[0]
            declared = view.types.find(owner) if owner else None
            if declared is not None:
                found.append(declared)
        kept: list[Type] = []
        for kind in found:
            others = [*kept, self._slot_type] if self._slot_type is not None else kept
            known = any(self._same(kind, other) for other in others)
            if kind.size and not known and self._links(kind):
                kept.append(kind)
        return kept

    def _links(self, pool: Type) -> list[Part]:
        """Pointers in a pool that can be the list's head, the likeliest first."""
        found = []
        for part in self._objects.parts(pool):
            target = self._view.variables.pointee(part.type)
            if target is None or "arena" in part.path.lower():
                continue
            if self._to_slot(part.type) or self._links_itself(target):
                found.append(part)
        return sorted(found, key=lambda part: "free" not in part.path.lower())

    def _links_itself(self, kind: Type) -> bool:
        """A list node: all it has is a pointer to its own type."""
        members = self._view.types.members(kind)
        if len(members) != 1 or kind.size != 8:
            return False
        target = self._view.variables.pointee(members[0].type)
        return target is not None and self._same(target, kind)

    def _to_slot(self, kind: Type) -> bool:
        target = self._view.variables.pointee(kind) if self._slot_type is not None else None
        return target is not None and self._slot_type is not None and self._same(target, self._slot_type)

    def _same(self, a: Type, b: Type) -> bool:
        if a.die is None or b.die is None:
            return False
        return same_type(self._view.session.dwarf, a.die, b.die)
