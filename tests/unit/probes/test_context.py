"""What a report gets around a suspicion: stacks, threads, what fdinfo says and who holds the description."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any, cast

import pytest

from probes.context import READS_IN_A_SECOND, Context, walked
from probes.events import (
    CrashSeen,
    CrashSlot,
    Event,
    FdinfoChecked,
    MappedModule,
    ModulesMapped,
    Registration,
    StackSeen,
)
from probes.helper import ProcHelper
from probes.procfs import EpollEntry
from probes.sysbpf import Map
from tests.unit.agent.correlator.playbook import EPFD, INODE, SLOT, TGID, WORKER, life


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ((0x401000, 0x402000, 0, 0), (0x401000, 0x402000)),
        ((0x401000, 0x402000, 8, 0x403000), (0x401000, 0x402000)),
        ((0x401000, 0xFFFF_8000_0000_0000, 0x403000, 0), (0x401000,)),
        ((8, 0x402000, 0, 0), (8, 0x402000)),  # a jump to nowhere: its caller is what matters
        ((0, 0, 0, 0), ()),
    ],
)
def test_a_walk_ends_where_no_code_can_be(raw: tuple[int, ...], kept: tuple[int, ...]) -> None:
    assert walked(struct.pack(f"<{len(raw)}Q", *raw)) == kept


class FakeStacks:
    """Every stack is there: one frame."""

    def get(self, key: bytes) -> bytes | None:
        return struct.pack("<32Q", 0x401000, *[0] * 31) if len(key) == 4 else None


class NoBytes:
    def get(self, _key: bytes) -> None:
        return None


class FakeHelper:
    def __init__(self) -> None:
        self.entries: list[EpollEntry] | None = [EpollEntry(EPFD, 9, 1, SLOT, INODE + 9, True)]
        self.asked: list[tuple[int, int, int]] = []

    def comm(self, _pid: int, tid: int) -> str:
        return f"thread-{tid}"

    def modules(self, _pid: int, _own: str) -> None:
        return None

    def process(self, _pid: int) -> tuple[str, list[Any], dict[int, str]]:
        return "", [], {}

    def epoll_entries(self, _pid: int, _epfd: int) -> list[EpollEntry] | None:
        return self.entries

    def holders(self, inode: int, pid: int, fd: int) -> list[tuple[int, int, str]]:
        self.asked.append((inode, pid, fd))
        return [(4711, 3, "child")]


@pytest.fixture
def helper() -> FakeHelper:
    return FakeHelper()


@pytest.fixture
def context(helper: FakeHelper) -> Context:
    return Context(cast("Map", FakeStacks()), cast("Map", NoBytes()), cast("ProcHelper", helper), "id")


def stacks(told: list[Event]) -> set[int]:
    return {event.id for event in told if isinstance(event, StackSeen)}


def with_dup(reg: Registration | None, stack: int) -> Registration:
    assert reg is not None
    return replace(reg, dup=reg.dup._replace(stack=stack))


def test_the_stack_of_who_made_a_duplicate_comes_with_the_suspicion(context: Context) -> None:
    story = life().dupped(25, fd=12, by=WORKER).closed(30, shared=True).destroyed(50)
    told = list(context.of_suspicion(replace(story.stale_delivery(70), reg=with_dup(story.reg, 500))))
    assert 500 in stacks(told)


def test_a_stack_begins_where_the_hit_is_told_as(helper: FakeHelper) -> None:
    """A probe may sit on a branch that leads to the place. The process is at +0x400000."""
    maps = (cast("Map", FakeStacks()), cast("Map", NoBytes()), cast("ProcHelper", helper), "id", None)
    context = Context(*maps, {0x1000: 0x1234})
    list(context.of_target(TGID, 0x400000))
    story = life().closed(30, shared=True).destroyed(50)
    told = list(context.of_suspicion(story.stale_delivery(70)))
    assert {event.pcs for event in told if isinstance(event, StackSeen)} == {(0x401234,)}


def test_and_with_the_crash(context: Context) -> None:
    story = life().dupped(25, fd=12, by=WORKER).closed(30, shared=True).destroyed(50)
    held = CrashSlot(
        slot=story.slot, reg=with_dup(story.reg, 500), registers=(), objects=(), in_batch=-1, memory=b""
    )
    crash = CrashSeen(
        ts=90,
        tgid=TGID,
        tid=1,
        comm="",
        signal=11,
        si_code=1,
        fault_addr=0,
        ip=0,
        registers={},
        stack=b"",
        batch=0,
        slots=(held,),
    )
    assert 500 in stacks(list(context.of_crash(crash)))


def checks(told: list[Event]) -> list[FdinfoChecked]:
    return [event for event in told if isinstance(event, FdinfoChecked)]


def test_who_holds_a_description_is_asked_where_the_fd_is_closed(
    context: Context, helper: FakeHelper
) -> None:
    (check,) = checks(list(context.of_suspicion(life().outlives_close(40))))
    assert (check.present, check.holders) == (True, ((4711, 3, "child"),))
    assert helper.asked == [(INODE + 9, TGID, 9)]
    (check,) = checks(list(context.of_suspicion(life().freed_registered(50))))
    assert (check.present, check.holders) == (True, None), "its fd is open: nobody else is wanted"
    assert len(helper.asked) == 1


def test_the_answer_comes_before_what_it_answers(context: Context) -> None:
    event = life().outlives_close(40)
    told = list(context.of_suspicion(event))
    assert told.index(checks(told)[0]) < told.index(event)


@pytest.mark.parametrize(
    ("entries", "present"),
    [
        (None, None),
        ([], False),
        ([EpollEntry(EPFD, 9, 1, SLOT + 64, 0, True)], False),  # the number names another connection by now
        ([EpollEntry(EPFD, 8, 1, SLOT, 0, True)], False),
    ],
)
def test_what_fdinfo_says(
    context: Context, helper: FakeHelper, entries: list[EpollEntry] | None, present: bool | None
) -> None:
    helper.entries = entries
    (check,) = checks(list(context.of_suspicion(life().freed_registered(50))))
    assert check.present is present


def test_an_instance_without_a_number_cannot_be_looked_up(context: Context) -> None:
    story = life().registration(epfd=-1)
    (check,) = checks(list(context.of_suspicion(story.freed_registered(50))))
    assert check.present is None


def test_not_every_suspicion_is_looked_up(context: Context) -> None:
    told = list(context.of_suspicion(life().destroyed(50).destroy_again(60)))
    assert checks(told) == []
    many = [checks(list(context.of_suspicion(life().freed_registered(50)))) for _ in range(200)]
    assert 0 < sum(map(len, many)) < 200, "at most so many a second"


LIBC = 0x7F00_0000_0000


class Mapping(FakeHelper):
    """A process that maps libc a moment after it was attached."""

    mapped = 0

    def modules(self, _pid: int, _own: str) -> list[MappedModule]:  # type: ignore[override]
        self.mapped += 1
        own = MappedModule(start=0x5555_0000_0000, end=0x5555_0001_0000, bias=0, path="/exe", identity="own")
        libc = MappedModule(start=LIBC, end=LIBC + 0x1000, bias=LIBC, path="/libc.so.6", identity="libc")
        return [own] if self.mapped == 1 else [own, libc]


class Spans:
    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}

    def put(self, key: bytes, value: bytes) -> bool:
        self.held[key] = value
        return True


def test_what_is_mapped_right_after_the_attach_is_known() -> None:
    helper, spans = Mapping(), Spans()
    maps = cast("Map", FakeStacks()), cast("Map", NoBytes())
    context = Context(*maps, cast("ProcHelper", helper), "own", spans=cast("Map", spans))
    assert [
        len(event.modules) for event in context.of_target(TGID, 0) if isinstance(event, ModulesMapped)
    ] == [1]
    assert spans.held == {}
    (again,) = context._newly_mapped(TGID, (0x5555_0000_0010, LIBC + 16))
    assert isinstance(again, ModulesMapped)
    assert [module.path for module in again.modules] == ["/exe", "/libc.so.6"]
    assert list(spans.held.values()) == [struct.pack("<QQ", LIBC, LIBC + 0x1000)]
    for address in range(40):  # of nothing that is mapped, as a walk that went astray names
        list(context._newly_mapped(TGID, (address + 1,)))
    assert helper.mapped <= 2 * READS_IN_A_SECOND  # a second may end meanwhile
