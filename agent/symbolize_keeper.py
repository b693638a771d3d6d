# Owns the process between the daemon and the symbol worker: starts the worker without rights, hands on
# requests and replies as they are, and opens for it what it may read. Must not load what reads debug
# information, and must not outlive its pipe.
from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from importlib.util import cache_from_source

from probes import confined

_CHUNK = 1 << 16


def main() -> int:
    """Serve until stdin ends, then end as the worker did."""
    # The daemon decides when this process ends; a Ctrl-C in its terminal does not.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    theirs_in, requests = os.pipe2(os.O_CLOEXEC)
    replies, theirs_out = os.pipe2(os.O_CLOEXEC)

    def work(asked: confined.Asked) -> None:
        os.dup2(theirs_in, 0)
        os.dup2(theirs_out, 1)
        for fd in (theirs_in, requests, replies, theirs_out):
            os.close(fd)
        from agent import symbolize_worker

        if not _within_reach():
            confined.preload((*symbolize_worker.PACKAGES, *symbolize_worker.LATE))
        symbolize_worker.serve(asked)

    pid, channel = confined.fork(work)
    os.close(theirs_in)
    os.close(theirs_out)
    with channel:
        busy = _relay(confined.Opener(channel), requests, replies)
    os.close(requests)
    if busy:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # nobody waits for the answer any more
    return _end_as(os.waitpid(pid, 0)[1], busy)


def _within_reach() -> bool:
    """Whether the worker can load the rest of our code, and quickly, when it is nobody: then it loads only
    what it comes to need. A checkout may lie in root's home, and nobody can keep compiled modules."""
    source = os.path.join(
        os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "symbols", "resolve.py"
    )
    places = [source, cache_from_source(source)]
    for name in ("capstone", "zstandard"):
        packages = (os.path.join(entry, name, "__init__.py") for entry in sys.path)
        found = next(filter(os.path.exists, packages), None)
        if found is None:
            return False
        places.append(found)
    return confined.readable(places)


def _relay(opener: confined.Opener, requests: int, replies: int) -> bool:
    """Until either side ends. Returns whether a request is still unanswered.

    One request at a time goes on: while the worker is at it, it may wait for us to open a file.
    """
    poller = select.poll()
    for fd in (0, replies, opener.channel.fileno()):
        poller.register(fd, select.POLLIN)
    waiting, busy = bytearray(), False
    while True:
        end = -1 if busy else waiting.find(b"\n")
        if end >= 0:
            line = bytes(waiting[: end + 1])
            del waiting[: end + 1]
            opener.image = _image(line)
            busy = True
            if not _write(requests, line):
                return False
        for fd, _ in poller.poll():
            if fd == opener.channel.fileno():
                if not opener.serve():
                    poller.unregister(fd)
                continue
            data = os.read(fd, _CHUNK)
            if not data:
                return busy and fd == 0
            if fd == 0:
                waiting += data
            else:
                busy = not data.endswith(b"\n")  # a reply is one line
                if not _write(1, data):
                    return busy


def _write(fd: int, data: bytes) -> bool:
    """False: nobody reads any more."""
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(fd, left) :]
    except BrokenPipeError:
        return False
    return True


def _image(line: bytes) -> str:
    """The executable that a request is about, where a plan is wanted."""
    if b'"resolve"' not in line[:64]:
        return ""
    try:
        return str(json.loads(line)["image"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


def _end_as(status: int, wanted: bool) -> int:
    code = os.waitstatus_to_exitcode(status)
    if code < 0 and not wanted:  # so that the daemon is told what became of the worker
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return max(code, 0)


if __name__ == "__main__":
    sys.exit(main())
