# Owns that a run ends when it is told to: the flag that a signal raises for the loop, and a thread that ends
# the process when the loop does not come to look at it (a pipe that nobody reads, a FIFO, a disk that hangs).
from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from agent.errors import ExitCode

LIMIT_S = 5.0
"""After a signal: that long nothing may move before the process is ended."""
MOST_S = 300.0
"""After a signal: that long whatever moves."""
_TWICE_S = 0.3  # timeout(1) sends its signal to the child and to the group: that is one
_LOOK_S = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """A flag that SIGINT and SIGTERM raise. A second signal ends the process at once; so does LIMIT_S
    without `moved` after the first one.

    Ending at once is os._exit: descriptors are closed, so probes are gone, and helpers see the end of their
    pipes, as after SIGKILL.
    """

    def __init__(self, *, lasting: bool = False, leave: Callable[[int], object] = os._exit) -> None:
        """lasting: the process ends with the run, so that signals are looked after until then."""
        self.signal = 0
        self._lasting = lasting
        self._leave = leave
        self._moved = 0.0  # monotonic seconds
        self._allowed = 0.0  # until then nothing has to move
        self._closing = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[Stop]:
        """Handlers for the time of the run, or, `lasting`, from now on. Only from the main thread."""
        # The C handler itself writes the number (trip_signal, Modules/signalmodule.c), however long the main
        # thread stays within one system call, which Python begins again after EINTR (PEP 475).
        heard, told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        watcher = threading.Thread(target=self._watch, args=(heard,), name="af-stop", daemon=True)
        watcher.start()
        before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        old = {number: signal.signal(number, self._raise) for number in _SIGNALS}
        try:
            yield self
        finally:
            if not self._lasting:
                for number, handler in old.items():
                    signal.signal(number, handler)
                signal.set_wakeup_fd(before)
                os.close(told)  # the watcher's end
                watcher.join()
                os.close(heard)

    def moved(self) -> None:
        """Something came through: the limit counts from here."""
        self._moved = time.monotonic()

    def allow(self, seconds: float) -> None:
        """That long from now nothing has to move."""
        self._allowed = time.monotonic() + seconds

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """For what may take that long without `moved`, and has a limit of its own."""
        self.allow(seconds)
        try:
            yield
        finally:
            self._allowed = 0.0
            self.moved()

    def _raise(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or number

    def _watch(self, heard: int) -> None:
        poller = select.poll()
        poller.register(heard, select.POLLIN)
        first = 0.0
        while True:
            poller.poll(None if not first else 1000 * _LOOK_S)
            now = time.monotonic()
            with contextlib.suppress(BlockingIOError):
                numbers = os.read(heard, 64)
                if not numbers:
                    return
                for number in numbers:
                    if number not in _SIGNALS:
                        continue
                    if not first:
                        first = now
                        self.signal = self.signal or number
                    elif now - first > _TWICE_S:
                        self._end(f"a second signal, {signal.Signals(number).name}, came")
            if first and now - max(first, self._moved, self._allowed) > LIMIT_S:
                self._end(f"nothing moved for {LIMIT_S:.0f} s after {self._name}")
            elif first and now - first > MOST_S:
                self._end(f"{MOST_S:.0f} s after {self._name} it was still not through")

    @property
    def _name(self) -> str:
        return signal.Signals(self.signal).name

    def _end(self, why: str) -> None:
        """Say why as far as that cannot block, and end the process."""
        lines = [f"afterfree: ended at once: {why}"]
        if not _takes(1):
            lines.append("  standard output takes nothing: nobody reads it")
        lines.append("  what was not written by then is lost; the probes are gone, what was watched runs on")
        if _takes(2):
            with contextlib.suppress(OSError):
                os.write(2, ("\n".join(lines) + "\n").encode())  # PIPE_BUF fits a pipe that is ready
        self._leave(int(ExitCode.RUNTIME))


def _takes(fd: int) -> bool:
    """Whether a write of up to PIPE_BUF bytes would not block (poll(2), pipe(7))."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    found = poller.poll(0)
    return any(event & select.POLLOUT for _, event in found)
