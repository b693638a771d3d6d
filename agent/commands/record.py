# Owns `afterfree record`: a live run that keeps everything it consumed.
from __future__ import annotations

from pathlib import Path

import click

from agent.commands import options


@click.command("record", short_help="Record everything for a later replay.")
@options.targets
@options.verdicts
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The recording, written 0600."
)
@options.max_size
@options.limits
@click.option(
    "--stream/--no-stream",
    default=True,
    show_default=True,
    help="Include every stream record (needed for the timeline in replay).",
)
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
    output: Path,
    max_size: int,
    stream: bool,
    max_processes: int,
    max_threads: int,
    max_slots: int | None,
) -> int:
    """Record everything that is seen, and judge it meanwhile; `afterfree replay` judges it again.

    \b
      afterfree record --exe /usr/local/bin/server -o run.afrec --duration 60
    """
    from agent.commands.live import LiveOptions, run_live, threshold
    from agent.errors import ExitCode, RecordingError
    from agent.supervisor import Wanted

    outcome = run_live(
        LiveOptions(
            wanted=Wanted(pids=pids, exes=exes, units=units, profile=profile, debug_file=debug_file),
            fresh=no_cache,
            form=form,
            brief=True,
            findings=findings,
            record=output,
            max_size=max_size,
            duration=duration,
            max_processes=max_processes,
            max_threads=max_threads,
            max_slots=max_slots or 0,
            stream=stream,
            full_lifetimes=True,
        )
    )
    code = outcome.exit_code(threshold(fail_on))
    if code == ExitCode.RUNTIME and outcome.unrecorded:
        raise RecordingError(
            "the recording is not whole",
            detail=outcome.unrecorded,
            remedy="free some space, or record to another disk: afterfree record … -o FILE",
        )
    return code
