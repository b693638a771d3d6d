"""Runs cases in forked workers under limits, and tells what went wrong with which.

Owns processes, limits and the counts. A worker that dies or stalls costs its one case. Must not mutate.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz import subjects
from tests.fuzz.cases import Cases, lay_out

LIMIT_S = 5.0  # processor time of one way in
LIMIT_MB = 512
_STALLED_S = 45.0  # wall time without news from a worker: one that even signals do not reach
_BATCH = 2000  # cases of one worker: what leaks ends with it


class Hung(BaseException):
    """Took longer than LIMIT_S. No Exception: nothing on the way may catch it."""


@dataclass(frozen=True, slots=True)
class Bug:
    index: int
    kind: str
    subject: str
    what: str


@dataclass(slots=True)
class Tally:
    """Counts of everything that was run."""

    cases: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    bugs: list[Bug] = field(default_factory=list)
    slowest: tuple[float, int, str] = (0.0, 0, "")
    largest_mb: float = 0.0

    def add(self, news: dict[str, Any]) -> None:
        self.runs[news["subject"]] += 1
        self.outcomes[f"{news['subject']}: {news['outcome']}"] += 1
        self.slowest = max(self.slowest, (news["seconds"], news["index"], news["subject"]))
        self.largest_mb = max(self.largest_mb, news["mb"])
        if news["bug"]:
            self.bugs.append(Bug(news["index"], news["kind"], news["subject"], news["bug"]))


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = now + (LIMIT_MB << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _too_long(_signal: int, _frame: object) -> None:
    raise Hung


def attempt(name: str, path: Path, rng: random.Random, functions: tuple[int, ...]) -> tuple[str, str, float]:
    """(outcome, what is wrong or "", seconds of processor time) of one way in."""
    started = time.process_time()
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        outcome, bug = subjects.run(name, path, rng, functions), ""
    except Hung:
        outcome, bug = "hang", f"more than {LIMIT_S} s\n{traceback.format_exc(limit=-6)}"
    except Exception:
        outcome, bug = "untyped", traceback.format_exc(limit=-8)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return outcome, bug, time.process_time() - started


def _work(cases: Cases, indices: range, folder: Path, out: int) -> None:
    os.environ.pop("DEBUGINFOD_URLS", None)
    _limits()
    with os.fdopen(out, "w", buffering=1) as pipe:
        for index in indices:
            pipe.write(json.dumps({"index": index, "kind": cases.kind_of(index)}) + "\n")
            case = cases.make(index)
            for name in case.subjects:
                path = lay_out(case, folder, cases.samples.exe)
                outcome, bug, seconds = attempt(name, path, cases.rng(index), case.functions)
                mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                if mb > LIMIT_MB:
                    bug = bug or f"{mb:.0f} MB resident"
                news = {"index": index, "kind": case.kind, "subject": name, "outcome": outcome, "bug": bug}
                pipe.write(json.dumps({**news, "seconds": round(seconds, 3), "mb": round(mb, 1)}) + "\n")
                if mb > LIMIT_MB:
                    return  # the peak does not come down again


class _Worker:
    """One forked worker on a batch of numbers."""

    def __init__(self, cases: Cases, indices: range, scratch: Path) -> None:
        self._cases, self._left, self._scratch = cases, indices, scratch
        self._buffer = b""
        self.pid, self.fd, self.done = 0, -1, False
        self._last: tuple[int, str] = (indices.start - 1, "")
        self._start()

    def _start(self) -> None:
        if not self._left:
            self.done = True
            return
        self._folder = Path(tempfile.mkdtemp(dir=self._scratch))
        self.fd, out = os.pipe()
        self._heard = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self.fd)
                _work(self._cases, self._left, self._folder, out)
                status = 0
            finally:
                os._exit(status)
        os.close(out)

    def read(self, tally: Tally) -> None:
        """News from the worker, or its end."""
        piece = os.read(self.fd, 1 << 16)
        self._heard = time.monotonic()
        self._buffer += piece
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            news = json.loads(line)
            self._last = (news["index"], news["kind"])
            if "outcome" in news:
                tally.add(news)
            else:
                tally.cases[news["kind"]] += 1
        if not piece:
            self._ended(tally)

    def check(self, tally: Tally) -> None:
        if not self.done and time.monotonic() - self._heard > _STALLED_S:
            os.kill(self.pid, signal.SIGKILL)
            self._heard = time.monotonic()

    def _ended(self, tally: Tally) -> None:
        os.close(self.fd)
        _pid, status = os.waitpid(self.pid, 0)
        index, kind = self._last
        if status:
            code = os.waitstatus_to_exitcode(status)
            what = (
                f"killed by {signal.Signals(-code).name}" if code < 0 else f"worker ended with status {code}"
            )
            tally.bugs.append(Bug(index, kind, "?", what))
        shutil.rmtree(self._folder, ignore_errors=True)
        self._buffer = b""
        self._left = range(index + 1, self._left.stop)
        self._start()


def run(cases: Cases, count: int, *, seconds: float, jobs: int, first: int = 0) -> Tally:
    """Run cases first … first+count-1, or as many as the time allows."""
    tally, ends = Tally(), time.monotonic() + seconds
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="afterfree-fuzz-", dir=base) as name:
        batches = iter(range(first, first + count, _BATCH))
        workers: list[_Worker] = []
        try:
            while True:
                workers = [worker for worker in workers if not worker.done]
                while len(workers) < jobs and time.monotonic() < ends:
                    start = next(batches, None)
                    if start is None:
                        break
                    stop = min(start + _BATCH, first + count)
                    workers.append(_Worker(cases, range(start, stop), Path(name)))
                if not workers:
                    return tally
                if time.monotonic() >= ends:
                    return tally
                ready, _w, _x = select.select(
                    [worker.fd for worker in workers if not worker.done], [], [], 1.0
                )
                for worker in workers:
                    if worker.fd in ready:
                        worker.read(tally)
                    worker.check(tally)
        finally:
            for worker in workers:
                if not worker.done:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker.pid, signal.SIGKILL)
                    os.waitpid(worker.pid, 0)
