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
    """Check every prerequisite of this machine by trying it; exit with 3 when a required one is missing or
    could not be tried."""
    from agent.errors import ExitCode
    from agent.text import Printer
    from probes import preflight

    checks = (*preflight.checks(), preflight.guarded("symbols", _symbols))
    failed = [check for check in checks if not check.ok and (check.required or not check.tried)]
    if form == "json":
        rows = [
            {
                "name": check.name,
                "ok": check.ok,
                "required": check.required,
                "detail": check.detail,
                "remedy": check.remedy,
                "lost": check.lost,
                "tried": check.tried,
            }
            for check in checks
        ]
        value = {"schema": "afterfree.doctor/1", "ok": not failed, "checks": rows}
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
    else:
        Printer().lines(_lines(checks))
    return int(ExitCode.PREREQUISITE if failed else ExitCode.OK)


def _symbols() -> Check:
    """Whether the process that reads debug information has what it needs."""
    from agent.errors import AgentError
    from agent.symbolize import SymbolClient
    from probes.preflight import Check

    said: list[str] = []
    client = SymbolClient(on_notice=said.append)
    try:
        client.hello()
    except AgentError as error:
        return Check(
            name="symbols",
            ok=False,
            required=True,
            detail=f"{error.title}: {error.detail}",
            remedy="make setup",
            lost="resolving what to probe",
        )
    finally:
        client.close()
    detail = "; ".join(["the symbol worker answers", *said])
    return Check(name="symbols", ok=True, required=True, detail=detail)


def _lines(checks: Sequence[Check]) -> list[Line]:
    from agent.sanitize import printable
    from agent.text import Span, line

    width = max((len(check.name) for check in checks), default=0)
    rows = []
    for check in checks:
        word, style = _word(check)
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
    rows.append(line(""))
    rows.append(_verdict(checks))
    return rows


def _word(check: Check) -> tuple[str, str]:
    if check.ok:
        return "ok", "good"
    if not check.tried:
        return "UNKNOWN", "high"
    return ("MISSING", "high") if check.required else ("absent", "warning")


def _verdict(checks: Sequence[Check]) -> Line:
    from agent.text import Span, line

    def are(count: int, what: str) -> str:
        return f"{count} {what}{'s are' if count > 1 else ' is'}"

    missing = sum(1 for check in checks if check.required and not check.ok and check.tried)
    unknown = sum(1 for check in checks if not check.ok and not check.tried)
    absent = sum(1 for check in checks if not check.required and not check.ok and check.tried)
    parts = []
    if missing:
        parts.append(f"{are(missing, 'required prerequisite')} missing")
    if unknown:
        parts.append(f"{unknown} could not be checked: whether this machine can run afterfree is not known")
    if parts:
        return line(Span("; ".join(parts), "high"))
    extra = f"; {are(absent, 'optional one')} absent" if absent else ""
    return line(Span(f"this machine can run afterfree{extra}", "good"))
