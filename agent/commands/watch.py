# Owns `afterfree watch`: options in, run_live, exit code out.
from __future__ import annotations

from pathlib import Path

import click

from agent.commands import options


@click.command("watch", short_help="Watch processes and report findings as they happen.")
@options.targets
@options.verdicts
@options.crashes
@click.option(
    "--timeline", is_flag=True, help="Also print every event as a line: who did what to which slot."
)
@click.option(
    "--timeline-rate",
    type=options.Whole(1, 100_000),
    default=200,
    show_default=True,
    help="Lines per second of the timeline; what is left out is counted.",
)
@click.option("--record", type=click.Path(path_type=Path), help="Keep a recording for `afterfree replay`.")
@options.max_size
@options.limits
def command(
    *,
    pids: tuple[int, ...],
    exes: tuple[str, ...],
    units: tuple[str, ...],
    profile: str | None,
    debug_file: str | None,
    no_cache: bool,
    duration: float | None,
    form: str,
    findings: Path | None,
    fail_on: str | None,
    timeline: bool,
    timeline_rate: int,
    record: Path | None,
    max_size: int,
    bundles: Path | None,
    no_bundles: bool,
    bundles_keep: int,
    bundles_size: int,
    redact: bool,
    capture: str,
    freeze_max: float,
    core_size: int,
    max_processes: int,
    max_threads: int,
    max_slots: int | None,
) -> int:
    """Watch processes and report findings as they happen.

    \b
      afterfree watch --pid 4711
      afterfree watch --exe /usr/local/bin/server --fail-on high --format json
    """
    from agent.commands.live import CrashOptions, LiveOptions, run_live, threshold
    from agent.errors import Misused
    from agent.forensics.store import Limits
    from agent.supervisor import Wanted

    if timeline and form == "json":
        raise Misused("--timeline and --format json both want standard output", remedy="use --findings FILE")
    crashes = CrashOptions(
        bundles=bundles,
        limits=Limits(most=bundles_keep, size=bundles_size, core=core_size),
        redact=redact,
        capture=capture,
        freeze_max=freeze_max,
    )
    outcome = run_live(
        LiveOptions(
            wanted=Wanted(pids=pids, exes=exes, units=units, profile=profile, debug_file=debug_file),
            fresh=no_cache,
            form=form,
            findings=findings,
            record=record,
            max_size=max_size,
            duration=duration,
            max_processes=max_processes,
            max_threads=max_threads,
            max_slots=max_slots or 0,
            timeline=timeline,
            lines_per_second=timeline_rate,
            crashes=None if no_bundles else crashes,
        )
    )
    return outcome.exit_code(threshold(fail_on))
