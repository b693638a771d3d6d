# Owns attaching to a process that already runs: registrations made before us, from /proc/PID/fdinfo, become
# live slots of generation 0 in the kernel side's maps, marked inferred. Never overwrites what events wrote.
# fdinfo knows numbers only: the kernel side looks up what they name when a thread of the process comes by.
from __future__ import annotations

import struct
from collections.abc import Container, Iterable

from probes import abi
from probes.procfs import EpollEntry
from probes.sysbpf import BPF_NOEXIST, Map
from symbols.plan import Userdata

SLOT_KEY = struct.Struct("<IIQ")
TARGET = struct.Struct("<QIIIIQQQQQ")
"""struct af_target: armed, epoch, flags, forks, last_child, forked_at, not_judged, spin_said, answered,
unanswered."""
_EPOLLET = 1 << 31
_UNRESOLVED = 1  # af_link.ep of a link whose file is not known yet


def epoch_of(now: int) -> int:
    """As af_epoch of 60-process.c makes it."""
    return (now >> 10) & 0xFFFF_FFFF | 1


def is_slot(userdata: Userdata, data: int) -> bool:
    return data >= 4096 and data not in userdata.reserved


class Bootstrap:
    """Puts the slots of inferred registrations into the map. One use per target."""

    def __init__(self, slots: Map, userdata: Userdata) -> None:
        self._slots, self._userdata = slots, userdata

    def insert(self, tgid: int, epoch: int, entries: Iterable[EpollEntry]) -> int:
        """Number of registrations taken over. What events already cover is left alone."""
        ours = [entry for entry in entries if is_slot(self._userdata, entry.data)]
        level = {self._address(entry.data) for entry in ours if not entry.events & _EPOLLET}
        return sum(self._insert_one(tgid, epoch, entry, level) for entry in ours)

    def _address(self, data: int) -> int:
        return (data & self._userdata.mask) - self._userdata.offset & 0xFFFF_FFFF_FFFF_FFFF

    def _insert_one(self, tgid: int, epoch: int, entry: EpollEntry, level: Container[int]) -> bool:
        """level: addresses of slots with a level-triggered registration."""
        address = self._address(entry.data)
        survivor = not entry.open  # its number names something else by now
        flags = abi.SlotFlag.INFERRED
        if survivor:
            flags |= abi.SlotFlag.CLOSED | abi.SlotFlag.ORPHANED
        if address not in level:
            flags |= abi.SlotFlag.EDGE
        slot = abi.Slot(
            addr=address,
            tgid=tgid,
            epoch=epoch,
            gen=0,
            state=abi.SlotState.LIVE,
            flags=flags,
            fd=-1 if survivor else entry.fd,
            epfd=entry.epfd,
            old_fd=-1,
            old_epfd=-1,
        )
        for at in (slot.create, slot.add, slot.del_, slot.close, slot.destroy, slot.prev_destroy, slot.again):
            at.stack = -1
        if not survivor:
            slot.links[0] = abi.Link(
                ep=_UNRESOLVED, added=entry.data, fd=entry.fd, epfd=entry.epfd, events=entry.events
            )
        return self._slots.put(SLOT_KEY.pack(tgid, epoch, address), bytes(slot), BPF_NOEXIST)

    def withdraw_vanished(
        self, tgid: int, epoch: int, before: Iterable[EpollEntry], after: Iterable[EpollEntry]
    ) -> int:
        """Take back what ended between the two readings of fdinfo and that no event has touched."""
        still = {entry.data for entry in after}
        taken_back = 0
        for entry in before:
            if entry.data in still or not is_slot(self._userdata, entry.data):
                continue
            key = SLOT_KEY.pack(tgid, epoch, self._address(entry.data))
            raw = self._slots.get(key)
            if raw is None:
                continue
            slot = abi.Slot.from_buffer_copy(raw)
            untouched = slot.gen == 0 and slot.state == abi.SlotState.LIVE and not slot.deliveries
            if untouched and slot.links[0].ep == _UNRESOLVED and not slot.links[0].file and not slot.close.ts:
                self._slots.delete(key)
                taken_back += 1
        return taken_back
