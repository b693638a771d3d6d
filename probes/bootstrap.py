# Owns attaching to a process that already runs: registrations made before us, from /proc/PID/fdinfo, become
# live slots of generation 0 in the kernel side's maps, marked inferred. Never overwrites what events wrote.
from __future__ import annotations

import struct
from collections.abc import Iterable

from probes import abi
from probes.procfs import EpollEntry
from probes.sysbpf import BPF_NOEXIST, Map
from symbols.plan import Userdata

FD = struct.Struct("<QiI")  # struct af_fd of probes/bpf/10-maps.c
SLOT_KEY = struct.Struct("<IIQ")
REG_KEY = struct.Struct("<IiiI")
FD_KEY = struct.Struct("<Ii")
DESC_KEY = struct.Struct("<IIQ")
TARGET = struct.Struct("<QQII")


def is_slot(userdata: Userdata, data: int) -> bool:
    return data >= 4096 and data not in userdata.reserved


class Bootstrap:
    """Puts inferred registrations into the maps. One use per target."""

    def __init__(self, slots: Map, regs: Map, fds: Map, orphans: Map, userdata: Userdata) -> None:
        self._slots, self._regs, self._fds, self._orphans = slots, regs, fds, orphans
        self._userdata = userdata

    def insert(self, tgid: int, entries: Iterable[EpollEntry], now: int) -> int:
        """Number of registrations taken over. What events already cover is left alone."""
        taken = 0
        for number, entry in enumerate(entries):
            if not is_slot(self._userdata, entry.data):
                continue
            taken += self._insert_one(tgid, entry, now + number)
        return taken

    def _insert_one(self, tgid: int, entry: EpollEntry, serial: int) -> bool:
        address = entry.data & self._userdata.mask
        survivor = not entry.open
        slot = abi.Slot(
            addr=address,
            tgid=tgid,
            gen=0,
            state=abi.SlotState.LIVE,
            flags=abi.SlotFlag.INFERRED | (abi.SlotFlag.CLOSED | abi.SlotFlag.ORPHANED if survivor else 0),
            fd=-1 if survivor else entry.fd,
            epfd=entry.epfd,
            old_fd=entry.fd if survivor else -1,
            old_epfd=entry.epfd if survivor else -1,
            old_desc=serial if survivor else 0,
        )
        reg = abi.Reg(
            userdata=entry.data,
            slot=address,
            tgid=tgid,
            gen=0,
            epfd=entry.epfd,
            fd=entry.fd,
            events=entry.events,
            state=abi.RegState.ORPHAN if survivor else abi.RegState.LIVE,
            flags=abi.RegFlag.INFERRED,
            desc=serial if survivor else 0,
        )
        for at in (slot.create, slot.add, slot.del_, slot.close, slot.destroy, slot.prev_destroy):
            at.stack = -1
        for at in (reg.add, reg.mod, reg.end):
            at.stack = -1
        if survivor:
            self._orphans.put(DESC_KEY.pack(tgid, 0, serial), bytes(reg), BPF_NOEXIST)
            return self._slots.put(SLOT_KEY.pack(tgid, 0, address), bytes(slot), BPF_NOEXIST)
        if not self._regs.put(REG_KEY.pack(tgid, entry.epfd, entry.fd, 0), bytes(reg), BPF_NOEXIST):
            return False
        self._slots.put(SLOT_KEY.pack(tgid, 0, address), bytes(slot), BPF_NOEXIST)
        self._fds.put(FD_KEY.pack(tgid, entry.fd), FD.pack(0, entry.epfd, 0), BPF_NOEXIST)
        return True

    def withdraw_vanished(self, tgid: int, before: Iterable[EpollEntry], after: Iterable[EpollEntry]) -> int:
        """Take back what ended between the two readings of fdinfo and that no event has touched."""
        still = {(entry.epfd, entry.fd, entry.data) for entry in after}
        taken_back = 0
        for entry in before:
            if (entry.epfd, entry.fd, entry.data) in still or not is_slot(self._userdata, entry.data):
                continue
            key = REG_KEY.pack(tgid, entry.epfd, entry.fd, 0)
            raw = self._regs.get(key)
            if raw is None:
                continue
            reg = abi.Reg.from_buffer_copy(raw)
            if (
                reg.flags & abi.RegFlag.INFERRED
                and reg.state == abi.RegState.LIVE
                and reg.userdata == entry.data
            ):
                self._regs.delete(key)
                slot_key = SLOT_KEY.pack(tgid, 0, entry.data & self._userdata.mask)
                slot = self._slots.get(slot_key)
                if slot is not None and not abi.Slot.from_buffer_copy(slot).deliveries:
                    self._slots.delete(slot_key)
                taken_back += 1
        return taken_back
