# Owns which slot a stream record is about, as the kernel side finds it, and what the timeline keeps of slots.
# Learns from events only; every table is bounded.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from agent.scene import Bounded
from probes.abi import Kind
from symbols.plan import MAX_EMBEDDED

MOST_SLOTS = 8192
_MOST_TARGETS = 256
_WORD = 0xFFFF_FFFF_FFFF_FFFF

BY_USERDATA = frozenset(
    {
        Kind.ADD_BEGUN, Kind.ADDED, Kind.MODIFIED, Kind.DEL_BEGUN, Kind.REMOVED, Kind.CLOSE_BEGUN,
        Kind.CLOSED,
    }
)  # fmt: skip
"""Records whose `addr` is the registration's userdata; elsewhere it is the slot's (probes/bpf/abi.h)."""
_REGISTERING = frozenset({Kind.ADD_BEGUN, Kind.ADDED, Kind.MODIFIED})


class _Way(NamedTuple):
    """How userdata leads to a slot (symbols.plan.Userdata, SlotLayout.embedded)."""

    mask: int = _WORD
    offset: int = 0
    embedded: tuple[int, ...] = ()


class Slots:
    """Slots by (tgid, address)."""

    def __init__(self) -> None:
        self._ways: Bounded[int, _Way] = Bounded(_MOST_TARGETS)
        self._created: Bounded[tuple[int, int], bool] = Bounded(MOST_SLOTS)
        self._inner: Bounded[tuple[int, int], int] = Bounded(MOST_SLOTS)  # userdata -> slot around it
        self._aliases: Bounded[tuple[int, int], str] = Bounded(MOST_SLOTS)
        self._by_low_half: Bounded[tuple[int, int], int] = Bounded(MOST_SLOTS)
        self._fds: Bounded[tuple[int, int], tuple[int, int]] = Bounded(MOST_SLOTS)  # -> (gen, fd)
        self._runs: Bounded[tuple[int, int], tuple[int, int]] = Bounded(MOST_SLOTS)  # -> (gen, consecutive)
        self._named = 0

    def know_plan(self, tgid: int, plan: Mapping[str, Any]) -> None:
        """Of an attached process. The plan may come from a file: nothing is trusted."""
        userdata, slot = plan.get("userdata"), plan.get("slot")
        userdata = userdata if isinstance(userdata, Mapping) else {}
        inside = slot.get("embedded") if isinstance(slot, Mapping) else ()
        offset = _number(userdata.get("offset"), 0)
        self._ways[tgid] = _Way(
            mask=_number(userdata.get("mask"), _WORD),
            offset=offset,
            embedded=tuple(
                at
                for at in (inside if isinstance(inside, Sequence) else ())
                if isinstance(at, int) and at != offset
            )[:MAX_EMBEDDED],
        )

    def address(self, tgid: int, kind: int, addr: int, *, userdata: bool = False) -> int:
        """The slot's address for a record's `addr`, as af_slot_behind (probes/bpf/30-state.c) has it.
        userdata: it is userdata whatever the kind."""
        if not addr or not (userdata or kind in BY_USERDATA):
            return addr
        way = self._ways.get(tgid)
        if way is None:
            return addr
        known = self._inner.get((tgid, addr))
        if known is not None:
            return known
        direct = (addr & way.mask) - way.offset & _WORD
        if way.embedded and kind in _REGISTERING and (tgid, direct) not in self._created:
            for at in way.embedded:
                around = (addr & way.mask) - at & _WORD
                if (tgid, around) in self._created:
                    self._inner[tgid, addr] = around
                    return around
        return direct

    def created(self, tgid: int, addr: int) -> None:
        """create gave it out."""
        self._created[tgid, addr] = True

    def registered(self, tgid: int, addr: int, gen: int, fd: int) -> None:
        """A registration of the slot's life was made or changed through this descriptor."""
        self._fds[tgid, addr] = (gen, fd)

    def fd(self, tgid: int, addr: int, gen: int) -> int:
        """Of the last registration of this life; -1 not seen."""
        of, fd = self._fds.get((tgid, addr), (gen, -1))
        return fd if of == gen else -1

    def unrecorded(self, tgid: int, addr: int, gen: int, consecutive: int) -> int:
        """How many deliveries of the slot's run came before this one that the kernel side only counted:
        its records number them from 0 on (AF_DELIVERED, AF_QUIET_AFTER), once for each batch."""
        before = self._runs.get((tgid, addr))
        self._runs[tgid, addr] = (gen, consecutive)
        if before is None:
            return 0  # the run may have begun before we looked
        same = before[0] == gen and consecutive >= before[1]
        return max(0, consecutive - before[1] - 1) if same else max(0, consecutive)

    def by_low_half(self, tgid: int, low: int) -> int:
        """The address of the shown slot with this low half; 0 unknown."""
        return self._by_low_half.get((tgid, low), 0) if low else 0

    def alias(self, tgid: int, addr: int) -> str:
        """The short name for this run: "S12"."""
        alias = self._aliases.get((tgid, addr))
        if alias is None:
            self._named += 1
            alias = self._aliases[tgid, addr] = f"S{self._named}"
            self._by_low_half[tgid, addr & 0xFFFF_FFFF] = addr
        return alias

    def __len__(self) -> int:
        """Slots that have a name."""
        return len(self._aliases)


def _number(value: Any, default: int) -> int:
    return value if isinstance(value, int) and 0 <= value <= _WORD else default
