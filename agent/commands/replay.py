# Owns `afterfree replay`: the same loop over a recording; no root, no kernel.
from __future__ import annotations

import contextlib
from pathlib import Path

import click

from agent.commands import options


@click.command("replay", short_help="Judge a recording again: no root, no kernel.")
@click.argument("file", type=click.Path(path_type=Path))
@options.verdicts
@click.option("--timeline", is_flag=True, help="Also print the recorded stream as lines.")
@click.option("--timeline-rate", type=options.Whole(1, 100_000), default=200, show_default=True)
def command(
    *,
    file: Path,
    form: str,
    findings: Path | None,
    fail_on: str | None,
    timeline: bool,
    timeline_rate: int,
) -> int:
    """Judge a recording again. Findings are those of the live run, byte for byte."""
    from agent.commands.live import LiveOptions, conclude, demand_process, notices, sinks, threshold
    from agent.correlator.core import Correlator
    from agent.errors import Misused
    from agent.replay_source import RecordingSource
    from agent.runner import Runner
    from agent.scene import Scene
    from agent.supervisor import Wanted
    from agent.symbolize import SymbolClient
    from agent.text import Printer
    from agent.timeline import TimelineModel

    if timeline and form == "json":
        raise Misused("--timeline and --format json both want standard output", remedy="use --findings FILE")
    with options.stop().installed() as stop:
        with contextlib.ExitStack() as stack:
            source = RecordingSource.open(file)
            stack.callback(source.close)
            symbols = SymbolClient(stored=source.answers)
            stack.callback(symbols.close)
            outputs = sinks(LiveOptions(wanted=Wanted(), form=form, findings=findings))
            for sink in outputs:
                stack.callback(sink.close)
            scene = Scene(
                on_target=lambda target: symbols.know_image(target.identity, [target.image, target.exe])
            )
            outcome = Runner(
                source,
                judge=Correlator(),
                symbols=symbols,
                sinks=outputs,
                scene=scene,
                timeline=TimelineModel(scene, per_second=timeline_rate, patience_ns=100_000_000)
                if timeline
                else None,
                timeline_printer=Printer(),
                stop=stop,
            ).run()
        conclude(outcome, form)
        if outcome.error is not None:
            raise outcome.error
        demand_process(outcome.stats.attached, None, form)
        stopped = source.totals.get("stopped")
        if stopped:
            notices().text(f"afterfree: the recording ends early: {stopped}")
        return outcome.exit_code(threshold(fail_on))
