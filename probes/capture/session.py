# Owns one seized process inside the capture helper: its loop over stops, the daemon's messages and the
# files being written. Runs in a process of its own; when that ends, however it ends, the target goes on by
# itself.
from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from dataclasses import replace
from typing import Any

from probes import procfs
from probes.capture import snapshot
from probes.capture.facts import (
    MOST_RANGES,
    Captured,
    CaptureOptions,
    Ending,
    Left,
    LeftOut,
    MemoryRange,
    Message,
    Refused,
    Released,
    ThreadStop,
    to_json,
)
from probes.capture.tracer import Capture, Gone, Traced, Tracer, fault_address
from symbols.registers import USER_REGS

STANDS, RUNS = b"S", b"E"
"""To the watchdog: the target is about to be stopped; it goes on."""

_MOST_INPUT = 16 << 20
_FLUSH_S = 2.0


class Session:
    def __init__(self, channel: socket.socket, folder: int, watchdog: int, request: dict[str, Any]) -> None:
        """channel: stream of JSON lines from and to the daemon; folder: where mini cores go (descriptor)."""
        self._channel, self._folder, self._watchdog = channel, folder, watchdog
        self._pid = int(request["pid"])
        self._start_time: int | None = request.get("start_time")
        self._tracer = Tracer(self._pid, CaptureOptions(**request["options"]))
        self._input, self._output = b"", bytearray()
        self._orphaned = False  # the daemon has let go, or is gone
        self._written: deque[Captured] = deque()
        self._writers = 0
        self._maps, self._fdinfo = "", list[tuple[int, str]]()  # of /proc at the last stop
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> None:
        gc.disable()  # no pause while a target stands; this process is short-lived and makes few cycles
        sys.setswitchinterval(1e-4)  # between tracing and copying; the default is 5 ms
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._channel.setblocking(False)
        answer = self._tracer.seize(self._start_time)
        self._send(answer)
        if isinstance(answer, Refused):
            self._flush(_FLUSH_S)
            return
        released = self._loop()
        self._collect()  # the wait before has taken the wake-up, also that of a file that was just written
        while self._writers:
            self._wait(None)
            self._collect()
        if released is not None:
            self._send(released)
        self._flush(_FLUSH_S)

    def _loop(self) -> Released | None:
        """Until the target is to be let go or is gone; None: the daemon knows."""
        while not self._orphaned:
            try:
                while not self._tracer.done and (capture := self._tracer.work(self._before)) is not None:
                    self._after(capture)
            except Gone as gone:
                why = Ending.EXEC if gone.exec_ else Ending.CAPTURED if self._tracer.done else Ending.EXITED
                return Released(pid=self._pid, why=why, exit_code=gone.status, signal=gone.signal)
            self._collect()
            if self._tracer.captures >= self._tracer.options.captures and not self._writers:
                return Released(pid=self._pid, why=Ending.CAPTURED)
            self._wait(None)
            self._receive()
        return None

    # -- the daemon ------------------------------------------------------------------------------

    def _send(self, message: Message) -> None:
        self._output += json.dumps(to_json(message)).encode() + b"\n"
        self._flush(0)

    def _flush(self, patience: float) -> None:
        """Never waits while the target is traced: its signals must go on."""
        until = time.monotonic() + patience
        while self._output and not self._orphaned:
            try:
                del self._output[: self._channel.send(self._output)]
            except BlockingIOError:
                left = until - time.monotonic()
                if left <= 0:
                    return
                poller = select.poll()
                poller.register(self._channel, select.POLLOUT)
                poller.poll(1000 * left)
            except OSError:
                self._orphaned = True

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while not self._orphaned:
                try:
                    data = self._channel.recv(1 << 18)
                except ConnectionError:
                    data = b""
                self._orphaned = not data or len(self._input) > _MOST_INPUT
                self._input += data
        *lines, self._input = self._input.split(b"\n")
        if lines:  # the last set of ranges counts
            rows = json.loads(lines[-1])["ranges"][:MOST_RANGES]
            self._tracer.ranges = [MemoryRange(int(a), int(size), int(p)) for a, size, p in rows]

    def _wait(self, seconds: float | None) -> None:
        poller = select.poll()
        poller.register(self._wake_read, select.POLLIN)
        if not self._orphaned:
            poller.register(self._channel, select.POLLIN | (select.POLLOUT if self._output else 0))
        poller.poll(None if seconds is None else seconds * 1000)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass
        self._flush(0)

    # -- captures --------------------------------------------------------------------------------

    def _before(self) -> None:
        os.write(self._watchdog, STANDS)
        self._receive()
        self._maps, _, self._fdinfo = procfs.process(self._pid)

    def _after(self, capture: Capture) -> None:
        os.write(self._watchdog, RUNS)
        self._writers += 1
        number = self._tracer.captures
        threading.Thread(
            target=self._write, args=(capture, f"core.{self._pid}.{number}"), daemon=True
        ).start()

    def _write(self, capture: Capture, name: str) -> None:
        """In a thread of its own: signals of the target must not wait for a disk."""
        began = time.monotonic_ns()
        copied = size = 0
        failure = ""
        try:
            copied, size = snapshot.write(capture.copy, self._folder, name, capture.tid)
        except Exception as error:  # noqa: BLE001 - the daemon must hear of everything
            failure = capture.copy.failure or f"{type(error).__name__}: {error}"
            name = ""
        seen = _captured(self._pid, capture, name, failure, copied, size, began)
        self._written.append(replace(seen, maps=self._maps, fdinfo=dict(self._fdinfo)))
        os.write(self._wake_write, b"\0")

    def _collect(self) -> None:
        while self._written:
            self._writers -= 1
            self._send(self._written.popleft())


def _captured(
    pid: int, capture: Capture, name: str, failure: str, copied: int, size: int, write_began: int
) -> Captured:
    missing = [
        LeftOut(what="thread", address=thread.tid, size=0, why=Left.NOT_STOPPED)
        for thread in capture.threads
        if thread.core is None
    ]
    left, left_bytes = snapshot.summary(capture.copy.left_out())
    return Captured(
        pid=pid,
        tid=capture.tid,
        signal=capture.signal,
        code=int.from_bytes(capture.siginfo[8:12], "little", signed=True),
        fault_address=fault_address(capture.siginfo),
        siginfo=capture.siginfo,
        handled=capture.handled,
        at_ns=capture.began,
        pause_ns=capture.ended - capture.began,
        write_ns=time.monotonic_ns() - write_began,
        path=name,
        failure=failure,
        copied_bytes=copied,
        file_bytes=size,
        threads=tuple(_thread(capture, thread) for thread in capture.threads),
        left_out=(*missing, *left),
        left_out_bytes=left_bytes,
    )


def _thread(capture: Capture, thread: Traced) -> ThreadStop:
    core = thread.core
    registers: dict[str, int] = {}
    if core is not None and core.siginfo:
        words = memoryview(core.registers).cast("Q")
        registers = dict(zip(USER_REGS, words, strict=True))
    return ThreadStop(
        tid=thread.tid,
        name=capture.copy.names.get(thread.tid, ""),
        stopped_ns=thread.stopped_at - capture.began if thread.stopped_at else -1,
        resumed_ns=thread.resumed_at - capture.began if thread.resumed_at else -1,
        signal=core.signal if core is not None else 0,
        registers=registers,
    )
