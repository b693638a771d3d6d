# Owns the periodic look at the slots map: slots whose fd is closed and that nobody destroyed, and runs of
# deliveries the kernel side goes on counting without a message for each. Bounded by the map's size.
from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator

from probes import abi, decode, events
from probes.bootstrap import REG_KEY
from probes.sysbpf import Map

_FIELDS = {
    name: getattr(abi.Slot, name).offset
    for name in ("state", "flags", "close", "stale", "stale_reported", "consecutive")
}
_CLOSE_TS = _FIELDS["close"] + abi.At.ts.offset
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
LINGER_NS = 5_000_000_000
MAX_REPORTED = 256  # slots of each kind named in one scan
HOT_AFTER = 1024  # AF_HOT_AFTER of 10-maps.c
_EDGE_OR_ONESHOT = 1 << 31 | 1 << 30  # EPOLLET, EPOLLONESHOT: not level-triggered


class Leftovers:
    def __init__(self, slots: Map, regs: Map) -> None:
        self._slots, self._regs = slots, regs
        if slots.value_size != ctypes.sizeof(abi.Slot):
            raise ValueError(f"slots of {slots.value_size} bytes")

    def scan(self, now: int) -> Iterator[events.SlotLingering | events.SuspicionRaised]:
        """Live slots whose registered fd was closed LINGER_NS ago or earlier, and runs as far as they have
        got: the kernel side sends those at doubling counts only."""
        named = 0
        for _, raw in self._slots.entries():
            if _u32(raw, "state") == abi.SlotState.LIVE:
                event = self._lingering(raw, now) or self._spinning(raw)
            else:
                event = _stale(raw)
            if event is None:
                continue
            named += 1
            if named > MAX_REPORTED:
                return
            yield event

    def unreported(self, tgid: int) -> Iterator[events.SuspicionRaised]:
        """What the kernel side has counted and not reported yet, one suspicion per slot."""
        wanted = _U32.pack(tgid)
        for key, raw in self._slots.entries():
            if key[:4] == wanted:
                event = self._spinning(raw) if _u32(raw, "state") == abi.SlotState.LIVE else _stale(raw)
                if event is not None:
                    yield event

    @staticmethod
    def _lingering(raw: bytes, now: int) -> events.SlotLingering | None:
        if not _u32(raw, "flags") & abi.SlotFlag.CLOSED:
            return None
        closed = _U64.unpack_from(raw, _CLOSE_TS)[0]
        if not closed or now - closed < LINGER_NS:
            return None
        return events.SlotLingering(ts=now, slot=decode.slot(raw))

    def _spinning(self, raw: bytes) -> events.SuspicionRaised | None:
        if _u32(raw, "consecutive") < HOT_AFTER:
            return None
        slot = decode.slot(raw)
        found = self._regs.get(REG_KEY.pack(slot.tgid, slot.epfd, slot.fd, 0)) if slot.fd >= 0 else None
        reg = decode.registration(found) if found is not None else None
        if reg is not None and reg.events & _EDGE_OR_ONESHOT:
            return None
        return _of_run(abi.Suspect.HOT, slot, reg)


def _u32(raw: bytes, name: str) -> int:
    return int(_U32.unpack_from(raw, _FIELDS[name])[0])


def _stale(raw: bytes) -> events.SuspicionRaised | None:
    if _u32(raw, "stale") == _u32(raw, "stale_reported"):
        return None
    return _of_run(abi.Suspect.STALE_DELIVERY, decode.slot(raw), None)


def _of_run(
    suspect: abi.Suspect, slot: events.SlotLife, reg: events.Registration | None
) -> events.SuspicionRaised:
    """The message the kernel side would have sent for the last delivery of the run."""
    return events.SuspicionRaised(
        suspect=suspect,
        trigger=events.Trigger(
            0, abi.Kind.DELIVERED, 0, slot.last_delivery, slot.last_delivery_enter, slot.addr, slot.tgid,
            slot.last_tid, slot.gen, slot.consecutive, slot.epfd, 0, 0, -1,
        ),
        wait_enter=slot.last_delivery_enter,
        wait_exit=slot.last_delivery,
        batch=slot.last_batch,
        batch_open=False,
        slot=slot,
        reg=reg,
        other=None,
        comm="",
        memory=b"",
    )  # fmt: skip
