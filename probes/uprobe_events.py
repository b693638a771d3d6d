# Owns what bcc left of ours in tracefs: it made an event there when a process ended while it was attached to,
# and did not take it back. Removes those of creators that are gone, and nobody else's.
from __future__ import annotations

import os
import re
from pathlib import Path

from probes.tracefs import ROOTS

_FILE = "uprobe_events"
_OURS = re.compile(r"p:(uprobes/af_[0-9a-f]+_-?\d+_bcc_(\d+)) ")
"""We named them af_OFFSET_PID, and bcc appended who made them (libbpf.c: create_probe_event)."""
_MOST = 1 << 20  # bytes


def left(proc: Path = Path("/proc"), roots: tuple[Path, ...] = ROOTS) -> tuple[str, ...]:
    """Names of events that processes of ours made which do not live any more."""
    for root in roots:
        try:
            with (root / _FILE).open(encoding="utf-8", errors="replace") as file:
                found = [_OURS.match(line) for line in file.read(_MOST).splitlines()]
        except OSError:
            continue
        return tuple(match[1] for match in found if match is not None and not (proc / match[2]).exists())
    return ()


def remove(names: tuple[str, ...], roots: tuple[Path, ...] = ROOTS) -> int:
    """How many of them are gone now; one that is in use stays (EBUSY)."""
    gone = 0
    for root in roots:
        if not (root / _FILE).exists():
            continue
        for name in names:
            try:
                # one line per write; to truncate the file asks for the removal of everyone's (trace_uprobe.c)
                fd = os.open(root / _FILE, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                try:
                    os.write(fd, f"-:{name}\n".encode())
                finally:
                    os.close(fd)
                gone += 1
            except OSError:
                continue
        break
    return gone
