# Owns putting a loaded BPF program on a tracepoint or a file offset: perf_event_open(2), two ioctls, no bcc.
from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from pathlib import Path

from probes.tracefs import ROOTS

_NR = {"x86_64": 298, "aarch64": 241}.get(platform.machine(), 298)
_TYPE_TRACEPOINT = 2  # enum perf_type_id (linux/perf_event.h)
_SIZE = 64  # PERF_ATTR_SIZE_VER0
_SIZE_UPROBE = 72  # PERF_ATTR_SIZE_VER1: with config2
_UPROBE_TYPE = Path("/sys/bus/event_source/devices/uprobe/type")
_CLOEXEC = 8  # PERF_FLAG_FD_CLOEXEC
_ENABLE, _SET_BPF = 0x2400, 0x40042408  # PERF_EVENT_IOC_*

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def tracepoint_id(category: str, event: str) -> int | None:
    """Its number in tracefs; None when this kernel has no such tracepoint."""
    for root in ROOTS:
        try:
            return int((root / "events" / category / event / "id").read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
    return None


def attach(program: int, number: int) -> int:
    """Descriptor of the perf event that runs a program at a tracepoint, wherever it is hit. Closing it
    detaches. Raises OSError."""
    attr = struct.pack("<IIQQQQ", _TYPE_TRACEPOINT, _SIZE, number, 1, 0, 0).ljust(_SIZE, b"\0")
    return _running(program, attr, -1)


def attach_uprobe(program: int, path: str, offset: int, pid: int = -1) -> int:
    """Descriptor of the perf event that runs a program at a file offset; pid -1: in every process.

    By the uprobe PMU (kernel/events/core.c: perf_uprobe), which leaves no event in tracefs when it fails, as
    bcc's own way does when the process is gone. Raises OSError; ProcessLookupError when the process is gone.
    """
    name = ctypes.create_string_buffer(os.fsencode(path))
    kind = int(_UPROBE_TYPE.read_text(encoding="ascii"))
    attr = struct.pack(
        "<IIQQQQQIIQQ", kind, _SIZE_UPROBE, 0, 1, 0, 0, 0, 1, 0, ctypes.addressof(name), offset
    )  # type, size, config, sample_period, …, wakeup_events, …, config1 = path, config2 = offset
    return _running(program, attr, pid)


def _running(program: int, attr: bytes, pid: int) -> int:
    buffer = ctypes.create_string_buffer(attr, len(attr))
    fd = int(_libc.syscall(_NR, ctypes.byref(buffer), pid, 0 if pid == -1 else -1, -1, _CLOEXEC))
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error or errno.EINVAL, os.strerror(error))
    try:
        fcntl.ioctl(fd, _SET_BPF, program)
        fcntl.ioctl(fd, _ENABLE, 0)
    except OSError:
        os.close(fd)
        raise
    return fd
