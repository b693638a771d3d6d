# Owns how the running kernel preempts its own code: where a task can lose its CPU within a system call.
from __future__ import annotations

import platform
from pathlib import Path


def model() -> str:
    """The kernel's model: none, voluntary, lazy, full or rt; "" where it does not say (uname(2);
    kernel/sched/debug.c: sched_dynamic_show)."""
    version = platform.version()
    if "PREEMPT_RT" in version:
        return "rt"
    if "PREEMPT_DYNAMIC" not in version:
        return "full" if "PREEMPT" in version.split() else "voluntary"
    try:
        said = Path("/sys/kernel/debug/sched/preempt").read_text(encoding="ascii")
        return said.split("(")[1].split(")")[0]
    except (OSError, IndexError):
        pass
    try:
        asked = Path("/proc/cmdline").read_text(encoding="ascii", errors="replace").split()
    except OSError:
        asked = []
    return next((word.removeprefix("preempt=") for word in asked if word.startswith("preempt=")), "")
