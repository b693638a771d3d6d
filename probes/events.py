# Owns the facts that cross from probes/ to agent/: what a live session and a recording both yield.
# Immutable values only; must not judge, do I/O or import anything but the ABI.
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from probes.abi import RegFlag, RegState, SlotFlag, SlotState, Suspect

_FAULTS = (7, 11)  # SIGBUS, SIGSEGV (signal(7))
_SI_KERNEL = 0x80  # include/uapi/asm-generic/siginfo.h


class Moment(NamedTuple):
    """When, where and who (struct af_at). ts == 0: not seen. Times: CLOCK_MONOTONIC ns.

    The kernel's effect of a call lies in [enter, ts]; for uprobe hits enter == ts.
    `ip` is a run-time address; `stack` an id of a StackSeen, negative when there is none.
    """

    enter: int = 0
    ts: int = 0
    ip: int = 0
    tid: int = 0
    stack: int = -1

    @property
    def seen(self) -> bool:
        return self.ts != 0


NOWHERE = Moment()


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotLife:
    """One (slot, generation) as far as it has got (struct af_slot; field meanings stand there)."""

    addr: int
    tgid: int
    gen: int
    state: SlotState
    flags: SlotFlag
    create: Moment
    add: Moment
    removed: Moment
    close: Moment
    destroy: Moment
    prev_destroy: Moment
    first_delivery: int
    last_delivery: int
    last_delivery_enter: int
    last_dispatch: int
    first_after_close: int
    last_after_close: int
    object: int
    deliveries: int
    dispatches: int
    after_close: int
    stale: int
    stale_reported: int
    double_destroys: int
    last_batch: int
    last_tid: int
    consecutive: int
    live_from: int
    waiter: int
    fd: int
    epfd: int
    old_fd: int
    old_epfd: int
    old_gen: int
    recycled: int
    recycled_reported: int
    batch_count: int = 0
    undispatched: int = 0
    stale_dispatches: int = 0
    idle: int = 0  # deliveries since the last progress on its file that is known of
    idle_since: int = 0
    hup_since: int = 0  # first delivery of the unbroken run with EPOLLHUP; 0 none
    last_index: int = 0  # of the last delivery in its batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """struct af_reg: one registration of a slot, with the state that the kernel answered."""

    userdata: int
    slot: int
    tgid: int
    gen: int
    epfd: int
    fd: int
    events: int
    state: RegState
    flags: RegFlag
    add: Moment
    mod: Moment
    end: Moment
    file: int = 0  # identity of the open file description, while it exists
    ino: int = 0  # inode number; a socket's is unique
    dup_fd: int = -1  # an open duplicate of its fd that was seen being made; -1 none
    dup: Moment = NOWHERE  # who made it
    error: int = 0  # with RegFlag.ADD_FAILED: errno of the EPOLL_CTL_ADD that made none


class Trigger(NamedTuple):
    """The record that set a suspicion off; fields as in probes.abi.Record."""

    seq: int
    kind: int
    flags: int
    ts: int
    enter: int
    addr: int
    tgid: int
    tid: int
    gen: int
    fd: int
    epfd: int
    ret: int
    arg: int
    stack: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspicionRaised:
    """The kernel side noticed a fact pattern: evidence, no verdict."""

    suspect: Suspect
    trigger: Trigger
    wait_enter: int  # of the triggering thread's open or last batch
    wait_exit: int
    batch: int
    batch_open: bool
    slot: SlotLife | None  # None: nothing is known of the slot
    reg: Registration | None
    other: Registration | None
    comm: str  # of the triggering thread; untrusted text
    memory: bytes  # the slot's first bytes at that moment; empty when unreadable
    forks: int = 0  # forked children of the target that may still share its descriptions
    last_child: int = 0  # the newest of them
    forked_at: int = 0
    rest: bool = False  # no event of its own: what a slot had counted beyond what was sent of it


@dataclass(frozen=True, slots=True, kw_only=True)
class LifetimeEnded:
    """A slot was destroyed; its whole life."""

    signature: int  # probes.abi.Signature bits
    slot: SlotLife


@dataclass(frozen=True, slots=True, kw_only=True)
class LifetimesCounted:
    """Lifetimes of one signature that were counted without decoding each (cheap mode)."""

    ts: int
    counts: Mapping[int, int]  # signature -> lifetimes since the last such event


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotLingering:
    """A scan found a slot whose fd was closed and that is still not destroyed, or that reports HUP and is not
    closed. Not every such slot is named."""

    ts: int
    slot: SlotLife
    total: int = 1  # slots of its target that have lingered at least as long, this one included


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsRead:
    """Stream records of one poll, merged over CPUs by ts: plain tuples in probes.abi.Record order, or what
    looks like a tuple of them (probes.records.StoredRecords)."""

    records: Sequence[tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Facts that never reached user space. From then on, chains over the window are uncertain."""

    ts: int
    what: str  # "recorder", "lifetimes", "urgent", "slots-map-full", ...
    count: int
    since: int  # ts of the last moment known to be complete; 0 unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSeen:
    tgid: int
    id: int
    pcs: tuple[int, ...]  # run-time addresses, innermost first: the kernel's walk by frame pointers
    # of the first hit with this id, for unwinding by call frame information; empty when not kept
    registers: Mapping[str, int] = field(default_factory=dict)
    memory: bytes = b""  # from the stack pointer up


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedModule:
    """An image mapped for execution: run-time addresses [start, end)."""

    start: int
    end: int
    bias: int  # run-time address minus image address
    path: str  # as the process sees it; untrusted text
    identity: str  # symbols.image.Image.identity; "" when the file could not be read


@dataclass(frozen=True, slots=True, kw_only=True)
class ModulesMapped:
    """What is mapped in a target; again when an address outside of what was known shows up."""

    ts: int
    tgid: int
    modules: tuple[MappedModule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadSeen:
    tgid: int
    tid: int
    comm: str  # untrusted text


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetAttached:
    """Probes of `plan` are armed on tgid. registrations: those read from fdinfo, generation 0."""

    ts: int
    tgid: int
    start_time: int  # clock ticks since boot, /proc/PID/stat field 22
    exe: str
    comm: str
    bias: int  # run-time address minus image address
    plan: Mapping[str, Any]  # symbols.serial.plan_to_json
    bootstrapped: int  # registrations taken from /proc/PID/fdinfo
    late: bool  # the process ran before the probes were armed


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetGone:
    ts: int
    tgid: int
    reason: str  # procfs.ending, "executed another program", "detached", "ended, how was not seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessForked:
    ts: int
    tgid: int
    child: int
    ended: bool  # the child exec'ed or exited
    watched: bool = False  # it is watched itself, from its first instruction (of a vfork: after its exec)
    shares_table: bool = False  # CLONE_FILES: it closes for the target, unseen


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashSlot:
    """A slot that the crashing thread held (struct af_crash_slot)."""

    slot: SlotLife
    reg: Registration | None  # of its generation, whatever its state
    registers: tuple[str, ...]  # registers that hold its address
    objects: tuple[str, ...]  # registers that hold the address of its object
    in_batch: int  # index of its first event in the open batch; -1: not in it
    memory: bytes  # its first bytes at that moment


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashSeen:
    """A fatal signal was generated for a thread of the target."""

    ts: int
    tgid: int
    tid: int
    comm: str
    signal: int
    si_code: int
    fault_addr: int  # of the access, where there was one that the kernel names: see `accessed`
    ip: int
    registers: Mapping[str, int]
    stack: bytes  # from the stack pointer up
    batch: int
    epfd: int = -1  # of the thread's last wait
    wait_enter: int = 0  # of the open batch; 0 when none is open
    wait_exit: int = 0
    stack_id: int = -1
    slots: tuple[CrashSlot, ...] = ()
    near: Mapping[str, bytes] = field(default_factory=dict)  # register -> what it points at
    delivered: tuple[tuple[int, int], ...] = ()  # (events, userdata) of the open batch
    links: tuple[int, ...] = ()  # the free-list link of the first free slot, the link there, and so on

    @property
    def accessed(self) -> int | None:
        """The address of the faulting access. None where none is known: another signal, one that a process
        sent, or an address that is not canonical (si_code SI_KERNEL; arch/x86/kernel/traps.c)."""
        known = self.signal in _FAULTS and 0 < self.si_code < _SI_KERNEL
        return self.fault_addr if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlightRecorded:
    """What the always-on recorder still held of one target when it crashed: the last records, by time."""

    ts: int
    tgid: int
    records: bytes  # struct af_rec each, 64 bytes; probes.rings.unpacked() makes tuples of them
    overwritten: int  # records of all targets that the rings had already overwritten since the attach


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadStatus:
    """One thread of /proc/PID/task."""

    tid: int
    comm: str  # untrusted text
    state: str  # as in /proc/PID/stat: R, S, D, T, t, Z, X


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessCaptured:
    """What /proc still told of a crashing target; before the CrashSeen. Empty where it was gone."""

    ts: int
    tgid: int
    maps: str  # /proc/PID/maps, untrusted text, at most 4 MiB
    threads: tuple[ThreadStatus, ...]
    fdinfo: Mapping[int, str]  # epoll instance -> /proc/PID/fdinfo/<epfd>, at most 1 MiB each


@dataclass(frozen=True, slots=True, kw_only=True)
class FdinfoChecked:
    """/proc/PID/fdinfo/<epfd> was read to confirm a suspicion; comes before the suspicion it answers."""

    ts: int
    tgid: int
    epfd: int
    fd: int
    userdata: int
    present: bool | None  # None: could not be read
    # (pid, fd, comm) of who else has the description open; None: not looked at
    holders: tuple[tuple[int, int, str], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CountersRead:
    """Cumulative kernel-side counters (probes.abi.Counter names, lower case)."""

    ts: int
    counters: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """The only way time passes for the correlator when nothing happens."""

    ts: int


Event = (
    SuspicionRaised
    | LifetimeEnded
    | LifetimesCounted
    | SlotLingering
    | RecordsRead
    | Lost
    | StackSeen
    | ModulesMapped
    | ThreadSeen
    | TargetAttached
    | TargetGone
    | ProcessForked
    | CrashSeen
    | FlightRecorded
    | ProcessCaptured
    | FdinfoChecked
    | CountersRead
    | Tick
)


@runtime_checkable
class EventSource(Protocol):
    """Where events come from: a live session or a recording."""

    def poll(self, timeout: float) -> Iterable[Event]:
        """Events since the last call, oldest first; waits at most `timeout` seconds for the first.

        A finished source (end of a recording, last target gone) has `finished` true afterwards.
        """
        ...

    @property
    def finished(self) -> bool: ...

    def close(self) -> None: ...
