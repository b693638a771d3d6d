# Owns writing a case down before anything else happens to it: the daemon may be killed at any moment, and
# explaining takes seconds. agent/forensics/bundler.py makes a bundle of it. Must not load symbols/' readers.
from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent import __version__
from agent.forensics import layout
from agent.forensics.case import Case
from agent.recording import RecordingWriter
from probes.events import CountersRead


def write(folder: Path, case: Case, configuration: Mapping[str, Any]) -> None:
    """Write a case into a folder, 0700, or what has become of it over what was written before.

    `case.json` comes last: without it nothing in the folder counts. Every file is replaced in one step, so
    that the case can be read at any moment from the first one on. Raises OSError, OutputFailed; then nothing
    is left of a new case, and an older state stays.
    """
    new = not (folder / layout.CASE).exists()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        _write(folder, case, configuration)
    except BaseException:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def unfinished(folder: Path) -> tuple[int, int] | None:
    """(pid, start time) of a case without findings whose process had not ended when it was written."""
    try:
        value = json.loads((folder / layout.CASE).read_bytes())
        if value["whole"] or (folder / layout.FINDINGS).stat().st_size:
            return None
        return int(value["pid"]), int(value["start_time"])
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _write(folder: Path, case: Case, configuration: Mapping[str, Any]) -> None:
    notes = list(case.notes)
    recording = folder / f"{layout.RECORDING}.tmp"
    writer = RecordingWriter.open(recording, options={"crash": True, **configuration})
    for event in case.events:
        writer.write(event)
    writer.close({"findings": len(case.findings)})
    if writer.notice:
        notes.append(f"the recording is not whole: {writer.notice}")
        recording.unlink(missing_ok=True)
    else:
        recording.rename(folder / layout.RECORDING)
    lines = "".join(f"{line}\n" for line in case.findings)
    layout.replace_private(folder / layout.FINDINGS, lines.encode())
    if case.core:
        with contextlib.suppress(OSError):
            os.rename(case.core, folder / layout.CORE)
        if not (folder / layout.CORE).exists():
            notes.append("the mini core could not be taken over")
    if case.capture:
        layout.replace_private(folder / layout.CAPTURE, json.dumps(case.capture, indent=1).encode())
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
    layout.replace_private(folder / layout.CASE, json.dumps(value).encode())
    layout.sync_folder(folder)
