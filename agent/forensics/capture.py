# Owns when a target is seized for a mini core, what memory is asked for, and what came of it.
# Must not trace (probes/capture does, in a process of its own), judge or write bundles.
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from agent.correlator.findings import Finding, Severity
from probes.capture.capturer import Capturer
from probes.capture.facts import (
    MOST_RANGES,
    Captured,
    CaptureOptions,
    Ending,
    MemoryRange,
    Refusal,
    Refused,
    to_json,
)
from probes.events import (
    CrashSeen,
    Event,
    ProcessCaptured,
    SuspicionRaised,
    TargetAttached,
    TargetGone,
    ThreadStatus,
)
from symbols.safefiles import Folder

_FOLDER = ".cores"
_MOST_SLOTS = min(4096, MOST_RANGES)
_TRIES = 3  # of a target that refuses; then the kernel's own record has to do


class CaptureMode(StrEnum):
    NEVER = "never"
    ON_SUSPICION = "on-suspicion"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """What came of one capture. path: "" where there is no mini core; note: for people."""

    tgid: int
    path: str
    note: str
    facts: dict[str, Any]
    process: ProcessCaptured | None = None  # /proc as it was at the stop


@dataclass(slots=True)
class _Target:
    start_time: int
    slot_size: int
    slots: dict[int, int]  # address -> priority
    refused: int = 0
    over: bool = False  # captured, or not to be had


class CaptureControl:
    """Seizes targets as `mode` says; `take` yields what came of it. Only seize() waits, for milliseconds."""

    def __init__(
        self,
        folder: Path,
        mode: CaptureMode,
        options: CaptureOptions,
        on_notice: Callable[[str], None] = lambda _text: None,
        *,
        sole: bool = True,
    ) -> None:
        """folder: of the bundles; sole: nobody else uses it. Raises OSError."""
        self._mode = mode
        self._options = options
        self._notice = on_notice
        self._targets: dict[int, _Target] = {}
        self._done: list[Core] = []
        if sole:  # of runs that were killed: no case refers to them
            for left in folder.glob(f"{_FOLDER}-*"):
                import shutil  # it brings every compressor, half a megabyte

                shutil.rmtree(left, ignore_errors=True)
        name = f"{_FOLDER}-{os.getpid()}-{os.urandom(4).hex()}"  # nothing can lie there under it
        with Folder.open(folder) as held:
            held.folder(name, make=True).close()
        cores = folder / name
        self._capturer = Capturer(cores)
        self._started = False

    @property
    def seized(self) -> frozenset[int]:
        return frozenset(self._capturer.seized)

    def feed(self, event: Event) -> None:
        """Learn targets and their slots."""
        if isinstance(event, TargetAttached):
            slot = event.plan.get("slot")
            size = slot.get("size") if isinstance(slot, dict) else None
            self._targets[event.tgid] = _Target(
                event.start_time, size if isinstance(size, int) and 0 < size < 1 << 20 else 256, {}
            )
            self._start()
            if self._mode is CaptureMode.ALWAYS:
                self._seize(event.tgid)
        elif isinstance(event, TargetGone):
            self._targets.pop(event.tgid, None)
        elif isinstance(event, SuspicionRaised) and event.slot is not None:
            self._want(event.slot.tgid, event.slot.addr, 1)
        elif isinstance(event, CrashSeen):
            for held in event.slots:
                self._want(event.tgid, held.slot.addr, 0)

    def judged(self, finding: Finding) -> None:
        """A finding of high or above: the crash may be milliseconds away."""
        if self._mode is CaptureMode.ON_SUSPICION and finding.severity >= Severity.HIGH:
            self._seize(finding.tgid)

    def take(self) -> list[Core]:
        """What has come since the last call. Never waits."""
        if self._started:
            for event in self._capturer.poll():
                if isinstance(event, Captured):
                    self._captured(event)
                elif event.why is Ending.HELPER_ENDED:
                    self._notice(
                        f"the capture helper ended: process {event.pid} goes on, without a mini core"
                    )
                    self._start(again=True)
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Let every target go."""
        if self._started:
            self._started = False
            self._capturer.stop()
        with contextlib.suppress(OSError):
            os.rmdir(self._capturer.folder)

    # -- inside ---------------------------------------------------------------------------------

    def _start(self, *, again: bool = False) -> None:
        if self._started and not again:
            return
        try:
            self._capturer.start()
            self._started = True
        except OSError as error:
            self._notice(f"no mini cores: the capture helper cannot be started: {error}")
            self._mode = CaptureMode.NEVER

    def _want(self, tgid: int, address: int, priority: int) -> None:
        target = self._targets.get(tgid)
        if target is None or target.slots.get(address, 99) <= priority:
            return
        if len(target.slots) >= _MOST_SLOTS and address not in target.slots:
            return
        target.slots[address] = priority
        if tgid in self._capturer.seized:
            self._ranges(tgid, target)

    def _ranges(self, tgid: int, target: _Target) -> None:
        self._capturer.ranges(
            tgid, (MemoryRange(address, target.slot_size, rank) for address, rank in target.slots.items())
        )

    def _seize(self, tgid: int) -> None:
        target = self._targets.get(tgid)
        if not self._started or target is None or target.over or tgid in self._capturer.seized:
            return
        answer = self._capturer.seize(tgid, self._options, start_time=target.start_time)
        if isinstance(answer, Refused):
            target.refused += 1
            target.over = target.refused >= _TRIES or answer.why not in (Refusal.NO_HELPER, Refusal.BUSY)
            note = f"process {tgid} cannot be seized for a mini core ({answer.why}: {answer.detail})"
            if answer.why is Refusal.GONE and self._mode is not CaptureMode.ALWAYS:
                note += "; with --capture always it is seized before anything is found"
            if target.over:
                remedy = f". {answer.remedy}" if answer.why is not Refusal.GONE else ""
                self._notice(f"{note}; the kernel's record of a crash stands{remedy}")
                self._done.append(Core(tgid=tgid, path="", note=note, facts=asdict(answer)))
            return
        self._ranges(tgid, target)

    def _captured(self, seen: Captured) -> None:
        target = self._targets.get(seen.pid)
        if target is not None:
            target.over = True
        pause = f"the process stood still for {seen.pause_ns / 1e6:.1f} ms"
        if not seen.path:
            note = f"no mini core ({seen.failure}); {pause}"
        else:
            left = f", {seen.left_out_bytes} bytes left out" if seen.left_out_bytes else ""
            note = f"mini core of {len(seen.threads)} threads, {seen.file_bytes} bytes{left}; {pause}"
        process = ProcessCaptured(
            ts=seen.at_ns,
            tgid=seen.pid,
            maps=seen.maps,
            threads=tuple(ThreadStatus(tid=one.tid, comm=one.name, state="t") for one in seen.threads),
            fdinfo=seen.fdinfo,
        )
        facts = {key: value for key, value in to_json(seen).items() if key not in ("maps", "fdinfo")}
        self._done.append(Core(tgid=seen.pid, path=seen.path, note=note, facts=facts, process=process))
