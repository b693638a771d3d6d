# Owns what the kernel side has counted of one rule at one call site and not told yet (struct af_site_key of
# probes/bpf/10-maps.c): there a loop is told at doublings only. Bounded. Must not judge.
from __future__ import annotations

import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from probes import abi
from probes.events import SuspicionRaised
from probes.sysbpf import Map

KEY = struct.Struct("<IIIi")  # tgid, epoch, suspect, stack
_MOST = 1024  # sites whose last message is remembered
_COUNTED = (abi.Suspect.BAD_CLOSE, abi.Suspect.FAILED_REMOVAL)
_EBADF = -9


def rule_of(message: SuspicionRaised) -> int:
    """`what` of struct af_site_key: the suspicion, and why a removal failed (af_failed_removal)."""
    what, reg = int(message.suspect), message.reg
    if message.suspect is not abi.Suspect.FAILED_REMOVAL or reg is None:
        return what
    ended = reg.flags & (abi.RegFlag.BY_DEL | abi.RegFlag.BY_CLOSE)
    if message.trigger.ret == _EBADF:
        why = 1
    elif ended == abi.RegFlag.BY_DEL:
        why = 2
    else:
        why = 3 if reg.end.ts else 4
    return what | why << 16


class Sites:
    def __init__(self, totals: Map, epoch_of: Callable[[int], int]) -> None:
        """totals: KEY -> u64. epoch_of(tgid): that of its entries in the maps; 0 when it is not known."""
        self._totals, self._epoch_of = totals, epoch_of
        self._last: OrderedDict[tuple[int, int, int], SuspicionRaised] = OrderedDict()

    def told(self, message: SuspicionRaised) -> None:
        """A message of the kernel side: `arg` is the total of its site, 0 where that is not counted."""
        trigger = message.trigger
        if message.suspect in _COUNTED and trigger.arg:
            key = (trigger.tgid, rule_of(message), trigger.stack)
            before = self._last.pop(key, None)
            if before is None or before.trigger.arg < trigger.arg:
                before = message
            self._last[key] = before
            if len(self._last) > _MOST:
                self._last.popitem(last=False)

    def totals(self) -> Mapping[tuple[int, int, int], int]:
        """As they stand. Read before the ring is: what came since is told by messages still in it."""
        return {key: self._total(key) for key in self._last}

    def _total(self, key: tuple[int, int, int]) -> int:
        raw = self._totals.get(KEY.pack(key[0], self._epoch_of(key[0]), key[1], key[2]))
        return min(int.from_bytes(raw, "little"), 0xFFFF_FFFF) if raw else 0

    def untold(
        self, tgid: int | None = None, totals: Mapping[tuple[int, int, int], int] | None = None
    ) -> Iterator[SuspicionRaised]:
        """The last message of each site (of one process) whose total has grown since, with that total, as of
        now: it went on until about then, not until the last message. totals: what was read before the ring
        was; by default, as they stand now."""
        now = time.monotonic_ns()
        for key, message in list(self._last.items()):
            if tgid is not None and key[0] != tgid:
                continue
            total = self._total(key) if totals is None else totals.get(key, 0)
            if total > message.trigger.arg:
                self._last[key] = replace(message, trigger=message.trigger._replace(arg=total, ts=now))
                yield self._last[key]

    def forget(self, tgid: int) -> None:
        for key in [key for key in self._last if key[0] == tgid]:
            del self._last[key]
