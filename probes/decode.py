# Owns bytes -> events for the big records; the 64-byte stream is decoded in bulk by probes/rings.py.
# Input may come from a file: every length is checked, nothing else is trusted either.
from __future__ import annotations

import ctypes

from probes import abi, events


class BadRecord(ValueError):
    """A record's bytes do not have the layout of this ABI version."""


def _moment(at: abi.At) -> events.Moment:
    return events.Moment(at.enter, at.ts, at.ip, at.tid, at.stack)


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _slot(s: abi.Slot) -> events.SlotLife:
    try:
        state = abi.SlotState(s.state)
    except ValueError:
        state = abi.SlotState.UNKNOWN
    return events.SlotLife(
        addr=s.addr,
        tgid=s.tgid,
        gen=s.gen,
        state=state,
        flags=abi.SlotFlag(s.flags),
        create=_moment(s.create),
        add=_moment(s.add),
        removed=_moment(s.del_),
        close=_moment(s.close),
        destroy=_moment(s.destroy),
        prev_destroy=_moment(s.prev_destroy),
        first_delivery=s.first_delivery,
        last_delivery=s.last_delivery,
        last_delivery_enter=s.last_delivery_enter,
        last_dispatch=s.last_dispatch,
        first_after_close=s.first_after_close,
        last_after_close=s.last_after_close,
        object=s.object,
        deliveries=s.deliveries,
        dispatches=s.dispatches,
        after_close=s.after_close,
        stale=s.stale,
        stale_reported=s.stale_reported,
        double_destroys=s.double_destroys,
        last_batch=s.last_batch,
        last_tid=s.last_tid,
        consecutive=s.consecutive,
        live_from=s.live_from,
        waiter=s.waiter,
        fd=s.fd,
        epfd=s.epfd,
        old_fd=s.old_fd,
        old_epfd=s.old_epfd,
        old_gen=s.old_gen,
        recycled=s.recycled,
        recycled_reported=s.recycled_reported,
        batch_count=s.batch_count,
        undispatched=s.undispatched,
        stale_dispatches=s.stale_dispatches,
        idle=s.idle,
        idle_since=s.idle_since,
        hup_since=s.hup_since,
        last_index=s.last_index,
    )


def _reg(r: abi.Reg) -> events.Registration | None:
    if r.state == abi.RegState.NONE:
        return None
    try:
        state = abi.RegState(r.state)
    except ValueError:
        return None
    return events.Registration(
        userdata=r.userdata,
        slot=r.slot,
        tgid=r.tgid,
        gen=r.gen,
        epfd=r.epfd,
        fd=r.fd,
        events=r.events,
        state=state,
        flags=abi.RegFlag(r.flags),
        add=_moment(r.add),
        mod=_moment(r.mod),
        end=_moment(r.end),
        file=r.file,
        ino=r.ino,
        dup_fd=r.dup_fd,
        dup=_moment(r.dup),
        error=r.error,
    )


def _trigger(raw: bytes, offset: int) -> events.Trigger:
    return events.Trigger(*abi.RECORD.unpack_from(raw, offset))


def slot(raw: bytes | memoryview) -> events.SlotLife:
    """struct af_slot. Raises BadRecord on a wrong length."""
    if len(raw) < ctypes.sizeof(abi.Slot):
        raise BadRecord(f"slot record of {len(raw)} bytes")
    return _slot(abi.Slot.from_buffer_copy(raw))


def registration(raw: bytes | memoryview) -> events.Registration | None:
    """struct af_reg; None for an empty one. Raises BadRecord on a wrong length."""
    if len(raw) < ctypes.sizeof(abi.Reg):
        raise BadRecord(f"registration record of {len(raw)} bytes")
    return _reg(abi.Reg.from_buffer_copy(raw))


def lifetime(raw: bytes | memoryview) -> events.LifetimeEnded:
    """struct af_lifetime. Raises BadRecord on a wrong length."""
    if len(raw) < ctypes.sizeof(abi.Lifetime):
        raise BadRecord(f"lifetime record of {len(raw)} bytes")
    record = abi.Lifetime.from_buffer_copy(raw)
    return events.LifetimeEnded(signature=record.signature, slot=_slot(record.slot))


def urgent(raw: bytes) -> events.SuspicionRaised | events.CrashSeen | abi.LifecycleMessage:
    """One message of the urgent ring. Raises BadRecord when type, version or size do not fit."""
    if len(raw) < ctypes.sizeof(abi.UrgentHead):
        raise BadRecord(f"urgent message of {len(raw)} bytes")
    head = abi.UrgentHead.from_buffer_copy(raw)
    if head.version != abi.ABI_VERSION:
        raise BadRecord(f"urgent message of ABI version {head.version}, this build reads {abi.ABI_VERSION}")
    kinds: dict[int, type[ctypes.LittleEndianStructure]] = {
        abi.UrgentType.SUSPICION: abi.SuspicionMessage,
        abi.UrgentType.CRASH: abi.CrashMessage,
        abi.UrgentType.LIFECYCLE: abi.LifecycleMessage,
    }
    kind = kinds.get(head.type)
    if kind is None or len(raw) < ctypes.sizeof(kind):
        raise BadRecord(f"urgent message of type {head.type} with {len(raw)} bytes")
    message = kind.from_buffer_copy(raw)
    if isinstance(message, abi.SuspicionMessage):
        return _suspicion(message, raw)
    if isinstance(message, abi.CrashMessage):
        return _crash(message)
    assert isinstance(message, abi.LifecycleMessage)
    return message


def _suspicion(m: abi.SuspicionMessage, raw: bytes) -> events.SuspicionRaised:
    try:
        suspect = abi.Suspect(m.head.what)
    except ValueError as error:
        raise BadRecord(f"unknown suspicion {m.head.what}") from error
    return events.SuspicionRaised(
        suspect=suspect,
        trigger=_trigger(raw, abi.SuspicionMessage.trigger.offset),
        wait_enter=m.wait_enter,
        wait_exit=m.wait_exit,
        batch=m.batch,
        batch_open=bool(m.batch_open),
        slot=_slot(m.slot) if m.slot.addr else None,
        reg=_reg(m.reg),
        other=_reg(m.other),
        comm=_text(bytes(m.comm)),
        memory=bytes(m.bytes)[: min(m.head.nbytes, abi.SLOT_BYTES)],
        forks=m.forks,
        last_child=m.last_child,
        forked_at=m.forked_at,
    )


def _crash(m: abi.CrashMessage) -> events.CrashSeen:
    registers = dict(zip(abi.PT_REGS_X86_64, m.regs, strict=True))
    registers["rip"] = m.fault_ip  # differs when the instruction was stepped out of line for a probe
    return events.CrashSeen(
        ts=m.trigger.ts,
        tgid=m.trigger.tgid,
        tid=m.trigger.tid,
        comm=_text(bytes(m.comm)),
        signal=m.trigger.arg,
        si_code=m.si_code,
        fault_addr=m.fault_addr,
        ip=registers["rip"],
        registers=registers,
        stack=bytes(m.stack)[: min(m.head.nbytes, abi.CRASH_STACK_BYTES)],
        batch=m.batch,
        epfd=m.trigger.epfd,
        wait_enter=m.wait_enter,
        wait_exit=m.wait_exit,
        stack_id=m.trigger.stack,
        slots=tuple(_crash_slot(item) for item in m.slots[: min(m.nslots, abi.CRASH_SLOTS)]),
        near={
            name: bytes(m.near[index])
            for index, name in enumerate(abi.PT_REGS_X86_64[: abi.CRASH_REGISTERS])
            if m.near_valid >> index & 1
        },
        delivered=tuple(
            abi.EPOLL_EVENT.iter_unpack(
                bytes(m.events)[: min(m.nevents, abi.CRASH_EVENTS) * abi.EPOLL_EVENT.size]
            )
        ),
        links=tuple(m.links[: min(m.nlinks, abi.CRASH_LINKS)]),
    )


def _crash_slot(s: abi.CrashSlotMessage) -> events.CrashSlot:
    names = abi.PT_REGS_X86_64[: abi.CRASH_REGISTERS]
    return events.CrashSlot(
        slot=_slot(s.slot),
        reg=_reg(s.reg),
        registers=tuple(name for index, name in enumerate(names) if s.registers >> index & 1),
        objects=tuple(name for index, name in enumerate(names) if s.objects >> index & 1),
        in_batch=min(s.in_batch, abi.CRASH_EVENTS) - 1,
        memory=bytes(s.bytes)[: min(s.nbytes, abi.CRASH_SLOT_BYTES)],
    )


def comm(message: abi.LifecycleMessage) -> str:
    return _text(bytes(message.comm))


def path(message: abi.LifecycleMessage) -> str:
    return _text(bytes(message.path))
