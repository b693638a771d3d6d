"""Says how many orders the tests of this folder tried, at the end of the run."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    total = sum(
        int(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, value in report.user_properties
        if name == "interleavings"
    )
    if total:
        terminalreporter.write_line(f"interleavings tried: {total:,}")
