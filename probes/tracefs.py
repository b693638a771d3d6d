# Owns one thing: that tracefs is mounted where perf and bcc look for it.
from __future__ import annotations

import ctypes
import os
from pathlib import Path

from probes.errors import TracefsUnavailable

ROOTS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))


def mounted() -> bool:
    return any((root / "events" / "syscalls").is_dir() for root in ROOTS)


def ensure_mounted() -> bool:
    """Mount tracefs at /sys/kernel/tracing unless it is there. True when this call mounted it.

    Raises TracefsUnavailable with what mount(2) said.
    """
    if mounted():
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    target = ROOTS[0]
    if libc.mount(b"tracefs", str(target).encode(), b"tracefs", 0, None) != 0:
        error = ctypes.get_errno()
        raise TracefsUnavailable(f"mount(tracefs, {target}): {os.strerror(error)}")
    if not mounted():
        raise TracefsUnavailable(f"{target} is mounted but has no events/syscalls")
    return True
