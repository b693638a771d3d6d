# Owns `afterfree census`: lifetimes by signature, from a recording or a live process.
from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.commands import options
from agent.text import Line, Span, counted, duration, line, number, table
from probes.abi import Signature

if TYPE_CHECKING:
    from agent.correlator.census import Census
    from agent.correlator.findings import Finding
    from agent.correlator.histogram import Histogram
    from agent.stopping import Stop
    from agent.supervisor import Wanted
    from probes.events import Event

_MOST_HAZARDS = 2  # named in a row of the table; the JSON form has all


@click.command("census", short_help="Count slot lifetimes by what happened to them.")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@options.targets
@click.option(
    "--format",
    "form",
    type=click.Choice(["human", "json"]),
    default="human",
    show_default=True,
    help="Output.",
)
def command(
    *,
    file: Path | None,
    pids: tuple[int, ...],
    exes: tuple[str, ...],
    units: tuple[str, ...],
    profile: str | None,
    debug_file: str | None,
    no_cache: bool,
    duration: float | None,
    form: str,
) -> int:
    """Count slot lifetimes by what happened to them, with the hazard each carries.

    \b
      afterfree census run.afrec
      afterfree census --pid 4711 --duration 30
    """
    from agent.errors import Misused
    from agent.supervisor import Wanted

    live = bool(pids or exes or units)
    if (file is None) == (not live):
        raise Misused(
            "name either a recording or processes",
            remedy="afterfree census FILE\nafterfree census --pid PID --duration 30",
        )
    wanted = Wanted(pids=pids, exes=exes, units=units, profile=profile, debug_file=debug_file)
    if file is not None:
        _census(_recorded(file), wanted, form)
    else:
        with options.stop().installed() as stop:
            _census(_live(wanted, duration, stop, fresh=no_cache), wanted, form)
    return 0


def _census(source: AbstractContextManager[Iterable[Event]], wanted: Wanted, form: str) -> None:
    """Count all of it, and print. Raises RecordingError, NothingSeen after that."""
    from agent.correlator.core import Correlator
    from agent.errors import NothingSeen, RecordingError
    from agent.text import Printer
    from probes.events import Lost, TargetAttached

    judge = Correlator()  # what no lifetime's signature tells: frees within a batch, stale deliveries
    census = judge.census
    error = None
    processes = lost = 0
    with source as events:
        try:
            for event in events:
                judge.feed(event)
                if isinstance(event, TargetAttached):
                    processes += 1
                elif isinstance(event, Lost) and event.what == "lifetimes":
                    lost += event.count
        except RecordingError as broken:
            error = broken
    failure = None if processes or error is not None else NothingSeen(wanted.names)
    if form == "json":
        value: dict[str, Any] = {
            **census.to_dict(),
            "schema": "afterfree.census/1",
            "processes": processes,
            "lost": lost,
            "beside": [
                {"rule": rule, "count": count, "unit": unit}
                for rule, count, unit in _beside(judge.findings())
            ],
            "failure": None if failure is None else failure.to_json(),
        }
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
        sys.stdout.flush()
    elif failure is None:
        Printer().lines(_lines(census, lost, _beside(judge.findings())))
    if error is not None:
        raise error
    if failure is not None:
        raise failure


@contextlib.contextmanager
def _recorded(file: Path) -> Iterator[Iterable[Event]]:
    from agent.replay_source import RecordingSource

    source = RecordingSource.open(file)
    try:
        yield _until_finished(source)
    finally:
        source.close()


def _until_finished(source: Any) -> Iterator[Event]:
    while not source.finished:
        yield from source.poll(0.2)


@contextlib.contextmanager
def _live(wanted: Wanted, duration: float | None, stop: Stop, *, fresh: bool) -> Iterator[Iterable[Event]]:
    import time

    from agent.commands.live import ATTACHING_S, DETACHING_S, LiveOptions, attached, notices
    from agent.symbolize import SymbolClient

    symbols = SymbolClient(fresh=fresh)
    options_of_run = LiveOptions(wanted=wanted, fresh=fresh)
    with contextlib.closing(symbols), contextlib.ExitStack() as stack:
        with stop.patience(ATTACHING_S):
            supervisor = stack.enter_context(attached(options_of_run, symbols))
        stack.callback(stop.allow, DETACHING_S)
        symbols.close()
        notices().text(_begun(len(supervisor.targets), duration))
        end = None if duration is None else time.monotonic() + duration

        def events() -> Iterator[Event]:
            while not supervisor.finished and not stop.signal:
                left = 0.2 if end is None else min(0.2, end - time.monotonic())
                if left <= 0:
                    break
                yield from supervisor.poll(left)
            yield from supervisor.drain()

        yield events()


def _begun(processes: int, seconds: float | None) -> str:
    """Said when the probes are in place: what ended before is not counted."""
    of = f"{processes} process{'es' if processes != 1 else ''}" if processes else "the first process to come"
    until = "Ctrl-C ends it" if seconds is None else f"After {seconds:g} s, or at Ctrl-C, it ends"
    return f"afterfree: counting the lifetimes of {of} from now on. {until} and prints the census."


def _beside(findings: Iterable[Finding]) -> list[tuple[str, int, str]]:
    """(rule, how often, unit) of high and critical findings that no signature of a lifetime shows."""
    from agent.correlator.census import IN_SIGNATURES
    from agent.correlator.findings import Severity

    counts: dict[tuple[str, str], int] = {}
    for finding in findings:
        if finding.severity > Severity.WARNING and finding.rule not in IN_SIGNATURES:
            key = (finding.rule.value, finding.unit)
            counts[key] = counts.get(key, 0) + finding.count
    return [(rule, count, unit) for (rule, unit), count in counts.items()]


def _lines(census: Census, lost: int = 0, beside: Iterable[tuple[str, int, str]] = ()) -> list[Line]:
    """lost: lifetimes that were overwritten before they were counted. beside: see `_beside`."""
    total = census.total
    if not total:
        return [line("no slot was destroyed while this was counted")]
    rows = census.rows()
    header = ("lifetimes", "share", "hazard", "close→destroy", "margin", "what happened")
    out = table(
        header,
        (
            (
                number(row.count),
                f"{row.share:.2%}",
                _hazards(row.hazards),
                _spread(row.close_to_destroy, row.count),
                _spread(row.margin, row.count),
                row.steps,
            )
            for row in rows
        ),
        right=(0, 1),
    )
    if census.other:
        out.append(
            line(f"  {counted(census.other, 'lifetime')} of signatures beyond those that are told apart")
        )
    unjudged = sum(row.count for row in rows if row.signature & Signature.NOT_JUDGED)
    if unjudged:
        why = "no dispatch tells how far the loop was (docs/profiles.md: `dispatch`)"
        out.append(line(f"  {counted(unjudged, 'free')} within a batch not judged: {why}"))
    if any(row.margin.count for row in rows):
        what = "from the last delivery after the close to the destroy; the other order is a use after free"
        out.append(line(f"  margin: {what}"))
    if lost:
        out.append(line(Span(f"  LOST {number(lost)}: overwritten before they were counted", "warning")))
    others = ", ".join(f"{rule} ({number(count)} {unit})" for rule, count, unit in beside)
    if others:
        out.append(line("  beside these, of which `afterfree watch` tells: ", Span(others, "high")))
    hazardous = sum(row.count for row in rows if row.hazards)
    style = "warning" if hazardous else "good"
    out += [
        line(""),
        line(
            Span(
                f"{'at least ' if lost else ''}{number(hazardous)} of {counted(total, 'lifetime')}"
                f"{' that were counted' if lost else ''} ({hazardous / total:.2%}) "
                f"{'carries' if hazardous == 1 else 'carry'} a hazard",
                style,
            )
        ),
    ]
    return out


def _hazards(rules: tuple[str, ...]) -> str:
    """The worst first; what does not fit is counted."""
    if not rules:
        return "none"
    shown = ", ".join(rules[:_MOST_HAZARDS])
    return f"{shown}, {len(rules) - _MOST_HAZARDS} more" if len(rules) > _MOST_HAZARDS else shown


def _spread(histogram: Histogram, lifetimes: int) -> str:
    """Median and largest; "" when nothing was measured. Of a few examples among many lifetimes no largest can
    be told."""
    if not histogram.count:
        return ""
    middle = duration(histogram.quantile(0.5))
    if histogram.count == lifetimes == 1:
        return middle
    if histogram.count >= lifetimes:
        return f"{middle} (max {duration(histogram.max)})"
    if histogram.count == 1:
        return f"{middle} (1 example)"
    return f"{middle} ({number(histogram.count)} examples)"
