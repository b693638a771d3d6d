# Owns finding what epoll_wait last wrote: arrays of struct epoll_event in captured memory, through the
# variables that lead to them. Must not judge what a delivery means.
from __future__ import annotations

import struct

from agent.forensics.facts import BatchSeen
from agent.forensics.objects import Found, Objects
from agent.forensics.view import View
from symbols.types import Type

_EVENT = struct.Struct("<IQ")  # struct epoll_event, packed on x86-64 (uapi/linux/eventpoll.h)
_MOST_EVENTS = 512
_MOST_ARRAYS = 16
_UNDEFINED = 0xAAAA_AAAA


def batches(view: View, objects: Objects) -> tuple[BatchSeen, ...]:
    """Event arrays with at least one delivery; where a slice names a part of one, its length too."""
    arrays: dict[int, tuple[Found, int]] = {}
    lengths: dict[int, int] = {}
    for found in objects.find(lambda kind: _capacity(view, kind) > 0 or _is_slice(view, kind)):
        if len(arrays) >= _MOST_ARRAYS:
            break
        if not _is_slice(view, found.type):
            arrays.setdefault(found.address, (found, _capacity(view, found.type)))
            continue
        start, length = view.word(found.address), view.word(found.address + 8)
        if start and length is not None and length <= _MOST_EVENTS:
            arrays.setdefault(start, (found, length))
            lengths[start] = length
    seen = []
    for address, (found, capacity) in arrays.items():
        entries = _entries(view, address, min(capacity, _MOST_EVENTS), lengths.get(address))
        if entries:
            count = lengths.get(address)
            seen.append(
                BatchSeen(tid=found.tid, path=found.path, address=address, count=count, entries=entries)
            )
    return tuple(seen)


def _entries(view: View, address: int, capacity: int, count: int | None) -> tuple[tuple[int, int], ...]:
    """Up to `count` deliveries; without it, up to the first entry that no wait can have written."""
    found = []
    for index in range(capacity if count is None else min(count, capacity)):
        raw = view.read(address + index * _EVENT.size, _EVENT.size)
        if raw is None:
            break
        events, userdata = _EVENT.unpack(raw)
        if count is None and events in (0, _UNDEFINED):
            break
        found.append((userdata, events))
    return tuple(found)


def _is_event(kind: Type | None) -> bool:
    return (
        kind is not None and kind.size == _EVENT.size and kind.name.rpartition(".")[2].endswith("epoll_event")
    )


def _capacity(view: View, kind: Type) -> int:
    if kind.kind != "array":
        return 0
    element, count = view.types.element(kind)
    return count if _is_event(element) else 0


def _is_slice(view: View, kind: Type) -> bool:
    """Zig's []epoll_event: ptr and len."""
    if kind.kind != "struct" or kind.size != 16 or "epoll_event" not in kind.name:
        return False
    members = view.types.members(kind)
    return (
        len(members) == 2
        and [m.offset for m in members] == [0, 8]
        and _is_event(view.variables.pointee(members[0].type))
    )
