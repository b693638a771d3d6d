# Owns the system calls that a process keeps which reads hostile files and has given up its rights: a seccomp
# filter (seccomp(2)) in classic BPF, for x86-64 and aarch64. Must not do anything else.
from __future__ import annotations

import ctypes
import errno
import os
import struct

# linux/audit.h, and the numbers of arch/x86/entry/syscalls/syscall_64.tbl and asm-generic/unistd.h
_ARCHES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_X32 = 0x40000000  # __X32_SYSCALL_BIT: the same entry, other numbers

# What an interpreter needs that reads mapped files, computes, and answers on descriptors it holds: memory,
# time, its own signals and threads' locks; opening for reading, as far as its user may. Nothing that makes a
# socket, a process or a program, that changes a file by its name, or that looks into another process.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "lseek": (8, 62), "close": (3, 57), "dup": (32, 23), "fcntl": (72, 25),
    "fsync": (74, 82), "fdatasync": (75, 83), "ftruncate": (77, 46), "fadvise64": (221, 223),
    "sendmsg": (46, 211), "recvmsg": (47, 212), "poll": (7, None), "ppoll": (271, 73),
    "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17), "memfd_create": (319, 279),
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "membarrier": (324, 283),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132), "restart_syscall": (219, 128),
    "futex": (202, 98), "set_robust_list": (273, 99), "get_robust_list": (274, 100), "rseq": (334, 293),
    "set_tid_address": (218, 96), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153),
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getrandom": (318, 278),
    "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179), "uname": (63, 160),
    "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
# with conditions on an argument
_OPEN, _OPENAT, _IOCTL, _TGKILL, _PRLIMIT = (2, None), (257, 56), (16, 29), (234, 131), (302, 261)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC  # O_TMPFILE comes with O_RDWR
_IOCTLS = (0x5401, 0x5450, 0x5451)  # TCGETS (isatty), FIONCLEX, FIOCLEX

_LOAD, _JEQ, _JSET, _RET = (
    0x20,
    0x15,
    0x45,
    0x06,
)  # linux/bpf_common.h: LD|W|ABS, JMP|JEQ|K, JMP|JSET|K, RET|K
_NR, _ARCH, _ARGUMENT = 0, 4, 16  # of struct seccomp_data; of an argument the lower half, little-endian
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000  # SECCOMP_RET_*
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


def program(machine: str, pid: int) -> bytes:
    """The filter as struct sock_filter[]. pid: whose threads may be signalled: its own. Raises KeyError.

    What is not allowed fails with ENOSYS, as on a kernel that lacks it: libraries then do without, where
    EPERM would be taken for an answer. So one that needs a call we do not know of goes on in the old way.
    """
    audit, column = _ARCHES[machine]
    code = [(_LOAD, 0, 0, _ARCH), (_JEQ, 1, 0, audit), (_RET, 0, 0, _KILL), (_LOAD, 0, 0, _NR)]
    if machine == "x86_64":
        code += [(_JSET, 0, 1, _X32), (_RET, 0, 0, _KILL)]
    for row in _ALLOWED.values():
        number = row[column]
        if number is not None:
            code += [(_JEQ, 0, 1, number), (_RET, 0, 0, _ALLOW)]
    for row, argument in ((_OPEN, 1), (_OPENAT, 2)):
        refused = [(_JSET, 0, 1, _WRITING), (_RET, 0, 0, _ERRNO | errno.EACCES), (_RET, 0, 0, _ALLOW)]
        code += _if(row[column], argument, refused)
    ioctls = [(_JEQ, 0, 1, one) for one in _IOCTLS]
    code += _if(_IOCTL[column], 1, [step for one in ioctls for step in (one, (_RET, 0, 0, _ALLOW))])
    code += _if(_TGKILL[column], 0, [(_JEQ, 0, 1, pid), (_RET, 0, 0, _ALLOW)])
    code += _if(_PRLIMIT[column], 0, [(_JEQ, 0, 1, 0), (_RET, 0, 0, _ALLOW)])
    code.append((_RET, 0, 0, _ERRNO | errno.ENOSYS))
    return b"".join(struct.pack("<HBBI", *one) for one in code)


def _if(
    number: int | None, argument: int, steps: list[tuple[int, int, int, int]]
) -> list[tuple[int, int, int, int]]:
    """For the call of that number, the steps over one of its arguments; none of them: it fails."""
    if number is None:
        return []
    inner = [(_LOAD, 0, 0, _ARGUMENT + 8 * argument), *steps, (_RET, 0, 0, _ERRNO | errno.ENOSYS)]
    return [(_JEQ, 0, len(inner), number), *inner]


class _Program(ctypes.Structure):
    """struct sock_fprog (linux/filter.h)."""

    _fields_ = (("count", ctypes.c_ushort), ("code", ctypes.c_char_p))


def install() -> None:
    """From now on, for this thread and what it starts. PR_SET_NO_NEW_PRIVS must be set.

    Raises OSError where the kernel refuses (ENOSYS, EINVAL: it was built without), or for another machine.
    """
    try:
        code = program(os.uname().machine, os.getpid())
    except KeyError:
        raise OSError(errno.ENOSYS, f"no filter for {os.uname().machine}") from None
    filled = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(filled), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
