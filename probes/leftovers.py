# Owns the periodic look at the slots map: closed slots that nobody destroys, HUP that nobody answers, runs
# that the kernel side counts without a message for each, and what threads that do not wait have put off.
# Bounded by the map's size.
from __future__ import annotations

import ctypes
import heapq
import os
import struct
import time
from collections.abc import Callable, Iterator

from probes import abi, decode, events
from probes.sysbpf import Map

_FIELDS = {
    name: getattr(abi.Slot, name).offset
    for name in (
        "addr", "tgid", "epoch", "state", "flags", "close", "destroy", "again", "stale", "stale_reported",
        "idle", "idle_reported", "hup_since", "last_delivery", "waiter", "recycled", "recycled_reported",
        "stale_dispatches",
    )
}  # fmt: skip
_CLOSE_TS = _FIELDS["close"] + abi.At.ts.offset
_CLOSE_TID = _FIELDS["close"] + abi.At.tid.offset
_DESTROY_TS = _FIELDS["destroy"] + abi.At.ts.offset
_AGAIN_TS = _FIELDS["again"] + abi.At.ts.offset
_DESTROY_TID = _FIELDS["destroy"] + abi.At.tid.offset
_LINKS = slice(abi.Slot.links.offset, abi.Slot.links.offset + abi.Slot.links.size)
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
LINGER_NS = 5_000_000_000
SETTLE_NS = (
    1_000_000_000  # that long a thread that does not wait may take between a destroy and what follows it
)
HUP_STILL_NS = 5_000_000_000  # a HUP reported within that time is one that is still reported
FORGET_NS = 1_000_000_000  # a slot freed so recently may still have deliveries under way
MAX_REPORTED = 256  # slots of each kind named in one scan
_NO_SLOT = abi.SlotFlag.UNBORN
_PUT_OFF = abi.SlotFlag.PENDING | abi.SlotFlag.CLOSE_PENDING | abi.SlotFlag.TWICE_PENDING


class Leftovers:
    def __init__(self, slots: Map, settle: Callable[[int, int, int], None], room: int = 0) -> None:
        """settle(tgid, epoch, address): has the kernel side judge what was put off for a slot. room: entries
        that the map has; 0: nothing is ever forgotten."""
        self._slots, self._settle, self._room = slots, settle, room
        self.forgotten = 0  # slots freed long ago that made room for others
        if slots.value_size != ctypes.sizeof(abi.Slot):
            raise ValueError(f"slots of {slots.value_size} bytes")

    def scan(self, now: int) -> Iterator[events.SlotLingering | events.SuspicionRaised]:
        """Live slots whose fd was closed LINGER_NS ago or earlier, or that report HUP as long, each with how
        many of its target's have lingered at least as long; and runs as far as they have got."""
        lingering: dict[int, list[tuple[int, bytes]]] = {}  # tgid -> (since when, key)
        named = held = 0
        freed: list[tuple[bool, int, bytes]] = []
        for key, raw in self._slots.entries():
            flags = _u64(raw, "flags")
            held += 1
            if _u32(raw, "state") == abi.SlotState.FREE and not flags & _PUT_OFF:
                freed.append((any(raw[_LINKS]), int(_U64.unpack_from(raw, _DESTROY_TS)[0]), key))
            if flags & _PUT_OFF:
                self._put_off(raw, now)
            if flags & _NO_SLOT:
                continue
            since = _lingers(raw, now) if _u32(raw, "state") == abi.SlotState.LIVE else 0
            if since:
                lingering.setdefault(_u32(raw, "tgid"), []).append((since, key))
            for event in self._run(raw) if named < MAX_REPORTED else ():
                named += 1
                yield event
        if self._room and held > self._room * 3 // 4:
            self._make_room(freed, held - self._room // 2, now)
        for slots in lingering.values():
            slots.sort()
            for number in _chosen(len(slots)):
                found = self._slots.get(slots[number][1])
                if found is not None:
                    yield events.SlotLingering(ts=now, slot=decode.slot(found), total=number + 1)

    def _make_room(self, freed: list[tuple[bool, int, bytes]], wanted: int, now: int) -> None:
        """Forget slots that were freed: those that nothing is registered for, then the oldest. An address
        that is given out again is known again; a program that never comes back must not fill the map."""
        for _, at, key in heapq.nsmallest(wanted, freed):
            raw = self._slots.get(key) if now - at > FORGET_NS else None
            if raw is None or _u32(raw, "state") != abi.SlotState.FREE:
                continue
            if _U64.unpack_from(raw, _DESTROY_TS)[0] == at and self._slots.delete(key):
                self.forgotten += 1

    def unreported(self, tgid: int) -> Iterator[events.SuspicionRaised]:
        """What the kernel side has counted and not reported yet, one suspicion per slot."""
        wanted = _U32.pack(tgid)
        for key, raw in self._slots.entries():
            if key[:4] == wanted and not _u64(raw, "flags") & _NO_SLOT:
                yield from self._run(raw)
                yield from self._rests(raw)

    def _put_off(self, raw: bytes, now: int) -> None:
        """A loop that only waits where it destroyed is told of at its wait; a worker may never wait again."""
        begun, by = _U64.unpack_from(raw, _DESTROY_TS)[0], _U32.unpack_from(raw, _DESTROY_TID)[0]
        if not begun:
            begun, by = _U64.unpack_from(raw, _CLOSE_TS)[0], _U32.unpack_from(raw, _CLOSE_TID)[0]
        again = _U64.unpack_from(raw, _AGAIN_TS)[0] if _u64(raw, "flags") & abi.SlotFlag.TWICE_PENDING else 0
        late = begun and now - begun > SETTLE_NS and (by != _u32(raw, "waiter") or not _lives(raw, by))
        if late or (again and now - again > SETTLE_NS):
            self._settle(_u32(raw, "tgid"), _u32(raw, "epoch"), _u64(raw, "addr"))

    @staticmethod
    def _rests(raw: bytes) -> Iterator[events.SuspicionRaised]:
        """What is sent at doublings within a run: who reads compares it with what was sent."""
        if _u32(raw, "recycled") != _u32(raw, "recycled_reported"):
            yield _of_run(abi.Suspect.RECYCLED_DELIVERY, decode.slot(raw))
        if _u32(raw, "stale_dispatches") > 1:
            yield _of_run(abi.Suspect.STALE_DISPATCH, decode.slot(raw), abi.Kind.DISPATCHED)

    @staticmethod
    def _run(raw: bytes) -> Iterator[events.SuspicionRaised]:
        if _u32(raw, "state") == abi.SlotState.FREE and _u32(raw, "stale") != _u32(raw, "stale_reported"):
            yield _of_run(abi.Suspect.STALE_DELIVERY, decode.slot(raw))
        # what is delivered again and again may be freed: it spins all the same
        if 0 < _u64(raw, "idle_reported") < _u64(raw, "idle"):
            yield _of_run(abi.Suspect.HOT, decode.slot(raw))


def owed(message: events.SuspicionRaised) -> Iterator[events.SuspicionRaised]:
    """What a life had counted and not told when its slot was given out again: one message brings it all.

    A stale delivery's own message is as good as any; of the others it names no registration.
    """
    slot = message.slot
    if slot is None:
        return
    if message.suspect is abi.Suspect.HOT:
        yield _of_run(abi.Suspect.HOT, slot)
    if slot.stale and message.suspect is not abi.Suspect.STALE_DELIVERY:
        yield _of_run(abi.Suspect.STALE_DELIVERY, slot)
    if slot.recycled:
        yield _of_run(abi.Suspect.RECYCLED_DELIVERY, slot)
    if slot.stale_dispatches > 1:
        yield _of_run(abi.Suspect.STALE_DISPATCH, slot, abi.Kind.DISPATCHED)


def not_judged(tgid: int, total: int) -> Iterator[events.SuspicionRaised]:
    """Frees within a batch that were not judged, as many as a process had; they are sent at doublings."""
    if total & (total - 1):
        now = time.monotonic_ns()
        trigger = events.Trigger(
            0, abi.Kind.DESTROYED, abi.RecordFlag.NOT_JUDGED, now, 0, 0, tgid, 0, 0, -1, -1, 0, total, -1
        )
        yield _rest(abi.Suspect.FREED_IN_BATCH, trigger, None)


def _chosen(count: int) -> range | list[int]:
    """Which of `count` slots are named: all, or MAX_REPORTED from the oldest to the youngest."""
    if count <= MAX_REPORTED:
        return range(count)
    return [index * (count - 1) // (MAX_REPORTED - 1) for index in range(MAX_REPORTED)]


def _lingers(raw: bytes, now: int) -> int:
    """Since when a live slot has been closed, or has reported HUP, for LINGER_NS and longer; else 0."""
    since = 0
    if _u64(raw, "flags") & abi.SlotFlag.CLOSED:
        since = int(_U64.unpack_from(raw, _CLOSE_TS)[0])
    elif now - _u64(raw, "last_delivery") < HUP_STILL_NS:
        since = _u64(raw, "hup_since")
    return since if since and now - since >= LINGER_NS else 0


def _lives(raw: bytes, tid: int) -> bool:
    """Whether the thread can still wait."""
    return os.path.exists(f"/proc/{_u32(raw, 'tgid')}/task/{tid}")


def _u32(raw: bytes, name: str) -> int:
    return int(_U32.unpack_from(raw, _FIELDS[name])[0])


def _u64(raw: bytes, name: str) -> int:
    return int(_U64.unpack_from(raw, _FIELDS[name])[0])


def _of_run(
    suspect: abi.Suspect, slot: events.SlotLife, kind: abi.Kind = abi.Kind.DELIVERED
) -> events.SuspicionRaised:
    """The message the kernel side would have sent for the last delivery of the run."""
    trigger = events.Trigger(
        0, kind, 0, slot.last_delivery, slot.last_delivery_enter, slot.addr, slot.tgid,
        slot.last_tid, slot.gen, slot.consecutive, slot.epfd, 0, 0, -1,
    )  # fmt: skip
    return _rest(suspect, trigger, slot)


def _rest(
    suspect: abi.Suspect, trigger: events.Trigger, slot: events.SlotLife | None
) -> events.SuspicionRaised:
    return events.SuspicionRaised(
        suspect=suspect,
        trigger=trigger,
        wait_enter=slot.last_delivery_enter if slot is not None else 0,
        wait_exit=slot.last_delivery if slot is not None else 0,
        batch=slot.last_batch if slot is not None else 0,
        batch_open=False,
        slot=slot,
        reg=None,
        other=None,
        comm="",
        memory=b"",
        rest=True,
    )
