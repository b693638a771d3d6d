"""The periodic look at the slots: who lingers and how many, what runs have got to, what was put off."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest

from probes import abi, decode
from probes.abi import SlotFlag, SlotState
from probes.bootstrap import SLOT_KEY
from probes.events import SlotLife, SlotLingering, SuspicionRaised, Trigger
from probes.leftovers import (
    HUP_STILL_NS,
    LINGER_NS,
    MAX_REPORTED,
    SETTLE_NS,
    Leftovers,
    not_judged,
    owed,
)
from probes.sysbpf import Map

NOW = 1_000_000_000_000
TGID = LOOP = 1  # a thread that lives
EPOCH, WORKER = 9, TGID + 1


class FakeMap:
    value_size = ctypes.sizeof(abi.Slot)

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}

    def put(self, slot: abi.Slot) -> None:
        self.held[SLOT_KEY.pack(slot.tgid, slot.epoch, slot.addr)] = bytes(slot)

    def get(self, key: bytes) -> bytes | None:
        return self.held.get(key)

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        yield from list(self.held.items())


class World:
    def __init__(self) -> None:
        self.map = FakeMap()
        self.settled: list[tuple[int, int, int]] = []
        self.leftovers = Leftovers(cast("Map", self.map), lambda *which: self.settled.append(which))

    def slot(self, addr: int, **fields: int) -> abi.Slot:
        """A live slot; `close_ts`, `destroy_tid` and the like set members of its moments."""
        whole = {
            "addr": addr,
            "tgid": TGID,
            "epoch": EPOCH,
            "gen": 1,
            "state": SlotState.LIVE,
            "waiter": LOOP,
        }
        made = abi.Slot()
        for name, value in (whole | fields).items():
            moment, _, member = name.partition("_")
            if moment in ("close", "destroy", "again") and member in ("ts", "tid"):
                setattr(getattr(made, moment), member, value)
            else:
                setattr(made, name, value)
        self.map.put(made)
        return made

    def closed(self, addr: int, ago: int, **fields: int) -> abi.Slot:
        return self.slot(addr, flags=SlotFlag.CLOSED, close_ts=NOW - ago, **fields)

    def lingering(self) -> list[tuple[int, int]]:
        """(address, total) of every slot that a scan names."""
        found = self.leftovers.scan(NOW)
        return [(event.slot.addr, event.total) for event in found if isinstance(event, SlotLingering)]

    def runs(self) -> list[SuspicionRaised]:
        return [event for event in self.leftovers.scan(NOW) if isinstance(event, SuspicionRaised)]


def _message(slot: SlotLife, suspect: abi.Suspect) -> SuspicionRaised:
    trigger = Trigger(0, abi.Kind.DELIVERED, 0, NOW, NOW, slot.addr, TGID, LOOP, slot.gen, 0, 7, 0, 0, -1)
    return SuspicionRaised(
        suspect=suspect,
        trigger=trigger,
        wait_enter=0,
        wait_exit=0,
        batch=0,
        batch_open=False,
        slot=slot,
        reg=None,
        other=None,
        comm="",
        memory=b"",
    )


@pytest.fixture
def world() -> World:
    return World()


class TestLingering:
    def test_closed_for_long_and_not_destroyed_oldest_first(self, world: World) -> None:
        world.closed(0x1000, LINGER_NS)
        world.closed(0x2000, LINGER_NS + 5)
        world.closed(0x3000, LINGER_NS - 1)
        assert world.lingering() == [(0x2000, 1), (0x1000, 2)]

    @pytest.mark.parametrize(
        "fields",
        [
            {"flags": 0},  # registered anew after that close
            {"state": SlotState.FREE},
            {"flags": SlotFlag.CLOSED | SlotFlag.UNBORN},  # no slot, as far as is known
            {"close_ts": 0},
        ],
    )
    def test_what_does_not_linger(self, world: World, fields: dict[str, int]) -> None:
        world.slot(0x1000, **({"flags": SlotFlag.CLOSED, "close_ts": 1} | fields))
        assert world.lingering() == []

    def test_hung_up_and_still_told_of(self, world: World) -> None:
        world.slot(0x1000, hup_since=NOW - LINGER_NS, last_delivery=NOW - 1)
        world.slot(0x2000, hup_since=NOW - LINGER_NS + 1, last_delivery=NOW - 1)
        world.slot(0x3000, hup_since=NOW - 9 * LINGER_NS, last_delivery=NOW - HUP_STILL_NS)
        assert world.lingering() == [(0x1000, 1)]

    def test_totals_are_exact_where_not_all_are_named(self, world: World) -> None:
        count = 3 * MAX_REPORTED + 7
        for number in range(count):
            world.closed(0x1000 + 64 * number, LINGER_NS + number)
        named = world.lingering()
        assert len(named) == MAX_REPORTED
        assert (named[0][1], named[-1]) == (1, (0x1000, count)), "the youngest counts all of them"
        assert [total for _, total in named] == sorted({total for _, total in named})
        for addr, total in named:
            older = count - (addr - 0x1000) // 64
            assert total == older, "as many have lingered at least as long"

    @pytest.mark.parametrize("count", [1, MAX_REPORTED - 1, MAX_REPORTED, MAX_REPORTED + 1])
    def test_up_to_the_limit_each_is_named(self, world: World, count: int) -> None:
        for number in range(count):
            world.closed(0x1000 + 64 * number, LINGER_NS + number)
        named = world.lingering()
        assert len(named) == min(count, MAX_REPORTED)
        assert (named[0][1], named[-1][1]) == (1, count)

    def test_each_target_counts_for_itself(self, world: World) -> None:
        for number in range(5):
            world.closed(0x1000 + 64 * number, LINGER_NS + number)
            world.closed(0x1000 + 64 * number, LINGER_NS + number, tgid=TGID + 1)
        totals = [total for _, total in world.lingering()]
        assert totals == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]

    def test_one_that_is_destroyed_meanwhile_is_not_named(self, world: World) -> None:
        world.closed(0x1000, LINGER_NS)
        scan = world.leftovers.scan(NOW)
        world.closed(0x2000, LINGER_NS + 1)
        first = next(scan)
        assert isinstance(first, SlotLingering)
        world.map.held.clear()
        assert list(scan) == []


class TestRuns:
    def test_deliveries_of_a_free_slot_that_were_only_counted(self, world: World) -> None:
        world.slot(
            0x1000,
            state=SlotState.FREE,
            stale=9,
            stale_reported=4,
            last_delivery=77,
            last_delivery_enter=70,
            last_tid=WORKER,
            last_batch=3,
            gen=2,
        )
        (event,) = world.runs()
        assert event.suspect is abi.Suspect.STALE_DELIVERY
        assert (event.trigger.ts, event.trigger.enter, event.trigger.tid) == (77, 70, WORKER)
        assert (event.batch, event.wait_exit, event.trigger.gen) == (3, 77, 2)
        assert event.slot is not None
        assert event.slot.stale == 9

    @pytest.mark.parametrize(
        ("idle", "reported", "told"), [(5000, 1024, True), (1024, 1024, False), (5000, 0, False)]
    )
    def test_a_spin_is_told_of_as_far_as_it_has_got_once_it_is_one(
        self, world: World, idle: int, reported: int, told: bool
    ) -> None:
        """0 reported: the kernel side has not called it a spin."""
        world.slot(0x1000, idle=idle, idle_reported=reported)
        assert [event.suspect for event in world.runs()] == [abi.Suspect.HOT] * told
        world.slot(0x1000, state=SlotState.FREE, idle=idle, idle_reported=reported)
        assert [event.suspect for event in world.runs()] == [abi.Suspect.HOT] * told, "a freed one spins, too"

    def test_a_life_that_ends_owes_what_it_counted_and_did_not_tell(self, world: World) -> None:
        slot = decode.slot(bytes(world.slot(0x1000, idle=5000, stale=3, recycled=2, stale_dispatches=4)))
        whole = (
            abi.Suspect.HOT,
            abi.Suspect.STALE_DELIVERY,
            abi.Suspect.RECYCLED_DELIVERY,
            abi.Suspect.STALE_DISPATCH,
        )
        message = _message(slot, abi.Suspect.HOT)
        assert tuple(event.suspect for event in owed(message)) == whole
        assert all(event.rest for event in owed(message))
        # of a stale delivery the kernel side's own message is judged
        stale = _message(slot, abi.Suspect.STALE_DELIVERY)
        assert tuple(event.suspect for event in owed(stale)) == whole[2:]
        assert not list(owed(replace(message, slot=None)))

    def test_nothing_new_is_not_told_again(self, world: World) -> None:
        world.slot(0x1000, state=SlotState.FREE, stale=9, stale_reported=9)
        assert world.runs() == []

    def test_no_more_in_one_scan_than_can_be_judged(self, world: World) -> None:
        for number in range(MAX_REPORTED + 50):
            world.slot(0x1000 + 64 * number, state=SlotState.FREE, stale=2)
        assert len(world.runs()) == MAX_REPORTED

    def test_the_rest_of_a_process_that_ends(self, world: World) -> None:
        for number in range(MAX_REPORTED + 50):
            world.slot(0x1000 + 64 * number, state=SlotState.FREE, stale=2)
        world.slot(0x1000, state=SlotState.FREE, stale=2, tgid=TGID + 1)
        world.slot(0x2000, state=SlotState.FREE, stale=2, tgid=TGID + 1, flags=SlotFlag.UNBORN)
        assert len(list(world.leftovers.unreported(TGID))) == MAX_REPORTED + 50
        assert len(list(world.leftovers.unreported(TGID + 1))) == 1

    def test_what_is_sent_at_doublings_is_told_as_it_stands_at_the_end(self, world: World) -> None:
        world.slot(0x1000, recycled=7, recycled_reported=4)
        world.slot(0x2000, recycled=4, recycled_reported=4, stale_dispatches=1)
        world.slot(0x3000, state=SlotState.FREE, stale_dispatches=5)
        found = list(world.leftovers.unreported(TGID))
        assert all(event.rest for event in found)
        assert [(event.suspect, event.trigger.addr) for event in found] == [
            (abi.Suspect.RECYCLED_DELIVERY, 0x1000),
            (abi.Suspect.STALE_DISPATCH, 0x3000),
        ]
        assert world.runs() == [], "and not at every scan"

    def test_frees_that_were_not_judged(self) -> None:
        assert list(not_judged(TGID, 0)) == list(not_judged(TGID, 64)) == []
        (event,) = not_judged(TGID, 77)
        assert (event.suspect, event.trigger.arg, event.rest) == (abi.Suspect.FREED_IN_BATCH, 77, True)


class TestPutOff:
    """A slot that was destroyed while registered is judged at its thread's next wait; a worker may never
    wait again."""

    def destroyed(self, world: World, by: int, ago: int, **fields: int) -> None:
        whole = {"state": SlotState.FREE, "flags": SlotFlag.PENDING, "destroy_ts": NOW - ago} | fields
        world.slot(0x1000, destroy_tid=by, **whole)
        list(world.leftovers.scan(NOW))

    def test_of_a_worker(self, world: World) -> None:
        self.destroyed(world, WORKER, SETTLE_NS + 1)
        assert world.settled == [(TGID, EPOCH, 0x1000)]

    def test_of_the_only_thread_that_waits_it_is_left_to_that_wait(self, world: World) -> None:
        self.destroyed(world, LOOP, 100 * SETTLE_NS)
        assert world.settled == []

    def test_of_a_thread_that_has_ended(self, world: World) -> None:
        ended = 0x7FFF_FFFF  # above pid_max
        self.destroyed(world, ended, SETTLE_NS + 1, waiter=ended)
        assert world.settled == [(TGID, EPOCH, 0x1000)]

    def test_a_second_destroy_by_the_thread_that_waits(self, world: World) -> None:
        flags = SlotFlag.TWICE_PENDING
        self.destroyed(world, LOOP, 100 * SETTLE_NS, flags=flags, again_ts=NOW - SETTLE_NS)
        assert world.settled == []
        self.destroyed(world, LOOP, 100 * SETTLE_NS, flags=flags, again_ts=NOW - SETTLE_NS - 1)
        assert world.settled == [(TGID, EPOCH, 0x1000)]

    @pytest.mark.parametrize("waiter", [0xFFFF_FFFF, 0])
    def test_where_several_wait_or_nobody_is_known_to(self, world: World, waiter: int) -> None:
        """0xffffffff: several (AF_MANY_WAITERS); the one that destroyed need not be the next to wait."""
        self.destroyed(world, LOOP, SETTLE_NS + 1, waiter=waiter)
        assert world.settled == [(TGID, EPOCH, 0x1000)]

    def test_not_before_what_follows_a_destroy_has_had_its_time(self, world: World) -> None:
        self.destroyed(world, WORKER, SETTLE_NS)
        assert world.settled == []

    @pytest.mark.parametrize("flags", [0, SlotFlag.ENDED_AFTER, SlotFlag.NOT_JUDGED])
    def test_what_was_not_put_off(self, world: World, flags: int) -> None:
        self.destroyed(world, WORKER, 100 * SETTLE_NS, flags=flags)
        assert world.settled == []

    def test_even_where_create_has_not_given_it_out(self, world: World) -> None:
        self.destroyed(world, WORKER, SETTLE_NS + 1, flags=SlotFlag.PENDING | SlotFlag.UNBORN)
        assert world.settled == [(TGID, EPOCH, 0x1000)]

    @pytest.mark.parametrize(
        ("by", "waiter", "settled"),
        [(WORKER, LOOP, True), (LOOP, LOOP, False), (WORKER, 0, True), (LOOP, 0xFFFF_FFFF, True)],
    )
    def test_a_close_that_may_have_left_its_registration_behind(
        self, world: World, by: int, waiter: int, settled: bool
    ) -> None:
        world.closed(0x1000, SETTLE_NS + 1, close_tid=by, waiter=waiter)
        world.slot(
            0x1000,
            flags=SlotFlag.CLOSED | SlotFlag.CLOSE_PENDING,
            close_ts=NOW - SETTLE_NS - 1,
            close_tid=by,
            waiter=waiter,
        )
        list(world.leftovers.scan(NOW))
        assert world.settled == [(TGID, EPOCH, 0x1000)] * settled


def test_another_layout_of_the_slots_is_refused() -> None:
    class Narrow(FakeMap):
        value_size = 8

    with pytest.raises(ValueError, match="slots of 8 bytes"):
        Leftovers(cast("Map", Narrow()), lambda *_: None)
