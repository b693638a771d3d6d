# Owns the loop: source -> recording -> correlator -> sinks, and its clean end.
# The same loop runs live and in replay; decisions depend on events only. Must not attach or draw reports.
from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from agent import recording
from agent.correlator.findings import Finding, Severity
from agent.errors import ExitCode
from agent.exhibit import CrashExhibit, Exhibit, crash_exhibit, exhibit
from agent.forensics.desk import CrashDesk
from agent.recording import RecordingWriter
from agent.scene import Scene
from agent.sinks import Sink, json_line
from agent.stopping import Stop
from agent.summary import Stats
from agent.symbolize import SymbolClient
from agent.text import Line, Printer
from agent.timeline import TimelineModel, header, timeline_lines
from probes.events import CrashSeen, Event, EventSource, ModulesMapped, StackSeen, TargetAttached, TargetGone

_POLL = 0.2
_POLL_BUSY = 0.02  # while symbols are under way
_MOST_PENDING = 4096
_DEPARTED = 128  # processes that have ended, of which everything is still known
_MOST_CRASHED = 4096
_SETTLE = 30.0
EARLY = 0.15
"""Seconds that symbols have before a finding is told without them."""
_BUNDLES = 120.0  # seconds that the end waits for bundles under way


class Judge(Protocol):
    """What the runner needs of agent.correlator.core.Correlator."""

    def feed(self, event: Event) -> tuple[Finding, ...]: ...

    def findings(self) -> tuple[Finding, ...]: ...

    def last_words(self) -> tuple[Finding, ...]: ...


@dataclass(slots=True)
class _Pending:
    """What waits for its symbols."""

    item: Exhibit | CrashExhibit
    due: float  # when it is told without them


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended."""

    stats: Stats
    findings: tuple[Finding, ...]  # every group in its last state
    emitted: int  # findings and updates handed to the sinks
    error: Exception | None  # what ended the source early: a broken recording, a failing session
    notes: tuple[str, ...]
    signal: int
    unwritten: int = 0  # findings that are not in the file they were to be written to
    unrecorded: str = ""  # why the recording is not whole; "" also when a limit that was asked for ended it

    def exit_code(self, fail_on: Severity | None) -> int:
        """10 when a finding reaches `fail_on`, else 1 when a file that was asked for is not whole (the notes
        say which), else 0. `error` is for the caller to raise."""
        if fail_on is not None and any(finding.severity >= fail_on for finding in self.findings):
            return int(ExitCode.FINDINGS)
        return int(ExitCode.RUNTIME if self.unwritten or self.unrecorded else ExitCode.OK)


class Runner:
    """One run over one source."""

    def __init__(
        self,
        source: EventSource,
        *,
        judge: Judge,
        symbols: SymbolClient,
        sinks: Sequence[Sink] = (),
        recorder: RecordingWriter | None = None,
        timeline: TimelineModel | None = None,
        timeline_printer: Printer | None = None,
        scene: Scene | None = None,
        desk: CrashDesk | None = None,
        duration: float | None = None,
        early: float | None = None,
        stop: Stop | None = None,
        on_notice: Callable[[str], None] = lambda _text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """desk: makes bundles of crashes. duration: seconds after which a live run ends by itself.
        early: seconds after which people are told of a finding whose symbols have not come; None: never."""
        self.stats = Stats()
        self.scene = scene or Scene()
        self._source = source
        self._judge = judge
        self._symbols = symbols
        self._sinks = tuple(sinks)
        self._recorder = recorder
        self._recorder_said = False
        self._timeline = timeline
        self._printer = timeline_printer
        self._desk = desk
        self._duration = duration
        self._stop = stop or Stop()
        self._notice = on_notice
        self._clock = clock
        self._early = early
        self._pending: deque[_Pending] = deque()
        self._untold: deque[_Pending] = deque()  # of them, those that may still be told early
        self._departed: dict[int, None] = {}  # targets that are gone, and not forgotten yet
        self._crashed: set[int] = set()  # targets that have crashed and are not gone yet
        self._emitted = 0
        self._titled = False

    def run(self) -> Outcome:
        """Until the source is finished, the duration is over or a signal came. The source stays open."""
        error: Exception | None = None
        end = None if self._duration is None else self._clock() + self._duration
        try:
            while not self._source.finished and not self._stop.signal:
                wait = _POLL_BUSY if self._pending else _POLL
                if end is not None:
                    wait = min(wait, end - self._clock())
                    if wait <= 0:
                        break
                self._consume(self._source.poll(wait))
                self._after_poll()
        except BrokenPipeError:
            raise  # nobody reads any more
        except Exception as broken:  # noqa: BLE001 - what was found so far must still come out
            error = broken
        else:
            with self._stop.patience(_SETTLE):  # /proc of whatever has started meanwhile is still read
                self._drain()
            for finding in self._judge.last_words():
                self._queue(exhibit(finding, self.scene))
        self._settle()
        self._draw()
        if self._desk is not None:
            with self._stop.patience(_BUNDLES):
                self._desk.finish(_BUNDLES)
        self._finish_recording()
        return Outcome(
            stats=self.stats,
            findings=self._judge.findings(),
            emitted=self._emitted,
            error=error,
            notes=self._notes(),
            signal=self._stop.signal,
            unwritten=sum(sink.failures for sink in self._sinks),
            unrecorded=self._recorder.notice if self._recorder is not None and self._recorder.broken else "",
        )

    def _drain(self) -> None:
        drain: Callable[[], Iterable[Event]] | None = getattr(self._source, "drain", None)
        if drain is not None:
            self._consume(drain())

    def _consume(self, events: Iterable[Event]) -> None:
        for whole in events:
            if self._stop.signal:
                self._stop.moved()
            for event in recording.chunks(whole):
                self._take(event)

    def _take(self, event: Event) -> None:
        """One event through everything. What is recorded is exactly what is judged."""
        if self._recorder is not None:
            self._recorder.write(event)
        self.stats.feed(event)
        self.scene.feed(event)
        if isinstance(event, TargetAttached):
            self._departed.pop(event.tgid, None)
            self._symbols.know_plan(event.plan)
        elif isinstance(event, TargetGone):
            self._depart(event.tgid)
        elif isinstance(event, ModulesMapped):
            self._symbols.know_modules(event)
        elif isinstance(event, StackSeen):
            self._symbols.snapshots.know_stack(event)
        if self._timeline is not None:
            self._timeline.update(event)
        for finding in self._judge.feed(event):
            self._queue(exhibit(finding, self.scene))
            if self._desk is not None:
                self._desk.judged(finding)
        if isinstance(event, CrashSeen | TargetGone):
            self._count_exactly(event)
        if self._desk is not None:
            self._desk.feed(event)
        if isinstance(event, CrashSeen):
            self._queue(crash_exhibit(event, self.scene))

    def _depart(self, tgid: int) -> None:
        """Forget what was known of processes that ended long ago. Depends on events only, as all of it."""
        self._departed[tgid] = None
        if len(self._departed) > _DEPARTED:
            long_ago = set(list(self._departed)[: _DEPARTED // 2])
            for gone in long_ago:
                del self._departed[gone]
            self.scene.forget(long_ago)
            self._symbols.snapshots.forget(long_ago)

    def _count_exactly(self, event: CrashSeen | TargetGone) -> None:
        """Groups are told at the doublings of their counts; a crash's bundle holds what they were by then,
        and when the process was gone. Once for each, whatever a handler of signals makes of it."""
        if isinstance(event, CrashSeen) == (event.tgid in self._crashed):
            return
        if isinstance(event, TargetGone):
            self._crashed.discard(event.tgid)
        elif len(self._crashed) < _MOST_CRASHED:
            self._crashed.add(event.tgid)
        for finding in self._judge.last_words():
            self._queue(exhibit(finding, self.scene))

    def _queue(self, item: Exhibit | CrashExhibit) -> None:
        for question in item.questions():
            self._symbols.ask(question)
        waiting = _Pending(item, self._clock() + (self._early or 0.0))
        self._pending.append(waiting)
        if self._early is not None and not (isinstance(item, Exhibit) and item.finding.update):
            self._untold.append(waiting)
        if len(self._pending) >= _MOST_PENDING:
            # More findings than symbols can keep up with: wait rather than grow.
            self._settle()

    def _settle(self) -> None:
        """Hand out everything that is pending, which may take symbols long."""
        while self._untold:
            self._symbols.pump(max(0.0, min(_POLL, self._untold[0].due - self._clock())))
            self._emit()
            self._tell_early()
        with self._stop.patience(_SETTLE):
            self._symbols.settle(_SETTLE)
        self._emit()

    def _after_poll(self) -> None:
        self._symbols.pump()
        self._emit()
        self._tell_early()
        self._draw(waiting=True)
        if self._desk is not None:
            self._desk.pump(waiting=frozenset(tgid for item in self._pending for tgid in item.item.tgids))
        if self._recorder is not None and self._recorder.notice and not self._recorder_said:
            self._recorder_said = True
            self._notice(f"{self._recorder.notice}; watching goes on without recording")

    def _emit(self) -> None:
        """Hand out pending findings in the order in which they fired, as far as symbols have come."""
        while self._pending:
            item = self._pending[0].item
            if any(self._symbols.answer(question) is None for question in item.questions()):
                break
            waiting = self._pending.popleft()
            if self._untold and self._untold[0] is waiting:
                self._untold.popleft()
            self._stop.moved()
            if self._recorder is not None:
                self._recorder.write_answers(self._symbols.drain())
            for sink in self._sinks:
                if isinstance(item, Exhibit):
                    sink.finding(item, self._symbols)
                else:
                    sink.crash(item, self._symbols)
            if isinstance(item, Exhibit):
                self._emitted += 1
                if self._desk is not None:
                    told = json_line(item, self._symbols)
                    for tgid in item.tgids:
                        self._desk.finding(tgid, told)

    def _tell_early(self) -> None:
        """Findings whose symbols take long, as far as they are known: before their reports, in order."""
        while self._untold and self._untold[0].due <= self._clock():
            item = self._untold.popleft().item
            for sink in self._sinks:
                sink.early(item)

    def _draw(self, *, waiting: bool = False) -> None:
        if self._timeline is None or self._printer is None:
            return
        snapshot = self._timeline.take(waiting=waiting)
        if not snapshot.rows and not snapshot.left_out:
            return
        rows: list[Line] = [] if self._titled else [header()]
        self._titled = True
        rows += timeline_lines(snapshot)
        self._printer.lines(rows)

    def _finish_recording(self) -> None:
        if self._recorder is not None:
            self._recorder.write_answers(self._symbols.drain())
            self._recorder.close({"findings": self._emitted})

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if self._recorder is not None:
            writer = self._recorder
            notes.append(f"recorded {writer.events:,} events, {writer.size:,} bytes: {writer.path}")
            if writer.notice:
                notes.append(f"{writer.notice}; {writer.dropped:,} later events are not in it")
        failures = sum(sink.failures for sink in self._sinks)
        if failures:
            notes.append(f"{failures:,} findings could not be written to their file")
        return tuple(notes)
