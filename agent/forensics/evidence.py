# Owns what is known of a crash before anybody explains it: target, signal, threads, modules, memory, history.
# Immutable values and a memory reader; must not judge, symbolize or read processes and files.
from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from agent.correlator.findings import Finding
from probes.events import MappedModule, Registration, SlotLife, StackSeen


class Memory(Protocol):
    """Bytes of the process at the moment of the crash."""

    def read(self, address: int, size: int) -> bytes | None:
        """Exactly `size` bytes at a run-time address; None where any of them is not known."""
        ...


class Fragment(NamedTuple):
    address: int
    data: bytes


class Fragments:
    """Memory of which only pieces were captured. Where pieces overlap, the first one given counts."""

    def __init__(self, pieces: Iterable[tuple[int, bytes]]) -> None:
        taken: list[Fragment] = []
        for address, data in pieces:
            taken += _without(Fragment(address, data), taken)
        self._pieces = sorted(piece for piece in taken if piece.data)
        self._starts = [piece.address for piece in self._pieces]

    def read(self, address: int, size: int) -> bytes | None:
        """Across pieces that touch; None where any byte is missing."""
        parts = []
        while size > 0:
            index = bisect.bisect_right(self._starts, address) - 1
            if index < 0:
                return None
            piece = self._pieces[index]
            at = address - piece.address
            part = piece.data[at : at + size]
            if not part:
                return None
            parts.append(part)
            address += len(part)
            size -= len(part)
        return b"".join(parts)

    def __iter__(self) -> Iterator[Fragment]:
        return iter(self._pieces)


class Layered:
    """Several readers; the first that knows the bytes answers."""

    def __init__(self, *readers: Callable[[int, int], bytes | None]) -> None:
        self._readers = readers

    def read(self, address: int, size: int) -> bytes | None:
        for reader in self._readers:
            raw = reader(address, size)
            if raw is not None and len(raw) == size:
                return raw
        return None


class Source(StrEnum):
    """Where the evidence comes from; the explanation says what that kind cannot know."""

    KERNEL = "kernel capture"  # registers, some stack and slot bytes, taken in the kernel at the signal
    PTRACE = "ptrace capture"  # the stopped process
    CORE = "core file"


class Ended(StrEnum):
    """How the process of some evidence had ended."""

    CRASHED = "crashed"
    SENT = "ended by a signal that was sent to it"
    LIVING = "it had not: a core of a living process"


# signal(7), x86-64: what an instruction or the thread itself raises, and with what a tracer stops a thread
_FAULTS = frozenset((4, 7, 8, 11))  # SIGILL, SIGBUS, SIGFPE, SIGSEGV: si_code is positive where one faulted
_RAISED = _FAULTS | {5, 6, 31}  # SIGTRAP, SIGABRT, SIGSYS
_STOPS = frozenset((0, 17, 18, 19, 20, 21, 22))


class Region(NamedTuple):
    """A line of /proc/PID/maps or a core's load segment: run-time addresses [start, end)."""

    start: int
    end: int
    flags: str  # "rw-p"; "" unknown
    path: str = ""  # untrusted text


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetIdentity:
    """Whose crash it is. 0 and "" where it is not known (a core holds no start time)."""

    tgid: int
    exe: str  # path, as the process saw it; untrusted text
    identity: str  # symbols.image.Image.identity of the executable
    bias: int  # run-time address minus image address of the executable
    comm: str = ""  # untrusted text
    start_time: int = 0  # clock ticks since boot, /proc/PID/stat field 22


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadState:
    """One thread at the crash. registers: user_regs names ("rip", "rbx", …); empty when not captured."""

    tid: int
    comm: str = ""  # untrusted text
    registers: Mapping[str, int] = field(default_factory=dict)
    crashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBatch:
    """Deliveries of the wait call that a thread has not finished working on: userdata in array order."""

    tid: int
    batch: int  # its number; 0 unknown
    deliveries: tuple[tuple[int, int], ...]  # (userdata, EPOLL* mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What was watched before the crash. Times: CLOCK_MONOTONIC ns. Absent in a postmortem."""

    attached: int = 0  # ts from which on events were seen
    lives: tuple[SlotLife, ...] = ()  # of the slots that matter, any number of generations
    registrations: tuple[Registration, ...] = ()
    records: tuple[tuple[int, ...], ...] = ()  # last stream records, probes.abi.Record order, by ts
    findings: tuple[Finding, ...] = ()
    stacks: tuple[StackSeen, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)  # tid -> comm; untrusted text
    waiters: tuple[int, ...] = ()  # threads that wait on an epoll instance: the loops
    lost: int = 0  # facts known to be missing


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashEvidence:
    """Everything an explanation may use."""

    source: Source
    target: TargetIdentity
    signal: int
    si_code: int | None = None
    fault_addr: int | None = None  # None: not an access, or not known
    ts: int = 0
    threads: tuple[ThreadState, ...] = ()
    modules: tuple[MappedModule, ...] = ()
    regions: tuple[Region, ...] = ()
    memory: Memory = field(default_factory=lambda: Fragments(()))
    batches: tuple[OpenBatch, ...] = ()  # as the kernel side knows them; found in memory otherwise
    history: History | None = None
    notes: tuple[str, ...] = ()  # what the capture could not take, and why

    @property
    def ended(self) -> Ended:
        """What a core is of. Captures are of crashes: their signals were raised by the thread itself."""
        if self.source is not Source.CORE or (self.signal in _RAISED and self.si_code is None):
            return Ended.CRASHED
        if self.signal in _STOPS:
            return Ended.LIVING
        sent = self.signal not in _RAISED or (self.signal in _FAULTS and (self.si_code or 0) <= 0)
        return Ended.SENT if sent else Ended.CRASHED

    @property
    def crashed(self) -> ThreadState | None:
        """The thread that got the signal."""
        return next((thread for thread in self.threads if thread.crashed), None)

    def thread_name(self, tid: int) -> str:
        for thread in self.threads:
            if thread.tid == tid and thread.comm:
                return thread.comm
        return self.history.names.get(tid, "") if self.history is not None else ""

    def module_at(self, address: int) -> MappedModule | None:
        return next((m for m in self.modules if m.start <= address < m.end), None)


def _without(piece: Fragment, taken: list[Fragment]) -> list[Fragment]:
    """The parts of a piece that no taken one covers."""
    left = [piece]
    for other in taken:
        low, high = other.address, other.address + len(other.data)
        parts: list[Fragment] = []
        for part in left:
            end = part.address + len(part.data)
            if end <= low or part.address >= high:
                parts.append(part)
                continue
            if part.address < low:
                parts.append(Fragment(part.address, part.data[: low - part.address]))
            if end > high:
                parts.append(Fragment(high, part.data[high - part.address :]))
        left = parts
    return left
