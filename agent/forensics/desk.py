# Owns what happens after a crash: case -> spool -> bundle, one at a time, in a child process that may take
# its time; repeated crashes become counters. Must not block the loop, and must not explain anything itself.
from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from agent.correlator.findings import Finding
from agent.forensics import spool
from agent.forensics.capture import CaptureControl
from agent.forensics.case import Case, CaseKeeper
from agent.forensics.layout import FULL, NO_ROOM
from agent.forensics.redact import redacted
from agent.forensics.store import BundleStore
from agent.sanitize import printable
from probes import children
from probes.capture import process
from probes.events import Event

_MOST_WAITING = 4  # spooled cases; later ones stay in the spool and are bundled at the next start
_CORE_WAIT = 5.0  # seconds that the end waits for a mini core
_DEADLINE = 900.0  # seconds for one bundle, which takes a few; somebody waits for it at the end only
_MOST_ANSWER = 4 << 20
_RETRY = 10.0  # seconds between tries while the disk is full
_AGAIN = "It is tried again, and at the next start; free some space, or name another folder with --bundles"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleDone:
    """A bundle was written, or was not: `path` is "" then and `notes` say why."""

    path: str
    size: int = 0  # bytes
    report: str = ""  # the explanation as text, already safe for a terminal
    notes: tuple[str, ...] = ()
    explained: bool = False
    key: str = ""  # of the explanation: equal for crashes that one report explains


@dataclass(slots=True)
class _Job:
    name: str
    folder: Path
    key: str
    plain: bool = False  # without an explanation: the second try
    said: bool = False  # that there is no room for it
    began: float = 0.0
    answer: IO[bytes] | None = field(default=None)


class CrashDesk:
    """Feed it what the runner sees; call `pump` often, and `finish` at the end."""

    def __init__(
        self,
        store: BundleStore,
        *,
        configuration: Mapping[str, Any],
        redact: bool = False,
        on_notice: Callable[[str], None] = lambda _text: None,
        on_bundle: Callable[[BundleDone], None] = lambda _done: None,
        capture: CaptureControl | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """configuration: what the manifest says of the run. capture: takes mini cores; closed by `finish`."""
        self._store = store
        self._keeper = CaseKeeper(redacted if redact else None)
        self._configuration = dict(configuration)
        self._notice = on_notice
        self._on_bundle = on_bundle
        self._clock = clock
        self._capture = capture
        self._begun: dict[int, str] = {}  # tgid -> name of the case of a crash that is not complete yet
        self._waiting: deque[_Job] = deque()
        self._no_room: deque[_Job] = deque()  # for which the disk was too full
        self._unwritten: deque[tuple[Case, str]] = deque()  # with their keys: not even the case found room
        self._retry_at = 0.0
        self._job: _Job | None = None
        self._child: children.Child | None = None
        leftovers = store.leftovers()
        for folder in store.strange:
            on_notice(f"{folder} is left alone: it has the name of a crash, and others had a hand in it")
        for folder in leftovers:
            name = folder.name.removeprefix(".").removesuffix(".case")
            if _lives_on(folder):
                store.remove(folder)  # it handled its signal
            elif len(self._waiting) < _MOST_WAITING:
                on_notice(f"{folder}: a crash of an earlier run, now made into a bundle")
                self._waiting.append(_Job(name, folder, ""))

    def feed(self, event: Event) -> None:
        self._keeper.feed(event)
        if self._capture is not None:
            self._capture.feed(event)

    def judged(self, finding: Finding) -> None:
        """A finding, as soon as it fired."""
        if self._capture is not None:
            self._capture.judged(finding)

    def finding(self, tgid: int, line: str) -> None:
        self._keeper.finding(tgid, line)

    def pump(self, *, waiting: frozenset[int] = frozenset(), ending: bool = False) -> None:
        """Keep safe what is new, take what is complete, start what waits, collect what is done.

        waiting: targets with findings that are not shown yet; they belong to the case. Waits for nothing but
        the disk: a crash is written down at once, because afterfree may be killed at any moment.
        """
        capturing: frozenset[int] = frozenset()
        if self._capture is not None:
            for core in self._capture.take():
                if core.process is not None:
                    self._keeper.feed(core.process)
                if not self._keeper.core(core.tgid, core.path, core.note, core.facts) and core.path:
                    Path(core.path).unlink(missing_ok=True)
            capturing = self._capture.seized
        for case in self._keeper.take(waiting=capturing | waiting, everything=ending):
            self._take(case)
        for case in self._keeper.fresh():
            self._keep_safe(case)
        if self._child is not None:
            self._poll(self._child)
        self._retry()
        if self._job is None and self._waiting:
            self._start(self._waiting.popleft())

    def finish(self, timeout: float) -> None:
        """Bundle everything that is open, at most `timeout` seconds; the rest waits in the spool."""
        end = self._clock() + timeout
        self._retry_at = 0.0
        while self._keeper.open and self._capture is not None and self._capture.seized:
            self.pump()  # a mini core may still be on its way: at most as long as a stop may take
            if self._clock() > end - timeout + _CORE_WAIT:
                break
            time.sleep(0.02)
        self.pump(ending=True)
        if self._capture is not None:
            self._capture.close()
        while (self._job is not None or self._waiting) and self._clock() < end:
            self.pump(ending=True)
            time.sleep(0.02)
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._notice("a bundle was not finished; the next start finishes it")
        for job in self._no_room:
            self._notice(f"{job.folder}: still no room for its bundle; the next start makes it")
        for case, key in self._unwritten:
            self._store.forget(key)
            why = (
                f"the crash of process {case.crash.tgid} is not kept: the disk stayed full. {_essence(case)}"
            )
            self._done(BundleDone(path="", notes=(why,)))

    # -- one case -------------------------------------------------------------------------------

    def _keep_safe(self, case: Case) -> None:
        """Write an incomplete case down, so that not even the end of this process loses it."""
        name = self._begun.get(case.crash.tgid)
        if name is None:
            if not self._store.due(case.key):
                return
            name = self._store.name(case.target.comm, case.crash.tgid)
        with contextlib.suppress(OSError):  # said when the whole case cannot be written either
            spool.write(self._store.spool(name), case, self._configuration)
            self._begun[case.crash.tgid] = name

    def _take(self, case: Case) -> None:
        begun = self._begun.pop(case.crash.tgid, "")
        if case.alive and not case.findings:
            signal = f"signal {case.crash.signal}"
            self._notice(
                f"process {case.crash.tgid} handled {signal} and lives on; nothing was found: no bundle"
            )
            self._drop(case, begun)
            return
        repeated = self._store.again(case.key)
        if repeated:
            self._repeated(f"process {case.crash.tgid}", repeated, case.key)
            self._drop(case, begun)
            return
        name = begun or self._store.name(case.target.comm, case.crash.tgid)
        folder = self._store.spool(name)
        try:
            lost = spool.write(folder, case, self._configuration)
        except OSError as error:
            full = error.errno in FULL and len(self._unwritten) < _MOST_WAITING
            if not begun and full:
                self._notice(f"{folder}: the disk is full, no room for the crash. {_essence(case)}. {_AGAIN}")
                self._unwritten.append((case, case.key))
                return
            if not begun:
                self._store.forget(case.key)
                why = f"the crash could not be written to {folder}: {error}; {_essence(case)}"
                self._done(BundleDone(path="", notes=(why,)))
                return
            self._notice(f"{folder}: only what was written right after the crash is kept: {error}")
        else:
            if lost:
                self._notice(f"{folder}: the disk is full, kept without {' and '.join(lost)}")
        self._store.bundled_as(case.key, name)
        self._queue(name, folder, case.key)

    def _queue(self, name: str, folder: Path, key: str) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            self._notice(f"{folder}: too many crashes at once; the next start makes a bundle of it")
            return
        self._waiting.append(_Job(name, folder, key))

    def _retry(self) -> None:
        """What the disk had no room for, from time to time."""
        if not (self._no_room or self._unwritten) or self._clock() < self._retry_at:
            return
        self._retry_at = self._clock() + _RETRY
        for _ in range(len(self._unwritten)):
            case, key = self._unwritten.popleft()
            name = self._store.name(case.target.comm, case.crash.tgid)
            try:
                spool.write(self._store.spool(name), case, self._configuration)
            except OSError:
                self._unwritten.append((case, key))
                break
            self._queue(name, self._store.spool(name), key)
        if self._no_room and len(self._waiting) < _MOST_WAITING:
            self._waiting.append(self._no_room.popleft())

    def _lacks_room(self, job: _Job) -> None:
        if not job.said:
            job.said = True
            self._notice(f"{job.folder}: no room for its bundle, the crash is kept there. {_AGAIN}")
        self._retry_at = self._clock() + _RETRY
        self._no_room.append(job)

    def _drop(self, case: Case, begun: str) -> None:
        if case.core:
            Path(case.core).unlink(missing_ok=True)
        if begun:
            self._store.remove(self._store.spool(begun))

    def _repeated(self, what: str, times: int, key: str) -> None:
        if times & (times - 1) == 0:  # said at 2, 4, 8, …
            period = self._store.limits.period
            bundle = self._store.bundle_of(key)
            where = f": {bundle}" if bundle is not None else ""
            if bundle is not None and not bundle.exists() and not self._in_the_making(bundle):
                where = f": {bundle}, which was removed since"
            self._notice(
                f"{what} crashed like one before: {times} times by now, one bundle in {period:.0f} s{where}"
            )

    def _in_the_making(self, bundle: Path) -> bool:
        jobs = [*self._waiting, *self._no_room, *([self._job] if self._job is not None else [])]
        return any(self._store.path(job.name) == bundle for job in jobs)

    def _start(self, job: _Job) -> None:
        arguments = [str(job.folder), str(self._store.path(job.name)), *(["--plain"] if job.plain else [])]
        job.began = self._clock()
        try:
            self._child = children.Child(
                children.command("agent.forensics.bundler", *arguments), stdout=subprocess.PIPE, here=True
            )
        except OSError as error:
            self._done(BundleDone(path="", notes=(f"no process for the bundle: {error}",)))
            return
        self._job = job

    def _poll(self, child: children.Child) -> None:
        job = self._job
        if job is None:
            return
        late = child.poll() is None
        if late:
            if self._clock() - job.began < _DEADLINE:
                return
            child.kill()
            child.wait()
        raw = b""
        if child.stdout is not None:
            raw = child.stdout.read(_MOST_ANSWER)
            child.stdout.close()
        self._child, self._job = None, None
        done = _answer(raw) if child.returncode == 0 else None
        repeated = self._store.again(done.key) if done is not None and done.key else 0
        if done is not None and repeated:
            self._store.remove(Path(done.path))  # at another place, for the same cause
            known = self._store.bundle_of(done.key)
            if known is not None:
                self._store.bundled_as(job.key, known.name)
            self._repeated(job.name, repeated, done.key)
        elif done is not None:
            self._store.bundled_as(done.key, job.name)
            for name in self._store.rotate(Path(done.path)):
                self._notice(f"{name} was removed: the limits on bundles (--bundles-keep)")
            self._done(done)
        elif self._store.path(job.name).exists():  # a bundler of an earlier run was quicker
            path = self._store.path(job.name)
            self._done(BundleDone(path=str(path), size=path.stat().st_size))
        elif child.returncode == NO_ROOM:
            self._lacks_room(job)
        elif not job.plain:
            job.plain = True
            self._waiting.appendleft(job)
        else:
            self._store.forget(job.key)
            self._store.remove(job.folder)
            how = f"was killed by our own limit of {_DEADLINE:.0f} s" if late else child.ending()
            why = f"no bundle for {job.name}: its process {how}"
            self._done(BundleDone(path="", notes=(why, *child.last_words().splitlines()[-3:])))

    def _done(self, done: BundleDone) -> None:
        self._on_bundle(done)


def _lives_on(folder: Path) -> bool:
    """The process of this case was not seen to end, nothing was found in it, and it is still there."""
    known = spool.unfinished(folder)
    return known is not None and process.lives(*known)


def _essence(case: Case) -> str:
    """The least that must not be lost with a case, in words."""
    crash = case.crash
    address = "an unknown address" if crash.fault_addr is None else f"{crash.fault_addr:#x}"
    return (
        f"process {crash.tgid} ({printable(case.target.comm)}), thread {crash.tid}: signal {crash.signal} at "
        f"{address}, instruction {crash.ip:#x}, {len(case.findings)} findings before it"
    )


def _answer(raw: bytes) -> BundleDone | None:
    """The bundler's one line; None when it is none."""
    try:
        value = json.loads(raw)
        return BundleDone(
            path=str(value["path"]),
            size=int(value["size"]),
            report="\n".join(printable(line) for line in str(value["report"]).split("\n")),
            notes=tuple(printable(note) for note in value["notes"]),
            explained=bool(value["explained"]),
            key=str(value["key"]),
        )
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
