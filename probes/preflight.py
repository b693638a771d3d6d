# Owns the prerequisites `afterfree doctor` shows: each is tried for real, none is guessed from a version.
from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from probes import errors, tracefs

TRY_LOADER_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One prerequisite. lost: what does not work without it; required: nothing live works without it."""

    name: str
    ok: bool
    required: bool
    detail: str
    remedy: str = ""
    lost: str = ""


def checks() -> tuple[Check, ...]:
    """Every prerequisite, tried now. Never raises: a check that breaks is a failed check."""
    return tuple(_guarded(check) for check in _ALL)


def _guarded(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - a broken check is a finding of doctor, not its crash
        return Check(
            name=check.__name__.strip("_").replace("_", " "),
            ok=False,
            required=False,
            detail=f"the check itself failed: {type(error).__name__}: {error}",
            remedy="report this",
        )


def _root() -> Check:
    uid = os.geteuid()
    return Check(
        name="root",
        ok=uid == 0,
        required=True,
        detail=f"effective user id {uid}",
        remedy="run with sudo",
        lost="attaching probes; symbols, replay and census FILE work without",
    )


def _architecture() -> Check:
    machine = platform.machine()
    return Check(
        name="architecture",
        ok=machine == "x86_64",
        required=True,
        detail=machine,
        remedy="watch servers on x86_64 machines; symbols and replay work anywhere",
        lost="live probing",
    )


def _kernel() -> Check:
    release = platform.release()
    numbers = [int(part) for part in release.replace("-", ".").split(".")[:2] if part.isdigit()]
    return Check(
        name="kernel",
        ok=tuple(numbers) >= (5, 15),
        required=True,
        detail=release,
        remedy="Linux 5.15 or newer (ring buffer, mmapable arrays, bpf_task_pt_regs)",
        lost="live probing",
    )


def _lockdown() -> Check:
    try:
        text = Path("/sys/kernel/security/lockdown").read_text(encoding="ascii").strip()
    except OSError:
        text = "not available"
    return Check(
        name="lockdown",
        ok="[confidentiality]" not in text,
        required=True,
        detail=text,
        remedy="boot with lockdown=integrity or none",
        lost="reading user memory from BPF programs",
    )


def _tracefs() -> Check:
    if os.geteuid() != 0 and not tracefs.mounted():
        return Check(
            name="tracefs",
            ok=False,
            required=True,
            detail="not visible without root",
            remedy="run doctor as root",
            lost="every probe",
        )
    try:
        did = tracefs.ensure_mounted()
    except errors.TracefsUnavailable as error:
        return Check(
            name="tracefs",
            ok=False,
            required=True,
            detail=error.detail,
            remedy=error.remedy,
            lost="every probe",
        )
    return Check(name="tracefs", ok=True, required=True, detail="mounted just now" if did else "mounted")


def _bcc() -> Check:
    script = (
        "from probes.loader_bcc import import_bcc\n"
        "from probes.errors import ProbeError\n"
        "import sys\n"
        "try:\n"
        "    bcc = import_bcc()\n"
        "except ProbeError as e:\n"
        "    print(e.title + ': ' + e.detail + '\\n' + e.remedy); sys.exit(3)\n"
        "print(getattr(bcc, '__version__', '?'), bcc.__file__)\n"
    )
    done = _child(script)
    said = done.stdout.strip().splitlines() or [done.stderr.strip()[-300:] or "no answer"]
    return Check(
        name="bcc",
        ok=done.returncode == 0,
        required=True,
        detail=said[0],
        remedy=said[-1] if done.returncode else "",
        lost="compiling the kernel side",
    )


def _bpf() -> Check:
    """Compiles, verifies and attaches the whole kernel side on no process at all."""
    if os.geteuid() != 0:
        return Check(
            name="kernel side",
            ok=False,
            required=True,
            detail="not tried: not root",
            remedy="run doctor as root",
            lost="live probing",
        )
    script = (
        "from probes.loader_bcc import LoadRequest, load\n"
        "from probes.loader import plain_defines\n"
        "from probes.errors import ProbeError\n"
        "import os, sys\n"
        "try:\n"
        "    done = load(LoadRequest(image='/proc/self/exe', readers='', programs=(), pids=(), "
        "defines=plain_defines(), fresh=True))\n"
        "except ProbeError as e:\n"
        "    print(e.title + ': ' + e.detail); print(e.remedy); sys.stdout.flush(); os._exit(3)\n"
        "print(len(done.links), 'attach points'); print('; '.join(done.missing))\n"
        "sys.stdout.flush(); os._exit(0)\n"
    )
    done = _child(script)
    said = done.stdout.strip().splitlines() or [done.stderr.strip()[-300:] or "no answer"]
    missing = f", not on this kernel: {said[1]}" if done.returncode == 0 and len(said) > 1 and said[1] else ""
    return Check(
        name="kernel side",
        ok=done.returncode == 0,
        required=True,
        detail=(said[0] + missing)[:600],
        remedy="" if done.returncode == 0 else said[-1],
        lost="live probing",
    )


def _stacks() -> Check:
    try:
        limit = int(Path("/proc/sys/kernel/perf_event_max_stack").read_text(encoding="ascii"))
    except OSError:
        limit = 0
    return Check(
        name="user stacks",
        ok=limit >= 32,
        required=False,
        detail=f"kernel.perf_event_max_stack = {limit}",
        remedy="sysctl kernel.perf_event_max_stack=127",
        lost="stacks of registration, close and destroy",
    )


def _descriptors() -> Check:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Check(
        name="open files",
        ok=soft >= 512,
        required=False,
        detail=f"soft limit {soft}, hard limit {hard}",
        remedy="ulimit -n 4096",
        lost="watching several processes with many probe sites each",
    )


def _child(script: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=TRY_LOADER_TIMEOUT_S,
        env=env,
        check=False,
    )


_ALL: tuple[Callable[[], Check], ...] = (
    _root,
    _architecture,
    _kernel,
    _lockdown,
    _tracefs,
    _bcc,
    _bpf,
    _stacks,
    _descriptors,
)
