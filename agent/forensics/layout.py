# Owns the names of what lies in a bundle and in a spooled case, and how private files are written there.
# Light: the daemon imports it. Must not read bundles (agent/forensics/bundle.py does, elsewhere).
from __future__ import annotations

import os
from pathlib import Path

from agent.errors import OutputFailed

SCHEMA = "afterfree.bundle/1"
SUFFIX = ".tar.zst"
MANIFEST = "manifest.json"
RECORDING = "recording.afrec"
FINDINGS = "findings.jsonl"
REPORT = "report.txt"
EXPLANATION = "explanation.json"
THREADS = "threads.json"
SLOTS = "slots.json"
MAPS = "maps"
CORE = "core"
CAPTURE = "capture.json"
CASE = "case.json"  # in a spooled case only: what the manifest takes over

NEWEST_DETAIL_FIRST = (CORE, RECORDING, CAPTURE, SLOTS, THREADS, "fdinfo", MAPS, FINDINGS, EXPLANATION)
"""What is given up, in this order, when the disk is full."""


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable (fsync(2))."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_private(path: Path, data: bytes) -> None:
    """A new file, 0600, durable. Raises OutputFailed on anything but a full disk, OSError on that."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            raise
        raise OutputFailed(
            f"cannot write {path}",
            detail=error.strerror or str(error),
            remedy="name a folder that you may write to: --bundles DIR",
        ) from error
    with os.fdopen(fd, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def replace_private(path: Path, data: bytes) -> None:
    """As write_private; an older file of that name stays whole until the new one is. Raises the same."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    write_private(temporary, data)
    temporary.rename(path)
