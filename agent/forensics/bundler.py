# Owns spooled case -> bundle, in a child process of its own: reads the case, has it explained, packs.
# The only writer of bundles. Prints one JSON line: what it wrote.
from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.errors import AgentError
from agent.forensics import bundle, layout
from agent.forensics.casework import Explained, explained
from agent.forensics.from_events import Gathered, gather
from agent.replay_source import RecordingSource
from agent.sanitize import printable
from probes.events import Event

_FULL = (28, 122)  # ENOSPC, EDQUOT
_MOST_EVENTS = 1 << 20
_MOST_FINDINGS = 16 << 20


def main() -> int:
    """`bundler SPOOL TARGET [--plain]`: make a bundle of a case, remove the case. 0 when it was written."""
    parser = argparse.ArgumentParser()
    parser.add_argument("spool", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--plain", action="store_true")
    given = parser.parse_args()
    with contextlib.suppress(OSError):
        os.nice(10)
    os.umask(0o077)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        answer = make(given.spool, given.target, plain=given.plain)
    except (OSError, AgentError, ValueError) as error:
        print(f"afterfree: {printable(str(error))}", file=sys.stderr)
        return 1
    replies.write(json.dumps(answer) + "\n")
    replies.flush()
    return 0


def events_of(path: Path) -> tuple[list[Event], str]:
    """(events of a recording, why they are not all)."""
    found: list[Event] = []
    try:
        source = RecordingSource.open(path)
    except AgentError as error:
        return found, str(error)
    with contextlib.closing(source):
        try:
            while not source.finished and len(found) < _MOST_EVENTS:
                found.extend(source.poll(0))
        except AgentError as error:
            return found, str(error)
    return found, ""


def make(spool: Path, target: Path, *, plain: bool = False) -> dict[str, Any]:
    """Write the bundle `target` from a case. plain: without an explanation. Raises OSError, ValueError."""
    with (spool / layout.CASE).open("rb") as file:
        # a bundler that its killed daemon left behind may still be at it: the one that comes first makes it
        fcntl.flock(file, fcntl.LOCK_EX)
        case = json.loads(file.read())
        return _made(spool, target, case, plain)


def _made(spool: Path, target: Path, case: Mapping[str, Any], plain: bool) -> dict[str, Any]:
    notes = [str(note) for note in case.get("notes", [])]
    work = spool / "bundle"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700)
    events, broken = events_of(spool / layout.RECORDING)
    if broken:
        notes.append(f"the recording cannot be read: {broken}")
    gathered = gather(events)
    debug = case.get("configuration", {}).get("debug_file")
    core = _existing(spool / layout.CORE)
    told = Explained() if plain else explained(gathered, events, core=core, debug_file=debug or None)
    if plain:
        notes.append("it could not be explained: the first try died or took too long")
    left_out: list[str] = []
    for name, data in _parts(gathered, told, case, notes).items():
        _put(work / name, data, left_out)
    for name in (layout.FINDINGS, layout.RECORDING, layout.CAPTURE, layout.CORE):
        if (spool / name).exists():
            os.link(spool / name, work / name)
    size = _packed(work, target, case, notes, left_out)
    shutil.rmtree(spool, ignore_errors=True)
    return {
        "path": str(target),
        "size": size,
        "report": told.text,
        "notes": [*told.notes, *notes, *(f"left out, the disk is full: {name}" for name in left_out)],
        "explained": bool(told.value),
        "key": told.key,
    }


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def _parts(
    gathered: Gathered, told: Explained, case: Mapping[str, Any], notes: list[str]
) -> dict[str, bytes]:
    """The files made here, the ones that matter most first."""
    lines = [f"afterfree: crash of {printable(str(case.get('exe', '?')))}, process {case.get('pid')}"]
    text = told.text or "\n".join([*lines, "", *(printable(note) for note in notes)])
    parts = {layout.REPORT: text.encode() + b"\n"}
    if told.value:
        parts[layout.EXPLANATION] = _json(told.value)
    process = gathered.process
    if process is not None:
        parts[layout.MAPS] = process.maps.encode()
        parts |= {f"fdinfo/{epfd}": text.encode() for epfd, text in process.fdinfo.items()}
    parts[layout.THREADS] = _json(told.threads or _threads(gathered))
    parts[layout.SLOTS] = _json(told.slots or _slots(gathered))
    return parts


def _threads(gathered: Gathered) -> list[dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {
        tid: {"tid": tid, "comm": name} for tid, name in gathered.names.items()
    }
    for crash in gathered.crashes[:1]:
        rows[crash.tid] = {
            "tid": crash.tid,
            "comm": crash.comm,
            "crashed": True,
            "registers": {name: hex(value) for name, value in crash.registers.items()},
        }
    return list(rows.values())


def _slots(gathered: Gathered) -> list[dict[str, Any]]:
    return [
        {
            "address": hex(held.slot.addr),
            "generation": held.slot.gen,
            "state": held.slot.state.name.lower(),
            "registers": list(held.registers),
            "in_batch": held.in_batch,
            "bytes": held.memory.hex(),
        }
        for crash in gathered.crashes[:1]
        for held in crash.slots
    ]


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"


def _put(path: Path, data: bytes, left_out: list[str]) -> None:
    """Write one file; on a full disk it is left out, and named."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        layout.write_private(path, data)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        path.unlink(missing_ok=True)
        left_out.append(path.name)


def _packed(work: Path, target: Path, case: Mapping[str, Any], notes: list[str], left_out: list[str]) -> int:
    """Pack; while the disk is full, once more without the newest detail. Never touches other bundles."""
    giving_up = [name for name in layout.NEWEST_DETAIL_FIRST if (work / name).exists()]
    while True:
        manifest = {
            "schema": layout.SCHEMA,
            **{key: value for key, value in case.items() if key not in ("key", "notes", "whole")},
            "notes": notes,
            "left_out": left_out,
            "files": bundle.listing(work),
        }
        try:
            (work / layout.MANIFEST).unlink(missing_ok=True)
            layout.write_private(work / layout.MANIFEST, _json(manifest))
            return bundle.pack(work, target)
        except OSError as error:
            if error.errno not in _FULL or not giving_up:
                raise
            name = giving_up.pop(0)
            left_out.append(name)
            path = work / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    sys.exit(main())
