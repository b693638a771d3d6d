# Owns what watch, record, census and demo share: attaching and running. Must not parse options.
from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.commands import options as command_options
from agent.correlator.core import Correlator
from agent.correlator.findings import Severity
from agent.errors import NothingSeen
from agent.forensics.capture import CaptureControl, CaptureMode
from agent.forensics.desk import BundleDone, CrashDesk
from agent.forensics.store import DEFAULT, BundleStore, Limits
from agent.recording import RecordingWriter
from agent.runner import EARLY, Outcome, Runner
from agent.sanitize import printable
from agent.scene import Scene
from agent.sinks import ConsoleSink, JsonConsoleSink, JsonFileSink, Sink
from agent.stopping import Stop
from agent.summary import summary
from agent.supervisor import Session, Supervisor, Wanted
from agent.symbolize import SymbolClient
from agent.text import Printer
from agent.timeline import TimelineModel
from probes.capture.facts import CaptureOptions
from symbols.plan import ProbePlan

ATTACHING_S = 30.0
"""That long after its begin attaching may go on when a signal has come."""
DETACHING_S = 30.0
"""The kernel waits for grace periods, per probe, and longer when busy; the end of a process waits as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashOptions:
    """What is kept of a crash. bundles: None is the default folder."""

    bundles: Path | None = None
    limits: Limits = field(default_factory=Limits)
    redact: bool = False
    capture: str = "on-suspicion"  # a CaptureMode
    freeze_max: float = 2.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """One live run."""

    wanted: Wanted
    fresh: bool = False  # resolve without the plan cache
    form: str = "human"
    brief: bool = False
    findings: Path | None = None
    record: Path | None = None
    max_size: int = 0
    duration: float | None = None
    timeline: bool = False
    lines_per_second: int = 200
    stream: bool = False
    full_lifetimes: bool = False
    max_processes: int = 4096
    max_threads: int = 8192
    max_slots: int = 0  # 0: by what the processes have open
    crashes: CrashOptions | None = None  # None: crashes are reported, and no bundle is kept


def notices() -> Printer:
    """Where words that are no findings go."""
    return Printer(sys.stderr)


@contextlib.contextmanager
def attached(options: LiveOptions, symbols: SymbolClient) -> Iterator[Supervisor]:
    """Sessions on everything wanted, closed at the end. Raises AgentError, ProbeError."""
    from probes.session import LiveSession, SessionOptions
    from symbols.serial import plan_from_json

    printer = notices()
    session_options = SessionOptions(
        stream=options.stream or options.timeline,
        full_lifetimes=options.full_lifetimes,
        max_processes=options.max_processes,
        max_threads=options.max_threads,
        max_slots=options.max_slots,
    )

    def opener(plan: ProbePlan, *, pids: Sequence[int], follow: bool, program: str = "") -> Session:
        session: Session = LiveSession.open(
            plan, pids=pids, follow=follow, program=program, options=session_options
        )
        return session

    supervisor = Supervisor(
        options.wanted,
        opener=opener,
        resolver=symbols,
        new_resolver=lambda: SymbolClient(fresh=options.fresh),
        load_plan=plan_from_json,
        on_notice=lambda text: printer.text(f"afterfree: {printable(text)}"),
    )
    supervisor.open()
    try:
        yield supervisor
    finally:
        supervisor.close()


def sinks(options: LiveOptions) -> list[Sink]:
    """Where this run's findings go. Raises OutputFailed."""
    printer = notices()
    chosen: list[Sink] = []
    if options.findings is not None:
        chosen.append(
            JsonFileSink(options.findings, lambda text: printer.text(f"afterfree: {printable(text)}"))
        )
    if options.form == "json":
        chosen.append(JsonConsoleSink())
    else:
        chosen.append(ConsoleSink(Printer(), brief=options.brief))
    return chosen


def run_live(options: LiveOptions) -> Outcome:
    """Attach, run to the end, print the summary."""
    with command_options.stop().installed() as stop:
        outcome = _run(options, stop)
        conclude(outcome, options.form)
        if outcome.error is not None:
            raise outcome.error
        demand_process(outcome.stats.attached, options.wanted, options.form)
        return outcome


def _run(options: LiveOptions, stop: Stop) -> Outcome:
    printer = notices()
    symbols = SymbolClient(
        fresh=options.fresh, on_notice=lambda text: printer.text(f"afterfree: {printable(text)}")
    )
    with contextlib.ExitStack() as stack:
        stack.callback(symbols.close)
        with stop.patience(ATTACHING_S):
            supervisor = stack.enter_context(attached(options, symbols))
        outputs = sinks(options)
        for sink in outputs:
            stack.callback(sink.close)
        writer = None
        if options.record is not None:
            writer = RecordingWriter.open(
                options.record, max_size=options.max_size, options=_recorded_options(options)
            )
            stack.callback(writer.close)
        for text in _attach_lines(supervisor):
            printer.text(text)
        scene = Scene()
        desk = _desk(options, outputs)
        runner = Runner(
            supervisor,
            judge=Correlator(),
            symbols=symbols,
            sinks=outputs,
            recorder=writer,
            scene=scene,
            desk=desk,
            timeline=TimelineModel(scene, per_second=options.lines_per_second) if options.timeline else None,
            timeline_printer=Printer(),
            duration=options.duration,
            early=EARLY,
            stop=stop,
            on_notice=lambda text: printer.text(f"afterfree: {printable(text)}"),
        )
        stack.callback(stop.allow, DETACHING_S)
        outcome = runner.run()
        unseen = supervisor.unseen if outcome.stats.attached else ()
    notes = tuple(f"no process of {exe} was ever seen: nothing is known of it" for exe in unseen)
    return replace(outcome, notes=(*outcome.notes, *notes))


def demand_process(count: int, wanted: Wanted | None, form: str) -> None:
    """A run that saw no process must not look like one without findings. wanted: None for a recording.

    Raises NothingSeen, for JSON after saying it on standard output too.
    """
    if count:
        return
    failure = NothingSeen(wanted.names if wanted is not None else ())
    if form == "json":
        sys.stdout.write(json.dumps(failure.to_json()) + "\n")
    raise failure


def _desk(options: LiveOptions, outputs: Sequence[Sink]) -> CrashDesk | None:
    """Makes bundles and hands their explanations to the sinks. Raises OutputFailed."""
    crashes = options.crashes
    if crashes is None:
        return None
    printer = notices()

    def show(done: BundleDone) -> None:
        for sink in outputs:
            sink.bundle(done)

    def notice(text: str) -> None:
        printer.text(f"afterfree: {printable(text)}")

    mode = CaptureMode(crashes.capture)
    if crashes.redact and mode is not CaptureMode.NEVER:
        mode = CaptureMode.NEVER
        notice("--redact: no mini cores are taken, they would hold the memory that is to be left out")
    configuration = _recorded_options(options) | {
        "redact": crashes.redact,
        "capture": str(mode),
        "freeze_max": crashes.freeze_max,
        "debug_file": options.wanted.debug_file,
    }
    store = BundleStore(crashes.bundles or DEFAULT, crashes.limits)
    capture = None
    if mode is not CaptureMode.NEVER:
        limits = CaptureOptions(
            freeze_max_ns=int(crashes.freeze_max * 1e9), limit_bytes=max(store.limits.core, 1 << 20)
        )
        capture = CaptureControl(store.folder, mode, limits, notice, sole=store.sole)
    return CrashDesk(
        store,
        configuration=configuration,
        redact=crashes.redact,
        on_notice=notice,
        on_bundle=show,
        capture=capture,
    )


def conclude(outcome: Outcome, form: str) -> None:
    """Print the summary: on standard output for people, beside the JSON otherwise."""
    printer = Printer() if form == "human" else notices()
    printer.lines(summary(outcome.stats, outcome.findings, notes=outcome.notes))


def threshold(label: str | None) -> Severity | None:
    """--fail-on as a severity."""
    return Severity.parse(label) if label else None


_WHY = "afterfree symbols says why, and what helps"


def _attach_lines(supervisor: Supervisor) -> list[str]:
    lines = []
    for plan in supervisor.plans:
        sites = plan.get("sites")
        unprobed = plan.get("unprobed")
        missing = f", {len(unprobed)} cannot be probed ({_WHY})" if unprobed else ""
        lines.append(
            f"afterfree: {printable(plan.get('image', '?'))}: profile {printable(plan.get('profile', '?'))}, "
            f"{len(sites or ())} sites{missing}"
        )
        lines += [
            f"afterfree: warning: {printable(text)} (afterfree symbols lists what is there)"
            for text in plan.get("warnings") or ()
            if str(text).startswith(("create:", "destroy:", "dispatch:"))
        ]
    count = len(supervisor.targets)
    waiting = "" if count else ", waiting for the first"
    lines.append(f"afterfree: watching {count} process{'es' if count != 1 else ''}{waiting}. Ctrl-C ends.")
    return lines


def _recorded_options(options: LiveOptions) -> dict[str, object]:
    return {
        "pids": list(options.wanted.pids),
        "exes": list(options.wanted.exes),
        "units": list(options.wanted.units),
        "stream": options.stream or options.timeline,
        "full_lifetimes": options.full_lifetimes,
    }
