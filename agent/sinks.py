# Owns where findings go: the console, JSON lines. A sink that fails says so once and is counted.
# Must not judge; gets complete exhibits only.
from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol, TextIO

from agent import report
from agent.correlator.findings import Confidence, Severity
from agent.exhibit import Answers, CrashExhibit, Exhibit
from agent.forensics.desk import BundleDone
from agent.recording import private_file
from agent.text import Line, Printer, Span, line
from symbols.safefiles import append


class Sink(Protocol):
    """Takes findings in the order in which they fired."""

    failures: int  # writes that did not succeed

    def early(self, item: Exhibit | CrashExhibit) -> None:
        """It fired, and its symbols take their time: `finding` or `crash` follows with them."""
        ...

    def finding(self, item: Exhibit, answers: Answers) -> None: ...

    def crash(self, item: CrashExhibit, answers: Answers) -> None: ...

    def bundle(self, done: BundleDone) -> None: ...

    def close(self) -> None: ...


class ConsoleSink:
    """Reports for people. Raises BrokenPipeError when the reader is gone, which ends the run."""

    def __init__(self, printer: Printer, *, brief: bool = False) -> None:
        """brief: one line per finding instead of a report."""
        self.failures = 0
        self._printer = printer
        self._brief = brief
        self._told: list[
            Exhibit | CrashExhibit
        ] = []  # early, in order; what follows on them is still to come

    def early(self, item: Exhibit | CrashExhibit) -> None:
        if isinstance(item, CrashExhibit):
            self._told.append(item)
            self._printer.lines(report.crash_early(item))
        elif not _not_judged(item):
            self._told.append(item)
            self._printer.lines([brief(item)] if self._brief else report.early(item))

    def finding(self, item: Exhibit, answers: Answers) -> None:
        told = self._was_told(item)
        if _not_judged(item):
            return
        if item.finding.update:
            self._printer.lines(report.update(item.finding))
        elif self._brief:
            self._printer.lines([] if told else [brief(item)])
        else:
            self._printer.lines(report.report(item, answers, told=told))

    def crash(self, item: CrashExhibit, answers: Answers) -> None:
        self._printer.lines(report.crash(item, answers, told=self._was_told(item)))

    def _was_told(self, item: Exhibit | CrashExhibit) -> bool:
        told = bool(self._told) and self._told[0] is item
        if told:
            del self._told[0]
        return told

    def bundle(self, done: BundleDone) -> None:
        self._printer.lines(report.bundle(done))

    def close(self) -> None:
        """The stream belongs to the caller."""


def _not_judged(item: Exhibit) -> bool:
    """The summary says how often."""
    return item.finding.severity is Severity.INFO and item.finding.confidence is Confidence.UNCERTAIN


class JsonConsoleSink:
    """JSON lines on standard output. Crashes go to standard error: a script reads findings only."""

    def __init__(self, stream: TextIO | None = None, notices: Printer | None = None) -> None:
        self.failures = 0
        self._stream = stream if stream is not None else sys.stdout
        self._notices = notices or Printer(sys.stderr)

    def early(self, item: Exhibit | CrashExhibit) -> None:
        """A script gets each finding once, with its symbols: as in a replay."""

    def finding(self, item: Exhibit, answers: Answers) -> None:
        self._stream.write(json_line(item, answers) + "\n")
        self._stream.flush()

    def crash(self, item: CrashExhibit, answers: Answers) -> None:
        self._notices.lines(report.crash(item, answers))

    def bundle(self, done: BundleDone) -> None:
        self._notices.lines(report.bundle(done))

    def close(self) -> None:
        """The stream belongs to the caller."""


class JsonFileSink:
    """JSON lines in a file, 0600. A full disk is reported once; the run goes on."""

    def __init__(self, path: Path, on_notice: Callable[[str], None]) -> None:
        """Raises OutputFailed."""
        self.failures = 0
        self._path = path
        self._notice = on_notice
        self._file: BinaryIO = private_file(path)

    def early(self, item: Exhibit | CrashExhibit) -> None:
        """As JsonConsoleSink."""

    def finding(self, item: Exhibit, answers: Answers) -> None:
        try:
            append(self._file, json_line(item, answers).encode() + b"\n")
        except (OSError, ValueError) as error:
            self.failures += 1
            if self.failures == 1:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                self._notice(f"{self._path} cannot be written: {reason}. Findings go on without it.")

    def crash(self, item: CrashExhibit, answers: Answers) -> None:
        """Not a finding."""

    def bundle(self, done: BundleDone) -> None:
        """Not a finding."""

    def close(self) -> None:
        try:
            self._file.close()
        except OSError:
            self.failures += 1


def json_line(item: Exhibit, answers: Answers) -> str:
    """The line of one finding, without the newline; the same bytes live and in replay."""
    return json.dumps(item.to_json(answers), separators=(",", ":"))


def brief(item: Exhibit) -> Line:
    """One line for one finding."""
    finding = item.finding
    kind = f" ({finding.sub_class})" if finding.sub_class else ""
    return line(
        Span(f" {finding.severity.label.upper()} ", finding.severity.label),
        f" {finding.rule}{kind} #{finding.group}  slot {finding.slot:#x} generation {finding.generation}  "
        f"target {finding.tgid}",
    )
