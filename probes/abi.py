# Owns the Python view of probes/bpf/abi.h: sizes, offsets, codes. No I/O, no bcc, no meaning.
# tests/unit/probes/test_abi.py compares it with what a C compiler makes of the header.
from __future__ import annotations

import ctypes
import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple, TypeVar

ABI_VERSION = 4
SLOT_BYTES = 128
COMM_BYTES = 16
CRASH_STACK_BYTES = 8192
CRASH_SLOTS = 8
CRASH_SLOT_BYTES = 256
CRASH_EVENTS = 128
CRASH_NEAR_BYTES = 64
CRASH_REGISTERS = 15
CRASH_LINKS = 32
EPOLL_EVENT = struct.Struct("<IQ")  # packed on x86-64 (epoll_ctl(2))
STACK_REGISTERS = ("rip", "rsp", "rbp", "rbx", "r12", "r13", "r14", "r15")
STACK_MEMORY_BYTES = 1024
PATH_BYTES = 256
COUNTER_MAX = 40
SLOT_LINKS = 4


F = TypeVar("F", bound=IntFlag)


def _plain(kind: type[F]) -> type[F]:
    """`&` of flags as of the integers they are: enum's own makes a member, and takes ten times as long."""
    for name in ("__and__", "__rand__"):
        setattr(kind, name, getattr(int, name))
    return kind


class Kind(IntEnum):
    """enum af_kind: what a stream record says happened."""

    CREATED = 1
    DESTROYED = 2
    DISOWNED = 3
    DISPATCHED = 4
    ADD_BEGUN = 5
    ADDED = 6
    MODIFIED = 7
    DEL_BEGUN = 8
    REMOVED = 9
    CLOSE_BEGUN = 10
    CLOSED = 11
    DUPPED = 12
    WAITER_SEEN = 13
    DELIVERED = 14
    BATCH_CLOSED = 15
    ACCEPTED = 16  # in recordings of ABI version 1
    FORKED = 17
    FORK_ENDED = 18
    SIGNALED = 19
    EXECED = 20
    EXITED = 21
    PROGRESS = 22
    EPOLL_CREATED = 23
    SPIN_SUSPECTED = 24


@_plain
class RecordFlag(IntFlag):
    INFERRED = 1
    REPEAT = 2
    NO_SLOT = 4
    UNKNOWN = 8
    AGAIN = 16
    NOT_JUDGED = 32
    REFCOUNT = 64
    NESTED = 128
    HOPELESS = 256
    PROVEN = 1024
    HELD = 512
    OWED = 2048


class Suspect(IntEnum):
    """enum af_suspect: the fact pattern the kernel side noticed."""

    STALE_DELIVERY = 1
    RECYCLED_DELIVERY = 2
    STALE_DISPATCH = 3
    DOUBLE_DESTROY = 4
    ALIASED_SLOT = 5
    FREED_REGISTERED = 6
    FREED_IN_BATCH = 7
    OUTLIVES_CLOSE = 8
    FAILED_REMOVAL = 9
    BAD_CLOSE = 10
    HOT = 11


class UrgentType(IntEnum):
    SUSPICION = 1
    CRASH = 2
    LIFECYCLE = 3


class SlotState(IntEnum):
    UNKNOWN = 0
    LIVE = 1
    FREE = 2


@_plain
class SlotFlag(IntFlag):
    INFERRED = 1
    CREATE_SEEN = 2
    REBORN_LIVE = 4
    CLOSED = 8
    DELETED = 16
    ORPHANED = 32
    CLOSE_IN_BATCH = 64
    UNBORN = 128
    ADD_FREED = 512
    CLOSE_BY_OTHER = 1024
    DESTROY_BY_OTHER = 2048
    ADD_BY_OTHER = 4096
    DEL_BY_OTHER = 8192
    CLOSE_PENDING = 16384
    WAITER_KNOWN = 32768
    PENDING = 65536
    ENDED_AFTER = 131072
    USED_AFTER = 262144
    LINKS_FULL = 524288
    EDGE = 1048576
    NOT_JUDGED = 2097152
    DOUBLED = 4194304
    FREED_TOLD = 8388608
    REARMED = 16777216
    TWICE_PENDING = 33554432


class RegState(IntEnum):
    NONE = 0
    ADDING = 1
    LIVE = 2
    ORPHAN = 3
    ENDED = 4


@_plain
class RegFlag(IntFlag):
    INFERRED = 1
    BY_CLOSE = 4
    BY_DEL = 8
    FORKED = 16
    REPORTED = 32
    NOT_ASKED = 64
    TABLE_SHARED = 128
    ADD_FAILED = 256


@_plain
class TargetFlag(IntFlag):
    LATE = 1
    FOLLOW = 2
    TABLE_SHARED = 4


@_plain
class Signature(IntFlag):
    """Bits of af_lifetime.signature; "OTHER" means a thread other than the one that waits."""

    ADD = 1
    ADD_OTHER = 2
    DELIVERED = 4
    DEL = 8
    DEL_OTHER = 16
    CLOSE = 32
    CLOSE_OTHER = 64
    AFTER_CLOSE = 128
    DESTROY_OTHER = 256
    CLOSE_IN_BATCH = 512
    INFERRED = 1024
    ORPHANED = 2048
    DEL_AFTER_CLOSE = 4096
    REGISTERED = 8192
    ENDED_AFTER = 16384
    WAITER_KNOWN = 32768
    NOT_JUDGED = 65536


class Counter(IntEnum):
    RECORDS = 0
    URGENT_LOST = 1
    SLOTS_FULL = 2
    REGS_FULL = 3
    PENDING_FULL = 4
    THREADS_FULL = 5
    EVENTS_TRUNCATED = 6
    READ_FAULT = 7
    STACK_FAILED = 8
    TAILCALL_FAILED = 9
    SUSPICIONS = 10
    REPEATS = 11
    LIFETIMES = 12
    DELIVERIES = 13
    HITS_CREATE = 14
    HITS_DESTROY = 15
    HITS_DISOWN = 16
    HITS_DISPATCH = 17
    ITEMS_TRUNCATED = 18
    UNKNOWN_SLOT = 19
    SUSPECTS_DROPPED = 20
    LINKS_FULL = 21
    OBJECTS_FULL = 22
    RANGES = 23
    ENTRY_UNSEEN = 24
    BATCHES_FULL = 25
    NOT_JUDGED = 26
    ADDS = 27
    ADDS_CREATED = 28
    AUDIT_ADD = 29
    AUDIT_MISSING = 30
    AUDIT_UNSEEN = 31
    IO_URING = 32
    SHARED_TABLES = 33
    NOT_REGISTERED = 34
    DESTROYS_UNKNOWN = 35
    ADDS_FREED = 36
    BAD_CLOSES = 37
    PREEMPTED = 38


RECORD = struct.Struct("<IHHQQQIIIiiiIi")
"""struct af_rec, 64 bytes. Bulk decoding uses this with plain tuples: 5 M/s against 0.4 M/s for objects."""


class Record(NamedTuple):
    """One fact of the recorder, fields as in struct af_rec; times are CLOCK_MONOTONIC nanoseconds."""

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


_U8, _U16, _U32, _U64, _S32 = (
    ctypes.c_uint8,
    ctypes.c_uint16,
    ctypes.c_uint32,
    ctypes.c_uint64,
    ctypes.c_int32,
)


class At(ctypes.LittleEndianStructure):
    _fields_ = [("enter", _U64), ("ts", _U64), ("ip", _U64), ("tid", _U32), ("stack", _S32)]


class Rec(ctypes.LittleEndianStructure):
    _fields_ = [
        ("seq", _U32),
        ("kind", _U16),
        ("flags", _U16),
        ("ts", _U64),
        ("enter", _U64),
        ("addr", _U64),
        ("tgid", _U32),
        ("tid", _U32),
        ("gen", _U32),
        ("fd", _S32),
        ("epfd", _S32),
        ("ret", _S32),
        ("arg", _U32),
        ("stack", _S32),
    ]


class Link(ctypes.LittleEndianStructure):
    _fields_ = [
        ("ep", _U64),
        ("file", _U64),
        ("added", _U64),
        ("fd", _S32),
        ("epfd", _S32),
        ("gen", _U32),
        ("events", _U32),
    ]


class Slot(ctypes.LittleEndianStructure):
    _fields_ = [
        ("addr", _U64),
        ("tgid", _U32),
        ("epoch", _U32),
        ("gen", _U32),
        ("state", _U32),
        ("flags", _U64),
        ("create", At),
        ("add", At),
        ("del_", At),
        ("close", At),
        ("destroy", At),
        ("prev_destroy", At),
        ("again", At),
        ("first_delivery", _U64),
        ("last_delivery", _U64),
        ("last_delivery_enter", _U64),
        ("last_dispatch", _U64),
        ("first_after_close", _U64),
        ("last_after_close", _U64),
        ("object", _U64),
        ("idle_since", _U64),
        ("hup_since", _U64),
        ("idle_reported", _U64),
        ("idle", _U64),
        ("deliveries", _U32),
        ("dispatches", _U32),
        ("after_close", _U32),
        ("stale", _U32),
        ("stale_reported", _U32),
        ("double_destroys", _U32),
        ("last_batch", _U32),
        ("last_tid", _U32),
        ("last_index", _U32),
        ("consecutive", _U32),
        ("live_from", _U32),
        ("waiter", _U32),
        ("fd", _S32),
        ("epfd", _S32),
        ("old_fd", _S32),
        ("old_epfd", _S32),
        ("old_gen", _U32),
        ("recycled", _U32),
        ("recycled_reported", _U32),
        ("batch_count", _U32),
        ("undispatched", _U32),
        ("stale_dispatches", _U32),
        ("adder", _U32),
        ("held_batch", _U32),
        ("held_index", _U32),
        ("last_events", _U32),
        ("dispatch_site", _U64),
        ("doubtful", _U32),
        ("progressed", _U32),
        ("taken", _U32),
        ("arrived", _U32),
        ("links", Link * SLOT_LINKS),
    ]


class Reg(ctypes.LittleEndianStructure):
    _fields_ = [
        ("userdata", _U64),
        ("slot", _U64),
        ("ep", _U64),
        ("file", _U64),
        ("item", _U64),
        ("ino", _U64),
        ("tgid", _U32),
        ("epoch", _U32),
        ("gen", _U32),
        ("epfd", _S32),
        ("fd", _S32),
        ("events", _U32),
        ("state", _U32),
        ("flags", _U32),
        ("error", _U32),
        ("dup_fd", _S32),
        ("add", At),
        ("mod", At),
        ("end", At),
        ("dup", At),
    ]


class UrgentHead(ctypes.LittleEndianStructure):
    _fields_ = [("type", _U16), ("version", _U16), ("size", _U32), ("what", _U32), ("nbytes", _U32)]


class SuspicionMessage(ctypes.LittleEndianStructure):
    _fields_ = [
        ("head", UrgentHead),
        ("trigger", Rec),
        ("wait_enter", _U64),
        ("wait_exit", _U64),
        ("batch", _U32),
        ("batch_open", _U32),
        ("forks", _U32),
        ("last_child", _U32),
        ("forked_at", _U64),
        ("slot", Slot),
        ("reg", Reg),
        ("other", Reg),
        ("comm", _U8 * COMM_BYTES),
        ("bytes", _U8 * SLOT_BYTES),
    ]


class StackBytes(ctypes.LittleEndianStructure):
    _fields_ = [
        ("regs", _U64 * len(STACK_REGISTERS)),
        ("tgid", _U32),
        ("nbytes", _U32),
        ("bytes", _U8 * STACK_MEMORY_BYTES),
    ]


class CrashSlotMessage(ctypes.LittleEndianStructure):
    _fields_ = [
        ("registers", _U32),
        ("objects", _U32),
        ("nbytes", _U32),
        ("in_batch", _U32),
        ("slot", Slot),
        ("reg", Reg),
        ("bytes", _U8 * CRASH_SLOT_BYTES),
    ]


class CrashMessage(ctypes.LittleEndianStructure):
    _fields_ = [
        ("head", UrgentHead),
        ("trigger", Rec),
        ("fault_addr", _U64),
        ("fault_ip", _U64),
        ("regs", _U64 * 21),
        ("si_code", _S32),
        ("batch", _U32),
        ("wait_enter", _U64),
        ("wait_exit", _U64),
        ("nslots", _U32),
        ("nevents", _U32),
        ("near_valid", _U32),
        ("nlinks", _U32),
        ("comm", _U8 * COMM_BYTES),
        ("links", _U64 * CRASH_LINKS),
        ("near", _U8 * CRASH_NEAR_BYTES * CRASH_REGISTERS),
        ("events", _U8 * (CRASH_EVENTS * EPOLL_EVENT.size)),
        ("slots", CrashSlotMessage * CRASH_SLOTS),
        ("stack", _U8 * CRASH_STACK_BYTES),
    ]


class LifecycleMessage(ctypes.LittleEndianStructure):
    _fields_ = [
        ("head", UrgentHead),
        ("trigger", Rec),
        ("comm", _U8 * COMM_BYTES),
        ("path", _U8 * PATH_BYTES),
    ]


class Lifetime(ctypes.LittleEndianStructure):
    _fields_ = [("seq", _U32), ("cpu", _U32), ("signature", _U64), ("slot", Slot)]


class RingHead(ctypes.LittleEndianStructure):
    _fields_ = [("written", _U64), ("pad", _U64 * 7)]


C_NAMES: dict[str, type[ctypes.Structure]] = {
    "af_rec": Rec,
    "af_at": At,
    "af_link": Link,
    "af_slot": Slot,
    "af_reg": Reg,
    "af_urgent_head": UrgentHead,
    "af_suspicion": SuspicionMessage,
    "af_stack_bytes": StackBytes,
    "af_crash_slot": CrashSlotMessage,
    "af_crash": CrashMessage,
    "af_lifecycle": LifecycleMessage,
    "af_ring_head": RingHead,
    "af_lifetime": Lifetime,
}
"""Every struct of the header by its C name, for the comparison with the compiler."""

PT_REGS_X86_64 = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
    "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss",
)  # fmt: skip
"""struct pt_regs of x86-64 in memory order (arch/x86/include/uapi/asm/ptrace.h)."""
