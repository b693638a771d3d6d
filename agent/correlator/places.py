# Owns where a step stood, in words that are the same in every process, at every start and on every node.
# Learns stacks and mappings from events; bounded; must not judge or symbolize.
from __future__ import annotations

import posixpath

from agent.correlator.bounded import BoundedMap
from agent.correlator.context import Target
from agent.correlator.findings import CallSite
from agent.libraries import c_library
from probes.events import MappedModule, ModulesMapped, Moment, StackSeen

_WORD = 8
_MOST_SITES = 1024
_MOST_FRAMES = 3  # of which a stack's id tells: those behind them are of whoever came first
_FARTHEST = 1 << 20  # bytes from the stack pointer within which a frame can be believed that was not kept


class Places:
    """The stacks and mappings of all targets, as far as they were told."""

    def __init__(self, stacks: int, processes: int) -> None:
        self._stacks: BoundedMap[tuple[int, int], tuple[int, ...]] = BoundedMap(stacks)
        self._modules: BoundedMap[int, tuple[MappedModule, ...]] = BoundedMap(processes)
        self._sites: dict[tuple[str, int, int, int], CallSite] = {}  # as found before

    def __len__(self) -> int:
        return len(self._stacks) + len(self._modules)

    def forget_sites(self) -> None:
        """A target has come, or another one has its number: `site` looks again."""
        self._sites.clear()

    def know_stack(self, event: StackSeen) -> None:
        self._stacks.put((event.tgid, event.id), _framed(event)[:_MOST_FRAMES])
        self._sites.clear()

    def know_modules(self, event: ModulesMapped) -> None:
        self._modules.put(event.tgid, event.modules)
        self._sites.clear()

    def site(self, role: str, moment: Moment, target: Target) -> CallSite:
        """The step's place: in the plan's own image where it stood or was called from there, by the frame
        pointers; else the library. Never a run-time address."""
        key = (role, target.tgid, moment.ip, moment.stack)
        found = self._sites.get(key)
        if found is None:
            if len(self._sites) >= _MOST_SITES:
                self._sites.clear()
            found = self._sites[key] = self._site(role, moment, target)
        return found

    def _site(self, role: str, moment: Moment, target: Target) -> CallSite:
        walk = self._stacks.get((target.tgid, moment.stack)) or ()
        ip = moment.ip or next(iter(walk), 0)
        for pc in (ip, *walk):
            own = self._own(pc, target)
            if own is not None:
                return CallSite(role=role, address=own)
        module = self._module(ip, target.tgid)
        if module is None:
            return CallSite(role=role, address=0, module="?" if ip else "")
        name = posixpath.basename(module.path)
        if c_library(name):
            return CallSite(role=role, address=0, module="libc")
        return CallSite(role=role, address=ip - module.bias, module=module.identity or name)

    def _own(self, ip: int, target: Target) -> int | None:
        """`ip` as the plan's image has it; None outside of that."""
        if not ip:
            return None
        code = target.plan.code if target.plan is not None else ()
        address = ip - target.bias
        if not code or any(start <= address < end for start, end in code):
            return address
        module = self._module(ip, target.tgid)
        return ip - module.bias if module is not None and module.identity == target.image else None

    def _module(self, ip: int, tgid: int) -> MappedModule | None:
        modules = self._modules.get(tgid) or ()
        return next((module for module in modules if module.start <= ip < module.end), None)


def _framed(event: StackSeen) -> tuple[int, ...]:
    """The kernel's walk as far as the stack's bytes bear it out, where they were kept. Where rbp is no frame
    pointer the walk follows whatever it points at, and that is another thing each time."""
    stack, frame = event.registers.get("rsp", 0), event.registers.get("rbp", 0)
    if not event.memory or not stack:
        return event.pcs
    kept = list(event.pcs[:1])
    for index, pc in enumerate(event.pcs[1:], 1):
        at = frame - stack
        if not 0 <= at < _FARTHEST or at % _WORD:
            break
        if at + 2 * _WORD > len(event.memory):
            return (*kept, *event.pcs[index:])
        if _at(event.memory, at + _WORD) != pc:
            break
        kept.append(pc)
        following = _at(event.memory, at)
        if following <= frame:
            break
        frame = following
    return tuple(kept)


def _at(memory: bytes, offset: int) -> int:
    return int.from_bytes(memory[offset : offset + _WORD], "little")
