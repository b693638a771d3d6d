# Owns one live session: the probes of one executable image on one or more processes, as an EventSource.
# Reads rings and maps by descriptor, asks the helper process about other processes; never judges.
from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from probes import abi, decode, errors, events, loader, procfs
from probes.bootstrap import TARGET, Bootstrap, epoch_of
from probes.context import Context
from probes.helper import ProcHelper
from probes.leftovers import Leftovers, not_judged, owed
from probes.procfs import Identity
from probes.progress import ProgressWatch
from probes.rings import Lifetimes, Recorder, Urgent, last_records, unpacked
from probes.sites import KEY, Sites
from probes.sysbpf import Map, PerCpuCounters, left_out, possible_cpus, run
from symbols.plan import ProbePlan
from symbols.serial import plan_to_json

STREAM_INTERVAL_S = 0.02
LIFETIMES_INTERVAL_S = 0.1
COUNTERS_INTERVAL_S = 1.0
SCAN_INTERVAL_S = 5.0
SWEEP_INTERVAL_S = 0.5
DISCOVER_INTERVAL_S = 2.0
CRASH_SPAN_NS = 10_000_000_000
_CLONE_VM, _CLONE_FILES = 0x100, 0x400  # clone(2)
STACK_DEPTH = 32
URGENT_AT_ONCE = 512
MAX_STRANGERS = 256
LEAST_SLOTS = 32768
MOST_SLOTS = 1 << 20
SIZES = {
    "targets": (4, TARGET.size),
    "slots": (16, ctypes.sizeof(abi.Slot)),
    "regs": (24, ctypes.sizeof(abi.Reg)),
    "numbers": (12, ctypes.sizeof(abi.Reg)),
    "objects": (16, 8),
    "inner": (16, 8),
    "sites": (KEY.size, 8),
    "control": (4, 16),
    "names": (8, abi.COMM_BYTES),
    "exec_paths": (abi.PATH_BYTES, 4),
    "spans": (4, 16),
    "stacks": (4, 8 * STACK_DEPTH),
    "stack_bytes": (4, ctypes.sizeof(abi.StackBytes)),
}
_BY_PROCESS = ("slots", "numbers", "objects", "inner", "sites")  # maps whose keys begin with tgid and epoch
_NOT_JUDGED = 6  # of TARGET's fields
_REG_TGID = abi.Reg.tgid.offset
_LOSSES = {
    abi.Counter.URGENT_LOST: "urgent",
    abi.Counter.SLOTS_FULL: "slots-map-full",
    abi.Counter.REGS_FULL: "registrations-map-full",
    abi.Counter.THREADS_FULL: "threads-map-full",
    abi.Counter.EVENTS_TRUNCATED: "deliveries-beyond-limit",
    abi.Counter.READ_FAULT: "user-memory-not-resident",
    abi.Counter.TAILCALL_FAILED: "tail-call",
    abi.Counter.SUSPECTS_DROPPED: "suspicions-of-one-batch",
    abi.Counter.ITEMS_TRUNCATED: "registrations-of-one-file-beyond-limit",
    abi.Counter.OBJECTS_FULL: "objects-map-full",
    abi.Counter.PREEMPTED: "probe-hits-preempted",
    abi.Counter.ENTRY_UNSEEN: "calls-entered-before-watching",
    abi.Counter.BATCHES_FULL: "nested-waits-beyond-limit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """stream: yield RecordsRead; full_lifetimes: every LifetimeEnded instead of counts with examples."""

    stream: bool = False
    full_lifetimes: bool = False
    ring_records: int = 32768
    lifetime_records: int = 2048  # per CPU, read ten times a second: 20,000 lives a second on each
    max_slots: int = 0  # 0: as many as the processes there are make likely, at least LEAST_SLOTS
    max_processes: int = 4096
    max_threads: int = 8192
    urgent_pages: int = 2048
    empty: bool = False
    ask: bool = True  # False: as on a kernel without BTF


def _of_library(image: str, executable: str) -> bool:
    """Whether a plan's image is another file than the executable: a shared object."""
    try:
        return not os.path.samefile(image, executable)
    except OSError:
        return False


def _file_key(status: os.stat_result) -> bytes:
    """A file by whatever name, as af_wanted_file has it: inode, then super_block.s_dev (MKDEV, kdev_t.h)."""
    device = os.major(status.st_dev) << 20 | os.minor(status.st_dev)
    return struct.pack("<8xQQ", status.st_ino & 2**64 - 1, device)


def slots_for(pids: Sequence[int]) -> int:
    """Room for twice the descriptors that they have open now: a power of two, LEAST_SLOTS to MOST_SLOTS."""
    descriptors = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
    return min(max(LEAST_SLOTS, 1 << (2 * descriptors).bit_length()), MOST_SLOTS)


def sizes(options: SessionOptions, pids: Sequence[int] = ()) -> loader.LoadOptions:
    """What the kernel side of such a session is compiled for; a program in the cache is one of the same."""
    return loader.LoadOptions(
        ring_records=options.ring_records,
        lifetime_records=options.lifetime_records,
        max_slots=options.max_slots or slots_for(pids),
        max_targets=options.max_processes,
        max_threads=options.max_threads,
        urgent_pages=options.urgent_pages,
        empty=options.empty,
        ask=options.ask,
    )


class LiveSession:
    """An EventSource over the kernel side. Make it with `open`; `close` (or death) removes every probe."""

    def __init__(
        self,
        plan: ProbePlan,
        handles: loader.Handles,
        options: SessionOptions,
        follow: bool,
        helper: ProcHelper,
        *,
        library: int = 0,
    ) -> None:
        """helper: closed with the session. library: inode of the shared object that the plan is of; 0: of the
        executable."""
        self._library = library
        self._plan_json = plan_to_json(plan)  # one for all of its targets
        self._plan, self._handles, self._options, self._follow = plan, handles, options, follow
        sizes = handles.options
        cpus = possible_cpus()
        maps = handles.maps
        self._maps = {name: Map(maps[name], *size) for name, size in SIZES.items()}
        # mapping it makes it resident: only for who reads it
        self._recorder = Recorder(maps["recorder"], cpus, sizes.ring_records) if options.stream else None
        self._lifetimes = Lifetimes(maps["lifetimes"], maps["lifetime_heads"], cpus, sizes.lifetime_records)
        self._urgent = Urgent(maps["urgent"], sizes.urgent_pages * 4096)
        self._counters = PerCpuCounters(maps["counters"], len(abi.Counter))
        self._leftovers = Leftovers(self._maps["slots"], self._settle, sizes.max_slots)
        self._sites = Sites(self._maps["sites"], lambda tgid: self._epochs.get(tgid, 0))
        self._crowded = 0  # processes that there was no room for
        self.progress = ProgressWatch(self._maps["control"], maps)
        self._helper = helper
        self._context = Context(
            self._maps["stacks"],
            self._maps["stack_bytes"],
            self._helper,
            "" if library else plan.identity,
            self._maps["names"],
            plan.moved,
            self._maps["spans"],
        )
        self._epoll = select.epoll()
        self._epoll.register(self._urgent.fd, select.EPOLLIN)
        self._pidfds: dict[int, int] = {}  # pidfd -> tgid
        self._image: tuple[int, int] | None = None  # device and inode
        self._epochs: dict[int, int] = {}
        self._looked: dict[int, int] = {}  # tgid -> ts before it was looked at, to attach it
        self.targets: dict[int, events.TargetAttached] = {}
        self._examples: set[int] = set()
        self._strangers: dict[int, tuple[int, int]] = {}  # pid -> device and inode of what it executed
        self._vanished: list[int] = []  # attached, and gone before they could be waited for
        self._forgotten: set[bytes] = set()  # tgid and epoch of processes whose entries are to leave the maps
        self._deaths: dict[int, int] = {}  # tgid -> status as of wait(2), from its last thread
        self._crashes: dict[int, int] = {}  # tgid -> ts of its last fatal signal
        self._reported: dict[str, int] = {}
        self._losses_since = time.monotonic_ns()
        self._confirms: tuple[int, int] = (0, 0)  # second, how many in it
        self._due = dict.fromkeys(("lifetimes", "counters", "sweep", "scan", "discover"), 0.0)
        self._start: list[events.Event] = []
        self._closed = False
        self.finished = False

    @classmethod
    def open(
        cls,
        plan: ProbePlan,
        *,
        pids: Sequence[int],
        follow: bool,
        program: str = "",
        options: SessionOptions | None = None,
    ) -> LiveSession:
        """Arm the plan's probes on `pids`; with `follow`, on all processes of the program, now and later.

        program: its executable; the plan may be of a shared object that it runs.

        Raises ProbeError subclasses: NoSuchProcess, TargetGoneWhileAttaching, PrerequisiteMissing,
        LoaderFailed.
        """
        options = options or SessionOptions()
        if os.geteuid() != 0:
            raise errors.NotRoot(os.geteuid())
        if procfs.pid_namespace() != procfs.INITIAL_PID_NAMESPACE:
            raise errors.ForeignPidNamespace(procfs.pid_namespace())
        for pid in pids:
            if not os.path.isdir(f"/proc/{pid}"):
                raise errors.NoSuchProcess(pid)
        executable = f"/proc/{pids[0]}/exe" if pids and not follow else program or plan.image
        path = plan.image if _of_library(plan.image, executable) else executable
        try:
            # Held open: the plan's addresses must never reach another program that a pid executes meanwhile.
            image = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if path == plan.image:
                raise
            raise errors.TargetGoneWhileAttaching(pids[0], "exited") from None
        helper = ProcHelper()
        try:
            helper.begin()  # beside the loader: both take their time to come up
            probed, status = os.fstat(image), os.stat(executable)
            handles = loader.load(
                plan,
                image=f"/proc/{os.getpid()}/fd/{image}",
                pids=() if follow else tuple(pids),
                options=sizes(options, pids),
            )
        except BaseException:
            helper.close()
            raise
        finally:
            os.close(image)
        try:
            library = (probed.st_dev, probed.st_ino) != (status.st_dev, status.st_ino)
            session = cls(plan, handles, options, follow, helper, library=probed.st_ino if library else 0)
        except BaseException:
            helper.close()
            handles.close()
            raise
        try:
            session._image = (status.st_dev, status.st_ino)
            if follow:
                for raw in (executable.encode(), os.path.realpath(executable).encode(), _file_key(status)):
                    if len(raw) < abi.PATH_BYTES:
                        session._maps["exec_paths"].put(raw.ljust(abi.PATH_BYTES, b"\0"), b"\1\0\0\0")
            for pid in pids:
                session._start.extend(session._attach(pid, late=True, required=True))
        except BaseException:
            session.close()
            raise
        return session

    # -- targets

    def _attach(self, pid: int, *, late: bool, required: bool = False) -> Iterator[events.Event]:
        looked = time.monotonic_ns()
        key = pid.to_bytes(4, "little")
        who = self._helper.identity(pid)
        if who is None:
            if self._helper.silent and (required or self._helper.ended):
                raise self._helper.refusal(pid)
            if required:
                raise errors.TargetGoneWhileAttaching(pid, "exited")
            if not self._helper.silent:
                self._forget(pid)  # a forked child was there since its birth
            return
        if self._image is not None and (who.device, who.inode) != self._image:
            self._maps["targets"].delete(key)
            if not late and len(self._strangers) < MAX_STRANGERS:  # its exec was seen, by the path
                self._strangers[pid] = (who.device, who.inode)
            if required:
                raise errors.TargetGoneWhileAttaching(pid, "executed another program")
            return
        now = time.monotonic_ns()
        flags = (abi.TargetFlag.LATE if late else 0) | (abi.TargetFlag.FOLLOW if self._follow else 0)
        # one that was seen starting is there already, and has been counting since
        try:
            self._maps["targets"].put(
                key, TARGET.pack(now, epoch_of(now), flags, 0, 0, 0, 0, 0, 0, 0), 0 if late else 1
            )
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            self._crowded += 1
            yield from self._loss("processes-beyond-limit", self._crowded)
            return
        entry = self._maps["targets"].get(key)
        self._epochs[pid] = TARGET.unpack(entry)[1] if entry is not None else epoch_of(now)
        self._looked[pid] = looked
        taken = self._bootstrap(pid) if late else 0
        yield from self._attached(who, now, taken, late)

    def _attached(self, who: Identity, now: int, taken: int, late: bool) -> Iterator[events.Event]:
        segments = tuple((segment.offset, segment.vaddr) for segment in self._plan.segments)
        inode = self._library or who.inode
        bias = self._helper.load_bias(who.pid, inode, segments) if self._plan.pie else 0
        try:
            pidfd = os.pidfd_open(who.pid)
        except OSError:  # gone, and awaited by its parent
            pidfd = -1
        else:
            self._pidfds[pidfd] = who.pid
            self._epoll.register(pidfd, select.EPOLLIN)
        event = events.TargetAttached(
            ts=now,
            tgid=who.pid,
            start_time=who.start_time,
            exe=who.exe,
            comm=who.comm,
            bias=bias or 0,
            plan=self._plan_json,
            bootstrapped=taken,
            late=late,
        )
        self.targets[who.pid] = event
        yield event
        yield from self._context.of_target(who.pid, event.bias)
        if pidfd < 0:
            self._vanished.append(who.pid)

    def _bootstrap(self, pid: int) -> int:
        before = self._helper.registrations(pid)
        taking = Bootstrap(self._maps["slots"], self._plan.userdata)
        epoch = self._epochs[pid]
        taken = taking.insert(pid, epoch, before)
        return taken - taking.withdraw_vanished(pid, epoch, before, self._helper.registrations(pid))

    def _settle(self, tgid: int, epoch: int, address: int) -> None:
        run(self._handles.maps["af_settle_now"], struct.pack("<QQ", tgid << 32 | epoch, address))

    def _gone(self, tgid: int, reason: str) -> Iterator[events.Event]:
        for pidfd, pid in list(self._pidfds.items()):
            if pid == tgid:
                self._epoll.unregister(pidfd)
                os.close(pidfd)
                del self._pidfds[pidfd]
        if self.targets.pop(tgid, None) is None:
            return
        yield from self._unreported(tgid)
        self._sites.forget(tgid)
        self._context.forget(tgid)
        self._crashes.pop(tgid, None)
        self._looked.pop(tgid, None)
        self._forget(tgid)
        yield events.TargetGone(ts=time.monotonic_ns(), tgid=tgid, reason=reason)
        self.finished = not self.targets and not self._follow

    def _unreported(self, tgid: int) -> Iterator[events.Event]:
        """What was counted and is sent at doublings, as it stands."""
        yield from self._leftovers.unreported(tgid)
        yield from self._sites.untold(tgid)
        entry = self._maps["targets"].get(tgid.to_bytes(4, "little"))
        if entry is not None:
            yield from not_judged(tgid, TARGET.unpack(entry)[_NOT_JUDGED])

    def _forget(self, tgid: int) -> None:
        """Empty the maps of a process that is gone. The same number may be another program's by now: that one
        has another epoch."""
        number = tgid.to_bytes(4, "little")
        entry = self._maps["targets"].get(number)
        epoch = self._epochs.pop(tgid, 0) or (TARGET.unpack(entry)[1] if entry is not None else 0)
        self._forgotten.add(struct.pack("<II", tgid, epoch))
        if entry is None or TARGET.unpack(entry)[1] == epoch:
            self._maps["spans"].delete(number)
        if entry is not None and TARGET.unpack(entry)[1] == epoch:
            self._maps["targets"].delete(number)

    def _sweep(self) -> None:
        """One pass over the maps for all that are gone since the last: a program may be executed hundreds of
        times a second."""
        gone, self._forgotten = self._forgotten, set()
        if not gone:
            return
        for name in _BY_PROCESS:
            held = self._maps[name]
            for key in [key for key, _ in held.entries() if key[:8] in gone]:
                held.delete(key)
        held = self._maps["regs"]
        mine = [key for key, raw in held.entries() if raw[_REG_TGID : _REG_TGID + 8] in gone]
        for key in mine:
            held.delete(key)

    def strangers(self) -> Mapping[int, tuple[int, int]]:
        """Processes that executed the path that is followed when another file than the probed one was there,
        with device and inode of that file; each once."""
        found, self._strangers = self._strangers, {}
        return found

    def _discover(self) -> Iterator[events.Event]:
        """Processes of the image whose exec was not recognised by its path (relative, or through a link)."""
        if self._image is None:
            return
        found = [pid for pid in self._helper.processes_of(*self._image) if pid not in self.targets]
        if found:  # of those that were recognised the message has come meanwhile
            yield from self._read_urgent()
        for pid in found:
            if pid not in self.targets:
                yield from self._attach(pid, late=True)

    # -- EventSource

    def poll(self, timeout: float) -> Iterable[events.Event]:
        """See EventSource. With `stream`, records older than a few milliseconds only, in order of time."""
        return list(self._poll(timeout))

    def _poll(self, timeout: float) -> Iterator[events.Event]:
        if self._start:
            begun, self._start = self._start, []
            yield from begun
            return
        if self.finished:
            return
        yield from self._wait(timeout)
        now = time.monotonic()
        if self._recorder is not None:
            records = self._recorder.read(time.monotonic_ns())
            if records:
                yield from self._context.of_records(records)
                yield events.RecordsRead(records=tuple(records))
            yield from self._loss("recorder", self._recorder.lost)
        if self._is_due("lifetimes", now, LIFETIMES_INTERVAL_S):
            yield from self._read_lifetimes()
        if self._is_due("counters", now, COUNTERS_INTERVAL_S):
            yield from self._read_counters()
        yield from self._watch_progress(now)
        if self._is_due("sweep", now, SWEEP_INTERVAL_S):
            self._sweep()
        if self._is_due("scan", now, SCAN_INTERVAL_S):
            totals = self._sites.totals()
            yield from self._read_urgent()
            yield from self._sites.untold(totals=totals)
            for event in self._leftovers.scan(time.monotonic_ns()):
                if isinstance(event, events.SlotLingering):
                    yield from self._context.of_life(event.slot)
                yield event
            yield from self._loss("slots-forgotten", self._leftovers.forgotten)
        if self._follow and self._is_due("discover", now, DISCOVER_INTERVAL_S):
            yield from self._discover()

    def _watch_progress(self, now: float) -> Iterator[events.Event]:
        self.progress.tick(now)
        yield from self._loss("progress-not-watched", int(bool(self.progress.failure)))

    def _wait(self, timeout: float) -> Iterator[events.Event]:
        limit = STREAM_INTERVAL_S if self._options.stream else LIFETIMES_INTERVAL_S
        for fd, _ in self._epoll.poll(min(timeout, limit)):
            if fd in self._pidfds:
                tgid = self._pidfds[fd]
                yield from self._read_urgent()
                yield from self._read_lifetimes()
                yield from self._gone(tgid, self._death(tgid))
        vanished, self._vanished = self._vanished, []
        if vanished:
            yield from self._read_urgent()  # how they ended
            yield from self._read_lifetimes()
        for tgid in vanished:
            yield from self._gone(tgid, self._death(tgid))
        # A burst is taken in portions: the rings without wake-up must be read meanwhile.
        yield from self._read_urgent(URGENT_AT_ONCE)

    def _death(self, tgid: int) -> str:
        """Why a process is gone: as its last thread said, or as its zombie still does."""
        status = self._deaths.pop(tgid, None)
        if status is None:
            status = procfs.exit_status(tgid)
        return "ended, how was not seen" if status is None else procfs.ending(status)

    def _is_due(self, what: str, now: float, interval: float) -> bool:
        if now < self._due[what]:
            return False
        self._due[what] = now + interval
        return True

    # -- outputs

    def _read_urgent(self, limit: int = 1 << 20) -> Iterator[events.Event]:
        for raw in self._urgent.read(limit):
            try:
                message = decode.urgent(raw)
            except decode.BadRecord:
                yield events.Lost(ts=time.monotonic_ns(), what="urgent", count=1, since=self._losses_since)
                continue
            if isinstance(message, events.SuspicionRaised):
                if message.suspect is abi.Suspect.HOT and not message.trigger.flags & abi.RecordFlag.HOPELESS:
                    self.progress.confirmed(time.monotonic())
                self._sites.told(message)
                owes = message.trigger.flags & abi.RecordFlag.OWED
                if not owes or message.suspect is abi.Suspect.STALE_DELIVERY:
                    yield from self._context.of_suspicion(message)
                yield from owed(message) if owes else ()
            elif isinstance(message, events.CrashSeen):
                yield from self._crashed(message)
            else:
                yield from self._lifecycle(message)

    def _crashed(self, crash: events.CrashSeen) -> Iterator[events.Event]:
        """The crash with what the recorder still holds of it: once for all the signals that a handler which
        reports and then aborts raises."""
        last = self._crashes.get(crash.tgid, 0)
        self._crashes[crash.tgid] = crash.ts
        if last and crash.ts - last < CRASH_SPAN_NS:
            yield crash
            return
        records, overwritten = last_records(
            self._handles.maps["recorder"], possible_cpus(), self._handles.options.ring_records, crash.tgid
        )
        yield events.FlightRecorded(
            ts=time.monotonic_ns(), tgid=crash.tgid, records=records, overwritten=overwritten
        )
        yield from self._context.of_records(unpacked(records))
        yield from self._context.of_crash(crash)

    def _lifecycle(self, message: abi.LifecycleMessage) -> Iterator[events.Event]:
        kind, tgid, ts = message.head.what, message.trigger.tgid, message.trigger.ts
        if kind in (abi.Kind.FORKED, abi.Kind.FORK_ENDED):
            child, ended = message.trigger.arg, kind == abi.Kind.FORK_ENDED
            shares, borrows = (bool(message.trigger.addr & bit) for bit in (_CLONE_FILES, _CLONE_VM))
            # What borrows its parent's memory (vfork) runs nothing before its exec, and is looked at then.
            watched = self._follow and not ended
            yield events.ProcessForked(
                ts=ts, tgid=tgid, child=child, ended=ended, watched=watched, shares_table=not ended and shares
            )
            if watched and not borrows and child not in self.targets:
                yield from self._attach(child, late=False)
        elif kind == abi.Kind.SPIN_SUSPECTED:
            self.progress.suspected(time.monotonic())
        elif kind == abi.Kind.EXITED:
            if tgid in self.targets:
                self._deaths[tgid] = message.trigger.arg
        elif kind == abi.Kind.EXECED:
            if tgid in self.targets and ts < self._looked.get(tgid, 0):
                return  # what was attached is this program already
            if tgid in self.targets:
                yield from self._gone(tgid, f"executed another program ({decode.path(message)!r})")
            if message.trigger.arg:
                yield from self._attach(tgid, late=False)

    def _read_lifetimes(self) -> Iterator[events.Event]:
        if self._options.full_lifetimes:
            for raw in self._lifetimes.read():
                ended = decode.lifetime(raw)
                if ended.signature not in self._examples:
                    self._examples.add(ended.signature)
                    yield from self._context.of_life(ended.slot)
                yield ended
        else:
            counts, examples = self._lifetimes.count()
            for signature, raw in examples.items():
                if signature not in self._examples:
                    self._examples.add(signature)
                    ended = decode.lifetime(raw)
                    yield from self._context.of_life(ended.slot)
                    yield ended
            if counts:
                yield events.LifetimesCounted(ts=time.monotonic_ns(), counts=dict(sorted(counts.items())))
        yield from self._loss("lifetimes", self._lifetimes.lost)

    def _loss(self, what: str, total: int) -> Iterator[events.Event]:
        before = self._reported.get(what, 0)
        if total > before:
            self._reported[what] = total
            now = time.monotonic_ns()
            yield events.Lost(ts=now, what=what, count=total - before, since=self._losses_since)

    def _read_counters(self) -> Iterator[events.Event]:
        totals = self._counters.read()
        for counter, what in _LOSSES.items():
            yield from self._loss(what, totals[counter])
        yield from self._loss("tracepoint-hits-left-out", self._left_out())
        now = time.monotonic_ns()
        yield events.CountersRead(
            ts=now, counters={counter.name.lower(): totals[counter] for counter in abi.Counter}
        )
        self._losses_since = now

    def _left_out(self) -> int:
        held = self._handles.maps.items()
        return sum(left_out(fd) for name, fd in held if name.startswith(loader.PROGRAM))

    def counters(self) -> Mapping[str, int]:
        totals = self._counters.read()
        return {counter.name.lower(): totals[counter] for counter in abi.Counter}

    def drain(self) -> Iterable[events.Event]:
        """What is still due at the end: call once before `close`."""
        begun, self._start = self._start, []  # not polled yet: a signal came while attaching
        found = [*begun, *self._read_urgent(), *self._read_lifetimes()]
        if self._recorder is not None:
            records = self._recorder.read(time.monotonic_ns() + Recorder.MARGIN_NS)
            if records:
                found.append(events.RecordsRead(records=tuple(records)))
        for tgid in self.targets:
            found.extend(self._unreported(tgid))
        found.extend(self._read_counters())
        return found

    def thread(self, tgid: int, tid: int) -> str:
        return self._context.thread(tgid, tid)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.finished = True
        self.progress.close()
        self._handles.close()
        if self._recorder is not None:
            self._recorder.close()
        self._lifetimes.close()
        self._urgent.close()
        for pidfd in self._pidfds:
            os.close(pidfd)
        self._pidfds.clear()
        self._epoll.close()
        self._helper.close()
