# Owns the raw stream of the tests: records as probes/bpf writes them, from steps told in order.
from __future__ import annotations

from typing import Any, Self

from probes.abi import Kind, Record, RecordFlag
from probes.events import RecordsRead
from tests.unit.agent.correlator.playbook import (
    BIAS,
    EPFD,
    EPOLLIN,
    EPOLLRDHUP,
    LOOP,
    SITES,
    SLOT,
    TGID,
    WORKER,
)

LISTENER = 3


class Tape:
    """Steps append records; time passes by 10 ns with each. Generations are counted as the kernel does."""

    def __init__(self, *, start: int = 1000) -> None:
        self.now = start
        self.records: list[tuple[int, ...]] = []
        self.gens: dict[int, int] = {}
        self.slot_of: dict[int, int] = {}  # fd -> slot
        self.batches: dict[int, int] = {}

    def raw(self, kind: int, ts: int | None = None, **fields: int) -> Self:
        if ts is None:
            self.now += 10
            ts = self.now
        row = {
            "seq": len(self.records),
            "kind": int(kind),
            "flags": 0,
            "ts": ts,
            "enter": ts,
            "addr": 0,
            "tgid": TGID,
            "tid": LOOP,
            "gen": 0,
            "fd": -1,
            "epfd": -1,
            "ret": 0,
            "arg": 0,
            "stack": -1,
        } | fields
        self.records.append(tuple(row.values()))
        return self

    def hit(self, kind: int, site: str, slot: int, **fields: int) -> Self:
        gen = self.gens.get(slot, 0)
        return self.raw(kind, addr=slot, enter=SITES[site] + BIAS, **{"gen": gen} | fields)

    def waits(self, by: int = LOOP, epfd: int = EPFD) -> Self:
        return self.raw(Kind.WAITER_SEEN, tid=by, epfd=epfd)

    def accepted(self, fd: int) -> Self:
        return self.raw(Kind.ACCEPTED, fd=LISTENER, ret=fd)

    def created(self, slot: int = SLOT) -> Self:
        self.gens[slot] = self.gens.get(slot, 0) + 1
        return self.hit(Kind.CREATED, "create", slot)

    def added(self, fd: int, slot: int = SLOT, *, ret: int = 0, by: int = LOOP, **fields: int) -> Self:
        call = {
            "addr": slot,
            "gen": self.gens.get(slot, 0),
            "fd": fd,
            "epfd": EPFD,
            "tid": by,
            "arg": EPOLLIN | EPOLLRDHUP,
            "stack": 7,
        } | fields
        self.slot_of[fd] = slot
        self.raw(Kind.ADD_BEGUN, **call)
        return self.raw(Kind.ADDED, enter=self.now, ret=ret, **call)

    def delivered(self, *slots: int, by: int = LOOP, events: int = EPOLLIN, repeats: int = 0) -> Self:
        """One batch: the wait before it closes the previous one."""
        batch = self.batches.get(by, 0)
        if batch:
            self.raw(Kind.BATCH_CLOSED, tid=by, epfd=EPFD, arg=batch)
        self.batches[by] = batch = batch + 1
        self.now += 20
        for index, slot in enumerate(slots or (SLOT,)):
            self.raw(
                Kind.DELIVERED,
                self.now,
                enter=self.now - 10,
                addr=slot,
                gen=self.gens.get(slot, 0),
                tid=by,
                fd=repeats,
                epfd=EPFD,
                ret=index,
                arg=events,
                stack=batch,
            )
        return self

    def dispatched(self, obj: int, slot: int = SLOT, *, known: bool = True) -> Self:
        flags = 0 if known else RecordFlag.UNKNOWN
        return self.hit(Kind.DISPATCHED, "destroy", slot, flags=int(flags), arg=slot & 0xFFFF_FFFF)._patch(
            addr=obj
        )

    def _patch(self, **fields: int) -> Self:
        row: dict[str, Any] = dict(zip(Record._fields, self.records[-1], strict=True)) | fields
        self.records[-1] = tuple(row.values())
        return self

    def closing(self, fd: int, by: int = LOOP) -> Self:
        slot = self.slot_of.get(fd, 0)
        gen = self.gens.get(slot, 0)
        return self.raw(Kind.CLOSE_BEGUN, addr=slot, gen=gen, fd=fd, epfd=EPFD, tid=by, stack=8)

    def closed(self, fd: int, by: int = LOOP, *, begun: bool = False) -> Self:
        """Begun and ended, unless `closing` began it (begun, where that was earlier)."""
        begun = begun or any(r[1] == Kind.CLOSE_BEGUN and r[9] == fd for r in self.records[-3:])
        if not begun:
            self.closing(fd, by)
        slot = self.slot_of.get(fd, 0)
        gen = self.gens.get(slot, 0)
        self.now += 5
        return self.raw(
            Kind.CLOSED, enter=self.now - 5, addr=slot, gen=gen, fd=fd, epfd=EPFD, tid=by, stack=8
        )

    def close_fails(self, fd: int) -> Self:
        return self.raw(Kind.CLOSED, flags=int(RecordFlag.UNKNOWN), fd=fd, ret=-9, stack=8)

    def removed(self, fd: int, *, ret: int = 0, by: int = LOOP) -> Self:
        slot = self.slot_of.get(fd, 0)
        call = {"addr": slot, "gen": self.gens.get(slot, 0), "fd": fd, "epfd": EPFD, "tid": by, "stack": 9}
        if ret == 0:
            self.raw(Kind.DEL_BEGUN, **call)
        return self.raw(Kind.REMOVED, ret=ret, **call)

    def dup(self, fd: int, new: int) -> Self:
        return self.raw(Kind.DUPPED, fd=fd, ret=new)

    def destroyed(self, slot: int = SLOT, by: int = LOOP, *, holds_object: bool = True) -> Self:
        return self.hit(Kind.DESTROYED, "destroy", slot, tid=by, arg=int(holds_object), stack=10)

    def read(self, slot: int = SLOT) -> Self:
        return self.raw(Kind.READ, addr=slot, gen=self.gens.get(slot, 0))

    def forked(self, child: int) -> Self:
        return self.raw(Kind.FORKED, arg=child)

    def fork_ended(self, child: int) -> Self:
        return self.raw(Kind.FORK_ENDED, tgid=child, addr=TGID, arg=child)

    def take(self) -> RecordsRead:
        """What was recorded since the last call."""
        records, self.records = tuple(self.records), []
        return RecordsRead(records=records)


__all__ = ["LISTENER", "WORKER", "Tape"]
