# Owns the periodic look at the slots map: slots whose fd is closed and that nobody destroyed, and repeats the
# kernel side counted without sending. Bounded by the map's size.
from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator

from probes import abi, decode, events
from probes.sysbpf import Map

_FIELDS = {
    name: getattr(abi.Slot, name).offset for name in ("state", "flags", "close", "stale", "stale_reported")
}
_CLOSE_TS = _FIELDS["close"] + abi.At.ts.offset
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
LINGER_NS = 5_000_000_000
MAX_REPORTED = 256  # lingering slots named in one scan


class Leftovers:
    def __init__(self, slots: Map) -> None:
        self._slots = slots
        if slots.value_size != ctypes.sizeof(abi.Slot):
            raise ValueError(f"slots of {slots.value_size} bytes")

    def scan(self, now: int) -> Iterator[events.SlotLingering]:
        """Live slots whose registered fd was closed LINGER_NS ago or earlier."""
        named = 0
        for _, raw in self._slots.entries():
            flags = _U32.unpack_from(raw, _FIELDS["flags"])[0]
            if not flags & abi.SlotFlag.CLOSED:
                continue
            if _U32.unpack_from(raw, _FIELDS["state"])[0] != abi.SlotState.LIVE:
                continue
            closed = _U64.unpack_from(raw, _CLOSE_TS)[0]
            if not closed or now - closed < LINGER_NS:
                continue
            named += 1
            if named > MAX_REPORTED:
                return
            yield events.SlotLingering(ts=now, slot=decode.slot(raw))

    def unreported(self, tgid: int) -> Iterator[events.SuspicionRaised]:
        """Stale deliveries the kernel side collapsed and has not reported yet, one suspicion per slot."""
        wanted = _U32.pack(tgid)
        for key, raw in self._slots.entries():
            stale = _U32.unpack_from(raw, _FIELDS["stale"])[0]
            if key[:4] != wanted or stale == _U32.unpack_from(raw, _FIELDS["stale_reported"])[0]:
                continue
            slot = decode.slot(raw)
            yield events.SuspicionRaised(
                suspect=abi.Suspect.STALE_DELIVERY,
                trigger=events.Trigger(
                    0, abi.Kind.DELIVERED, 0, slot.last_delivery, slot.last_delivery_enter, slot.addr, tgid,
                    slot.last_tid, slot.gen, slot.consecutive, slot.epfd, 0, 0, -1,
                ),
                wait_enter=slot.last_delivery_enter,
                wait_exit=slot.last_delivery,
                batch=slot.last_batch,
                batch_open=False,
                slot=slot,
                reg=None,
                other=None,
                comm="",
                memory=b"",
            )  # fmt: skip
