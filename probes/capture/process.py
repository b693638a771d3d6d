# Owns what /proc tells a capture: mappings, auxiliary vector, credentials, why ptrace is refused (proc(5)).
# Text from there is untrusted. Must not trace.
from __future__ import annotations

import bisect
import os
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from probes.capture.facts import Refusal

PAGE = 4096
MOST_MAPPINGS = 1 << 17
_PF_KTHREAD = 0x0020_0000
_CAP_SYS_PTRACE = 19
_EM_X86_64 = 62
_OCTAL = re.compile(rb"\\([0-7]{3})")


class Vma(NamedTuple):
    """One line of /proc/PID/maps."""

    start: int
    end: int
    flags: int  # PF_R 4, PF_W 2, PF_X 1
    shared: bool
    offset: int
    inode: int
    path: str  # "[stack]", "[heap]", …; file names as the kernel writes them, also with " (deleted)"

    @property
    def of_file(self) -> bool:
        return self.inode != 0 and self.path.startswith("/")

    @property
    def readable(self) -> bool:
        """Whether it holds memory that can be copied; [vvar] cannot."""
        return bool(self.flags & 4) and not self.path.startswith(("[vvar", "[vsyscall"))


def parse_maps(text: bytes) -> list[Vma]:
    found = []
    for line in text.splitlines()[:MOST_MAPPINGS]:
        fields = line.split(None, 5)
        try:
            start, end = (int(part, 16) for part in fields[0].split(b"-"))
            access = fields[1]
            flags = sum(bit for bit, letter in ((4, b"r"), (2, b"w"), (1, b"x")) if letter in access)
            raw = fields[5] if len(fields) > 5 else b""
            path = os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), raw))
            found.append(Vma(start, end, flags, b"s" in access, int(fields[2], 16), int(fields[4]), path))
        except (ValueError, IndexError):
            continue
    return found


class Mappings:
    """The mappings of one process, by address."""

    def __init__(self, vmas: Iterable[Vma]) -> None:
        self.vmas: Sequence[Vma] = sorted(vmas)
        self._starts = [vma.start for vma in self.vmas]

    def find(self, address: int) -> Vma | None:
        index = bisect.bisect_right(self._starts, address) - 1
        return self.vmas[index] if index >= 0 and address < self.vmas[index].end else None

    def at_or_above(self, address: int) -> Vma | None:
        """The mapping that holds the address, or the next one."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index >= 0 and address < self.vmas[index].end:
            return self.vmas[index]
        return self.vmas[index + 1] if index + 1 < len(self.vmas) else None

    def between(self, start: int, end: int) -> Iterable[Vma]:
        index = max(0, bisect.bisect_right(self._starts, start) - 1)
        while index < len(self.vmas) and self.vmas[index].start < end:
            if self.vmas[index].end > start:
                yield self.vmas[index]
            index += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """What the notes of a core say of the process (struct elf_prpsinfo)."""

    pid: int
    ppid: int
    pgrp: int
    sid: int
    uid: int
    gid: int
    state: str
    nice: int
    flags: int
    comm: bytes
    arguments: bytes
    auxv: bytes


def _bytes(path: str, limit: int = 1 << 16) -> bytes:
    """The beginning of a file, b"" where it cannot be read. Without Python's file objects: much faster."""
    parts = []
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while limit > 0 and (data := os.read(fd, limit)):
                parts.append(data)
                limit -= len(data)
        finally:
            os.close(fd)
    except OSError:
        return b""
    return b"".join(parts)


def status(pid: int | str, tid: int | None = None) -> dict[str, str]:
    """/proc/PID/status by name; {} when the process is gone."""
    text = _bytes(f"/proc/{pid}/status" if tid is None else f"/proc/{pid}/task/{tid}/status")
    return {
        name: value.strip()
        for name, _, value in (line.partition(":") for line in text.decode("utf-8", "replace").splitlines())
    }


def _stat(pid: int) -> tuple[bytes, list[bytes]]:
    """The name, and the fields from the third on (state)."""
    text = _bytes(f"/proc/{pid}/stat")
    opening, closing = text.find(b"("), text.rfind(b")")
    return (text[opening + 1 : closing], text[closing + 2 :].split()) if closing > 0 else (b"", [])


def start_time(pid: int) -> int | None:
    """Clock ticks since boot, field 22 of /proc/PID/stat."""
    _, fields = _stat(pid)
    return int(fields[19]) if len(fields) > 19 else None


def parent_of(pid: int) -> int | None:
    """None: the process is gone."""
    _, fields = _stat(pid)
    return int(fields[1]) if len(fields) > 1 else None


def lives(pid: int, since: int) -> bool:
    """The process that began at `since` (clock ticks) is there, and no zombie."""
    _, fields = _stat(pid)
    return start_time(pid) == since and fields[0] not in (b"Z", b"X")


def facts_of(pid: int) -> ProcessFacts:
    """Zeros where the process is gone."""
    comm, fields = _stat(pid)
    fields += [b"0"] * (20 - len(fields))
    known = status(pid)
    return ProcessFacts(
        pid=pid,
        ppid=int(fields[1]),
        pgrp=int(fields[2]),
        sid=int(fields[3]),
        uid=int(known.get("Uid", "0").split()[0]),
        gid=int(known.get("Gid", "0").split()[0]),
        state="R",
        nice=int(fields[16]),
        flags=int(fields[6]),
        comm=comm,
        arguments=_bytes(f"/proc/{pid}/cmdline").rstrip(b"\0").replace(b"\0", b" "),
        auxv=_bytes(f"/proc/{pid}/auxv", 4096),
    )


def mappings_of(pid: int) -> Mappings:
    return Mappings(parse_maps(_bytes(f"/proc/{pid}/maps", 64 << 20)))


def threads_of(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def thread_name(pid: int, tid: int) -> str:
    return _bytes(f"/proc/{pid}/task/{tid}/comm", 64).rstrip(b"\n").decode("utf-8", "backslashreplace")


def ended(pid: int, tid: int) -> bool:
    return status(pid, tid).get("State", "X")[:1] in ("Z", "X")


def caught(pid: int) -> frozenset[int]:
    """Signals that the process has a handler for (SigCgt)."""
    mask = int(status(pid).get("SigCgt", "0"), 16)
    return frozenset(number for number in range(1, 65) if mask >> (number - 1) & 1)


def impossible(pid: int) -> tuple[Refusal, str] | None:
    """What speaks against seizing before it is tried."""
    _, fields = _stat(pid)
    if not fields:
        return Refusal.GONE, f"/proc/{pid} does not exist"
    if int(fields[6]) & _PF_KTHREAD:
        return Refusal.KERNEL_THREAD, f"pid {pid} is a thread of the kernel"
    head = _bytes(f"/proc/{pid}/exe", 20)
    if len(head) == 20 and (head[4] != 2 or struct.unpack_from("<H", head, 18)[0] != _EM_X86_64):
        return Refusal.ARCHITECTURE, "its executable is not for x86-64"
    return None


def refusal(
    error: int, target: dict[str, str], own: dict[str, str], yama: str, tracer_name: str
) -> tuple[Refusal, str]:
    """Why PTRACE_SEIZE failed. target, own: /proc/PID/status of both; yama: ptrace_scope, "" without Yama."""
    said = os.strerror(error)
    if not target:
        return Refusal.GONE, said
    tracer = target.get("TracerPid", "0")
    if tracer not in ("0", own.get("Pid", "")):
        return Refusal.TRACED, f"{said}; process {tracer} ({tracer_name}) traces it"
    if target.get("State", "")[:1] in ("Z", "X"):
        return Refusal.GONE, f"{said}; it is exiting"
    capable = int(own.get("CapEff", "0"), 16) >> _CAP_SYS_PTRACE & 1
    if yama == "3" or (yama in ("1", "2") and not capable):
        return Refusal.YAMA, f"{said}; kernel.yama.ptrace_scope is {yama}"
    if own.get("Seccomp", "0") == "2" and capable:
        return Refusal.SECCOMP, f"{said}; a seccomp filter is in force here"
    return Refusal.PERMISSION, said if capable else f"{said}; no CAP_SYS_PTRACE here"


def why_refused(pid: int, tid: int, error: int) -> tuple[Refusal, str, int]:
    """(reason, detail, pid of another tracer or 0) after a failed PTRACE_SEIZE of one thread."""
    target, own = status(pid, tid), status("self")
    tracer = int(target.get("TracerPid", "0") or 0)
    yama = _bytes("/proc/sys/kernel/yama/ptrace_scope").strip().decode("ascii", "replace")
    name = _bytes(f"/proc/{tracer}/comm").rstrip(b"\n").decode("utf-8", "backslashreplace") if tracer else ""
    why, detail = refusal(error, target, own, yama, name)
    return why, detail, tracer if why is Refusal.TRACED else 0
