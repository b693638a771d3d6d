# Owns spooled case -> bundle, in a child process of its own: reads the case, has it explained, packs.
# The only writer of bundles. Prints one JSON line: what it wrote.
from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import json
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from agent.errors import AgentError
from agent.forensics import bundle, layout
from agent.forensics.casework import Explained, explained
from agent.forensics.from_events import Gathered, gather
from agent.replay_source import RecordingSource
from agent.sanitize import printable
from probes.confined import Asked, answered, enter, preload
from probes.events import Event
from symbols.safefiles import Folder

_MOST_EVENTS = 1 << 20
_MOST_CASE = 16 << 20


class DiskFull(AgentError):
    """No room for even the least of a bundle."""

    def __init__(self, case: str) -> None:
        super().__init__("the disk is full", detail=f"the case stays in {case}", remedy="free some space")


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
    except DiskFull as error:
        print(f"afterfree: {printable(str(error))}", file=sys.stderr)
        return layout.NO_ROOM
    except (OSError, AgentError, ValueError, RecursionError) as error:
        print(f"afterfree: {printable(str(error))}", file=sys.stderr)
        return 1
    replies.write(json.dumps(answer) + "\n")
    replies.flush()
    return 0


def events_of(path: Path) -> tuple[list[Event], str]:
    """(events of a recording, why they are not all)."""
    try:
        return _events(RecordingSource.open(path))
    except AgentError as error:
        return [], str(error)


def _events(source: RecordingSource) -> tuple[list[Event], str]:
    found: list[Event] = []
    with contextlib.closing(source):
        try:
            while not source.finished and len(found) < _MOST_EVENTS:
                found.extend(source.poll(0))
        except AgentError as error:
            return found, str(error)
    return found, ""


def make(spool: Path, target: Path, *, plain: bool = False) -> dict[str, Any]:
    """Write the bundle `target` from a case, and remove the case. plain: without an explanation.

    Raises OSError, ValueError; DiskFull where not even the least of it finds room: the case stays then.
    """
    with Folder.open(spool.parent) as store, store.folder(spool.name) as held, ExitStack() as stack:
        fd = _kept(held.opened(layout.CASE), stack)
        # a bundler that its killed daemon left behind may still be at it: the one that comes first makes it
        fcntl.flock(fd, fcntl.LOCK_EX)
        if not os.fstat(fd).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "another process has made the bundle", str(spool))
        case = json.loads(held.read(layout.CASE, _MOST_CASE))
        files = {
            name: _kept(held.opened(name), stack)
            for name in (layout.FINDINGS, layout.RECORDING, layout.CAPTURE, layout.CORE)
            if held.has(name)
        }
        scratch = store.scratch(target.name)
        try:
            out = _kept(store.new(scratch), stack)
            name = target.name.removesuffix(layout.SUFFIX)

            def made(asked: Asked) -> dict[str, Any] | None:
                preload()
                lacks = [f"its files were read with more rights than needed: {one}" for one in enter(asked)]
                return _made({**case, "notes": [*case.get("notes", []), *lacks]}, files, out, name, plain)

            answer = answered(made)
            if answer is None:
                raise DiskFull(str(spool))
            os.fsync(out)
            store.rename(scratch, target.name)
            store.sync()
        except OSError as error:
            if error.errno in layout.FULL:
                raise DiskFull(str(spool)) from error
            raise
        finally:
            store.remove(scratch)
        size = os.fstat(out).st_size
        store.remove_all(spool.name)
    return {"path": str(target), "size": size, **answer}


def _kept(fd: int, stack: ExitStack) -> int:
    stack.callback(os.close, fd)
    return fd


def _made(
    case: Mapping[str, Any], files: Mapping[str, int], out: int, name: str, plain: bool
) -> dict[str, Any] | None:
    """Explain the case and pack the bundle into `out`; None where it has no room. files: descriptors of what
    the case holds."""
    notes = [str(note) for note in case.get("notes", [])]
    events: list[Event] = []
    broken = "it is not there"
    if layout.RECORDING in files:
        try:
            file = os.fdopen(os.dup(files[layout.RECORDING]), "rb")
            events, broken = _events(RecordingSource(file, layout.RECORDING))
        except AgentError as error:
            broken = str(error)
    if broken:
        notes.append(f"the recording cannot be read: {broken}")
    gathered = gather(events)
    debug = case.get("configuration", {}).get("debug_file")
    core = files.get(layout.CORE)
    told = Explained() if plain else explained(gathered, events, core=core, debug_file=debug or None)
    if plain:
        notes.append("it could not be explained: the first try died or took too long")
    left_out: list[str] = []
    parts: dict[str, bundle.Content] = {**_parts(gathered, told, case, notes), **files}
    with os.fdopen(os.dup(out), "wb", buffering=0) as bundled:
        if not _packed(parts, bundled, name, case, notes, left_out):
            return None
    return {
        "report": told.text,
        "notes": [*told.notes, *notes, *(f"left out, the disk is full: {name}" for name in left_out)],
        "explained": bool(told.value),
        "key": told.key,
    }


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


def _packed(
    parts: dict[str, bundle.Content],
    out: BinaryIO,
    name: str,
    case: Mapping[str, Any],
    notes: list[str],
    left_out: list[str],
) -> bool:
    """Pack; while the disk is full, once more without the newest detail. Never touches other bundles."""
    giving_up = list(layout.NEWEST_DETAIL_FIRST)
    while True:
        manifest = {
            "schema": layout.SCHEMA,
            **{key: value for key, value in case.items() if key not in ("key", "notes", "whole")},
            "notes": notes,
            "left_out": left_out,
            "files": bundle.listing(parts),
        }
        try:
            bundle.pack({**parts, layout.MANIFEST: _json(manifest)}, out, name)
        except OSError as error:
            if error.errno not in layout.FULL:
                raise
            out.seek(0)
            out.truncate()
            if not _gave_up(parts, giving_up, left_out):
                return False
        else:
            return True


def _gave_up(parts: dict[str, bundle.Content], giving_up: list[str], left_out: list[str]) -> bool:
    """Leave out the next of what may be; False: there is nothing more."""
    while giving_up:
        detail = giving_up.pop(0)
        lost = [name for name in parts if name == detail or name.startswith(f"{detail}/")]
        if lost:
            left_out.append(detail)
            for name in lost:
                del parts[name]
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
