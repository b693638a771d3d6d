# Owns the daemon's end of the capture helper: seize, ranges, release, and events as they come. Never waits
# for a target; needs no privilege itself (the helper must have been started by root).
from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

from probes import children
from probes.capture import process, snapshot
from probes.capture.facts import (
    MOST_RANGES,
    Captured,
    CaptureOptions,
    Ending,
    Event,
    MemoryRange,
    Message,
    Refusal,
    Refused,
    Released,
    Seized,
    from_json,
)

_ANSWER_S = 60.0  # it starts a process of Python; on an emulated machine that takes tens of seconds
_END_S = 5.0
_LEAVING_S = 1.0  # for a tracing process of ours to end


@dataclass(slots=True)
class _Target:
    pid: int
    channel: socket.socket
    received: bytearray = field(default_factory=bytearray)
    sending: bytearray = field(default_factory=bytearray)
    following: bytes = b""  # the newest ranges, once `sending` is out
    released: bool = False

    def flush(self) -> None:
        while self.sending or self.following:
            if not self.sending:
                self.sending, self.following = bytearray(self.following), b""
            try:
                del self.sending[: self.channel.send(self.sending)]
            except BlockingIOError:
                return
            except OSError:  # poll() will see the end
                self.sending.clear()
                self.following = b""

    def receive(self) -> tuple[list[Message], bool]:
        """(messages, whether the other side is still there)."""
        there = True
        while there:
            try:
                data = self.channel.recv(1 << 18)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            there = bool(data)
            self.received += data
        *lines, rest = self.received.split(b"\n")
        self.received = bytearray(rest)
        return [from_json(json.loads(line)) for line in lines], there


class Capturer:
    """Mini cores of seized processes, into one folder.

    with Capturer("/var/lib/afterfree/spool") as capturer:
        answer = capturer.seize(pid)               # Seized or Refused
        capturer.ranges(pid, [MemoryRange(slot, 384)])
        ...
        for event in capturer.poll():              # when one of filenos() is readable
            ...                                    # Captured, then Released
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """folder: must exist. Files in it belong to the folder's owner."""
        self.folder = os.path.abspath(folder)
        self._folder = -1
        self._child: children.Child | None = None
        self._control: socket.socket | None = None
        self._targets: dict[int, _Target] = {}
        self._events: list[Event] = []

    def __enter__(self) -> Capturer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the helper unless it runs, with the privileges of now. Raises OSError.

        The first time, files that a helper before has left half-written are removed.
        """
        if self.helper_pid:
            return
        self._end_helper()
        if self._folder < 0:
            self._folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            snapshot.sweep(self._folder)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = str(theirs.fileno())
            self._child = children.Child(
                children.command("probes.capture.helper_main", number, packages=False),
                pass_fds=(theirs.fileno(),),
            )
        self._control = ours

    @property
    def helper_pid(self) -> int:
        """0 when it does not run."""
        return self._child.pid if self._child is not None and self._child.poll() is None else 0

    @property
    def seized(self) -> tuple[int, ...]:
        return tuple(self._targets)

    def seize(
        self, pid: int, options: CaptureOptions | None = None, *, start_time: int | None = None
    ) -> Seized | Refused:
        """Trace every thread of a process until a fatal signal; waits for the answer, at most 15 seconds.

        start_time: field 22 of /proc/PID/stat, so that a pid that was used again is not seized.
        """
        options = options or CaptureOptions()
        if pid in self._targets:
            return Refused(pid=pid, why=Refusal.BUSY, detail="it is seized already")
        try:
            self.start()
        except OSError as error:
            return Refused(pid=pid, why=Refusal.NO_HELPER, detail=str(error))
        patience = time.monotonic() + _LEAVING_S
        while True:
            answer = self._ask(pid, options, start_time)
            leaving = isinstance(answer, Refused) and answer.tracer and self._leaves(answer.tracer)
            if not leaving or time.monotonic() > patience:
                return answer
            time.sleep(0.005)

    def _ask(self, pid: int, options: CaptureOptions, start_time: int | None) -> Seized | Refused:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        request = {"pid": pid, "options": asdict(options), "start_time": start_time}
        try:
            with theirs:
                if self._control is None:
                    raise BrokenPipeError
                socket.send_fds(
                    self._control, [json.dumps(request).encode()], [theirs.fileno(), self._folder]
                )
        except OSError as error:
            ours.close()
            detail = self._epitaph() if isinstance(error, ConnectionError) else str(error)
            return Refused(pid=pid, why=Refusal.NO_HELPER, detail=detail)
        ours.setblocking(False)
        return self._answer(_Target(pid, ours))

    def ranges(self, pid: int, ranges: Iterable[MemoryRange]) -> None:
        """What a mini core of this process should hold besides stacks; replaces what was said before.

        At most MOST_RANGES, those of the lowest priority number. No effect on a process that is not seized.
        """
        target = self._targets.get(pid)
        if target is None:
            return
        kept = sorted(ranges, key=lambda one: one.priority)[:MOST_RANGES]
        target.following = json.dumps({"ranges": kept}).encode() + b"\n"
        target.flush()

    def filenos(self) -> list[int]:
        """Descriptors to wait on; they change with seize() and poll()."""
        return [target.channel.fileno() for target in self._targets.values()]

    def poll(self, timeout: float = 0.0) -> list[Event]:
        """What has happened. timeout: seconds to wait for something, 0: none."""
        if self._targets and not self._events:
            poller = select.poll()
            for target in self._targets.values():
                unsent = target.sending or target.following
                poller.register(target.channel, select.POLLIN | (select.POLLOUT if unsent else 0))
            poller.poll(1000 * timeout)
        for target in list(self._targets.values()):
            target.flush()
            messages, there = target.receive()
            for message in messages:
                self._note(target, message)
            if not there:
                self._drop(target)
                if not target.released:
                    self._events.append(Released(pid=target.pid, why=Ending.HELPER_ENDED))
        events, self._events = self._events, []
        return events

    def release(self, pid: int) -> None:
        """Let a process go, without stopping it. What is being captured at this moment is still written."""
        target = self._targets.get(pid)
        if target is not None:
            self._drop(target)
            self._events.append(Released(pid=pid, why=Ending.REQUESTED))

    def stop(self) -> None:
        """Let everything go and end the helper."""
        for pid in list(self._targets):
            self.release(pid)
        self._end_helper()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    # -- inside ----------------------------------------------------------------------------------

    def _answer(self, target: _Target) -> Seized | Refused:
        deadline = time.monotonic() + _ANSWER_S
        messages: list[Message] = []
        there = True
        poller = select.poll()  # not select(2): the daemon may hold more than 1024 descriptors
        poller.register(target.channel, select.POLLIN)
        while there and not messages and (left := deadline - time.monotonic()) > 0:
            poller.poll(1000 * left)
            messages, there = target.receive()
        answer = messages[0] if messages else None
        if not isinstance(answer, Seized):
            target.channel.close()
            if isinstance(answer, Refused):
                return answer
            detail = self._epitaph() if not there else f"no answer within our own limit of {_ANSWER_S:.0f} s"
            return Refused(pid=target.pid, why=Refusal.NO_HELPER, detail=detail)
        self._targets[target.pid] = target
        for message in messages[1:]:
            self._note(target, message)
        return answer

    def _epitaph(self) -> str:
        """How the helper ended; where it still runs, the tracing process that it forked for us did."""
        child = self._child
        if child is None:
            return "the capture helper is not running"
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.2)
        if child.returncode is None:
            who = "the tracing process of the capture helper ended"
        else:
            who = f"the capture helper {child.ending()}"
        return f"{who} {child.last_words()}".strip()

    def _leaves(self, tracer: int) -> bool:
        """Whether the process that stood in the way is one of ours that leaves, or is gone."""
        return process.parent_of(tracer) in (None, self.helper_pid)

    def _note(self, target: _Target, message: Message) -> None:
        if isinstance(message, Captured):
            path = os.path.join(self.folder, message.path) if message.path else ""
            self._events.append(replace(message, path=path))
        elif isinstance(message, Released):
            target.released = True
            self._events.append(message)

    def _drop(self, target: _Target) -> None:
        target.channel.close()
        self._targets.pop(target.pid, None)

    def _end_helper(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        child, self._child = self._child, None
        if child is not None:
            try:
                child.wait(_END_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
