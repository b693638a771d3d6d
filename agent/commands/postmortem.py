# Owns `afterfree postmortem`: the explanation of a crash from an ordinary core, when nothing was watching.
from __future__ import annotations

import json
import sys

import click

from agent.commands.options import debug_file as debug_file_option


@click.command("postmortem", short_help="Explain a crash from a core file.")
@click.argument("core", type=click.Path())
@click.option("--exe", required=True, type=click.Path(), help="The executable that crashed.")
@click.option("--profile", type=click.Path(), help="Profile file; default: the shipped one that fits.")
@debug_file_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["human", "json"]),
    default="human",
    show_default=True,
    help="Output.",
)
def command(*, core: str, exe: str, profile: str | None, debug_file: str | None, form: str) -> int:
    """Explain a crash from CORE, a core file of the kernel or of gcore: which field of which slot faulted,
    where the pointer came from, whether the slot is on its pool's free list, and what a core cannot tell."""
    # This process ends right after: it reads debug information itself.
    from agent.forensics.postmortem import explain_core
    from agent.forensics.render import text
    from agent.text import Printer

    item = explain_core(core, exe, profile=profile, debug_file=debug_file)
    if form == "json":
        sys.stdout.write(json.dumps(item.to_json(), indent=2) + "\n")
    else:
        Printer().lines(text(item))
    return 0
