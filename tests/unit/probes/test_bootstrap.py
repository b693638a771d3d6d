"""Registrations from before the attach become live slots of generation 0, where nothing is known yet."""

from __future__ import annotations

from typing import cast

import pytest

from probes import abi
from probes.abi import SlotFlag, SlotState
from probes.bootstrap import SLOT_KEY, Bootstrap, epoch_of
from probes.procfs import EpollEntry
from probes.sysbpf import BPF_NOEXIST, Map
from symbols.plan import Userdata

TGID, EPOCH, EPFD = 4711, 9, 5
ADDRESS = 0x7F00_0000_1000


class FakeMap:
    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}

    def put(self, key: bytes, value: bytes, flags: int = 0) -> bool:
        if flags == BPF_NOEXIST and key in self.held:
            return False
        self.held[key] = value
        return True

    def get(self, key: bytes) -> bytes | None:
        return self.held.get(key)

    def delete(self, key: bytes) -> bool:
        return self.held.pop(key, None) is not None


def entry(data: int = ADDRESS, fd: int = 7, *, is_open: bool = True) -> EpollEntry:
    return EpollEntry(EPFD, fd, 0x2001, data, 1234, is_open)


def slot(held: FakeMap, address: int = ADDRESS) -> abi.Slot:
    return abi.Slot.from_buffer_copy(held.held[SLOT_KEY.pack(TGID, EPOCH, address)])


def taking(userdata: Userdata | None = None) -> tuple[FakeMap, Bootstrap]:
    held = FakeMap()
    return held, Bootstrap(cast("Map", held), userdata or Userdata())


def test_a_registration_becomes_a_live_slot_with_a_link_that_is_looked_up_later() -> None:
    held, bootstrap = taking()
    assert bootstrap.insert(TGID, EPOCH, [entry()]) == 1
    made = slot(held)
    assert (made.state, made.gen, made.flags) == (SlotState.LIVE, 0, SlotFlag.INFERRED)
    assert (made.fd, made.epfd, made.old_fd) == (7, EPFD, -1)
    link = made.links[0]
    # ep 1: a number that is not resolved; `added` holds the userdata meanwhile (af_resolve)
    assert (link.ep, link.file, link.added, link.fd, link.epfd, link.events) == (
        1,
        0,
        ADDRESS,
        7,
        EPFD,
        0x2001,
    )
    assert [made.links[number].ep for number in range(1, abi.SLOT_LINKS)] == [0, 0, 0]
    assert made.create.stack == made.close.stack == -1


def test_one_whose_number_names_something_else_survived_its_close() -> None:
    held, bootstrap = taking()
    bootstrap.insert(TGID, EPOCH, [entry(is_open=False)])
    made = slot(held)
    assert made.flags == SlotFlag.INFERRED | SlotFlag.CLOSED | SlotFlag.ORPHANED
    assert (made.fd, made.links[0].ep) == (-1, 0)


@pytest.mark.parametrize(
    ("userdata", "data", "address"),
    [
        (Userdata(), ADDRESS, ADDRESS),
        (Userdata(mask=0xFFFF_FFFF_FFFF_FFFE), ADDRESS | 1, ADDRESS),
        (Userdata(offset=24), ADDRESS + 24, ADDRESS),  # of a watcher within the slot
        (Userdata(mask=0xFFFF_FFFF_FFFF_FFFE, offset=8), ADDRESS + 9, ADDRESS),
    ],
)
def test_userdata_leads_to_the_slot_as_the_profile_says(userdata: Userdata, data: int, address: int) -> None:
    held, bootstrap = taking(userdata)
    bootstrap.insert(TGID, EPOCH, [entry(data)])
    made = slot(held, address)
    assert (made.addr, made.links[0].added) == (address, data)


@pytest.mark.parametrize("data", [0, 5, 4095, ADDRESS])
def test_what_is_no_slot(data: int) -> None:
    held, bootstrap = taking(Userdata(reserved=(ADDRESS,)))
    assert bootstrap.insert(TGID, EPOCH, [entry(data)]) == 0
    assert held.held == {}


def test_what_events_wrote_is_left_alone() -> None:
    held, bootstrap = taking()
    key = SLOT_KEY.pack(TGID, EPOCH, ADDRESS)
    held.held[key] = b"theirs"
    assert bootstrap.insert(TGID, EPOCH, [entry(), entry(ADDRESS + 64)]) == 1
    assert held.held[key] == b"theirs"


def test_what_ended_between_the_readings_is_taken_back() -> None:
    held, bootstrap = taking()
    entries = [entry(ADDRESS), entry(ADDRESS + 64, 8), entry(ADDRESS + 128, 9)]
    bootstrap.insert(TGID, EPOCH, entries)
    assert bootstrap.withdraw_vanished(TGID, EPOCH, entries, entries[1:]) == 1
    assert [SLOT_KEY.unpack(key)[2] for key in held.held] == [ADDRESS + 64, ADDRESS + 128]


@pytest.mark.parametrize(
    "change", [{"gen": 1}, {"state": SlotState.FREE}, {"deliveries": 1}, {"close": 5}, {"file": 77}]
)
def test_unless_an_event_has_touched_it(change: dict[str, int]) -> None:
    held, bootstrap = taking()
    bootstrap.insert(TGID, EPOCH, [entry()])
    made = slot(held)
    for name, value in change.items():
        if name == "close":
            made.close.ts = value
        elif name == "file":
            made.links[0].file = value
        else:
            setattr(made, name, value)
    held.held[SLOT_KEY.pack(TGID, EPOCH, ADDRESS)] = bytes(made)
    assert bootstrap.withdraw_vanished(TGID, EPOCH, [entry()], []) == 0
    assert len(held.held) == 1


def test_epochs_are_never_zero_and_tell_times_apart() -> None:
    """What another program of the same process left behind is never taken for its own."""
    assert epoch_of(0) == 1
    assert epoch_of(1 << 44) == epoch_of((1 << 44) + 1023)
    assert epoch_of(5_000_000) != epoch_of(5_000_000 + 4096)
