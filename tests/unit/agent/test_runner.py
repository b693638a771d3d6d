"""The loop: order, recording, replay, ends."""

from __future__ import annotations

import io
import json
import os
import signal
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

from agent.correlator.findings import Finding, Severity
from agent.forensics.desk import CrashDesk
from agent.recording import RecordingWriter
from agent.replay_source import RecordingSource
from agent.runner import Runner
from agent.scene import Scene
from agent.sinks import ConsoleSink, JsonConsoleSink, JsonFileSink
from agent.stopping import Stop
from agent.summary import summary
from agent.symbolize import SymbolClient
from agent.text import Printer, plain
from agent.timeline import TimelineModel
from probes.events import (
    CountersRead,
    CrashSeen,
    Event,
    Lost,
    MappedModule,
    ModulesMapped,
    RecordsRead,
    StackSeen,
    TargetAttached,
    TargetGone,
    ThreadSeen,
    Tick,
)
from tests.unit.agent.correlator.playbook import life
from tests.unit.agent.scenario import ATTACHED, BATCH, PID, SECOND, WITNESSES, FakeSymbols, ListSource, OnTick

LIVE = (WITNESSES, (BATCH, Tick(ts=101 * SECOND)), (Tick(ts=102 * SECOND),))


def symbols() -> SymbolClient:
    return cast("SymbolClient", FakeSymbols())


def run(source: Any, **options: Any) -> tuple[str, Any]:
    stream = io.StringIO()
    runner = Runner(
        source,
        judge=OnTick(),
        symbols=options.pop("symbols", None) or symbols(),
        sinks=[JsonConsoleSink(stream)],
        **options,
    )
    return stream.getvalue() or _after(runner, stream), runner


def _after(runner: Runner, stream: io.StringIO) -> str:
    runner.outcome = runner.run()  # type: ignore[attr-defined]
    return stream.getvalue()


def test_replay_gives_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "r.afrec"
    live, _ = run(ListSource(*LIVE), recorder=RecordingWriter.open(path))
    source = RecordingSource.open(path)
    # No worker can be started: everything must come from the recording.
    replayed, _ = run(source, symbols=SymbolClient(command=["/nonexistent"], stored=source.answers))
    assert live.count("\n") == 1
    assert replayed == live
    assert source.totals["totals"] == {"findings": 1}


def test_a_truncated_recording_ends_with_its_error_and_its_findings(tmp_path: Path) -> None:
    path = tmp_path / "r.afrec"
    live, _ = run(ListSource(*LIVE), recorder=RecordingWriter.open(path))
    path.write_bytes(path.read_bytes()[:-3])
    source = RecordingSource.open(path)
    replayed, runner = run(source, symbols=SymbolClient(command=["/nonexistent"], stored=source.answers))
    assert replayed == live
    assert "truncated" in str(runner.outcome.error)


def test_findings_wait_for_their_symbols_in_order() -> None:
    text, runner = run(ListSource(*LIVE), symbols=cast("SymbolClient", FakeSymbols(delay=1000)))
    assert text.count("\n") == 1
    assert runner.outcome.emitted == 1


def test_exit_codes_follow_fail_on() -> None:
    _, runner = run(ListSource(*LIVE))
    outcome = runner.outcome
    assert outcome.exit_code(None) == 0
    assert outcome.exit_code(Severity.CRITICAL) == 10
    _, quiet = run(ListSource((Lost(ts=1, what="recorder", count=3, since=0),)))
    assert quiet.outcome.exit_code(Severity.INFO) == 0


def test_a_signal_ends_the_run_and_drains() -> None:
    class Endless:
        finished = False
        drained = False

        def poll(self, timeout: float) -> Iterator[Event]:
            os.kill(os.getpid(), signal.SIGTERM)
            yield from ()

        def drain(self) -> Iterator[Event]:
            self.drained = True
            yield Tick(ts=5)

        def close(self) -> None:
            pass

    source, stop = Endless(), Stop()
    before = signal.getsignal(signal.SIGTERM)
    with stop.installed():
        text, runner = run(source, stop=stop)
    assert signal.getsignal(signal.SIGTERM) is before
    assert source.drained
    assert runner.outcome.signal == signal.SIGTERM
    assert text.count("\n") == 1


def test_a_duration_ends_the_run() -> None:
    class Endless:
        finished = False

        def poll(self, timeout: float) -> Iterator[Event]:
            yield from ()

        def close(self) -> None:
            pass

    now = iter(range(1000))
    _, runner = run(Endless(), duration=5, clock=lambda: float(next(now)))
    assert runner.outcome.signal == 0


def test_a_full_disk_is_said_once() -> None:
    notices: list[str] = []
    writer = RecordingWriter.open(Path("/dev/full"))
    _, runner = run(ListSource(*LIVE, *LIVE), recorder=writer, on_notice=notices.append)
    assert len(notices) == 1
    assert "No space left" in runner.outcome.unrecorded
    assert runner.outcome.exit_code(None) == 1
    assert "No space left" in notices[0]


def test_a_findings_file_that_fails_is_counted() -> None:
    notices: list[str] = []
    sink = JsonFileSink(Path("/dev/full"), notices.append)
    outcome = Runner(ListSource(*LIVE), judge=OnTick(), symbols=symbols(), sinks=[sink]).run()
    assert sink.failures == 1
    assert "No space left" in notices[0]
    assert "could not be written" in outcome.notes[-1]
    assert outcome.exit_code(None) == 1, "a script that reads the file must not take it for whole"


def test_a_crash_is_shown_after_the_finding_before_it() -> None:
    crash = CrashSeen(
        ts=102 * SECOND,
        tgid=PID,
        tid=4711,
        comm="srv-loop",
        signal=11,
        si_code=1,
        fault_addr=0x2F8,
        ip=0x1001554,
        registers={},
        stack=b"",
        batch=913,
    )
    stream = io.StringIO()
    Runner(
        ListSource(*LIVE, (crash,)), judge=OnTick(), symbols=symbols(), sinks=[ConsoleSink(Printer(stream))]
    ).run()
    text = stream.getvalue()
    assert text.index("stale-delivery") < text.index("SIGSEGV at address 0x2f8")


def test_the_timeline_is_drawn_once_with_its_header() -> None:
    scene, stream = Scene(), io.StringIO()
    Runner(
        ListSource(*LIVE),
        judge=OnTick(),
        symbols=symbols(),
        scene=scene,
        timeline=TimelineModel(scene),
        timeline_printer=Printer(stream),
    ).run()
    assert stream.getvalue().count("thread") == 1
    assert "first wait here" in stream.getvalue()


def test_the_timeline_waits_for_records_that_are_read_later_than_what_was_noticed() -> None:
    scene, stream = Scene(), io.StringIO()
    stale = life(fd=9).created(10).added(20).destroyed(40).stale_delivery(101 * SECOND)
    later = tuple((*one[:3], 102 * SECOND, *one[4:]) for one in BATCH.records)
    Runner(
        ListSource(WITNESSES, (stale,), (BATCH,), (RecordsRead(records=later),), (stale,)),
        judge=OnTick(),
        symbols=symbols(),
        scene=scene,
        timeline=TimelineModel(scene),
        timeline_printer=Printer(stream),
    ).run()
    told = [row.split()[0] for row in stream.getvalue().splitlines()[1:]]
    assert told == ["0.000000", "0.000000", "1.000000", "2.000000", "1.000000"]  # the last came too late


def test_the_summary_says_what_was_found_and_what_was_lost() -> None:
    _, runner = run(ListSource(*LIVE, (Lost(ts=103 * SECOND, what="recorder", count=1234, since=0),)))
    text = plain(summary(runner.outcome.stats, runner.outcome.findings, notes=("a note",)))
    assert "1 finding above warning" in text
    assert "stale-delivery (later-batch)" in text
    assert "LOST 1,234: stream records were overwritten" in text
    assert "1 target" in text
    assert "a note" in text
    assert "no finding above warning" in plain(summary(runner.outcome.stats, ()))


def test_a_summary_of_nothing_is_no_clean_one() -> None:
    _, nobody = run(ListSource((Tick(ts=SECOND),)))
    text = plain(summary(nobody.outcome.stats, ()))
    assert "no process was ever seen: nothing was judged" in text
    assert "no finding" not in text
    idle = ListSource((ATTACHED,), (CountersRead(ts=SECOND, counters={"deliveries": 0}),))
    _, runner = run(idle)
    assert "there was nothing to judge" in plain(summary(runner.outcome.stats, ()))


class Late(FakeSymbols):
    """Symbols whose answers come at a time of a clock that each look moves on."""

    def __init__(self, seconds: float) -> None:
        super().__init__(delay=1 << 30)
        self.now, self._seconds = 0.0, seconds

    def clock(self) -> float:
        self.now += 0.01
        return self.now

    def pump(self, timeout: float = 0.0) -> None:
        if self.now >= self._seconds:
            self.settle(0)


def _told(seconds: float, *, early: float | None, brief: bool = False) -> tuple[str, str]:
    """What people and scripts read when the symbols take that long."""
    people, scripts, late = io.StringIO(), io.StringIO(), Late(seconds)
    Runner(
        ListSource(*LIVE),
        judge=OnTick(),
        symbols=cast("SymbolClient", late),
        sinks=[ConsoleSink(Printer(people, colour=False), brief=brief), JsonConsoleSink(scripts)],
        early=early,
        clock=late.clock,
    ).run()
    return people.getvalue(), scripts.getvalue()


def test_a_finding_is_told_before_its_symbols_and_again_with_them() -> None:
    people, scripts = _told(5.0, early=0.15)
    first, second = people.split("CRITICAL")[1:]
    assert "are being looked up: this finding follows once more" in first
    assert 'destroyed  by loop 4711 "srv-loop"' in first
    assert "worker.zig:640" not in first
    assert "as told above, now with its symbols" in second
    assert "worker.zig:640" in second
    assert scripts.count("\n") == 1


def test_symbols_that_come_soon_make_one_report() -> None:
    people, scripts = _told(0.1, early=0.15)
    assert people.count("CRITICAL") == 1
    assert "looked up" not in people
    assert "as told above" not in people
    assert scripts.count("\n") == 1


def test_without_early_reports_and_in_brief_there_is_one() -> None:
    assert _told(5.0, early=None)[0].count("CRITICAL") == 1
    assert _told(5.0, early=0.15, brief=True)[0].count("CRITICAL") == 1
    assert _told(5.0, early=0.15)[1] == _told(5.0, early=None)[1]


def _short_lives(first: int, count: int, plan: dict[str, Any]) -> Iterator[Event]:
    """Processes that come, are seen with a thread and a stack each, and end."""
    for number in range(first, first + count):
        tgid, ts = 1000 + number, 1000 * number
        code = MappedModule(start=ts, end=ts + 999, bias=ts, path=f"/bin/{number}", identity="x")
        yield TargetAttached(
            ts=ts,
            tgid=tgid,
            start_time=ts,
            exe="/bin/x",
            comm="x",
            bias=ts,
            plan=plan,
            bootstrapped=0,
            late=False,
        )
        yield ModulesMapped(ts=ts, tgid=tgid, modules=(code,))
        yield ThreadSeen(tgid=tgid, tid=tgid, comm=f"thread {number}")
        memory = number.to_bytes(8, "little") * 512
        yield StackSeen(tgid=tgid, id=number, pcs=(ts + 1,), registers={"rip": ts + 1}, memory=memory)
        yield TargetGone(ts=ts + 999, tgid=tgid, reason="exited")


def test_memory_does_not_grow_with_the_number_of_short_lives() -> None:
    """What is known of processes that ended long ago is forgotten."""

    class Lives:
        finished = False
        used: ClassVar[list[int]] = []

        def poll(self, timeout: float) -> Iterator[Event]:
            yield from _short_lives(300 * len(self.used), 300, dict(ATTACHED.plan))
            self.used.append(tracemalloc.get_traced_memory()[0])
            self.finished = len(self.used) == 5

        def close(self) -> None:
            pass

    tracemalloc.start()
    try:
        run(Lives(), symbols=SymbolClient(command=["/nonexistent"]))
    finally:
        tracemalloc.stop()
    assert Lives.used[-1] - Lives.used[1] < 300_000, Lives.used


class Growing(OnTick):
    """Its group has grown whenever it is asked for what was not told."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def last_words(self) -> tuple[Finding, ...]:
        self.asked += 1
        return tuple(replace(found, update=True, count=2 + self.asked) for found in self._found)


def test_a_crash_and_the_end_after_it_find_counts_as_they_stand() -> None:
    """Once each, however many signals a handler draws; and of what did not crash, at the end of the run."""
    crash = CrashSeen(
        ts=103 * SECOND, tgid=PID, tid=PID, comm="x", signal=11, si_code=1, fault_addr=0, ip=0,
        registers={}, stack=b"", batch=0,
    )  # fmt: skip
    gone = TargetGone(ts=104 * SECOND, tgid=PID, reason="killed by signal 11")
    other = replace(gone, tgid=PID + 1)
    source = ListSource(*LIVE, (other, crash, crash, gone, gone))
    judge, stream = Growing(), io.StringIO()
    Runner(
        source, judge=judge, symbols=symbols(), sinks=[JsonConsoleSink(stream, Printer(io.StringIO()))]
    ).run()
    counts = [json.loads(row)["count"] for row in stream.getvalue().splitlines()]
    assert counts == [1, 3, 4, 5]


class Shared(OnTick):
    """A finding of two processes' group, which shows the first one's slot."""

    def feed(self, event: Event) -> tuple[Finding, ...]:
        return tuple(replace(found, by_target={PID: 14, PID + 1: 7}) for found in super().feed(event))


class Desk:
    def __init__(self) -> None:
        self.told: dict[int, list[Any]] = {}
        self.waited: set[int] = set()

    def feed(self, event: Event) -> None: ...
    def judged(self, finding: Finding) -> None: ...
    def finish(self, timeout: float) -> None: ...

    def pump(self, *, waiting: frozenset[int] = frozenset(), ending: bool = False) -> None:
        self.waited |= waiting

    def finding(self, tgid: int, line: str) -> None:
        self.told.setdefault(tgid, []).append(json.loads(line)["by_target"])


def test_every_process_that_had_part_in_a_finding_has_it_in_its_case() -> None:
    desk = Desk()
    late = cast("SymbolClient", FakeSymbols(delay=1000))
    Runner(
        ListSource(*LIVE, *[()] * 3), judge=Shared(), symbols=late, sinks=[], desk=cast("CrashDesk", desk)
    ).run()
    part = [{"pid": PID, "count": 14}, {"pid": PID + 1, "count": 7}]
    assert desk.told == {PID: [part], PID + 1: [part]}
    assert desk.waited == {PID, PID + 1}
