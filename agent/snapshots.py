# Owns what unwinding a recorded stack needs: kept registers and bytes, and what was mapped, per process.
# Learns from events only; bounded. Must not unwind: that is the symbol worker's.
from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Container
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # they take longer to load than all the rest of `afterfree symbols`
    from probes.events import ModulesMapped, StackSeen

_MOST_STACKS = 2048  # as many as the kernel side keeps
_MOST_PROCESSES = 256


def fingerprint(event: StackSeen) -> int:
    """Tells the kept bytes of one stack id from another run's; 0 when nothing was kept."""
    if not event.memory or not event.registers:
        return 0
    text = ",".join(f"{name}={value}" for name, value in event.registers.items())
    return zlib.crc32(text.encode() + event.memory) or 1


class Snapshots:
    """Stacks and mappings by process."""

    def __init__(self) -> None:
        self._stacks: OrderedDict[tuple[int, int], StackSeen] = OrderedDict()
        self._modules: OrderedDict[int, ModulesMapped] = OrderedDict()

    def know_stack(self, event: StackSeen) -> None:
        if event.memory:
            self._stacks[event.tgid, event.id] = event
            if len(self._stacks) > _MOST_STACKS:
                self._stacks.popitem(last=False)

    def know_modules(self, event: ModulesMapped) -> None:
        self._modules[event.tgid] = event
        self._modules.move_to_end(event.tgid)
        if len(self._modules) > _MOST_PROCESSES:
            self._modules.popitem(last=False)

    def forget(self, tgids: Container[int]) -> None:
        """Processes that ended some time ago: nobody asks about them any more."""
        for key in [key for key in self._stacks if key[0] in tgids]:
            del self._stacks[key]
        for tgid in [tgid for tgid in self._modules if tgid in tgids]:
            del self._modules[tgid]

    def request(self, tgid: int, stack: int) -> dict[str, Any] | None:
        """What the worker needs for one stack, as JSON; None when it is not (or no longer) known."""
        kept, mapped = self._stacks.get((tgid, stack)), self._modules.get(tgid)
        if kept is None or mapped is None:
            return None
        return {
            "pcs": list(kept.pcs),
            "registers": dict(kept.registers),
            "memory": kept.memory.hex(),
            "modules": [[m.start, m.end, m.bias, m.path, m.identity] for m in mapped.modules],
        }
