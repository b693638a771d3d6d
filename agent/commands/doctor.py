# Owns `afterfree doctor`: every prerequisite, each failure with its remedy and what is lost without it.
from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.text import Line
    from probes.preflight import Check


@click.command("doctor", short_help="Check every prerequisite of this machine.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["human", "json"]),
    default="human",
    show_default=True,
    help="Output.",
)
def command(*, form: str) -> int:
    """Check every prerequisite of this machine; exit with 3 when a required one is missing."""
    from agent.errors import ExitCode
    from agent.text import Printer
    from probes import preflight

    checks = preflight.checks()
    failed = [check for check in checks if check.required and not check.ok]
    if form == "json":
        rows = [
            {
                "name": check.name,
                "ok": check.ok,
                "required": check.required,
                "detail": check.detail,
                "remedy": check.remedy,
                "lost": check.lost,
            }
            for check in checks
        ]
        value = {"schema": "afterfree.doctor/1", "ok": not failed, "checks": rows}
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
    else:
        Printer().lines(_lines(checks))
    return int(ExitCode.PREREQUISITE if failed else ExitCode.OK)


def _lines(checks: Sequence[Check]) -> list[Line]:
    from agent.sanitize import printable
    from agent.text import Span, line

    width = max((len(check.name) for check in checks), default=0)
    rows = []
    for check in checks:
        word, style = (
            ("ok", "good") if check.ok else (("MISSING", "high") if check.required else ("absent", "warning"))
        )
        rows.append(
            line(
                " ",
                Span(word.ljust(8), style),
                printable(check.name).ljust(width),
                "  ",
                printable(check.detail),
            )
        )
        if not check.ok:
            if check.lost:
                rows.append(line(" " * 11, Span("lost without it: ", "dim"), printable(check.lost)))
            rows += [
                line(" " * 11, Span("next: ", "label"), printable(text)) for text in check.remedy.splitlines()
            ]
    failed = sum(1 for check in checks if check.required and not check.ok)
    absent = sum(1 for check in checks if not check.required and not check.ok)
    rows.append(line(""))
    if failed:
        rows.append(
            line(Span(f"{failed} required prerequisite{'s are' if failed > 1 else ' is'} missing", "high"))
        )
    else:
        extra = f"; {absent} optional one{'s are' if absent != 1 else ' is'} absent" if absent else ""
        rows.append(line(Span(f"this machine can run afterfree{extra}", "good")))
    return rows
