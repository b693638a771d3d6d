# Owns what /proc tells of a process (proc(5)). Text from there is untrusted; numbers are parsed defensively.
from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

MAX_FDS = 1 << 20
MAX_MODULES = 512
MAX_MAPS_BYTES = 4 << 20
MAX_FDINFO_BYTES = 1 << 20
MAX_THREADS = 4096
MAX_EPOLLS = 64


class EpollEntry(NamedTuple):
    """One line of /proc/PID/fdinfo/<epfd> (fs/eventpoll.c, ep_show_fdinfo)."""

    epfd: int
    fd: int
    events: int
    data: int
    inode: int  # of the watched file; -1 when the kernel does not print it
    open: bool  # the number still refers to that file in the process


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    pid: int
    start_time: int  # clock ticks since boot, /proc/PID/stat field 22
    comm: str
    exe: str
    device: int
    inode: int


INITIAL_PID_NAMESPACE = 0xEFFF_FFFC
"""PROC_PID_INIT_INO (include/linux/proc_ns.h): the namespace whose process ids BPF programs see."""


def exit_status(pid: int) -> int | None:
    """Status as of wait(2) of a process that has ended and was not awaited yet; None for every other one.

    Its fields 3 and 52 (proc_pid_stat(5)).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read(4096).rpartition(b")")[2].split()
        return int(fields[49]) if fields[0] == b"Z" else None
    except (OSError, IndexError, ValueError):
        return None


def ending(status: int) -> str:
    """How a process with that status ended: "exited", "exited with status 3", "killed by signal 11"."""
    number = status & 0x7F
    if number:
        return f"killed by signal {number}" + (", core dumped" if status & 0x80 else "")
    code = status >> 8 & 0xFF
    return f"exited with status {code}" if code else "exited"


def pid_namespace() -> int:
    """Inode number of our own pid namespace."""
    return os.stat("/proc/self/ns/pid").st_ino


def exists(pid: int) -> bool:
    return os.path.isdir(f"/proc/{pid}")


def identity(pid: int) -> Identity | None:
    """None when the process is gone or cannot be looked at."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            stat = f.read(4096)
        after = stat[stat.rindex(b")") + 2 :].split()
        exe = os.readlink(f"/proc/{pid}/exe")
        status = os.stat(f"/proc/{pid}/exe")
        return Identity(
            pid=pid,
            start_time=int(after[19]),
            comm=comm(pid, pid),
            exe=exe,
            device=status.st_dev,
            inode=status.st_ino,
        )
    except (OSError, ValueError, IndexError):
        return None


def comm(pid: int, tid: int) -> str:
    """Thread name, untrusted text; "" when the thread is gone."""
    try:
        with open(f"/proc/{pid}/task/{tid}/comm", "rb") as f:
            return f.read(64).rstrip(b"\n").decode("utf-8", "backslashreplace")
    except OSError:
        return ""


def load_bias(pid: int, inode: int, segments: tuple[tuple[int, int], ...]) -> int | None:
    """Run-time address minus image address, from the mapping of the first segment found.

    segments: (file offset, image address) of every PT_LOAD.
    """
    try:
        with open(f"/proc/{pid}/maps", "rb") as f:
            lines = f.read(4 << 20).splitlines()
    except OSError:
        return None
    page = os.sysconf("SC_PAGE_SIZE")
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) < 5 or int(fields[4]) != inode:
            continue
        start = int(fields[0].split(b"-")[0], 16)
        offset = int(fields[2], 16)
        for file_offset, address in segments:
            if file_offset - file_offset % page == offset:
                return start - (address - address % page)
    return None


def modules(pid: int, own: str) -> list[tuple[int, int, int, str, str]] | None:
    """(start, end, bias, path, identity) of every image mapped for execution; None when unreadable.

    own: the identity of the process's executable, which is known and may be large to read.
    """
    from symbols.errors import SymbolError
    from symbols.image import Image  # in the helper process only
    from symbols.modules import Mapping, bias_of

    try:
        with open(f"/proc/{pid}/maps", "rb") as f:
            lines = f.read(16 << 20).splitlines()
        executable = os.stat(f"/proc/{pid}/exe").st_ino
    except OSError:
        return None
    found: list[tuple[int, int, int, str, str]] = []
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) < 6 or b"x" not in fields[1] or fields[4] == b"0" or len(found) >= MAX_MODULES:
            continue
        begin, end = (int(part, 16) for part in fields[0].split(b"-"))
        path = os.fsdecode(fields[5])
        mapping = Mapping(begin, end, int(fields[2], 16), path)
        bias, identity = begin - mapping.offset, ""
        # map_files finds the very inode, also when the file is deleted or in another mount namespace
        for place in (f"/proc/{pid}/map_files/{begin:x}-{end:x}", f"/proc/{pid}/root{path}"):
            try:
                with Image(place, any_machine=True) as image:
                    offset = bias_of(image.segments, mapping, executable=True)
                    bias = bias if offset is None else offset
                    identity = (own if int(fields[4]) == executable else "") or image.identity
                break
            except SymbolError:
                continue
        found.append((begin, end, bias, path.encode("utf-8", "backslashreplace").decode(), identity))
    return found


def epoll_fds(pid: int) -> list[int]:
    """Numbers of the process's epoll instances."""
    found = []
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return []
    for name in names[:MAX_FDS]:
        try:
            if os.readlink(f"/proc/{pid}/fd/{name}") == "anon_inode:[eventpoll]":
                found.append(int(name))
        except (OSError, ValueError):
            continue
    return found


def _inode_of(pid: int, fd: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/fd/{fd}").st_ino
    except OSError:
        return -1


def epoll_entries(pid: int, epfd: int) -> list[EpollEntry] | None:
    """The registrations of one epoll instance; None when it cannot be read."""
    try:
        with open(f"/proc/{pid}/fdinfo/{epfd}", "rb") as f:
            text = f.read(64 << 20)
    except OSError:
        return None
    entries = []
    for line in text.splitlines():
        if not line.startswith(b"tfd:"):
            continue
        fields = line.replace(b":", b": ").split()
        try:
            values = dict(zip(fields[0::2], fields[1::2], strict=False))
            fd = int(values[b"tfd:"])
            inode = int(values.get(b"ino:", b"-1"), 16) if b"ino:" in values else -1
            entries.append(
                EpollEntry(
                    epfd,
                    fd,
                    int(values[b"events:"], 16),
                    int(values[b"data:"], 16),
                    inode,
                    inode < 0 or _inode_of(pid, fd) == inode,
                )
            )
        except (KeyError, ValueError):
            continue
    return entries


MAX_PROCESSES, MAX_LOOKED_AT, MAX_HOLDERS = 4096, 65536, 16


def holders(inode: int, pid: int, fd: int) -> list[tuple[int, int, str]]:
    """(pid, fd, comm) of every descriptor of a socket of this inode number, but for `fd` of `pid`.

    At most MAX_HOLDERS. A socket's number is unique, and /proc/PID/fd shows it (sockfs, net/socket.c); nobody
    holds one that is in flight in another socket (SCM_RIGHTS).
    """
    wanted = f"socket:[{inode}]"
    found: list[tuple[int, int, str]] = []
    looked = 0
    names = [name for name in os.listdir("/proc") if name.isdigit()]
    for name in sorted(names, key=lambda name: name != str(pid))[:MAX_PROCESSES]:
        try:
            numbers = os.listdir(f"/proc/{name}/fd")
        except OSError:
            continue
        for number in numbers:
            looked += 1
            if looked > MAX_LOOKED_AT or len(found) >= MAX_HOLDERS:
                return found
            try:
                if os.readlink(f"/proc/{name}/fd/{number}") != wanted:
                    continue
            except OSError:
                continue
            if (int(name), int(number)) != (pid, fd):
                found.append((int(name), int(number), comm(int(name), int(name))))
    return found


def processes_of(device: int, inode: int) -> list[int]:
    """Pids whose executable is this file."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            status = os.stat(f"/proc/{name}/exe")
        except OSError:
            continue
        if (status.st_dev, status.st_ino) == (device, inode):
            found.append(int(name))
    return found


def _text(path: str, limit: int) -> str:
    try:
        with open(path, "rb") as f:
            return f.read(limit).decode("utf-8", "backslashreplace")
    except OSError:
        return ""


def process(pid: int) -> tuple[str, list[tuple[int, str, str]], list[tuple[int, str]]]:
    """(maps, [(tid, comm, state)], [(epfd, fdinfo)]): what a process still shows; empty when gone."""
    try:
        tids = sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))[:MAX_THREADS]
    except OSError:
        tids = []
    threads = []
    for tid in tids:
        stat = _text(f"/proc/{pid}/task/{tid}/stat", 4096)
        state = stat[stat.rindex(")") + 2 :][:1] if ")" in stat else ""
        threads.append((tid, comm(pid, tid), state))
    fdinfo = [
        (epfd, _text(f"/proc/{pid}/fdinfo/{epfd}", MAX_FDINFO_BYTES)) for epfd in epoll_fds(pid)[:MAX_EPOLLS]
    ]
    return _text(f"/proc/{pid}/maps", MAX_MAPS_BYTES), threads, fdinfo
