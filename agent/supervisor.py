# Owns which sessions are open: one per executable image, for the processes and programs that the user
# named, through restarts and replaced binaries. An EventSource over all of them.
# Must not judge, show or write anything.
from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from agent.builds import UnwatchedBuilds
from agent.errors import AgentError, Misused, NoSuchTarget, SymbolsFailed
from agent.processes import FileId, FileState, Proc, file_state
from agent.units import Units
from probes.events import CountersRead, Event, TargetAttached, TargetGone, Tick

if TYPE_CHECKING:
    from symbols.plan import ProbePlan


_MOST_PROGRAMS = 64
"""Programs that are followed at most because a unit runs them."""


class Session(Protocol):
    """What the supervisor needs of probes.session.LiveSession."""

    def poll(self, timeout: float) -> Iterable[Event]: ...

    @property
    def finished(self) -> bool: ...

    @property
    def targets(self) -> Mapping[int, TargetAttached]: ...

    def strangers(self) -> Mapping[int, tuple[int, int]]: ...

    def drain(self) -> Iterable[Event]: ...

    def counters(self) -> Mapping[str, int]: ...

    def close(self) -> None: ...


class Opener(Protocol):
    """Attaches: LiveSession.open with its options bound."""

    def __call__(
        self, plan: ProbePlan, *, pids: Sequence[int], follow: bool, program: str = ""
    ) -> Session: ...


class Resolver(Protocol):
    """What the supervisor needs of agent.symbolize.SymbolClient."""

    def resolve(
        self, image: str, profile: str | None = None, debug_file: str | None = None
    ) -> dict[str, Any]: ...

    def know_image(self, identity: str, paths: Iterable[str]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the user named."""

    pids: tuple[int, ...] = ()
    exes: tuple[str, ...] = ()
    units: tuple[str, ...] = ()  # systemd units: their processes' programs are followed like exes
    profile: str | None = None
    debug_file: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """For a sentence about all of it."""
        return (*self.exes, *self.units, *(f"pid {pid}" for pid in self.pids))


@dataclass(slots=True, kw_only=True)
class _Open:
    """One open session and why it is open."""

    session: Session
    image: FileId
    exe: str = ""  # the --exe it serves; "" for --pid
    state: FileState | None = None
    replaced: bool = False  # its binary was replaced on disk: it ends with its last process
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class _NewImage:
    """A replaced binary on its way through the resolver."""

    exe: str
    state: FileState
    thread: threading.Thread
    plan: dict[str, Any] | None = None
    error: AgentError | None = None


class Supervisor:
    """Opens and closes sessions and merges what they yield. Yields a Tick about once a second."""

    def __init__(
        self,
        wanted: Wanted,
        *,
        opener: Opener,
        resolver: Resolver,
        load_plan: Callable[[dict[str, Any]], ProbePlan],
        new_resolver: Callable[[], Resolver] | None = None,
        proc: Proc | None = None,
        units: Units | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        on_notice: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """new_resolver: for replaced binaries, used on another thread; by default the same one."""
        self._wanted = wanted
        self._opener = opener
        self._resolver = resolver
        self._new_resolver = new_resolver or (lambda: resolver)
        self._load_plan = load_plan
        self._proc = proc or Proc()
        self._units = units or Units()
        self._exes = list(dict.fromkeys(wanted.exes))  # programs that are followed; units add to them
        self._clock_ns = clock_ns
        self._notice = on_notice
        self._sessions: list[_Open] = []
        self._coming: dict[str, _NewImage] = {}
        self._refused: dict[str, FileState] = {}  # new files that cannot be watched: not tried again
        self._gone_counters: Counter[str] = Counter()
        self._last_tick = 0
        self._seen: set[str] = set()  # of the programs that are followed: those with a process so far
        self._closing: list[threading.Thread] = []
        self._builds = UnwatchedBuilds(on_notice)
        self._closed = False
        self.plans: list[dict[str, Any]] = []  # every plan that was resolved, newest last

    def open(self) -> None:
        """Attach to everything that was named. Raises AgentError or ProbeError and leaves nothing open."""
        if not self._wanted.pids and not self._wanted.exes and not self._wanted.units:
            raise Misused(
                "nothing to watch was named",
                remedy="afterfree watch --pid PID, --exe PROGRAM or --unit NAME",
            )
        try:
            by_program = self._open_exes()
            self._open_units(by_program)
            self._open_pids(by_program)
        except BaseException:
            self.close()
            raise

    def _open_exes(self) -> set[FileId]:
        seen: set[FileId] = set()
        for exe in dict.fromkeys(self._wanted.exes):
            state = file_state(exe)
            if state.id not in seen:
                seen.add(state.id)
                running = self._proc.running(state.id)
                plan = self._resolve_of(os.path.realpath(exe), running)
                self._attach(plan, state.id, running, exe=exe, state=state)
        return seen

    def _open_units(self, covered: set[FileId]) -> None:
        """Programs of the units; of those that cannot be watched (a shell, a helper) only a note is made."""
        for unit in dict.fromkeys(self._wanted.units):
            found = self._programs(unit)
            refused: dict[str, SymbolsFailed] = {}
            for identity, (path, pids) in found.items():
                if identity in covered:
                    continue
                try:
                    plan = self._resolve(path)
                except SymbolsFailed as error:
                    refused[path] = error
                    continue
                covered.add(identity)
                if path.startswith("/proc/"):  # deleted, or in a container: no path to follow
                    self._attach(plan, identity, tuple(pids))
                    continue
                self._exes.append(path)
                running = self._proc.running(identity)
                self._attach(plan, identity, running, exe=path, state=file_state(path))
            if refused and not covered & found.keys():
                raise next(iter(refused.values()))
            for path, reason in refused.items():
                self._notice(f"{path} of {unit} is not watched: {reason.title}")
                if not path.startswith("/proc/"):
                    self._exes.append(path)  # tried again when it is another file
                    self._refused[path] = file_state(path)

    def _programs(self, unit: str) -> dict[FileId, tuple[str, list[int]]]:
        """Executables that the unit's processes run now. Raises as Units.processes does."""
        found: dict[FileId, tuple[str, list[int]]] = {}
        for pid in self._units.processes(unit):
            with contextlib.suppress(NoSuchTarget):  # it has ended
                path, identity = self._proc.executable(pid)
                found.setdefault(identity, (path, []))[1].append(pid)
        return found

    def _open_pids(self, covered: set[FileId]) -> None:
        images: dict[FileId, tuple[str, list[int]]] = {}
        for pid in dict.fromkeys(self._wanted.pids):
            path, identity = self._proc.executable(pid)
            if identity not in covered:
                images.setdefault(identity, (path, []))[1].append(pid)
        for identity, (path, pids) in images.items():
            self._attach(self._resolve_of(path, pids), identity, tuple(pids))

    def _resolve_of(self, program: str, pids: Sequence[int]) -> dict[str, Any]:
        """The plan of a program, or of the shared object it runs that holds the functions of the profile."""
        try:
            return self._resolve(program)
        except SymbolsFailed:
            for library in self._proc.libraries(pids[0]) if pids else ():
                with contextlib.suppress(SymbolsFailed):
                    plan = self._resolve(library)
                    self._notice(f"the functions of the profile are in {library}")
                    return plan
            raise

    def _resolve(self, image: str) -> dict[str, Any]:
        plan = self._resolver.resolve(image, self._wanted.profile, self._wanted.debug_file)
        self._resolver.know_image(str(plan.get("identity", "")), [image])
        return plan

    def _attach(
        self,
        plan: dict[str, Any],
        image: FileId,
        pids: tuple[int, ...],
        *,
        exe: str = "",
        state: FileState | None = None,
    ) -> None:
        loaded = self._load_plan(plan)
        program = exe and os.path.realpath(exe)
        session = self._opener(loaded, pids=pids, follow=bool(exe), program=program)
        self.plans = [*self.plans[-7:], plan]
        self._sessions.append(_Open(session=session, image=image, exe=exe, state=state))

    # -- EventSource ----------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """True when nothing can come any more: every --pid target is gone, no program or unit is followed."""
        return self._closed or (not self._sessions and not self._exes and not self._wanted.units)

    @property
    def targets(self) -> dict[int, TargetAttached]:
        """All processes that are attached now."""
        return {pid: target for entry in self._sessions for pid, target in entry.session.targets.items()}

    @property
    def unseen(self) -> tuple[str, ...]:
        """Programs that the user named and that no process was ever seen of."""
        return tuple(exe for exe in dict.fromkeys(self._wanted.exes) if exe not in self._seen)

    def poll(self, timeout: float) -> Iterator[Event]:
        """Events of all sessions; each waits its share of `timeout` seconds."""
        share = timeout / max(len(self._sessions), 1)
        if not self._sessions and timeout > 0 and not self._closed:
            time.sleep(timeout)
        for entry in list(self._sessions):
            for event in entry.session.poll(share):
                yield self._passed(entry, event)
            if entry.session.finished or (entry.replaced and not entry.session.targets):
                yield from self._end(entry)
        now = self._clock_ns()
        if now - self._last_tick >= 1_000_000_000:
            self._last_tick = now
            yield Tick(ts=now)
            self._follow_files()
            self._judge_builds()
            yield from self._builds.lost(now)

    def _judge_builds(self) -> None:
        for entry in self._sessions:
            for pid, image in entry.session.strangers().items():
                self._builds.stranger(pid, FileId(*image), entry.exe)
        images = {entry.image for entry in self._sessions}
        self._builds.judge(self.targets, self._coming, images, self._proc.exists)

    def _passed(self, entry: _Open, event: Event) -> Event:
        if isinstance(event, TargetAttached):
            identity = str(event.plan.get("identity", ""))
            self._resolver.know_image(identity, [event.exe, f"/proc/{event.tgid}/exe"])
            self._seen.add(entry.exe)
        elif isinstance(event, CountersRead):
            # Each session counts for itself; what leaves here is the sum, and never goes back.
            entry.counters = event.counters
            return CountersRead(ts=event.ts, counters=self.counters())
        return event

    def counters(self) -> dict[str, int]:
        """Kernel-side counters, summed over all sessions there were."""
        total = Counter(self._gone_counters)
        for entry in self._sessions:
            total.update(entry.counters)
        return dict(total)

    def _end(self, entry: _Open) -> Iterator[Event]:
        """Close one session; it may still have something to say."""
        left = dict(entry.session.targets)
        for event in entry.session.drain():
            yield self._passed(entry, event)
        for tgid in left:
            if tgid in entry.session.targets:
                yield TargetGone(ts=self._clock_ns(), tgid=tgid, reason="detached")
        self._gone_counters.update(entry.session.counters())
        self._sessions.remove(entry)
        self._let_go(entry.session)

    def _let_go(self, session: Session) -> None:
        """Close it beside the loop: detaching waits for a grace period of the kernel per point, seconds in
        all, and what was found must not wait for that."""
        self._closing = [thread for thread in self._closing if thread.is_alive()]
        thread = threading.Thread(target=session.close, name="detach")
        thread.start()
        self._closing.append(thread)

    def drain(self) -> Iterator[Event]:
        """What the sessions still hold, without waiting: the last events before `close`."""
        for entry in list(self._sessions):
            for event in entry.session.drain():
                yield self._passed(entry, event)
        self._judge_builds()
        yield from self._builds.lost(self._clock_ns())
        if self._sessions:
            yield Tick(ts=self._clock_ns())

    def close(self) -> None:
        """Detach from everything."""
        self._closed = True
        sessions, self._sessions = self._sessions, []
        for entry in sessions:
            entry.session.close()
        closing, self._closing = self._closing, []
        for thread in closing:
            thread.join()

    # -- replaced binaries ----------------------------------------------------------------------

    def _follow_files(self) -> None:
        self._follow_units()
        for exe in self._exes:
            coming = self._coming.get(exe)
            if coming is not None and not coming.thread.is_alive():
                self._arrived(coming)
            elif coming is None:
                self._look(exe)

    def _follow_units(self) -> None:
        """Programs that a unit runs by now and did not before, as after its unit file was changed."""
        for unit in self._wanted.units:
            with contextlib.suppress(AgentError):  # it is stopped at the moment
                for path, _pids in self._programs(unit).values():
                    new = path not in self._exes and not path.startswith("/proc/")
                    if new and len(self._exes) < _MOST_PROGRAMS:
                        self._exes.append(path)

    def _look(self, exe: str) -> None:
        try:
            state = file_state(exe)
        except AgentError:
            return  # between unlink and rename; the next look finds it
        current = [entry for entry in self._sessions if entry.exe == exe and not entry.replaced]
        if self._refused.get(exe) == state or any(entry.state == state for entry in current):
            return
        self._begin(exe, state)

    def _begin(self, exe: str, state: FileState) -> None:
        image = os.path.realpath(exe)

        def work() -> None:
            resolver = self._new_resolver()
            try:
                coming.plan = resolver.resolve(image, self._wanted.profile, self._wanted.debug_file)
            except AgentError as error:
                coming.error = error
            finally:
                if resolver is not self._resolver:
                    resolver.close()

        coming = _NewImage(exe=exe, state=state, thread=threading.Thread(target=work, daemon=True))
        self._coming[exe] = coming
        coming.thread.start()

    def _arrived(self, coming: _NewImage) -> None:
        del self._coming[coming.exe]
        try:
            now = file_state(coming.exe)
            if now != coming.state:
                # Replaced once more, or, the same file, still being written: the next look begins anew.
                if now.id != coming.state.id and coming.plan is not None:
                    identity = str(coming.plan.get("identity", ""))
                    self._builds.replaced(coming.exe, coming.state.id, identity)
                return
        except AgentError:
            return
        if coming.plan is None:
            self._refused[coming.exe] = coming.state
            new = not any(entry.exe == coming.exe for entry in self._sessions)
            what = "cannot be watched" if new else "was replaced, and the new file cannot be watched"
            self._notice(f"{coming.exe} {what}: {coming.error}")
            return
        self._switch(coming, coming.plan)

    def _switch(self, coming: _NewImage, plan: dict[str, Any]) -> None:
        before = [e for e in self._sessions if e.exe == coming.exe and not e.replaced]
        for entry in before:
            entry.replaced = True
            if entry.image == coming.state.id:
                # Rewritten in place: the old probes sit at the old file's offsets in the new code.
                self._gone_counters.update(entry.session.counters())
                self._sessions.remove(entry)
                entry.session.close()
        self._resolver.know_image(str(plan.get("identity", "")), [os.path.realpath(coming.exe)])
        self._notice(
            f"{coming.exe} {'was replaced; watching the new file' if before else 'is watched'} as well"
        )
        try:
            self._attach(
                plan, coming.state.id, self._proc.running(coming.state.id), exe=coming.exe, state=coming.state
            )
        except Exception as error:  # noqa: BLE001 - typed by probes/, and the old session goes on
            self._refused[coming.exe] = coming.state
            self._notice(f"{coming.exe} was replaced, and attaching to the new file failed: {error}")
