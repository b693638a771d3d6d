# Owns the search for objects of a type in captured memory: from variables on all stacks, and globals, over
# what these hold by value and what they point to. Bounded; pointers are untrusted. Must not judge.
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from agent.forensics.view import View
from symbols.errors import STRAY_ERRORS, SymbolError
from symbols.types import Type

_MAX_DEPTH = 6  # structs within structs
_MAX_PARTS = 2048  # of one type
_MAX_OBJECTS = 4096
_HOPS = 2  # pointers that are followed from a variable

Wanted = Callable[[Type], bool]


class Found(NamedTuple):
    """A value in memory. tid: of the thread whose variable leads there; 0: a global."""

    path: str
    type: Type
    address: int
    tid: int


class Part(NamedTuple):
    path: str
    offset: int
    type: Type


class Objects:
    """Typed objects of one crashed process."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._types = view.types
        self._parts: dict[tuple[int, int], tuple[Part, ...]] = {}
        self._roots: list[Found] | None = None
        self._globals: list[Found] | None = None

    def find(self, wanted: Wanted) -> Iterator[Found]:
        """Every value of a wanted type, stacks first; lazily, since globals need a scan."""
        seen: set[tuple[int, str]] = set()
        yield from self._search(self.on_stacks(), wanted, seen)
        yield from self._search(self.globals(), wanted, seen)

    def _search(self, roots: list[Found], wanted: Wanted, seen: set[tuple[int, str]]) -> Iterator[Found]:
        queue = deque((root, _HOPS) for root in roots)
        memo: dict[tuple[int, int], bool] = {}
        visited: set[tuple[int, str]] = set()
        while queue and len(visited) < _MAX_OBJECTS:
            root, hops = queue.popleft()
            key = (root.address, root.type.name)
            if key in visited:
                continue
            visited.add(key)
            for part in self.parts(root.type):
                found = Found(root.path + part.path, part.type, root.address + part.offset, root.tid)
                if wanted(part.type) and (found.address, part.type.name) not in seen:
                    seen.add((found.address, part.type.name))
                    yield found
                pointee = self._view.variables.pointee(part.type) if hops else None
                if pointee is None or not self._leads(pointee, wanted, hops - 1, memo):
                    continue
                target = self._view.word(found.address)
                if target:
                    path = found.path if self._types.members(pointee) else f"{found.path}.*"
                    queue.append((Found(path, pointee, target, root.tid), hops - 1))

    def _leads(self, kind: Type, wanted: Wanted, hops: int, memo: dict[tuple[int, int], bool]) -> bool:
        """Whether a wanted type can be met in a type or behind its pointers: by types alone."""
        key = (kind.die.offset if kind.die is not None else 0, hops)
        if key not in memo:
            memo[key] = False  # a type that leads to itself adds nothing
            for part in self.parts(kind):
                pointee = self._view.variables.pointee(part.type) if hops else None
                if wanted(part.type) or (pointee and self._leads(pointee, wanted, hops - 1, memo)):
                    memo[key] = True
                    break
        return memo[key]

    def parts(self, kind: Type) -> tuple[Part, ...]:
        """A type itself and everything that it holds by value, at any depth; array elements are left out."""
        key = (kind.die.offset if kind.die is not None else 0, kind.size)
        if key not in self._parts:
            found: list[Part] = []
            try:
                self._view.session.dwarf.refill()
                self._collect(kind, "", 0, 0, found)
            except (SymbolError, *STRAY_ERRORS):
                found = found or [Part("", 0, kind)]
            self._parts[key] = tuple(found)
        return self._parts[key]

    def _collect(self, kind: Type, path: str, offset: int, depth: int, found: list[Part]) -> None:
        if len(found) >= _MAX_PARTS:
            return
        found.append(Part(path, offset, kind))
        if depth >= _MAX_DEPTH:
            return
        for member in self._types.members(kind):
            if not member.bits:
                name = f"{path}.{member.name}" if member.name not in ("", "payload", "?") else path
                self._collect(member.type, name, offset + member.offset, depth + 1, found)

    # -- roots -----------------------------------------------------------------------------------

    def on_stacks(self) -> list[Found]:
        """Variables of all frames: values in memory, and what pointers in them lead to."""
        if self._roots is None:
            self._roots = []
            for thread in self._view.threads():
                for spot in self._view.spots(thread):
                    registers = spot.frame.registers
                    for variable in self._view.in_scope(spot):
                        address = variable.address(registers, self._view.read)
                        if address is not None:
                            self._roots.append(Found(variable.name, variable.type, address, thread.tid))
                            continue
                        pointee = self._view.variables.pointee(variable.type)
                        value = variable.value(registers, self._view.read)
                        if pointee is not None and value:
                            self._roots.append(Found(variable.name, pointee, value, thread.tid))
        return self._roots

    def globals(self) -> list[Found]:
        if self._globals is None:
            self._globals = []
            try:
                for fixed in self._view.variables.fixed():
                    if len(self._globals) >= _MAX_OBJECTS:
                        break
                    address = fixed.address + self._view.bias
                    self._globals.append(Found(fixed.name, fixed.type, address, 0))
            except (SymbolError, *STRAY_ERRORS):
                pass
        return self._globals
