# Owns what a capture by ptrace is asked for and what it answers: plain facts, and their form between the
# processes (JSON). Must not trace, read memory or write files.
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

FATAL_SIGNALS = (11, 7, 4, 8, 6)
"""SEGV, BUS, ILL, FPE, ABRT (signal(7), x86-64)."""

MOST_RANGES = 1 << 16


class MemoryRange(NamedTuple):
    """Memory of the target that a mini core should hold. priority: lower comes first."""

    address: int
    size: int  # bytes
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureOptions:
    freeze_max_ns: int = 2_000_000_000  # after which every thread goes on, whatever is missing
    limit_bytes: int = 64 << 20  # of the mini core
    crasher_stack_bytes: int = 8 << 20
    stack_bytes: int = 1 << 20  # of every other thread
    captures: int = 1  # the target is let go after that many
    fill: bool = True  # use what is left of the limit for heap and other anonymous memory

    def __post_init__(self) -> None:
        if self.freeze_max_ns <= 0 or self.limit_bytes < 1 << 20 or self.captures < 1:
            raise ValueError("freeze_max_ns and captures must be positive, limit_bytes at least 1 MiB")


class Refusal(StrEnum):
    """Why a process cannot be seized."""

    GONE = "gone"  # no such process, or it is exiting
    REPLACED = "replaced"  # the pid belongs to another process than the one that was meant
    TRACED = "traced"  # another debugger is attached
    YAMA = "yama"
    SECCOMP = "seccomp"
    PERMISSION = "permission"
    KERNEL_THREAD = "kernel-thread"
    ARCHITECTURE = "architecture"  # not a 64-bit x86 process
    BUSY = "busy"  # it is seized by us already
    NO_HELPER = "no-helper"  # the capture helper does not run or does not answer


REMEDIES: Mapping[Refusal, str] = {
    Refusal.GONE: "nothing: the kernel's own record of the crash stands",
    Refusal.REPLACED: "look up the process again",
    Refusal.TRACED: "end the other debugger, or watch with --capture never",
    Refusal.YAMA: "run as root with CAP_SYS_PTRACE; kernel.yama.ptrace_scope = 3 forbids ptrace until reboot",
    Refusal.SECCOMP: "allow ptrace(2) in the seccomp profile of the container afterfree runs in",
    Refusal.PERMISSION: "run as root with CAP_SYS_PTRACE in the target's user namespace",
    Refusal.KERNEL_THREAD: "name a user process",
    Refusal.ARCHITECTURE: "capture by ptrace is for 64-bit x86 processes",
    Refusal.BUSY: "release it first",
    Refusal.NO_HELPER: "afterfree doctor",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seized:
    pid: int
    threads: int  # seized
    took_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    pid: int
    why: Refusal
    detail: str = ""  # what the system said; names in it are untrusted text
    tracer: int = 0  # pid of the other debugger

    @property
    def remedy(self) -> str:
        return REMEDIES[self.why]


class Ending(StrEnum):
    """Why a seized process is traced no longer."""

    REQUESTED = "requested"
    CAPTURED = "captured"  # as many times as it was asked for
    EXITED = "exited"
    EXEC = "exec"
    HELPER_ENDED = "helper-ended"  # the tracing process died: the target goes on by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    pid: int
    why: Ending
    detail: str = ""
    exit_code: int = -1  # EXITED: exit status; -1: unknown, or a signal
    signal: int = 0  # EXITED: the signal that ended it


class Left(StrEnum):
    """Why memory, or a thread, is not in a mini core."""

    LIMIT = "limit"  # the limit of the file was reached
    DEADLINE = "deadline"  # freeze_max was reached
    UNREADABLE = "unreadable"
    NOT_STOPPED = "not-stopped"  # a thread that did not stop in time
    UNMAPPED = "unmapped"  # asked for, but nothing is mapped there


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    what: str  # "crasher stack", "slot", "stack", "register", "globals", "memory", "thread", …
    address: int  # of a thread: its tid
    size: int  # bytes; 0 for a thread
    why: Left


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadStop:
    """One thread of the stop. Times are of CLOCK_MONOTONIC, in ns from the first stop."""

    tid: int
    name: str  # untrusted text
    stopped_ns: int  # until the thread was seen to stand; -1: it did not
    resumed_ns: int  # until it went on; -1: it did not stop
    signal: int  # that it was about to get; 0: none
    registers: Mapping[str, int]  # names of struct user_regs_struct; of crashed threads only


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A fatal signal was about to be delivered. path "" where no mini core could be written: see failure."""

    pid: int
    tid: int  # that crashed
    signal: int
    code: int  # si_code
    fault_address: int  # si_addr of SEGV, BUS, ILL, FPE; otherwise 0
    siginfo: bytes
    handled: bool  # the target has a handler of its own for this signal (SigCgt)
    at_ns: int  # CLOCK_MONOTONIC when the stop was noticed
    pause_ns: int  # first stop noticed to last continue
    write_ns: int  # writing the file, while the target was running again
    path: str
    failure: str
    copied_bytes: int
    file_bytes: int
    threads: tuple[ThreadStop, ...]
    left_out: tuple[LeftOut, ...]  # the largest, at most MOST_LEFT_OUT
    left_out_bytes: int  # of all of it
    maps: str = ""  # /proc/PID/maps at the stop; untrusted text
    fdinfo: Mapping[int, str] = field(default_factory=dict)  # epoll instance -> its fdinfo at the stop


MOST_LEFT_OUT = 512

Event = Captured | Released
Message = Seized | Refused | Captured | Released

_KINDS: Mapping[str, type[Message]] = {
    "Seized": Seized, "Refused": Refused, "Captured": Captured, "Released": Released
}  # fmt: skip


def to_json(message: Message) -> dict[str, Any]:
    fields = asdict(message)
    if isinstance(message, Captured):
        fields["siginfo"] = message.siginfo.hex()
    return {"kind": type(message).__name__, **fields}


def from_json(fields: dict[str, Any]) -> Message:
    """The message of the other side. Raises KeyError, TypeError and ValueError for anything else."""
    values = dict(fields)
    kind = _KINDS[values.pop("kind")]
    if kind is Refused:
        values["why"] = Refusal(values["why"])
    elif kind is Released:
        values["why"] = Ending(values["why"])
    elif kind is Captured:
        values["siginfo"] = bytes.fromhex(values["siginfo"])
        values["fdinfo"] = {int(epfd): str(text) for epfd, text in values.get("fdinfo", {}).items()}
        values["threads"] = tuple(ThreadStop(**row) for row in values["threads"])
        values["left_out"] = tuple(LeftOut(**{**row, "why": Left(row["why"])}) for row in values["left_out"])
    return kind(**values)
