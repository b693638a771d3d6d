"""Which sessions are open, and when: processes, programs, replaced binaries."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from agent.errors import AgentError, Misused, NoSuchTarget, SymbolsFailed
from agent.processes import Proc
from agent.supervisor import Session, Supervisor, Wanted
from agent.units import Units
from probes.events import CountersRead, Event, Lost, TargetAttached, TargetGone, Tick
from symbols.plan import ProbePlan
from tests.unit.agent.scenario import ATTACHED


class FakeSession:
    def __init__(self, plan: dict[str, Any], pids: Sequence[int], follow: bool, program: str) -> None:
        self.plan, self.pids, self.follow, self.program = plan, tuple(pids), follow, program
        self.targets: dict[int, TargetAttached] = dict.fromkeys(pids, ATTACHED)
        self.queue: list[Event] = []
        self.met: dict[int, tuple[int, int]] = {}
        self.finished = False
        self.closed = False
        self.count = 1

    def poll(self, timeout: float) -> Iterable[Event]:
        queue, self.queue = self.queue, []
        return queue

    def strangers(self) -> Mapping[int, tuple[int, int]]:
        met, self.met = self.met, {}
        return met

    def drain(self) -> Iterable[Event]:
        return [*self.poll(0), CountersRead(ts=9, counters=self.counters())]

    def counters(self) -> Mapping[str, int]:
        return {"deliveries": self.count}

    def close(self) -> None:
        self.closed = True


class World:
    """A /proc of links, an opener and a resolver that remember what they were asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.proc = folder / "proc"
        self.proc.mkdir()
        self.sessions: list[FakeSession] = []
        self.resolved: list[str] = []
        self.known: dict[str, list[str]] = {}
        self.notices: list[str] = []
        self.refuse = ""
        self.unknown: set[str] = set()  # programs without a profile
        self.now = 0

    def program(self, name: str, content: str = "v1") -> Path:
        path = self.folder / name
        path.write_text(content)
        return path

    def process(self, pid: int, program: Path) -> None:
        (self.proc / str(pid)).mkdir()
        (self.proc / str(pid) / "exe").symlink_to(program)

    def maps(self, pid: int, *mapped: Path) -> None:
        """These files are mapped for execution, in this order; each a second time for data."""
        rows = []
        for number, path in enumerate(mapped):
            inode, start = path.stat().st_ino, 0x7F00_0000_0000 + (number << 20)
            rows.append(f"{start:x}-{start + 0x1000:x} r-xp 00000000 08:01 {inode} {path}\n")
            rows.append(f"{start + 0x1000:x}-{start + 0x2000:x} rw-p 00001000 08:01 {inode} {path}\n")
        rows.append("7fffff000000-7fffff001000 r-xp 00000000 00:00 0 [vdso]\n")
        (self.proc / str(pid) / "maps").write_text("".join(rows))

    def unit(self, *pids: int) -> None:
        """node.service has these processes now."""
        folder = self.folder / "system.slice" / "node.service"
        folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "cgroup.procs").touch()
        (folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))

    def resolve(
        self, image: str, profile: str | None = None, debug_file: str | None = None
    ) -> dict[str, Any]:
        self.resolved.append(image)
        if self.refuse or Path(image).name in self.unknown:
            raise SymbolsFailed(self.refuse or "no profile fits this executable")
        return {"image": image, "identity": f"id{len(self.resolved)}", "profile": profile or "shipped"}

    def know_image(self, identity: str, paths: Iterable[str]) -> None:
        self.known.setdefault(identity, []).extend(paths)

    def close(self) -> None:
        pass

    def open(self, plan: ProbePlan, *, pids: Sequence[int], follow: bool, program: str) -> Session:
        session = FakeSession(cast("dict[str, Any]", plan), pids, follow, program)
        self.sessions.append(session)
        return session

    def supervisor(self, **wanted: Any) -> Supervisor:
        made = Supervisor(
            Wanted(**wanted),
            opener=self.open,
            resolver=self,
            load_plan=lambda plan: cast("ProbePlan", plan),
            proc=Proc(str(self.proc)),
            units=Units([str(self.folder)], systemctl=None),
            clock_ns=self.clock,
            on_notice=self.notices.append,
        )
        made.open()
        return made

    def clock(self) -> int:
        self.now += 1_100_000_000
        return self.now


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def until(condition: Callable[[], object], supervisor: Supervisor, events: list[Event] | None = None) -> None:
    """Poll (each poll is more than a second of the fake clock) until the condition holds."""
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        found = list(supervisor.poll(0.005))
        if events is not None:
            events.extend(found)


def test_pids_of_one_program_share_a_session(world: World) -> None:
    first, second = world.program("a"), world.program("b")
    for pid, program in ((10, first), (11, first), (12, second)):
        world.process(pid, program)
    world.supervisor(pids=(10, 11, 12, 10))
    assert [(s.pids, s.follow) for s in world.sessions] == [((10, 11), False), ((12,), False)]
    assert world.resolved == [str(first), str(second)]


def test_a_program_takes_all_its_processes_and_follows(world: World) -> None:
    program = world.program("a")
    world.process(10, program)
    world.process(12, world.program("b"))
    supervisor = world.supervisor(exes=(str(program),), pids=(10,))
    assert [(s.pids, s.follow) for s in world.sessions] == [((10,), True)]
    assert not supervisor.finished


def test_a_session_is_told_the_program_that_it_follows(world: World) -> None:
    program, link = world.program("a"), world.folder / "link"
    link.symlink_to(program)
    world.process(12, world.program("b"))
    world.supervisor(exes=(str(link),), pids=(12,))
    assert [s.program for s in world.sessions] == [os.path.realpath(program), ""]


def test_the_functions_of_the_profile_may_be_in_a_library(world: World) -> None:
    program, libc, pool = world.program("a"), world.program("libc.so"), world.program("libpool.so")
    world.process(10, program)
    world.maps(10, program, libc, pool)
    world.unknown = {"a", "libc.so"}
    world.supervisor(pids=(10,))
    assert world.resolved == [str(program), str(libc), str(pool)]
    assert [(s.plan["image"], s.pids) for s in world.sessions] == [(str(pool), (10,))]
    assert world.notices == [f"the functions of the profile are in {pool}"]
    assert list(world.known.values()) == [[str(pool)]]


def test_a_library_of_a_program_that_is_followed(world: World) -> None:
    program, pool = world.program("a"), world.program("libpool.so")
    world.process(10, program)
    world.maps(10, program, pool)
    world.unknown = {"a"}
    world.supervisor(exes=(str(program),))
    assert [(s.plan["image"], s.follow, s.program) for s in world.sessions] == [
        (str(pool), True, str(program))
    ]


def test_the_refusal_is_the_programs_own_where_no_library_fits(world: World) -> None:
    program, libc = world.program("a"), world.program("libc.so")
    world.process(10, program)
    world.maps(10, program, libc)
    world.refuse = "no profile fits this executable"
    with pytest.raises(SymbolsFailed, match="no profile fits this executable"):
        world.supervisor(pids=(10,))
    assert world.resolved == [str(program), str(libc)]
    assert not world.sessions


def test_a_program_that_nobody_runs_has_no_libraries(world: World) -> None:
    world.unknown = {"a"}
    with pytest.raises(SymbolsFailed):
        world.supervisor(exes=(str(world.program("a")),))


def test_a_program_may_start_later(world: World) -> None:
    supervisor = world.supervisor(exes=(str(world.program("a")),))
    assert [(s.pids, s.follow) for s in world.sessions] == [((), True)]
    assert not supervisor.finished


def test_a_deleted_program_is_opened_through_proc(world: World) -> None:
    assert Proc().executable(os.getpid())[0] == os.path.realpath("/proc/self/exe")


@pytest.mark.parametrize(
    ("wanted", "kind", "words"),
    [
        ({"pids": (99,)}, NoSuchTarget, "there is no process 99"),
        ({"exes": ("/nonexistent/x",)}, NoSuchTarget, "there is no executable /nonexistent/x"),
        ({"exes": ("/usr",)}, NoSuchTarget, "not a file: /usr"),
        ({}, Misused, "nothing to watch"),
    ],
)
def test_what_does_not_exist(
    world: World, wanted: dict[str, Any], kind: type[AgentError], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        world.supervisor(**wanted)
    assert caught.value.remedy


def test_a_failure_half_way_leaves_nothing_open(world: World) -> None:
    world.process(10, world.program("a"))
    with pytest.raises(NoSuchTarget):
        world.supervisor(exes=(str(world.program("b")),), pids=(10, 99))
    assert all(session.closed for session in world.sessions)


def test_it_ends_with_its_last_process(world: World) -> None:
    world.process(10, world.program("a"))
    supervisor = world.supervisor(pids=(10,))
    session = world.sessions[0]
    session.queue = [TargetGone(ts=1, tgid=10, reason="exited")]
    session.targets.clear()
    session.finished = True
    events = list(supervisor.poll(0))
    assert TargetGone(ts=1, tgid=10, reason="exited") in events
    assert session.closed
    assert supervisor.finished
    assert supervisor.counters() == {"deliveries": 1}


def test_programs_that_nobody_runs_are_known(world: World) -> None:
    ran, never = world.program("ran"), world.program("never")
    supervisor = world.supervisor(exes=(str(ran), str(never)))
    assert supervisor.unseen == (str(ran), str(never))
    world.sessions[0].queue = [ATTACHED]
    list(supervisor.poll(0))
    assert supervisor.unseen == (str(never),)


def test_a_tick_about_once_a_second(world: World) -> None:
    world.process(10, world.program("a"))
    supervisor = world.supervisor(pids=(10,))
    assert [event for event in supervisor.poll(0) if isinstance(event, Tick)] == [Tick(ts=1_100_000_000)]


def test_counters_are_summed_over_sessions(world: World) -> None:
    world.process(10, world.program("a"))
    world.process(11, world.program("b"))
    supervisor = world.supervisor(pids=(10, 11))
    for session, count in zip(world.sessions, (3, 4), strict=True):
        session.queue = [CountersRead(ts=1, counters={"deliveries": count})]
    events = [event for event in supervisor.poll(0) if isinstance(event, CountersRead)]
    assert events[-1].counters == {"deliveries": 7}


def test_a_replaced_binary_gets_its_own_session(world: World) -> None:
    program = world.program("a")
    world.process(10, program)
    supervisor = world.supervisor(exes=(str(program),))
    os.rename(world.program("new", "v2"), program)
    world.process(20, program)
    until(lambda: len(world.sessions) == 2, supervisor)
    old, new = world.sessions
    assert new.follow
    assert 20 in new.pids
    assert not old.closed
    assert "was replaced" in world.notices[0]
    old.targets.clear()
    until(lambda: old.closed, supervisor)
    assert not new.closed
    assert not supervisor.finished


def test_a_build_that_is_replaced_before_it_is_watched_is_said_and_counted(world: World) -> None:
    program = world.program("a")
    supervisor = world.supervisor(exes=(str(program),))
    resolve, builds = world.resolve, 5

    def replaced_meanwhile(image: str, *rest: Any) -> dict[str, Any]:
        if len(world.resolved) < builds:
            os.rename(world.program("next", f"version {len(world.resolved)}"), program)
        return resolve(image, *rest)

    world.resolve = replaced_meanwhile  # type: ignore[method-assign]
    os.rename(world.program("first", "another"), program)
    events: list[Event] = []
    until(lambda: len(world.sessions) == 2, supervisor, events)
    lost = [event for event in events if isinstance(event, Lost)]
    said = [notice for notice in world.notices if "was replaced before it could be watched" in notice]
    assert {event.what for event in lost} == {"builds-not-watched"}
    assert sum(event.count for event in lost) == 4
    assert ["id2" in said[0], "2 of them by now" in said[1], "4 of them by now" in said[2], len(said)] == [
        True, True, True, 3,
    ]  # fmt: skip


def test_a_process_of_a_build_that_was_never_seen_on_disk_is_said(world: World) -> None:
    """Two replacements between two looks: the exec tells."""
    program = world.program("a")
    supervisor = world.supervisor(exes=(str(program),))
    gone = world.program("between", "replaced at once")
    other = gone.stat()
    world.process(20, gone)
    session = world.sessions[0]
    session.met = {20: (other.st_dev, other.st_ino)}
    events: list[Event] = []
    until(lambda: any(isinstance(event, Lost) for event in events), supervisor, events)
    session.met = {20: (other.st_dev, other.st_ino)}
    for _ in range(3):
        events.extend(supervisor.poll(0))
    assert sum(event.count for event in events if isinstance(event, Lost)) == 1
    assert len([notice for notice in world.notices if "replaced before it could be watched" in notice]) == 1


def test_a_process_of_a_build_that_is_watched_soon_is_none_that_was_missed(world: World) -> None:
    program = world.program("a")
    supervisor = world.supervisor(exes=(str(program),))
    os.rename(world.program("new", "v2"), program)
    world.process(20, program)
    new = program.stat()
    world.sessions[0].met = {20: (new.st_dev, new.st_ino)}
    events: list[Event] = []
    until(lambda: len(world.sessions) == 2, supervisor, events)
    for _ in range(3):
        events.extend(supervisor.poll(0))
    assert not [event for event in events if isinstance(event, Lost)]


def test_a_binary_rewritten_in_place_ends_the_old_session_at_once(world: World) -> None:
    program = world.program("a")
    supervisor = world.supervisor(exes=(str(program),))
    program.write_text("version two")
    until(lambda: len(world.sessions) == 2, supervisor)
    assert world.sessions[0].closed


def test_a_new_binary_that_cannot_be_watched_is_said_once(world: World) -> None:
    program = world.program("a")
    supervisor = world.supervisor(exes=(str(program),))
    world.refuse = "the executable has no debug information"
    os.rename(world.program("new", "v2"), program)
    until(lambda: world.notices, supervisor)
    for _ in range(10):
        list(supervisor.poll(0))
    assert len(world.notices) == 1
    assert "no debug information" in world.notices[0]
    assert not world.sessions[0].closed
    world.refuse = ""
    os.rename(world.program("newer", "v3"), program)
    until(lambda: len(world.sessions) == 2, supervisor)


def test_a_binary_that_is_away_for_a_moment(world: World) -> None:
    program = world.program("a")
    supervisor = world.supervisor(exes=(str(program),))
    kept = world.folder / "kept"
    shutil.move(program, kept)
    list(supervisor.poll(0))
    shutil.move(kept, program)
    list(supervisor.poll(0))
    assert len(world.sessions) == 1


def test_a_unit_is_its_programs_and_what_it_runs_later(world: World) -> None:
    server, shell, helper = world.program("server"), world.program("sh"), world.program("helper")
    world.unknown = {"sh"}
    for pid, program in ((10, shell), (11, server), (12, server)):
        world.process(pid, program)
    world.unit(10, 11, 12, 4000)  # 4000 has ended meanwhile
    supervisor = world.supervisor(units=("node",))
    assert [(s.pids, s.follow) for s in world.sessions] == [((11, 12), True)]
    assert len(world.notices) == 1
    assert "sh of node is not watched: no profile" in world.notices[0]
    for session in world.sessions:
        session.targets.clear()
    assert not supervisor.finished, "it may be started again"
    world.process(20, helper)
    world.unit(10, 20)
    until(lambda: len(world.sessions) == 2, supervisor)
    assert (world.sessions[1].pids, world.sessions[1].follow) == ((20,), True)
    assert "helper is watched as well" in world.notices[1]
    for _ in range(5):
        list(supervisor.poll(0))
    assert world.resolved.count(str(shell)) == 1
    assert len(world.sessions) == len(world.notices) == 2


def test_a_unit_without_anything_to_watch_is_an_error(world: World) -> None:
    world.process(10, world.program("sh"))
    world.unknown = {"sh"}
    world.unit(10)
    with pytest.raises(SymbolsFailed):
        world.supervisor(units=("node",))
    world.unit()
    with pytest.raises(NoSuchTarget, match="has no processes"):
        world.supervisor(units=("node",))


def test_images_are_made_known_to_the_symbols(world: World) -> None:
    world.process(10, world.program("a"))
    supervisor = world.supervisor(pids=(10,))
    world.sessions[0].queue = [ATTACHED]
    list(supervisor.poll(0))
    assert world.known["sha256:00ff"] == ["/usr/local/bin/poolserver", "/proc/4711/exe"]


def test_draining_asks_every_session(world: World) -> None:
    world.process(10, world.program("a"))
    supervisor = world.supervisor(pids=(10,))
    kinds = [type(event) for event in supervisor.drain()]
    assert kinds == [CountersRead, Tick]
