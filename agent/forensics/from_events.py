# Owns events -> CrashEvidence: what a watched crash is explained from, live and from a bundle's recording.
# Must not read processes or executables; a mini core comes as an opened reader.
from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent.correlator.findings import Finding
from agent.forensics.evidence import (
    CrashEvidence,
    Fragments,
    History,
    Layered,
    Memory,
    OpenBatch,
    Region,
    Source,
    TargetIdentity,
    ThreadState,
)
from probes.abi import Kind
from probes.events import (
    CrashSeen,
    Event,
    Lost,
    ModulesMapped,
    ProcessCaptured,
    RecordsRead,
    Registration,
    SlotLife,
    StackSeen,
    SuspicionRaised,
    TargetAttached,
    ThreadSeen,
)

_WORD = struct.Struct("<Q")


@dataclass(slots=True)
class Gathered:
    """The parts of a case, by what they are."""

    attached: TargetAttached | None = None
    modules: ModulesMapped | None = None
    process: ProcessCaptured | None = None
    crashes: list[CrashSeen] = field(default_factory=list)
    suspicions: list[SuspicionRaised] = field(default_factory=list)
    stacks: list[StackSeen] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    records: list[tuple[int, ...]] = field(default_factory=list)
    lost: int = 0


def gather(events: Iterable[Event]) -> Gathered:
    """Sort the events of one case."""
    found = Gathered()
    for event in events:
        if isinstance(event, TargetAttached):
            found.attached = event
        elif isinstance(event, ModulesMapped):
            found.modules = event
        elif isinstance(event, ProcessCaptured):
            found.process = event
        elif isinstance(event, CrashSeen):
            found.crashes.append(event)
        elif isinstance(event, SuspicionRaised):
            found.suspicions.append(event)
        elif isinstance(event, StackSeen):
            found.stacks.append(event)
        elif isinstance(event, ThreadSeen):
            found.names[event.tid] = event.comm
        elif isinstance(event, RecordsRead):
            found.records += event.records
        elif isinstance(event, Lost):
            found.lost += event.count
    return found


def evidence(
    case: Gathered,
    *,
    findings: tuple[Finding, ...] = (),
    core: Callable[[int, int], bytes | None] | None = None,
    threads: tuple[ThreadState, ...] = (),
    notes: tuple[str, ...] = (),
) -> CrashEvidence | None:
    """What the case says of its first crash; None when it holds none.

    core, threads: of the mini core of the same stop, where one was taken.
    """
    if not case.crashes or case.attached is None:
        return None
    crash, attached = case.crashes[0], case.attached
    captured = _fragments(crash, attached)
    memory: Memory = captured if core is None else Layered(captured.read, core)
    return CrashEvidence(
        source=Source.KERNEL if core is None else Source.PTRACE,
        target=TargetIdentity(
            tgid=crash.tgid,
            exe=attached.exe,
            identity=str(attached.plan.get("identity", "")),
            bias=attached.bias,
            comm=attached.comm,
            start_time=attached.start_time,
        ),
        signal=crash.signal,
        si_code=crash.si_code,
        fault_addr=crash.accessed,
        ts=crash.ts,
        threads=_threads(crash, case, threads),
        modules=case.modules.modules if case.modules is not None else (),
        regions=regions(case.process.maps) if case.process is not None else (),
        memory=memory,
        batches=_batches(crash),
        history=_history(case, crash, attached, findings),
        notes=notes,
    )


def _fragments(crash: CrashSeen, attached: TargetAttached) -> Fragments:
    """Slots first: what was read of them belongs together."""
    pieces = [(held.slot.addr, held.memory) for held in crash.slots if held.memory]
    pieces.append((crash.registers.get("rsp", 0), crash.stack))
    pieces += [(crash.registers[name], raw) for name, raw in crash.near.items() if name in crash.registers]
    slot = attached.plan.get("slot")
    offset = slot.get("freelist_offset") if isinstance(slot, dict) else None
    first = next((held.slot.addr for held in crash.slots if held.slot.state.name == "FREE"), 0)
    if isinstance(offset, int) and first:
        for link in crash.links:
            pieces.append((first + offset, _WORD.pack(link)))
            first = link
            if not link:
                break
    return Fragments(pieces)


def _threads(crash: CrashSeen, case: Gathered, captured: tuple[ThreadState, ...]) -> tuple[ThreadState, ...]:
    own = ThreadState(tid=crash.tid, comm=crash.comm, registers=crash.registers, crashed=True)
    seen = {own.tid: own}
    for thread in captured:
        seen.setdefault(thread.tid, thread)
    if case.process is not None:
        for status in case.process.threads:
            seen.setdefault(status.tid, ThreadState(tid=status.tid, comm=status.comm))
    return tuple(seen.values())


def _batches(crash: CrashSeen) -> tuple[OpenBatch, ...]:
    if not crash.delivered:
        return ()
    deliveries = tuple((userdata, mask) for mask, userdata in crash.delivered)
    return (OpenBatch(tid=crash.tid, batch=crash.batch, deliveries=deliveries),)


def _history(
    case: Gathered, crash: CrashSeen, attached: TargetAttached, findings: tuple[Finding, ...]
) -> History:
    lives: dict[tuple[int, int], SlotLife] = {}
    registrations: dict[tuple[int, int, int, int], Registration] = {}
    for suspicion in case.suspicions:
        if suspicion.trigger.tgid != crash.tgid:
            continue
        if suspicion.slot is not None:
            lives[suspicion.slot.addr, suspicion.slot.gen] = suspicion.slot
        for reg in (suspicion.reg, suspicion.other):
            if reg is not None:
                registrations[reg.epfd, reg.fd, reg.slot, reg.gen] = reg
    for held in crash.slots:
        lives[held.slot.addr, held.slot.gen] = held.slot
        if held.reg is not None:
            registrations[held.reg.epfd, held.reg.fd, held.reg.slot, held.reg.gen] = held.reg
    waiting = (int(Kind.WAITER_SEEN), int(Kind.DELIVERED), int(Kind.BATCH_CLOSED))
    waiters = {record[7] for record in case.records if record[1] in waiting}
    waiters |= {life.waiter for life in lives.values() if life.waiter}
    return History(
        attached=attached.ts,
        lives=tuple(lives.values()),
        registrations=tuple(registrations.values()),
        records=tuple(case.records),
        findings=findings,
        stacks=tuple(case.stacks),
        names=dict(case.names),
        waiters=tuple(sorted(waiters)),
        lost=case.lost,
    )


def regions(maps: str) -> tuple[Region, ...]:
    """/proc/PID/maps (proc(5)) as regions; lines that are none are left out."""
    found = []
    for line in maps.splitlines():
        fields = line.split(None, 5)
        try:
            start, end = (int(part, 16) for part in fields[0].split("-"))
            found.append(Region(start, end, fields[1], fields[5] if len(fields) > 5 else ""))
        except (ValueError, IndexError):
            continue
    return tuple(found)
