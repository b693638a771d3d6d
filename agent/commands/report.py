# Owns `afterfree report`: a bundle is opened, checked, and its explanation shown again, offline.
from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click


@click.command("report", short_help="Show what a crash bundle says, offline.")
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--exe",
    type=click.Path(path_type=Path),
    help="Explain anew from this executable's debug information, instead of showing what was written.",
)
@click.option("--debug-file", type=click.Path(), help="Separate debug file of --exe.")
@click.option(
    "--form", "--format", "form", type=click.Choice(["human", "json"]), default="human", show_default=True
)
def command(*, path: Path, exe: Path | None, debug_file: str | None, form: str) -> int:
    """Show what a crash bundle says.

    \b
      afterfree report crash-20261122T101500Z-server-4711.tar.zst
      afterfree report crash-….tar.zst --exe ./server      (explain anew)
      afterfree report crash-….tar.zst --format json
    """
    from agent.errors import ExitCode
    from agent.forensics import bundle
    from agent.forensics.reread import reread

    with tempfile.TemporaryDirectory(prefix="afterfree-report-") as scratch:
        opened = bundle.open_bundle(path, Path(scratch))
        told = reread(opened, exe=exe, debug_file=debug_file)
        if form == "json":
            value: dict[str, Any] = {
                "schema": "afterfree.report/1",
                "manifest": dict(opened.manifest),
                "damaged": list(opened.damaged),
                "explanation": told.value or None,
            }
            click.echo(json.dumps(value))
        else:
            click.echo(told.text)
            for note in told.notes:
                click.echo(f"  {note}", err=True)
    return int(ExitCode.RUNTIME if opened.damaged else ExitCode.OK)
