# Owns how numbers, names and styled lines are written for people. Must not know findings or events.
from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple, TextIO

from agent.sanitize import printable


class Span(NamedTuple):
    """A piece of a line; style is a key of STYLES. The text is already printable."""

    text: str
    style: str = ""


Line = tuple[Span, ...]

STYLES = {
    "critical": "bold white on red",
    "high": "bold red",
    "warning": "bold yellow",
    "info": "bold cyan",
    "label": "bold",
    "dim": "dim",
    "source": "cyan",
    "good": "green",
}


def line(*parts: str | Span) -> Line:
    return tuple(part if isinstance(part, Span) else Span(part) for part in parts)


def plain(lines: Iterable[Line]) -> str:
    """The lines without styles, each ending in a newline."""
    return "".join("".join(span.text for span in row).rstrip() + "\n" for row in lines)


def wants_colour(stream: TextIO) -> bool:
    """https://no-color.org: NO_COLOR set and not empty switches colour off; a pipe gets none either."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    try:
        return stream.isatty()
    except ValueError:
        return False


class Printer:
    """Draws lines on a stream: styled with rich on a terminal, plain otherwise."""

    def __init__(self, stream: TextIO | None = None, *, colour: bool | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._colour = wants_colour(self._stream) if colour is None else colour
        self._console: Any = None

    def lines(self, rows: Iterable[Line]) -> None:
        """Print and flush. Raises BrokenPipeError and other OSErrors of the stream."""
        if not self._colour:
            self._stream.write(plain(rows))
            self._stream.flush()
            return
        # rich costs 10 MB: only a daemon on a terminal pays for it.
        from rich.console import Console
        from rich.text import Text

        if self._console is None:
            self._console = Console(
                file=self._stream, highlight=False, markup=False, emoji=False, soft_wrap=True
            )
        for row in rows:
            text = Text()
            for span in row:
                text.append(span.text, style=STYLES.get(span.style, ""))
            self._console.print(text)

    def text(self, text: str) -> None:
        """Print one unstyled line of our own words (values in it already printable)."""
        self.lines([line(text)])


def duration(ns: int | float) -> str:
    """Nanoseconds with three significant digits and a unit: "812 µs", "3.43 ms", "2.0 h"."""
    sign = "-" if ns < 0 else ""
    value = abs(float(ns))
    for unit, size in (("ns", 1.0), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)):
        scaled = value / size
        if scaled < 999.5 and not (unit == "s" and scaled >= 119.5):
            return f"{sign}{_three(scaled)} {unit}"
    for unit, size in (("min", 6e10), ("h", 3.6e12)):
        scaled = value / size
        if unit == "h" or scaled < 119.5:
            return f"{sign}{scaled:.1f} {unit}"
    return f"{sign}{value:.0f} ns"


def _three(value: float) -> str:
    if value >= 99.5 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def since(ts: int, start: int) -> str:
    """Seconds with microseconds from `start`: "12.345678 s"; before it: "-0.000120 s"."""
    return f"{(ts - start) / 1e9:.6f} s"


def number(value: float) -> str:
    """With thousands separators; one decimal below 100 unless whole."""
    if isinstance(value, int) or value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.1f}"


def counted(count: int, one: str, many: str = "") -> str:
    """A number and its noun: "1 free", "1,234 frees"; many: of nouns that take no mere s."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def total(count: int, at_least: bool) -> str:
    """How often: exact, or a lower bound that says so."""
    return f"at least {number(count)}" if at_least else number(count)


def short_name(name: str, most: int = 64) -> str:
    """A function's name for a narrow column: long generic arguments become (…), the tail is kept."""
    text = printable(name)
    while len(text) > most:
        shorter = re.sub(r"\((?!…\))[^()]{3,}\)", "(…)", text, count=1)
        shorter = (
            re.sub(r"\((?:\(…\)|[^()])*\(…\)(?:\(…\)|[^()])*\)", "(…)", shorter)
            if shorter == text
            else shorter
        )
        if shorter == text:
            break
        text = shorter
    return text if len(text) <= most else "…" + text[-(most - 1) :]


def table(
    header: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, right: tuple[int, ...] = ()
) -> list[Line]:
    """Aligned columns; `right` names the columns that hold numbers. Cells are made printable."""
    cells = [tuple(printable(cell) for cell in row) for row in rows]
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]

    def joined(row: tuple[str, ...]) -> str:
        parts = [
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(parts).rstrip()

    return [line("  ", Span(joined(header), "label")), *(line("  ", joined(row)) for row in cells)]
