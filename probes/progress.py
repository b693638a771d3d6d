# Owns watching progress: the exits of system calls that consume or produce are traced only while a spin is
# suspected, for a look of some seconds, and less and less often where the suspicion keeps being wrong.
from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from probes import errors, loader
from probes.sysbpf import Map

LOOK_S = 3.0  # a spin shows within this: AF_HOT_NS of 10-maps.c, and a scheduler's pauses
STILL_S = 10.0  # one that was confirmed is looked at as long as it is heard of
LONGEST_ATTACH_S = 10.0  # at the end: what is attached later goes with the process
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 60.0

CALLS = {
    "read": "af_progress_read", "readv": "af_progress_read", "pread64": "af_progress",
    "preadv": "af_progress", "preadv2": "af_progress_read",
    "recvfrom": "af_progress_recv",
    "recvmsg": "af_progress_recvmsg", "recvmmsg": "af_progress_read",
    "write": "af_progress", "writev": "af_progress", "pwrite64": "af_progress", "pwritev": "af_progress",
    "pwritev2": "af_progress", "sendto": "af_progress", "sendmsg": "af_progress", "sendmmsg": "af_progress",
    "sendfile64": "af_progress_pair", "tee": "af_progress_pair", "vmsplice": "af_progress",
    "splice": "af_progress_two", "copy_file_range": "af_progress_two",
    "accept": "af_progress_accept", "accept4": "af_progress_accept",
    "timerfd_settime": "af_progress_accept", "connect": "af_progress_accept",
    "epoll_wait": "af_progress", "epoll_pwait": "af_progress", "epoll_pwait2": "af_progress",
    "mq_timedsend": "af_progress_accept", "mq_timedreceive": "af_progress_accept",
}  # fmt: skip
"""System calls that consume from a file or produce on it, and the program for their exit (55-progress.c)."""

_CONTROL = struct.Struct("<QQ")  # struct af_control: watch_since, spin_quiet
_KEY = bytes(4)


class ProgressWatch:
    """Attaches and detaches the programs of CALLS. Times: time.monotonic(), s."""

    def __init__(
        self,
        control: Map,
        programs: Mapping[str, int],
        attach: Callable[[Sequence[tuple[int, str]]], list[int]] = loader.attach,
        aside: Callable[[Callable[[], None]], threading.Thread | None] | None = None,
    ) -> None:
        """aside: runs attaching and detaching beside the caller, which has rings to read: each waits for the
        kernel's grace periods, seconds in all. By default a thread."""
        self._control, self._attach = control, attach
        self._aside = aside or _in_a_thread
        self._thread: threading.Thread | None = None
        self._coming: list[int] | errors.ProbeError | None = None  # what the thread leaves
        self._attaching = False
        self._programs = programs
        self._links: list[int] = []
        self._until = 0.0
        self._pause = FIRST_PAUSE_S
        self._right = False
        self.failure = ""  # why progress cannot be watched; then no spin but a hopeless one is ever found
        self.looks = 0  # begun

    @property
    def watching(self) -> bool:
        return bool(self._links)

    def suspected(self, now: float) -> None:
        """The kernel side counted many deliveries, and knows of no progress."""
        if self._links or self.failure or self._attaching:
            return
        wanted = [
            (self._programs[program], f"syscalls:sys_exit_{call}")
            for call, program in CALLS.items()
            if program in self._programs
        ]

        before = self._thread  # may still be detaching: a program is on a tracepoint once, or "File exists"

        def work() -> None:
            if before is not None:
                before.join()
            try:
                self._coming = self._attach(wanted)
            except errors.ProbeError as error:
                self._coming = error

        self._attaching = True
        self.looks += 1
        self._thread = self._aside(work)
        self._arrived(now)

    def _arrived(self, now: float) -> None:
        if not self._attaching or self._coming is None:
            return
        came, self._coming, self._attaching, self._thread = self._coming, None, False, None
        if isinstance(came, errors.ProbeError):
            self.failure = f"{came.title}: {came.detail}"
            return
        self._links = came
        if not self._links:
            self.failure = "this kernel has none of the tracepoints for calls that make progress"
            return
        self._right = False
        self._until = now + LOOK_S
        self._say(time.monotonic_ns(), 0)

    def confirmed(self, now: float) -> None:
        """A spin was found while progress was watched."""
        if self._links:
            self._right = True
            self._pause = FIRST_PAUSE_S
            self._until = now + STILL_S

    def tick(self, now: float) -> None:
        self._arrived(now)
        if not self._links or now < self._until:
            return
        links, self._links = self._links, []
        self._thread = self._aside(lambda: _close_all(links))
        if not self._right:
            self._say(0, time.monotonic_ns() + int(self._pause * 1e9))
            self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
        else:
            self._say(0, 0)

    def _say(self, since: int, quiet: int) -> None:
        self._control.put(_KEY, _CONTROL.pack(since, quiet))

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join(LONGEST_ATTACH_S)
        self._arrived(0.0)
        _close_all(self._links)
        self._links = []


def _close_all(links: Sequence[int]) -> None:
    for link in links:
        os.close(link)


def _in_a_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
