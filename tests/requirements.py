"""What a test needs of the machine, named exactly.

Owns the decision between running, skipping and failing. With ``AFTERFREE_NO_SKIP=1`` a missing
capability fails the test instead of skipping it, which is how CI proves that BPF tests ran.
"""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

import pytest


def require_bpf() -> None:
    """Run on only where probes can be attached; names the exact missing capability otherwise."""
    missing = missing_for_bpf()
    if missing:
        skip_or_fail(missing)


def require_program(name: str) -> str:
    """The path of an external program such as gdb; skips or fails without it."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        skip_or_fail(f"the program {name} is not installed")
    return path


def skip_or_fail(missing: str) -> None:
    """Skip with `missing` as the reason, or fail under AFTERFREE_NO_SKIP=1."""
    if os.environ.get("AFTERFREE_NO_SKIP") == "1":
        pytest.fail(f"AFTERFREE_NO_SKIP=1 and this test would be skipped: {missing}", pytrace=False)
    pytest.skip(missing)


@functools.cache
def missing_for_bpf() -> str:
    """The first thing that keeps this machine from attaching probes; "" when nothing does."""
    if os.geteuid() != 0:
        return f"root (effective user id is {os.geteuid()})"
    if not _has_capability(39):
        return "CAP_BPF"
    if not _has_capability(38):
        return "CAP_PERFMON"
    try:
        import bcc
    except ImportError as error:
        return f"bcc for this interpreter ({error})"
    if not hasattr(bcc, "BPF"):
        return f"the BPF compiler collection ({bcc.__file__} is another package)"
    if not Path("/sys/kernel/tracing").is_dir() and not Path("/sys/kernel/debug/tracing").is_dir():
        return "tracefs"
    return ""


def _has_capability(bit: int) -> bool:
    """capabilities(7): CapEff of /proc/self/status is a hexadecimal mask."""
    for row in Path("/proc/self/status").read_text().splitlines():
        if row.startswith("CapEff:"):
            return bool(int(row.split()[1], 16) >> bit & 1)
    return False
