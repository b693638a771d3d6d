# Owns writing a case down before anything else happens to it: the daemon may be killed at any moment, and
# explaining takes seconds. agent/forensics/bundler.py makes a bundle of it. Must not load symbols/' readers.
from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent import __version__
from agent.forensics import layout
from agent.forensics.case import Case
from agent.recording import RecordingWriter
from probes.events import CountersRead
from symbols.safefiles import Folder

_MOST_CASE = 4 << 20


def write(folder: Path, case: Case, configuration: Mapping[str, Any]) -> tuple[str, ...]:
    """Write a case into a folder, 0700, or what has become of it over what was written before.

    `case.json` comes last: without it nothing in the folder counts. Every file is replaced in one step, so
    that the case can be read at any moment from the first one on. Where the disk is full, the newest detail
    is given up: the mini core, then the recording. Returns the names of what was. Raises OSError; then
    nothing is left of a new case, and an older state stays.
    """
    given_up: list[str] = []
    with Folder.open(folder.parent) as parent:
        try:
            with parent.folder(folder.name, make=True) as held:
                while True:
                    try:
                        _write(held, case, configuration, given_up)
                        return tuple(given_up)
                    except OSError as error:
                        if error.errno not in layout.FULL or not _gave_up(held, case, given_up):
                            raise
        except BaseException:
            if not _complete(parent, folder.name):
                parent.remove_all(folder.name)
            raise


def _complete(parent: Folder, name: str) -> bool:
    try:
        with parent.folder(name) as held:
            return held.has(layout.CASE)
    except OSError:
        return False


def _gave_up(held: Folder, case: Case, given_up: list[str]) -> bool:
    """Make room with what matters least; False: there is nothing more."""
    if layout.CORE not in given_up and (case.core or held.has(layout.CORE)):
        held.remove(layout.CORE)
        if case.core:
            Path(case.core).unlink(missing_ok=True)
            case.core = ""
        given_up.append(layout.CORE)
        return True
    if layout.RECORDING not in given_up:
        given_up.append(layout.RECORDING)
        return True
    return False


def unfinished(folder: Path) -> tuple[int, int] | None:
    """(pid, start time) of a case without findings whose process had not ended when it was written."""
    try:
        with Folder.open(folder) as held:
            value = json.loads(held.read(layout.CASE, _MOST_CASE))
            if value["whole"] or held.stat(layout.FINDINGS).st_size:
                return None
            return int(value["pid"]), int(value["start_time"])
    except (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return None


def _write(held: Folder, case: Case, configuration: Mapping[str, Any], given_up: list[str]) -> None:
    notes = [*case.notes, *(f"left out, the disk is full: {name}" for name in given_up)]
    if layout.RECORDING not in given_up:
        _write_recording(held, case, configuration, notes)
    lines = "".join(f"{line}\n" for line in case.findings)
    held.replace(layout.FINDINGS, lines.encode())
    if case.core:
        with contextlib.suppress(OSError):
            os.rename(case.core, layout.CORE, dst_dir_fd=held.fd)
        if not held.has(layout.CORE):
            notes.append("the mini core could not be taken over")
    if case.capture:
        held.replace(layout.CAPTURE, json.dumps(case.capture, indent=1).encode())
    counters = next((event for event in case.events if isinstance(event, CountersRead)), None)
    uname = platform.uname()
    value = {
        "key": case.key,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "pid": case.crash.tgid,
        "start_time": case.target.start_time,
        "whole": case.whole,
        "tid": case.crash.tid,
        "comm": case.crash.comm,
        "signal": case.crash.signal,
        "fault_address": case.crash.fault_addr,
        "exe": case.target.exe,
        "identity": str(case.target.plan.get("identity", "")),
        "profile": str(case.target.plan.get("profile", "")),
        "kernel": f"{uname.system} {uname.release} {uname.machine}",
        "host": uname.node,
        "afterfree": __version__,
        "python": platform.python_version(),
        "configuration": dict(configuration),
        "counters": dict(counters.counters) if counters is not None else {},
        "notes": notes,
    }
    held.replace(layout.CASE, json.dumps(value).encode())
    held.sync()


def _write_recording(held: Folder, case: Case, configuration: Mapping[str, Any], notes: list[str]) -> None:
    scratch = held.scratch(layout.RECORDING)
    try:
        file = os.fdopen(held.new(scratch), "wb", buffering=0)
        path = Path(held.where(layout.RECORDING))
        writer = RecordingWriter(file, path=path, max_size=0, options={"crash": True, **configuration})
        for event in case.events:
            writer.write(event)
        writer.close({"findings": len(case.findings)})
        if writer.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if writer.notice:
            notes.append(f"the recording is not whole: {writer.notice}")
        else:
            held.rename(scratch, layout.RECORDING)
    finally:
        held.remove(scratch)
