# Owns the options that several commands share. Must not do anything with them.
from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from agent.stopping import Stop

F = TypeVar("F", bound=Callable[..., Any])

SEVERITIES = ("info", "warning", "high", "critical")


class Size(click.ParamType[int]):
    """Bytes with an optional unit: 500M, 2G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,12})\s*([kKmMgG]?)(?:i?[bB])?", str(value).strip())
        if match is None or int(match.group(1)) == 0:
            self.fail(f"{value!r} is not a size such as 500M or 2G", param, ctx)
        return int(match.group(1)) << {"": 0, "k": 10, "m": 20, "g": 30}[match.group(2).lower()]


class Whole(click.IntRange):
    """A whole number within limits; what is none is told in words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"{value!r} is not a whole number{_within(self.min, self.max)}", param, ctx)


class Seconds(click.FloatRange):
    """A time within limits; what is none is told in words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return float(super().convert(value, param, ctx))
        except click.BadParameter:
            limits = " above 0" if self.min_open else _within(self.min, self.max)
            self.fail(f"{value!r} is not a number of seconds{limits}", param, ctx)


def _within(least: float | None, most: float | None) -> str:
    if least is None:
        return ""
    return f" of at least {least:,}" if most is None else f" from {least:,} to {most:,}"


def _stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


debug_file = click.option(
    "--debug-file", type=click.Path(), help="Separate debug file, when the executable is stripped."
)


no_cache = click.option(
    "--no-cache", is_flag=True, help="Resolve the probe plan anew: neither read nor write the plan cache."
)


def targets(function: F) -> F:
    """--pid, --exe, --unit, --profile, --debug-file, --no-cache, --duration."""
    return _stack(
        click.option("--pid", "pids", type=Whole(1), multiple=True, help="Watch this process (repeatable)."),
        click.option(
            "--exe",
            "exes",
            type=click.Path(),
            multiple=True,
            help="Watch every process of this program, now and later, through restarts and upgrades.",
        ),
        click.option(
            "--unit",
            "units",
            multiple=True,
            help="Watch the processes of this systemd unit, and of their programs, now and later.",
        ),
        click.option(
            "--profile", type=click.Path(), help="Profile file; default: the shipped one that fits."
        ),
        debug_file,
        no_cache,
        click.option("--duration", type=Seconds(0, min_open=True), help="End after that many seconds."),
    )(function)


def verdicts(function: F) -> F:
    """--format, --findings, --fail-on."""
    return _stack(
        click.option(
            "--format",
            "form",
            type=click.Choice(["human", "json"]),
            default="human",
            show_default=True,
            help="json: one line per finding on standard output.",
        ),
        click.option(
            "--findings", type=click.Path(path_type=Path), help="Also write findings as JSON lines."
        ),
        click.option(
            "--fail-on", type=click.Choice(SEVERITIES), help="Exit with 10 when a finding is that severe."
        ),
    )(function)


def crashes(function: F) -> F:
    """What is kept of a crash: --bundles and its limits, --redact, --capture and its limits."""
    return _stack(
        click.option(
            "--bundles",
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder for crash bundles.  [default: /var/lib/afterfree/bundles]",
        ),
        click.option(
            "--capture",
            type=click.Choice(["never", "on-suspicion", "always"]),
            default="on-suspicion",
            show_default=True,
            help="When to seize a target (ptrace) so that its crash leaves a mini core. Nothing stops before "
            "a fatal signal.",
        ),
        click.option(
            "--freeze-max",
            type=Seconds(0.01, 60.0),
            default=2.0,
            show_default=True,
            help="Seconds that a crashing target may stand still for its mini core.",
        ),
        click.option(
            "--core-size", type=Size(), default="64M", show_default=True, help="Limit of one mini core."
        ),
        click.option("--no-bundles", is_flag=True, help="Report crashes without keeping a bundle."),
        click.option(
            "--bundles-keep",
            type=Whole(1, 10_000),
            default=20,
            show_default=True,
            help="Keep so many bundles; the oldest goes first.",
        ),
        click.option(
            "--bundles-size",
            type=Size(),
            default="2G",
            show_default=True,
            help="Keep so many bytes of bundles.",
        ),
        click.option(
            "--redact",
            is_flag=True,
            help="Leave memory out of bundles, but for registers, return addresses and slots.",
        ),
    )(function)


def limits(function: F) -> F:
    """--max-processes, --max-threads, --max-slots: sizes of the kernel side's tables."""
    return _stack(
        click.option(
            "--max-processes",
            type=Whole(16, 1 << 17),
            default=4096,
            show_default=True,
            help="Watch so many processes of a program at once; those beyond are counted.",
        ),
        click.option(
            "--max-threads",
            type=Whole(64, 1 << 20),
            default=8192,
            show_default=True,
            help="Follow so many of their threads at once; those beyond are counted.",
        ),
        click.option(
            "--max-slots",
            type=Whole(64, 1 << 22),
            help="Follow so many slots of a program; freed ones make room first.  [default: twice the open "
            "descriptors, at least 32,768]",
        ),
    )(function)


max_size = click.option(
    "--max-size", type=Size(), default="4G", show_default=True, help="Stop recording at that many bytes."
)


def stop() -> Stop:
    """What signals do to a run; until the end of the process where that is the end of the command."""
    from agent.stopping import Stop

    context = click.get_current_context(silent=True)
    return Stop(lasting=context is not None and context.find_root().obj is True)
