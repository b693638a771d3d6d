# Owns the prerequisites `afterfree doctor` shows: each is tried for real, none is guessed from a version.
from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from probes import btf, children, errors, loader, preemption, procfs, tracefs, uprobe_events

BCC_TIMEOUT_S = 900.0
_MOST_DETAIL = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One prerequisite. lost: what does not work without it; required: nothing live works without it."""

    name: str
    ok: bool
    required: bool
    detail: str
    remedy: str = ""
    lost: str = ""
    tried: bool = True  # False: nobody knows, which is no better than a failure


def checks(*, attaching: bool = True) -> tuple[Check, ...]:
    """Every prerequisite, tried now. Never raises: a check that breaks is a failed check.

    attaching=False: without those that compile and attach, for one who is about to do that and hears of it.
    """
    return tuple(guarded(name, check) for name, check in _ALL if attaching or name not in _ATTACHING)


def guarded(name: str, check: Callable[[], Check]) -> Check:
    """What the check says; where it cannot say anything, a failure in words."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - a broken check is a finding of doctor, not its crash
        title, detail, remedy = (
            type(error).__name__,
            str(error),
            "afterfree doctor, once more; then report it",
        )
        if isinstance(error, errors.ProbeError):
            title, detail, remedy = error.title, error.detail, error.remedy or remedy
        return Check(
            name=name,
            ok=False,
            required=True,
            detail=f"could not be checked: {title}: {detail}"[:_MOST_DETAIL],
            remedy=remedy,
            tried=False,
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


def _version() -> tuple[int, ...]:
    """(major, minor) of the running kernel."""
    return tuple(int(part) for part in platform.release().replace("-", ".").split(".")[:2] if part.isdigit())


def _kernel() -> Check:
    return Check(
        name="kernel",
        ok=_version() >= (5, 15),
        required=True,
        detail=platform.release(),
        remedy="Linux 5.15 or newer (ring buffer, mmapable arrays, bpf_task_pt_regs)",
        lost="live probing",
    )


_COUNTS_LEFT_OUT = (6, 7)  # bpf_prog_inc_misses_counters of kernel/trace/bpf_trace.c


def _preemption() -> Check:
    """A task that is preempted within bpf(2) on a map keeps its CPU's tracepoints from running programs."""
    model, numbers = preemption.model(), _version()
    whole = model in ("full", "lazy", "rt")
    counted = numbers >= _COUNTS_LEFT_OUT
    detail = model or "not known"
    if whole:
        said = "counted, and said at the end" if counted else "not counted by this kernel"
        detail += f": calls that go unseen where a task is preempted within bpf(2) are {said}"
    return Check(
        name="preemption",
        ok=counted or not whole,
        required=False,
        detail=detail,
        remedy="boot with preempt=voluntary, or a kernel from 6.7 on",
        lost="the certainty that no call went unseen; each finding stands for itself",
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


def _btf() -> Check:
    offsets = btf.kernel_offsets()
    return Check(
        name="asking",
        ok=offsets is not None,
        required=False,
        detail=f"{len(offsets)} offsets from {btf.VMLINUX}" if offsets else f"no usable {btf.VMLINUX}",
        remedy="a kernel built with CONFIG_DEBUG_INFO_BTF, 5.11 or newer",
        lost="asking the kernel whether a registration exists: findings about them are inferred at most",
    )


def _pid_namespace() -> Check:
    """The kernel side knows processes by their ids in the initial namespace (bpf_get_current_pid_tgid)."""
    here, initial = procfs.pid_namespace(), procfs.INITIAL_PID_NAMESPACE
    return Check(
        name="pid namespace",
        ok=here == initial,
        required=True,
        detail="the initial one" if here == initial else f"pid:[{here}], a container's",
        remedy="run afterfree on the host, or with its process ids (docker --pid=host, hostPID)",
        lost="finding the processes that are probed",
    )


def _tracefs() -> Check:
    if os.geteuid() != 0 and not _visible():
        return Check(
            name="tracefs",
            ok=False,
            required=True,
            detail="could not be checked: not visible without root",
            remedy="run doctor as root",
            lost="every probe",
            tried=False,
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


def _visible() -> bool:
    try:
        return tracefs.mounted()
    except PermissionError:  # it is for root only
        return False


def _left_behind() -> Check:
    """Events in tracefs that earlier runs did not take back, by bcc. Removed here, as at every start."""
    there = uprobe_events.left()
    uprobe_events.remove(there)
    staying = uprobe_events.left()
    found = f"{len(there)} in uprobe_events by earlier runs, removed: {', '.join(there[:4])}"
    return Check(
        name="left behind",
        ok=not staying,
        required=False,
        detail=(found if there else "nothing")
        if not staying
        else f"in uprobe_events: {', '.join(staying[:4])}",
        remedy="as root: "
        + "; ".join(f"echo '-:{name}' >> {tracefs.ROOTS[0]}/uprobe_events" for name in staying[:4]),
        lost="nothing; an event of a run that ended, and nobody's any more",
    )


def _bcc() -> Check:
    child = children.Child(children.command("probes.loader_main", "bcc"), stdout=subprocess.PIPE)
    try:
        out, _ = child.communicate(timeout=BCC_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return Check(
            name="bcc",
            ok=False,
            required=True,
            detail=f"could not be checked: importing it was ended by our own limit of {BCC_TIMEOUT_S:.0f} s",
            remedy="afterfree doctor, once more when there is less load",
            lost="compiling the kernel side",
            tried=False,
        )
    said = out.decode("utf-8", "replace").strip().splitlines()
    ok = child.returncode == 0 and bool(said)
    if not said:
        said = [f"its process {child.ending()}: {child.last_words()}", "make setup"]
    return Check(
        name="bcc",
        ok=ok,
        required=True,
        detail=said[0][:_MOST_DETAIL],
        remedy="" if ok else said[-1],
        lost="compiling the kernel side",
    )


def _not_root(name: str) -> Check | None:
    if os.geteuid() == 0:
        return None
    return Check(
        name=name,
        ok=False,
        required=True,
        detail="could not be checked: not root",
        remedy="run doctor as root",
        lost="live probing",
        tried=False,
    )


def _failed(name: str, error: errors.ProbeError) -> Check:
    return Check(
        name=name,
        ok=False,
        required=True,
        detail=": ".join(filter(None, [error.title, error.detail]))[:_MOST_DETAIL],
        remedy=error.remedy if error.remedy != "afterfree doctor" else "see the words above",
        lost="live probing",
        tried=not isinstance(error, errors.LoaderTooSlow | errors.TargetNotReadable),
    )


_WITHOUT = {
    "signal:signal_generate": "no crash reports",
    "exceptions:page_fault_user": "no addresses of faults in crash reports",
    "syscalls:sys_exit_close_range": "what close_range closed is named by nobody",
    "io_uring:": "use of io_uring goes unnoticed",
}
"""What is lost without a tracepoint, or a program on it; of the others nothing but that call."""


def _without(tracepoint: str) -> str:
    lost = next((lost for name, lost in _WITHOUT.items() if tracepoint.startswith(name)), "")
    return f"{tracepoint}: {lost}" if lost else tracepoint


def _bpf() -> Check:
    """Compiles anew, verifies and attaches the whole kernel side on no process at all."""
    if refused := _not_root(_KERNEL_SIDE):
        return refused
    try:
        points, lacking = loader.tried()
    except errors.ProbeError as error:
        return _failed(_KERNEL_SIDE, error)
    missing = f", not on this kernel: {'; '.join(map(_without, lacking))}" if lacking else ""
    return Check(
        name=_KERNEL_SIDE,
        ok=True,
        required=True,
        detail=f"compiled and verified, {points} attach points{missing}"[:_MOST_DETAIL],
    )


def _records() -> Check:
    """The real thing: watches this very process use epoll."""
    from probes import selfcheck

    if refused := _not_root(_RECORDS):
        return refused
    try:
        seen = selfcheck.watch_itself()
    except errors.ProbeError as error:
        return _failed(_RECORDS, error)
    calls = "epoll_create1, epoll_ctl, epoll_wait, close"
    if seen.missing:
        return Check(
            name=_RECORDS,
            ok=False,
            required=True,
            detail=f"of our own {calls} and a probed function these records did not come within "
            f"{selfcheck.PATIENCE_S:.0f} s: {', '.join(seen.missing)}",
            remedy="in a container: run afterfree on the host, or in its pid namespace (--pid=host)\n"
            "elsewhere: report it, with `uname -a`",
            lost="live probing",
        )
    return Check(
        name=_RECORDS,
        ok=not seen.untried,
        required=not seen.untried,
        detail=f"of our own {calls} "
        + (
            f"seen; no probe in code: {seen.untried}"
            if seen.untried
            else "and of a probed function: all seen"
        ),
        remedy="afterfree watch --pid PID tries it on a server" if seen.untried else "",
        lost="the certainty that probes in code work here" if seen.untried else "",
        tried=not seen.untried,
    )


def _capture() -> Check:
    """Seizes a process of ours and lets it go."""
    from probes.capture.capturer import Capturer
    from probes.capture.facts import Refused

    with tempfile.TemporaryDirectory(prefix="afterfree-doctor-") as folder, Capturer(folder) as capturer:
        child = children.Child(
            children.command("probes.proc_helper", packages=False),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            answer = capturer.seize(child.pid)
        finally:
            capturer.release(child.pid)
            child.kill()
            child.communicate()
    refused = isinstance(answer, Refused)
    return Check(
        name="capture",
        ok=not refused,
        required=False,
        detail=f"{answer.why}: {answer.detail}"[:_MOST_DETAIL]
        if isinstance(answer, Refused)
        else "a process of ours was seized and let go",
        remedy=answer.remedy if isinstance(answer, Refused) else "",
        lost="mini cores of crashes; the kernel's own record of them stands",
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


_KERNEL_SIDE, _RECORDS = "kernel side", "watching"
_ATTACHING = frozenset((_KERNEL_SIDE, _RECORDS, "capture"))

_ALL: tuple[tuple[str, Callable[[], Check]], ...] = (
    ("root", _root),
    ("architecture", _architecture),
    ("kernel", _kernel),
    ("preemption", _preemption),
    ("lockdown", _lockdown),
    ("pid namespace", _pid_namespace),
    ("asking", _btf),
    ("tracefs", _tracefs),
    ("left behind", _left_behind),
    ("bcc", _bcc),
    (_KERNEL_SIDE, _bpf),
    (_RECORDS, _records),
    ("capture", _capture),
    ("user stacks", _stacks),
    ("open files", _descriptors),
)
