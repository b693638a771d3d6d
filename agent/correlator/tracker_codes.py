# Owns the codes of probes.abi as plain integers, for the mirror's hot path: IntFlag arithmetic costs a
# microsecond, an integer's thirty nanoseconds. No meaning of its own.
from __future__ import annotations

from probes.abi import RecordFlag, RegFlag, Signature, SlotFlag

EBADF, ENOENT = -9, -2
ET_OR_ONESHOT = 1 << 31 | 1 << 30
HOT_AFTER = 1024
F_NO_SLOT, F_UNKNOWN, F_AGAIN = (
    int(flag) for flag in (RecordFlag.NO_SLOT, RecordFlag.UNKNOWN, RecordFlag.AGAIN)
)
S_INFERRED = int(SlotFlag.INFERRED)
S_CREATE_SEEN = int(SlotFlag.CREATE_SEEN)
S_REBORN_LIVE = int(SlotFlag.REBORN_LIVE)
S_CLOSED = int(SlotFlag.CLOSED)
S_DELETED = int(SlotFlag.DELETED)
S_ORPHANED = int(SlotFlag.ORPHANED)
S_CLOSE_IN_BATCH = int(SlotFlag.CLOSE_IN_BATCH)
S_FORK_SHARED = int(SlotFlag.FORK_SHARED)
S_ADD_FREED = int(SlotFlag.ADD_FREED)
S_CLOSE_BY_OTHER = int(SlotFlag.CLOSE_BY_OTHER)
S_DESTROY_BY_OTHER = int(SlotFlag.DESTROY_BY_OTHER)
S_ADD_BY_OTHER = int(SlotFlag.ADD_BY_OTHER)
S_DEL_BY_OTHER = int(SlotFlag.DEL_BY_OTHER)
S_CLOSE_PENDING = int(SlotFlag.CLOSE_PENDING)
S_WAITER_KNOWN = int(SlotFlag.WAITER_KNOWN)
R_INFERRED, R_ENDING, R_BY_CLOSE, R_BY_DEL, R_FORK_SHARED, R_SHARED = (
    int(flag)
    for flag in (
        RegFlag.INFERRED,
        RegFlag.ENDING,
        RegFlag.BY_CLOSE,
        RegFlag.BY_DEL,
        RegFlag.FORK_SHARED,
        RegFlag.SHARED,
    )
)
# slot flag -> signature bit (af_signature in 70-slots.c)
SIGNATURE_OF = tuple(
    (int(flag), int(bit))
    for flag, bit in (
        (SlotFlag.ADD_BY_OTHER, Signature.ADD_OTHER),
        (SlotFlag.DELETED, Signature.DEL),
        (SlotFlag.DEL_BY_OTHER, Signature.DEL_OTHER),
        (SlotFlag.CLOSE_BY_OTHER, Signature.CLOSE_OTHER),
        (SlotFlag.DESTROY_BY_OTHER, Signature.DESTROY_OTHER),
        (SlotFlag.CLOSE_IN_BATCH, Signature.CLOSE_IN_BATCH),
        (SlotFlag.INFERRED, Signature.INFERRED),
        (SlotFlag.ORPHANED, Signature.ORPHANED),
        (SlotFlag.FORK_SHARED, Signature.FORK_SHARED),
        (SlotFlag.WAITER_KNOWN, Signature.WAITER_KNOWN),
    )
)
SIG_ADD, SIG_DELIVERED, SIG_CLOSE, SIG_AFTER_CLOSE, SIG_DEL_AFTER_CLOSE, SIG_REGISTERED = (
    int(bit)
    for bit in (
        Signature.ADD,
        Signature.DELIVERED,
        Signature.CLOSE,
        Signature.AFTER_CLOSE,
        Signature.DEL_AFTER_CLOSE,
        Signature.REGISTERED,
    )
)
