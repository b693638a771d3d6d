"""What a session makes of messages that come late."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from agent.summary import _LOSSES
from probes import abi
from probes.bootstrap import TARGET
from probes.events import Event, Lost, ProcessForked, SuspicionRaised
from probes.loader import Handles, LoadOptions
from probes.session import LiveSession
from probes.sites import Sites

TGID = 4711


class NoProgress:
    """A watch that cannot attach."""

    def __init__(self, failure: str) -> None:
        self.failure = failure

    def suspected(self, _now: float) -> None:
        pass

    def tick(self, _now: float) -> None:
        pass


@pytest.mark.parametrize(("failure", "said"), [("the loader failed", 1), ("", 0)])
def test_progress_that_cannot_be_watched_is_said_once(failure: str, said: int) -> None:
    session = object.__new__(LiveSession)
    session.progress = NoProgress(failure)  # type: ignore[assignment]
    session._reported = {}
    session._losses_since = 0
    message = abi.LifecycleMessage()
    message.head.what = abi.Kind.SPIN_SUSPECTED
    told = [
        event for _ in range(3) for event in (*session._lifecycle(message), *session._watch_progress(0.0))
    ]
    assert [(event.what, event.count) for event in told if isinstance(event, Lost)] == [
        ("progress-not-watched", 1)
    ] * said
    assert len(told) == said


def test_hits_that_the_kernel_left_out_are_lost_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCounts:
        def read(self) -> tuple[int, ...]:
            return (0,) * len(abi.Counter)

    missed = {7: 2, 8: 1, 9: 64}
    monkeypatch.setattr("probes.session.left_out", missed.__getitem__)
    session = object.__new__(LiveSession)
    session._counters = NoCounts()  # type: ignore[assignment]
    session._reported, session._losses_since = {}, 0
    session._handles = Handles(
        maps={"af_exit_ctl": 7, "af_exit_close": 8, "slots": 9},
        links=[],
        missing=(),
        options=LoadOptions(),
        seconds=0.0,
    )

    def lost() -> list[tuple[str, int]]:
        return [(event.what, event.count) for event in session._read_counters() if isinstance(event, Lost)]

    assert lost() == [("tracepoint-hits-left-out", 3)]
    assert lost() == []
    missed[8] = 2
    assert lost() == [("tracepoint-hits-left-out", 1)]
    assert "tracepoint-hits-left-out" in _LOSSES


@pytest.mark.parametrize(("ts", "again"), [(90, False), (110, True)])
def test_an_exec_from_before_the_process_was_looked_at_is_not_another_one(
    ts: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was found by a search for the program may have the message of its exec still to come."""
    done: list[str] = []

    def note(what: str) -> Iterator[Event]:
        done.append(what)
        yield from ()

    session = object.__new__(LiveSession)
    session._looked = {TGID: 100}
    session.targets = {TGID: object()}  # type: ignore[dict-item]
    monkeypatch.setattr(session, "_gone", lambda *_: note("gone"))
    monkeypatch.setattr(session, "_attach", lambda *_, **__: note("attached"))
    message = abi.LifecycleMessage()
    message.head.what = abi.Kind.EXECED
    message.trigger.tgid, message.trigger.ts, message.trigger.arg = TGID, ts, 1
    assert list(session._lifecycle(message)) == []
    assert done == (["gone", "attached"] if again else [])


class Watching:
    """A session without a kernel side, and what it attached."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, follow: bool) -> None:
        self.attached: list[tuple[int, bool]] = []
        self.session = object.__new__(LiveSession)
        self.session._follow = follow
        self.session.targets = {TGID: object()}  # type: ignore[dict-item]
        monkeypatch.setattr(self.session, "_attach", self._attach)

    def _attach(self, pid: int, *, late: bool) -> Iterator[Event]:
        self.attached.append((pid, late))
        yield from ()

    def forked(self, flags: int, *, ended: bool = False) -> ProcessForked:
        message = abi.LifecycleMessage()
        message.head.what = abi.Kind.FORK_ENDED if ended else abi.Kind.FORKED
        message.trigger.tgid, message.trigger.ts, message.trigger.arg = TGID, 50, 4712
        message.trigger.addr = flags
        (event,) = [told for told in self.session._lifecycle(message) if isinstance(told, ProcessForked)]
        return event


CLONE_VM, CLONE_FILES, SIGCHLD = 0x100, 0x400, 17


@pytest.mark.parametrize(
    ("follow", "flags", "watched", "shares"),
    [
        (True, SIGCHLD, True, False),  # fork(2)
        (False, SIGCHLD, False, False),  # --pid: only what was named
        (True, SIGCHLD | CLONE_FILES, True, True),
        (True, SIGCHLD | CLONE_VM, True, False),  # vfork(2): it borrows the memory until it executes
        (True, CLONE_VM | CLONE_FILES, True, True),
    ],
)
def test_a_forked_child_is_watched_from_its_start_where_the_program_is_followed(
    follow: bool, flags: int, watched: bool, shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Watching(monkeypatch, follow=follow)
    event = world.forked(flags)
    assert (event.tgid, event.child, event.ended) == (TGID, 4712, False)
    assert (event.watched, event.shares_table) == (watched, shares)
    now = watched and not flags & CLONE_VM
    assert world.attached == [(4712, False)] * now, "not late: nothing of it was missed"


def test_one_that_is_watched_already_is_not_attached_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Watching(monkeypatch, follow=True)
    world.session.targets[4712] = object()  # type: ignore[assignment]
    assert world.forked(SIGCHLD).watched
    assert world.attached == []


def test_a_child_that_is_gone_shares_nothing_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Watching(monkeypatch, follow=True)
    event = world.forked(SIGCHLD | CLONE_FILES, ended=True)
    assert (event.ended, event.watched, event.shares_table, world.attached) == (True, False, False, [])


class FakeMap:
    def __init__(self, held: dict[bytes, bytes]) -> None:
        self.held = held

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        yield from list(self.held.items())

    def get(self, key: bytes) -> bytes | None:
        return self.held.get(key)

    def delete(self, key: bytes) -> bool:
        return self.held.pop(key, None) is not None


@pytest.mark.parametrize("again", [False, True])
def test_what_a_process_left_behind_goes_and_what_its_successor_has_stays(again: bool) -> None:
    """The same number may be another program's by the time that its end is heard of: another epoch."""
    mine, theirs = struct.pack("<II", TGID, 5), struct.pack("<II", TGID, 7)
    other = struct.pack("<II", TGID + 1, 5)
    maps = {
        name: FakeMap({who + bytes(size): b"" for who in (mine, theirs, other)})
        for name, size in (("slots", 8), ("numbers", 4), ("objects", 8), ("inner", 8), ("sites", 8))
    }
    regs = {}
    for number, (tgid, epoch) in enumerate(((TGID, 5), (TGID, 7), (TGID + 1, 5))):
        regs[bytes((number,)) * 24] = bytes(abi.Reg(tgid=tgid, epoch=epoch))
    maps["regs"] = FakeMap(regs)
    target = TARGET.pack(1, 7 if again else 5, 0, 0, 0, 0, 0, 0, 0, 0)
    maps["targets"] = FakeMap({TGID.to_bytes(4, "little"): target})
    maps["spans"] = FakeMap({TGID.to_bytes(4, "little"): bytes(16)})
    session = object.__new__(LiveSession)
    session._maps = maps  # type: ignore[assignment]
    session._epochs = {TGID: 5}
    session._forgotten = set()
    session._forget(TGID)
    session._sweep()
    for name in ("slots", "numbers", "objects", "inner", "sites"):
        assert [key[:8] for key in maps[name].held] == [theirs, other], name
    left = [abi.Reg.from_buffer_copy(raw) for raw in regs.values()]
    assert [(reg.tgid, reg.epoch) for reg in left] == [(TGID, 7), (TGID + 1, 5)]
    assert len(maps["targets"].held) == len(maps["spans"].held) == again


class Urgent:
    def __init__(self, *messages: bytes) -> None:
        self.messages = list(messages)

    def read(self, _limit: int) -> list[bytes]:
        return self.messages


class Told:
    """A watch over progress that counts what it is told, and a context that adds nothing."""

    def __init__(self) -> None:
        self.spins = 0

    def confirmed(self, _now: float) -> None:
        self.spins += 1

    def of_suspicion(self, event: Event) -> Iterator[Event]:
        yield event


@pytest.mark.parametrize(
    ("suspect", "flags", "spins"),
    [
        (abi.Suspect.HOT, 0, 1),
        (abi.Suspect.HOT, abi.RecordFlag.HOPELESS, 0),  # needs no watching: it says nothing of the look
        (abi.Suspect.BAD_CLOSE, 0, 0),
    ],
)
def test_a_spin_that_was_found_keeps_progress_watched(suspect: abi.Suspect, flags: int, spins: int) -> None:
    message = abi.SuspicionMessage()
    message.head.type, message.head.version, message.head.what = 1, abi.ABI_VERSION, suspect
    message.trigger.flags = flags
    session, told = object.__new__(LiveSession), Told()
    session._urgent = Urgent(bytes(message), b"no message at all")  # type: ignore[assignment]
    session.progress = session._context = told  # type: ignore[assignment]
    session._sites = Sites(FakeMap({}), lambda _tgid: 0)  # type: ignore[arg-type]
    session._losses_since = 0
    events = list(session._read_urgent())
    assert told.spins == spins
    assert [type(event) for event in events] == [SuspicionRaised, Lost], "what cannot be read is a loss"
