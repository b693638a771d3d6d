# Owns the verdicts: facts in, findings out. Pure: no clock, no I/O, no logging, no rich.
# Time enters only as event timestamps or as an explicit Tick.
from __future__ import annotations

from agent.correlator.core import Correlator, CorrelatorOptions, Stats
from agent.correlator.findings import (
    Actor,
    BadFindingError,
    CallSite,
    Candidate,
    Confidence,
    Finding,
    RuleId,
    Severity,
)

__all__ = [
    "Actor",
    "BadFindingError",
    "CallSite",
    "Candidate",
    "Confidence",
    "Correlator",
    "CorrelatorOptions",
    "Finding",
    "RuleId",
    "Severity",
    "Stats",
]
