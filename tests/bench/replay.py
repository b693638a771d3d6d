"""Events per second through the correlator, over recordings made here and now."""

from __future__ import annotations

import gc
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from agent.correlator.core import Correlator
from agent.replay_source import RecordingSource
from probes.events import Event, LifetimesCounted, RecordsRead
from tests.integration.harness import daemon, load, server

REPEATS = 3


@dataclass(slots=True)
class Speed:
    """Events (stream records and lifetimes count each) per second of processor time of this process."""

    records: int  # of the stream in the recording
    file: float  # the whole recording read and judged, its stream included
    judged: float  # what the kernel side noticed and counted, from memory: everything but records
    judged_events: int


def _record(tmp: Path, mix: str, connections: int, *bug: str) -> Path:
    tmp.mkdir()
    recording = tmp / "recording"
    with server("ReleaseSafe", tmp, *bug) as target:
        command = ("record", "--pid", str(target.pid), "-o", str(recording), "--format", "json")
        with daemon(tmp, *command) as recorder:
            recorder.wait_ready()
            client = load(target.port, mix, connections=connections)
            out, err = client.communicate(timeout=120)
            if client.returncode or not json.loads(out)["responses"]:
                raise RuntimeError(f"the load failed: {err}")
            time.sleep(0.5)
            if recorder.end():
                raise RuntimeError(recorder.said())
    return recording


def _events(recording: Path) -> list[Event]:
    source = RecordingSource.open(recording)
    found: list[Event] = []
    while not source.finished:
        found.extend(source.poll(0))
    source.close()
    return found


def _count(events: list[Event]) -> int:
    """Stream records and lifetimes count each, whatever they came in."""
    total = 0
    for event in events:
        if isinstance(event, RecordsRead):
            total += len(event.records)
        elif isinstance(event, LifetimesCounted):
            total += sum(event.counts.values())
        else:
            total += 1
    return total


def _fed(events: list[Event]) -> float:
    """Seconds of processor time for one pass; a judge of its own each time."""
    judge = Correlator()
    gc.collect()
    began = time.process_time()
    for event in events:
        judge.feed(event)
    return time.process_time() - began


def _read(recording: Path) -> float:
    """The same for a pass over the file."""
    judge = Correlator()
    gc.collect()
    began = time.process_time()
    source = RecordingSource.open(recording)
    while not source.finished:
        for event in source.poll(0):
            judge.feed(event)
    source.close()
    return time.process_time() - began


def _speed(recording: Path) -> Speed:
    events = _events(recording)
    records = sum(len(event.records) for event in events if isinstance(event, RecordsRead))
    noticed = [event for event in events if not isinstance(event, RecordsRead)]
    judged = statistics.median(_fed(noticed) for _ in range(REPEATS))
    file = statistics.median(_read(recording) for _ in range(REPEATS))
    total, few = _count(events), _count(noticed)
    return Speed(records, total / file, few / judged, few)


def measure(tmp: Path, connections: int) -> dict[str, Speed]:
    """clean: the mix of everything that is correct; storm: every fourth connection leaves a stale one."""
    return {
        "clean": _speed(_record(tmp / "clean", "correct", connections)),
        "storm": _speed(
            _record(
                tmp / "storm", "dup", connections // 8,
                "--bug", "dup-outlives-close", "--survive", "--every", "4",
            )
        ),
    }  # fmt: skip
