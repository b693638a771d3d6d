# Owns one mini core from a stop to a file: copies in a thread of its own while the target stands, writes
# after it goes on. Must not trace. The file appears whole under its name, or not at all.
from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Iterator, Sequence

from probes.capture import process as proc
from probes.capture.corewriter import CoreThread, Segment, core_head, notes_size
from probes.capture.facts import MOST_LEFT_OUT, CaptureOptions, Left, LeftOut, MemoryRange
from probes.capture.memory import Copier, Run, Stopped
from probes.capture.process import PAGE, Mappings, ProcessFacts, Vma
from probes.capture.selection import Selection, ThreadState, populated

_WRITE = 4 << 20


class Copy:
    """What a thread of ours has copied of a stop. `ended` is set when there is no more to come."""

    def __init__(
        self,
        pid: int,
        threads: Sequence[CoreThread],
        crashed: frozenset[int],
        ranges: Sequence[MemoryRange],
        options: CaptureOptions,
        buffer: mmap.mmap,
        deadline_ns: int,
    ) -> None:
        self._pid, self._options, self._deadline = pid, options, deadline_ns
        self._ranges, self._crashed, self._buffer = ranges, crashed, buffer
        self.threads = threads
        self.names: dict[int, str] = {}
        self.process: ProcessFacts | None = None
        self.mappings = Mappings(())
        self.copier: Copier | None = None
        self.failure = ""
        self.handled = frozenset[int]()  # signals the process has handlers for
        self.ended = threading.Event()
        # A daemon thread: one that hangs in a page fault of the target must not keep this process.
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """The target is about to go on: nothing counts from here."""
        if self.copier is not None:
            self.copier.close()

    def _run(self) -> None:
        try:
            self._copy()
        except Stopped:
            pass
        except Exception as error:  # noqa: BLE001 - the target must go on, and the reason be told
            self.failure = f"{type(error).__name__}: {error}"
        finally:
            self.ended.set()

    def _copy(self) -> None:
        # what may block on the target's locks happens here as well: the tracing thread must stay free
        self.process = proc.facts_of(self._pid)
        self.handled = proc.caught(self._pid)
        self.mappings = proc.mappings_of(self._pid)
        states = [ThreadState.of(t.tid, t.tid in self._crashed, t.registers) for t in self.threads]
        selection = Selection(self.mappings, states, self._ranges, self.process.auxv, self._options)
        self.copier = Copier(self._pid, self.mappings, self._buffer, self._room(), self._deadline)
        selection.essentials(self.copier)
        for thread in self.threads:
            self.names[thread.tid] = proc.thread_name(self._pid, thread.tid)
        selection.everything(self.copier, lambda vma: populated(self._pid, vma))

    def _room(self) -> int:
        extended = max((len(thread.extended) for thread in self.threads), default=0)
        taken = notes_size(len(self.threads), extended, self.files()) + 56 * len(self.mappings.vmas)
        return max(self._options.limit_bytes - taken, self._options.limit_bytes // 2) // PAGE * PAGE

    def files(self) -> list[Vma]:
        return [vma for vma in self.mappings.vmas if vma.of_file]

    def left_out(self) -> tuple[LeftOut, ...]:
        """Largest first."""
        missing = [*self.copier.left, *self._not_reached()] if self.copier is not None else []
        return tuple(sorted(missing, key=lambda left: left.size, reverse=True))

    def _not_reached(self) -> Iterator[LeftOut]:
        """What copying did not come to."""
        if self.copier is None:
            return
        reading = self.copier.reading
        if reading is not None:  # it still hangs in the target's memory
            what, start, end = reading
            yield LeftOut(what=what, address=start, size=end - start, why=Left.DEADLINE)
        why = next((left.why for left in self.copier.left if left.why in _ENDINGS), None)
        if reading is not None or not self.ended.is_set():
            why = Left.DEADLINE
        if why is None:
            return
        for one in self._ranges:
            missing = self.copier.missing(one.address, one.address + one.size)
            if missing:
                yield LeftOut(what="slot", address=one.address, size=missing, why=why)
        for vma in self.mappings.vmas:
            if vma.flags & 2 and vma.readable and not vma.shared:
                missing = self.copier.missing(vma.start, vma.end)
                if missing:
                    what = "globals" if vma.of_file else "memory"
                    yield LeftOut(what=what, address=vma.start, size=missing, why=why)


_ENDINGS = (Left.LIMIT, Left.DEADLINE)


def segments(mappings: Mappings, runs: Sequence[Run]) -> list[tuple[Segment, list[Run]]]:
    """PT_LOADs with what fills each: copied runs that touch become one; images on disk stand without content.

    Anonymous memory that was not copied gets none, so that no debugger shows it as zeros.
    """
    pieces: list[tuple[Segment, list[Run]]] = []
    waiting, index = sorted(runs), 0
    for vma in mappings.vmas:
        at, hollow = vma.start, vma.of_file and not vma.shared
        parts: list[Run] = []
        while index < len(waiting) and waiting[index].start < vma.end:
            run = waiting[index]
            start, end = max(run.start, at), min(run.start + run.size, vma.end)
            if start > at:
                pieces += _filled(vma, parts)
                parts = []
                if hollow:
                    pieces.append((Segment(at, start - at, 0, vma.flags), []))
            parts.append(Run(start, end - start, run.at + start - run.start))
            at = end
            if run.start + run.size > vma.end:
                break
            index += 1
        pieces += _filled(vma, parts)
        if hollow and at < vma.end:
            pieces.append((Segment(at, vma.end - at, 0, vma.flags), []))
    return pieces


def _filled(vma: Vma, parts: list[Run]) -> list[tuple[Segment, list[Run]]]:
    size = sum(part.size for part in parts)
    return [(Segment(parts[0].start, size, size, vma.flags), parts)] if parts else []


def write(copy: Copy, folder: int, name: str, first: int) -> tuple[int, int]:
    """Writes the mini core into a folder (descriptor), 0600 and of the folder's owner.

    first: tid that crashed first. Returns (bytes of memory, bytes of the file). Raises OSError and
    ValueError; the name is absent then, and no temporary file is left.
    """
    if copy.process is None or copy.copier is None:
        raise ValueError(copy.failure or "no memory was copied before the deadline")
    threads = sorted(copy.threads, key=lambda thread: (thread.tid != first, thread.tid))
    pieces = segments(copy.mappings, list(copy.copier.runs))
    head = core_head(copy.process, threads, copy.files(), [segment for segment, _ in pieces])
    temporary = f".{name}.{time.monotonic_ns():x}.partial"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        try:
            owner = os.fstat(folder)
            os.fchown(fd, owner.st_uid, owner.st_gid)
            _write(fd, memoryview(head))
            for _, runs in pieces:
                for run in runs:
                    _write(fd, copy.copier.view(run))
            os.fsync(fd)
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)
    return size - len(head), size


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data[:_WRITE]) :]


def sweep(folder: int) -> None:
    """Removes what helpers that died have left half-written."""
    for name in os.listdir(folder):
        if name.startswith(".") and name.endswith(".partial"):
            os.unlink(name, dir_fd=folder)


def summary(left: Sequence[LeftOut]) -> tuple[tuple[LeftOut, ...], int]:
    """What of it is named in the event, and the bytes of all."""
    return tuple(left[:MOST_LEFT_OUT]), sum(one.size for one in left)
