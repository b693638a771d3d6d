# Owns `afterfree symbols`: the probe plan of an executable, as a table or JSON.
from __future__ import annotations

import json
import sys

import click

from agent.commands.options import debug_file as debug_file_option
from agent.commands.options import no_cache as no_cache_option


@click.command("symbols", short_help="Show what would be probed in an executable.")
@click.argument("exe", type=click.Path())
@click.option("--profile", type=click.Path(), help="Profile file; default: the shipped one that fits.")
@debug_file_option
@no_cache_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["human", "json"]),
    default="human",
    show_default=True,
    help="Output.",
)
@click.option("--suggest", is_flag=True, help="Guess a profile for an unknown program and print it.")
def command(
    *, exe: str, profile: str | None, debug_file: str | None, no_cache: bool, form: str, suggest: bool
) -> int:
    """Show the probe plan of EXE: every place where slots are created, destroyed, disowned and
    dispatched, where the argument is there, and every instance that cannot be probed with its reason."""
    if suggest:
        from symbols.suggest import suggestion  # this process ends right after

        guess = suggestion(exe, debug_file=debug_file)
        if form == "json":
            sys.stdout.write(
                json.dumps({"schema": "afterfree.suggestion/1", **guess.to_dict()}, indent=2) + "\n"
            )
        else:
            sys.stdout.write(guess.text())
        return 0
    from agent.symbolize import SymbolClient

    client = SymbolClient(fresh=no_cache)
    client.begin(exe, profile, debug_file)
    from agent.plan_text import plan_lines  # while the worker comes up, where it is needed
    from agent.text import Printer

    try:
        plan = client.resolve(exe, profile, debug_file)
    finally:
        client.close()
    if form == "json":
        sys.stdout.write(json.dumps({"schema": "afterfree.plan/1", **plan}, indent=2) + "\n")
    else:
        Printer().lines(plan_lines(plan))
    return 0
