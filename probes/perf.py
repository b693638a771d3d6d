# Owns putting a loaded BPF program on a tracepoint, without bcc: perf_event_open(2) and two ioctls.
from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct

from probes.tracefs import ROOTS

_NR = {"x86_64": 298, "aarch64": 241}.get(platform.machine(), 298)
_TYPE_TRACEPOINT = 2  # enum perf_type_id (linux/perf_event.h)
_SIZE = 64  # PERF_ATTR_SIZE_VER0
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
    buffer = ctypes.create_string_buffer(attr, _SIZE)
    fd = int(_libc.syscall(_NR, ctypes.byref(buffer), -1, 0, -1, _CLOEXEC))
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
