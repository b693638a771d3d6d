# Owns tracing one process: seize every thread, pass every signal on, stop all of them at a fatal one, let
# them go. One process of ours per target, which ends to let go: the kernel detaches running threads without
# a stop then, where PTRACE_DETACH needs one, and that ends an epoll_wait with EINTR. Must not talk to the
# daemon.
#
# What tracing changes for the target: a signal it ignores interrupts system calls like one it handles
# (kernel/signal.c, sig_ignored), new threads begin with a stop, and each signal costs a round trip to us.
from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from probes.capture import process as proc
from probes.capture.corewriter import CoreThread
from probes.capture.facts import (
    FATAL_SIGNALS,
    CaptureOptions,
    MemoryRange,
    Refusal,
    Refused,
    Seized,
)
from probes.capture.memory import new_buffer
from probes.capture.ptrace import (
    EVENT_CLONE,
    EVENT_EXEC,
    EVENT_STOP,
    NT_PRFPREG,
    NT_PRSTATUS,
    NT_X86_XSTATE,
    O_TRACECLONE,
    O_TRACEEXEC,
    Ptrace,
    Stop,
)
from probes.capture.snapshot import Copy

_SIGTRAP = 5
_MOST_PASSES = 64  # over /proc/PID/task while threads come and go
_READY = 8 << 20  # bytes of the buffer that are made beforehand: most captures need no more
_WHOLE_SETS = 512  # threads of which the extended register set is read as well


@dataclass(slots=True)
class Traced:
    """One seized thread. stop: where it stands; None: it runs."""

    tid: int
    stop: Stop | None = None
    stopped_at: int = 0
    resumed_at: int = 0
    core: CoreThread | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """One stop of the whole process. Times: CLOCK_MONOTONIC, ns. The memory is in `copy`."""

    tid: int
    signal: int
    siginfo: bytes
    handled: bool
    began: int
    ended: int
    threads: tuple[Traced, ...]
    copy: Copy


class Gone(Exception):
    """The process is traced no longer. status: exit status, -1 unknown; signal: that ended it."""

    def __init__(self, *, exec_: bool = False, status: int = -1, signal: int = 0) -> None:
        super().__init__()
        self.exec_, self.status, self.signal = exec_, status, signal


class Tracer:
    def __init__(self, pid: int, options: CaptureOptions) -> None:
        self.pid, self.options = pid, options
        self.ranges: Sequence[MemoryRange] = ()
        self.captures = 0
        self._ptrace = Ptrace()
        self._threads: dict[int, Traced] = {}
        self._buffer: mmap.mmap | None = new_buffer(options.limit_bytes, _READY)
        self._leaving = False  # let go of each thread that reports a stop

    # -- seizing ---------------------------------------------------------------------------------

    def seize(self, start_time: int | None) -> Seized | Refused:
        """Every thread, or none is kept: the caller must end this process after a refusal."""
        began = time.monotonic_ns()
        impossible = proc.impossible(self.pid)
        if impossible is not None:
            return Refused(pid=self.pid, why=impossible[0], detail=impossible[1])
        if self._replaced(start_time):
            return Refused(pid=self.pid, why=Refusal.REPLACED, detail="its start time is another")
        for _ in range(_MOST_PASSES):
            new = [tid for tid in proc.threads_of(self.pid) if tid not in self._threads]
            refused = next(filter(None, map(self._seize_thread, new)), None)
            if refused is not None:
                return refused
            if not any(tid in self._threads for tid in new):
                break
        if not self._threads:
            return Refused(pid=self.pid, why=Refusal.GONE, detail="it has no thread that runs")
        if self._replaced(start_time):  # since it was looked at
            return Refused(pid=self.pid, why=Refusal.REPLACED, detail="its start time is another")
        return Seized(pid=self.pid, threads=len(self._threads), took_ns=time.monotonic_ns() - began)

    def _replaced(self, start_time: int | None) -> bool:
        return start_time is not None and proc.start_time(self.pid) != start_time

    def _seize_thread(self, tid: int) -> Refused | None:
        """None: it is ours, or it is ending and need not be."""
        for last in (False, True):
            try:
                self._ptrace.seize(tid, O_TRACECLONE | O_TRACEEXEC)
                break
            except OSError as error:
                if error.errno == errno.ESRCH:
                    return None
                if proc.status(self.pid, tid).get("TracerPid") == str(os.getpid()):
                    break  # a seized thread started it
                if proc.ended(self.pid, tid):  # also a leader that has ended while others run
                    return None
                why, detail, tracer = proc.why_refused(self.pid, tid, error.errno or 0)
                if last or tracer:  # else what stood in the way may have ended since
                    return Refused(pid=self.pid, why=why, detail=detail, tracer=tracer)
        self._threads[tid] = Traced(tid)
        return None

    # -- the target runs -------------------------------------------------------------------------

    def work(self, before_capture: Callable[[], None]) -> Capture | None:
        """Handles every report there is; never waits for one. A capture returns at once, with all running.

        before_capture: called when a fatal signal was seen. Raises Gone.
        """
        while True:
            try:
                stop = self._ptrace.look()
            except ChildProcessError:
                raise Gone from None
            if stop is None:
                return None
            if stop.exited:
                self._ended(stop)
                continue
            fatal = not stop.event and stop.signal in FATAL_SIGNALS
            if fatal and not self._leaving and self.captures < self.options.captures:
                before_capture()
                self.captures += 1
                return self._capture(stop)
            with contextlib.suppress(ProcessLookupError):  # SIGKILL ends any stop; its end is reported
                self._pass_on(stop)

    def _ended(self, stop: Stop) -> None:
        self._ptrace.consume(stop.tid)  # the target's parent hears of its end only now
        self._threads.pop(stop.tid, None)
        if stop.tid == self.pid:
            raise Gone(status=stop.event if not stop.signal else -1, signal=stop.signal)

    def _pass_on(self, stop: Stop) -> None:
        """Let a stopped thread go on as if nobody had looked. Raises ProcessLookupError."""
        if stop.event == EVENT_EXEC:
            self._ptrace.detach(stop.tid)
            raise Gone(exec_=True)
        if stop.tid not in self._threads and not self._adopt(stop.tid):
            self._ptrace.detach(stop.tid, 0 if stop.event else stop.signal)
        elif self._leaving:
            self._ptrace.detach(stop.tid, 0 if stop.event else stop.signal)
            self._threads.pop(stop.tid, None)
        elif stop.event == EVENT_STOP and stop.signal != _SIGTRAP:
            self._ptrace.listen(stop.tid)
        elif stop.event:
            self._ptrace.resume(stop.tid)
        else:
            self._ptrace.resume(stop.tid, stop.signal)

    def _adopt(self, tid: int) -> bool:
        """A thread that a seized one has started. clone(2) can make a process of its own as well."""
        if not os.path.isdir(f"/proc/{self.pid}/task/{tid}"):
            return False
        self._threads[tid] = Traced(tid)
        return True

    @property
    def done(self) -> bool:
        """Let go of after the last capture, as far as the threads have reported."""
        return self._leaving and not self._threads

    # -- the target stands -----------------------------------------------------------------------

    def _capture(self, first: Stop) -> Capture:
        began = time.monotonic_ns()
        deadline = began + self.options.freeze_max_ns
        for thread in self._threads.values():
            thread.stop, thread.core, thread.stopped_at, thread.resumed_at = None, None, 0, 0
        crashed = self._threads.setdefault(first.tid, Traced(first.tid))
        self._stopped(crashed, first)
        for thread in list(self._threads.values()):
            if thread is not crashed:
                with contextlib.suppress(OSError):
                    self._ptrace.interrupt(thread.tid)
        self._gather(min(deadline, began + self.options.freeze_max_ns // 4))
        cores = [thread.core for thread in self._threads.values() if thread.core is not None]
        fatal = frozenset(core.tid for core in cores if core.siginfo)
        buffer, self._buffer = self._buffer or new_buffer(self.options.limit_bytes), None
        copy = Copy(self.pid, cores, fatal, self.ranges, self.options, buffer, deadline)
        copy.start()
        copy.ended.wait(max(0.0, (deadline - time.monotonic_ns()) / 1e9))
        copy.close()
        self._leaving = self.captures >= self.options.captures
        threads = tuple(self._threads.values())
        self._release(crashed)
        return Capture(
            tid=first.tid,
            signal=first.signal,
            siginfo=crashed.core.siginfo if crashed.core is not None else b"",
            handled=first.signal in copy.handled,
            began=began,
            ended=time.monotonic_ns(),
            threads=threads,
            copy=copy,
        )

    def _gather(self, until: int) -> None:
        """Wait for the stops, in any order, and read registers as they come. Threads may start and end."""
        waiting = [thread for thread in self._threads.values() if thread.stop is None]
        pause = 20e-6
        while waiting and time.monotonic_ns() < until:
            still = []
            for thread in waiting:
                try:
                    stop = self._ptrace.look(thread.tid)
                except ChildProcessError:
                    self._threads.pop(thread.tid, None)
                    continue
                if stop is None:
                    still.append(thread)
                elif stop.exited:
                    # not consumed: the end of the whole process is for work() to report
                    if thread.tid != self.pid:
                        self._threads.pop(thread.tid, None)
                else:
                    still += self._stopped(thread, stop)
            if len(still) == len(waiting):
                time.sleep(pause)
                pause = min(2 * pause, 2e-3)
                if pause > 1e-3:  # a leader that has ended is a zombie until the last thread is gone
                    still = [thread for thread in still if not proc.ended(self.pid, thread.tid)]
            waiting = still

    def _stopped(self, thread: Traced, stop: Stop) -> list[Traced]:
        """Note where a thread stands and read its registers. Returns threads it has started, to wait for."""
        thread.stop, thread.stopped_at = stop, time.monotonic_ns()
        new = []
        with contextlib.suppress(OSError):
            if stop.event == EVENT_CLONE:
                tid = self._ptrace.event_message(thread.tid)
                if tid not in self._threads and self._adopt(tid):
                    new.append(self._threads[tid])
            registers = self._ptrace.registers(thread.tid, NT_PRSTATUS)
            fatal = not stop.event and stop.signal in FATAL_SIGNALS
            few = len(self._threads) <= _WHOLE_SETS or fatal
            thread.core = CoreThread(
                tid=thread.tid,
                signal=0 if stop.event else stop.signal,
                registers=registers,
                floating=self._ptrace.registers(thread.tid, NT_PRFPREG),
                extended=self._extended(thread.tid) if few else b"",
                siginfo=self._ptrace.siginfo(thread.tid) if fatal else b"",
            )
        return new

    def _extended(self, tid: int) -> bytes:
        try:
            return self._ptrace.registers(tid, NT_X86_XSTATE)
        except OSError:
            return b""  # a processor without xsave

    def _release(self, crashed: Traced) -> None:
        """Everybody goes on, the crashed thread first: if it dies, the others do at once."""
        for thread in [crashed, *(one for one in self._threads.values() if one is not crashed)]:
            if thread.stop is None:
                continue
            with contextlib.suppress(ProcessLookupError, Gone):
                self._pass_on(thread.stop)
            thread.stop, thread.resumed_at = None, time.monotonic_ns()


def fault_address(siginfo: bytes) -> int:
    """si_addr, which SEGV, BUS, ILL and FPE have when the kernel raised them (si_code > 0)."""
    number, _errno, code = struct.unpack_from("<iii", siginfo.ljust(24, b"\0"))
    if number not in FATAL_SIGNALS or number == 6 or code <= 0 or code == 0x80:
        return 0
    return int(struct.unpack_from("<Q", siginfo, 16)[0])
