# The capture helper: forks one tracing process per target, and watches over their stops. A tracing process
# that keeps its target standing too long is killed, which lets the target go. Ends with the daemon.
from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

from probes.capture.facts import Refusal, Refused, to_json
from probes.capture.ptrace import Ptrace
from probes.capture.session import STANDS, Session

_GRACE_S = 1.0  # beyond freeze_max, before a tracing process counts as hung
_FINISH_S = 20.0  # for files that are being written when the daemon is gone
_MOST_REQUEST = 1 << 16


@dataclass(slots=True)
class _Tracing:
    """One tracing process. until: when its target must run again; None: it runs."""

    pid: int
    freeze_s: float
    until: float | None = None


class Helper:
    def __init__(self, channel: socket.socket) -> None:
        """channel: SOCK_SEQPACKET; each message one seize request with two descriptors: socket, folder."""
        self._channel = channel
        self._parent = os.getpid()
        self._children: dict[int, _Tracing] = {}  # by the descriptor of its watchdog pipe

    def serve(self) -> None:
        """Until the daemon closes its end, and what was being captured is written."""
        until: float | None = None
        while until is None or (self._children and time.monotonic() < until):
            poller = select.poll()
            for pipe in self._children:
                poller.register(pipe, select.POLLIN)
            if until is None:
                poller.register(self._channel, select.POLLIN)
            for source, _ in poller.poll(self._patience(until)):
                if source in self._children:
                    self._heard(source)
                elif not self._request():
                    until = time.monotonic() + _FINISH_S
            self._bark()

    def _patience(self, until: float | None) -> float | None:
        """Milliseconds until something is due; None: nothing is."""
        ends = [one.until for one in self._children.values() if one.until is not None]
        if until is not None:
            ends.append(until)
        return 1000 * max(0.0, min(ends) - time.monotonic()) if ends else None

    def _heard(self, pipe: int) -> None:
        said = os.read(pipe, 64)
        child = self._children[pipe]
        if said:
            child.until = time.monotonic() + child.freeze_s + _GRACE_S if said[-1:] == STANDS else None
            return
        os.close(pipe)
        del self._children[pipe]
        os.waitpid(child.pid, 0)

    def _bark(self) -> None:
        for child in self._children.values():
            if child.until is not None and time.monotonic() >= child.until:
                os.kill(child.pid, signal.SIGKILL)
                child.until = None

    def _request(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._channel, _MOST_REQUEST, 2)
        if not data:
            return False
        try:
            request = json.loads(data)
            channel = socket.socket(fileno=fds[0])
            self._fork(request, channel, fds[1])
            channel.close()
        finally:
            for fd in fds[1:]:
                os.close(fd)
        return True

    def _fork(self, request: dict[str, Any], channel: socket.socket, folder: int) -> None:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
        except OSError as error:
            os.close(ours)
            os.close(theirs)
            refused = Refused(
                pid=int(request["pid"]), why=Refusal.NO_HELPER, detail=f"fork: {error.strerror}"
            )
            with contextlib.suppress(OSError):
                channel.send(json.dumps(to_json(refused)).encode() + b"\n", socket.MSG_DONTWAIT)
            return
        if pid == 0:
            self._trace(request, channel, folder, theirs)
        os.close(theirs)
        self._children[ours] = _Tracing(pid, request["options"]["freeze_max_ns"] / 1e9)

    def _trace(self, request: dict[str, Any], channel: socket.socket, folder: int, watchdog: int) -> None:
        """In the forked process; does not return."""
        try:
            Ptrace().die_with_parent()
            if os.getppid() == self._parent:
                self._channel.close()
                for pipe in self._children:
                    os.close(pipe)
                Session(channel, folder, watchdog, request).run()
        except BaseException:  # noqa: BLE001 - whatever it is, this process ends, and with it the tracing
            traceback.print_exc()
        finally:
            os._exit(0)


def main() -> None:
    Helper(socket.socket(fileno=int(sys.argv[1]))).serve()


if __name__ == "__main__":
    main()
