# The only module that imports bcc, and only inside the short-lived loader child: compile, verify, attach,
# hand out file descriptors. Must not outlive its job: its LLVM stays out of the daemon.
from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probes.errors import BccMissing, LoaderFailed, TargetGoneWhileAttaching, WrongBcc

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "bpf"
KERNEL_HEADERS = HERE / "kheaders"

TRACEPOINTS: tuple[tuple[str, str, bool], ...] = (
    # tracepoint, program, required
    ("syscalls:sys_enter_epoll_ctl", "af_enter_ctl", True),
    ("syscalls:sys_exit_epoll_ctl", "af_exit_ctl", True),
    ("syscalls:sys_enter_epoll_wait", "af_enter_wait", False),
    ("syscalls:sys_exit_epoll_wait", "af_exit_wait", False),
    ("syscalls:sys_enter_epoll_pwait", "af_enter_wait", True),
    ("syscalls:sys_exit_epoll_pwait", "af_exit_wait", True),
    ("syscalls:sys_enter_epoll_pwait2", "af_enter_wait", False),
    ("syscalls:sys_exit_epoll_pwait2", "af_exit_wait", False),
    ("syscalls:sys_enter_epoll_create", "af_enter_create", False),
    ("syscalls:sys_exit_epoll_create", "af_exit_create", False),
    ("syscalls:sys_enter_epoll_create1", "af_enter_create", True),
    ("syscalls:sys_exit_epoll_create1", "af_exit_create", True),
    ("syscalls:sys_enter_close", "af_enter_close", True),
    ("syscalls:sys_exit_close", "af_exit_close", True),
    ("syscalls:sys_enter_close_range", "af_enter_close_range", False),
    ("syscalls:sys_exit_close_range", "af_exit_close_range", False),
    ("syscalls:sys_enter_dup", "af_enter_dup", True),
    ("syscalls:sys_exit_dup", "af_exit_dup", True),
    ("syscalls:sys_enter_dup2", "af_enter_dup2", False),
    ("syscalls:sys_exit_dup2", "af_exit_dup", False),
    ("syscalls:sys_enter_dup3", "af_enter_dup2", True),
    ("syscalls:sys_exit_dup3", "af_exit_dup", True),
    ("syscalls:sys_enter_fcntl", "af_enter_fcntl", True),
    ("syscalls:sys_exit_fcntl", "af_exit_dup", True),
    ("syscalls:sys_enter_accept", "af_enter_accept", False),
    ("syscalls:sys_exit_accept", "af_exit_accept", False),
    ("syscalls:sys_enter_accept4", "af_enter_accept", True),
    ("syscalls:sys_exit_accept4", "af_exit_accept", True),
    ("syscalls:sys_enter_read", "af_enter_read", False),
    ("syscalls:sys_enter_readv", "af_enter_read", False),
    ("syscalls:sys_enter_recvfrom", "af_enter_read", False),
    ("syscalls:sys_enter_recvmsg", "af_enter_read", False),
    ("syscalls:sys_enter_recvmmsg", "af_enter_read", False),
    ("syscalls:sys_enter_splice", "af_enter_read", False),
    ("task:task_newtask", "af_newtask", True),
    ("sched:sched_process_exec", "af_execed", True),
    ("sched:sched_process_exit", "af_exited", True),
    ("signal:signal_generate", "af_signaled", False),
    ("exceptions:page_fault_user", "af_fault", False),
)

MAPS = (
    "recorder",
    "lifetimes",
    "lifetime_heads",
    "urgent",
    "stacks",
    "stack_bytes",
    "counters",
    "targets",
    "slots",
    "regs",
    "fds",
    "waiters",
    "threads",
    "objects",
    "orphans",
    "descs",
    "exec_paths",
    "prog",  # the kernel empties a program array when its last descriptor is closed
)

CHAIN = ("af_wait_more", "af_report")
"""Programs of the tail-call chain, by index (AF_PROG_* in 40-epoll.c)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """What the loader child is asked for. programs: (file offset, reader name); pids empty: every process."""

    image: str
    readers: str
    programs: tuple[tuple[int, str], ...]
    defines: tuple[str, ...]
    pids: tuple[int, ...]
    empty: bool = False  # attach empty programs instead: the baseline of the benchmark


@dataclass(slots=True)
class Loaded:
    maps: dict[str, int]
    links: list[int]
    missing: list[str] = field(default_factory=list)  # optional tracepoints that could not be attached


def import_bcc() -> Any:
    """The real bcc module. Raises BccMissing or WrongBcc."""
    try:
        import bcc
    except Exception as error:
        raise BccMissing(sys.executable, f"{type(error).__name__}: {error}") from error
    if not hasattr(bcc, "BPF") or not hasattr(getattr(bcc, "BPF", None), "TRACEPOINT"):
        raise WrongBcc(str(getattr(bcc, "__file__", "bcc")))
    return bcc


def source_text(readers: str) -> str:
    """The whole program: the files of probes/bpf in the order of their names, then the generated readers.

    One text because bcc rewrites map operations in the main file only.
    """
    parts = [path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("[0-9]*.c"))]
    return "\n".join([*parts, readers])


def empty_text(readers: str) -> str:
    """The same program names with empty bodies, for measuring what the attach points alone cost."""
    names = {program for _, program, _ in TRACEPOINTS} | set(
        re.findall(r"^int (\w+)\(", readers, re.MULTILINE)
    )
    return "\n".join(f"int {name}(void *ctx) {{ return 0; }}" for name in sorted(names))


def load(request: LoadRequest) -> Loaded:
    """Compile, verify and attach. The caller passes the fds on; when the last holder dies, all goes."""
    os.environ["BCC_KERNEL_SOURCE"] = str(KERNEL_HEADERS)
    bcc = import_bcc()
    text = empty_text(request.readers) if request.empty else source_text(request.readers)
    version = [int(part) for part in re.findall(r"\d+", platform.release())[:3]] + [0, 0, 0]
    flags = [
        f"-I{SOURCES}",
        f"-DAF_LINUX_VERSION_CODE={(version[0] << 16) + (version[1] << 8) + min(version[2], 255)}",
        "-Wno-unused-function",
        *request.defines,
    ]
    try:
        module = bcc.BPF(text=text, cflags=flags)
    except Exception as error:
        raise LoaderFailed(
            "the BPF program does not compile",
            detail=str(error),
            causes=("bcc is older than 0.25", "the loader's stderr above names the line"),
            remedy="afterfree doctor",
        ) from error
    loaded = Loaded(maps={}, links=[])
    if not request.empty:
        loaded.maps = {name: _map_fd(module, name) for name in MAPS}
        for index, name in enumerate(CHAIN):
            program = _program(module, name, bcc.BPF.TRACEPOINT)
            module["prog"][ctypes.c_int(index)] = ctypes.c_int(program)
    _attach_tracepoints(bcc, module, loaded)
    _attach_uprobes(bcc, module, request, loaded)
    return loaded


def _map_fd(module: Any, name: str) -> int:
    from bcc import lib

    fd = lib.bpf_table_fd(module.module, name.encode())
    if fd < 0:
        raise LoaderFailed(f"map {name} was not created", remedy="afterfree doctor")
    return int(fd)


def _program(module: Any, name: str, kind: int) -> int:
    try:
        return int(module.load_func(name, kind).fd)
    except Exception as error:
        raise LoaderFailed(
            f"the kernel refused the BPF program {name}",
            detail=str(error),
            causes=(
                "the kernel is older than 5.15",
                "this process lacks CAP_BPF and CAP_PERFMON",
                "kernel lockdown is 'confidentiality'",
            ),
            remedy="afterfree doctor",
        ) from error


def _attach_tracepoints(bcc: Any, module: Any, loaded: Loaded) -> None:
    from bcc import lib

    for tracepoint, program, required in TRACEPOINTS:
        category, event = tracepoint.split(":")
        if not any(
            os.path.isdir(f"{root}/events/{category}/{event}")
            for root in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
        ):
            if required:
                raise LoaderFailed(
                    f"the kernel has no tracepoint {tracepoint}",
                    causes=("CONFIG_FTRACE_SYSCALLS is off",),
                    remedy="afterfree doctor",
                )
            loaded.missing.append(tracepoint)
            continue
        fd = lib.bpf_attach_tracepoint(
            _program(module, program, bcc.BPF.TRACEPOINT), category.encode(), event.encode()
        )
        if fd < 0:
            raise LoaderFailed(
                f"cannot attach to tracepoint {tracepoint}",
                causes=("kernel.perf_event_paranoid forbids it", "too many open files (ulimit -n)"),
                remedy="afterfree doctor",
            )
        loaded.links.append(fd)


def _attach_uprobes(bcc: Any, module: Any, request: LoadRequest, loaded: Loaded) -> None:
    from bcc import lib

    attach: Callable[..., int] = lib.bpf_attach_uprobe
    pids: Sequence[int] = request.pids or (-1,)
    for offset, program in request.programs:
        fd_of_program = _program(module, program, bcc.BPF.KPROBE)
        for pid in pids:
            fd = attach(
                fd_of_program, 0, f"af_{offset:x}_{pid}".encode(), request.image.encode(), offset, pid
            )
            if fd < 0:
                if pid != -1 and not os.path.exists(f"/proc/{pid}/exe"):
                    raise TargetGoneWhileAttaching(pid, "exited")
                raise LoaderFailed(
                    f"cannot put a uprobe at file offset {offset:#x} of {os.path.realpath(request.image)}",
                    detail="perf_event_open refused it; see the loader's messages above",
                    causes=(
                        "the executable lies on a file system without an inode mapping (some overlays)",
                        "too many open files (ulimit -n)",
                    ),
                    remedy="afterfree symbols EXE shows the sites; afterfree doctor the prerequisites",
                )
            loaded.links.append(fd)
