# Owns a small crash case for the tests of agent/forensics: a life, its suspicion, the crash that follows.
from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

from agent.forensics.case import Case, CaseKeeper
from probes.abi import RECORD, Kind
from probes.events import (
    CrashSeen,
    CrashSlot,
    Event,
    FlightRecorded,
    MappedModule,
    ModulesMapped,
    ProcessCaptured,
    StackSeen,
    TargetGone,
    ThreadSeen,
    ThreadStatus,
)
from tests.unit.agent.correlator.playbook import LOOP, SLOT, TGID, attached, freed_bytes, life

CODE = (0x1000000, 0x1100000)
STACK_AT = 0x7FFF_0000_0000
SECRET = b"password"


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def crash(ts: int = 1000, **changes: Any) -> CrashSeen:
    """SIGSEGV at 0x2f8 in the loop, with the freed slot in r14."""
    story = life().added(10).closed(30).destroyed(50)
    held = CrashSlot(
        slot=story.slot,
        reg=story.reg,
        registers=("r14",),
        objects=(),
        in_batch=0,
        memory=freed_bytes(0),
    )
    stack = words(CODE[0] + 0x40) + SECRET + words(STACK_AT + 64, 0x7F00_1234_5678)
    whole = CrashSeen(
        ts=ts,
        tgid=TGID,
        tid=LOOP,
        comm="loop",
        signal=11,
        si_code=1,
        fault_addr=0x2F8,
        ip=CODE[0] + 0x10,
        registers={"rip": CODE[0] + 0x10, "rsp": STACK_AT, "r14": SLOT, "rbx": 0},
        stack=stack,
        batch=3,
        slots=(held,),
        near={"r14": freed_bytes(0)},
        delivered=((1, SLOT),),
        links=(0,),
    )
    return replace(whole, **changes)


def flight(count: int = 3) -> FlightRecorded:
    rows = [
        RECORD.pack(n, Kind.DESTROYED, 0, 100 + n, 0x500, SLOT, TGID, LOOP, 1, 9, 5, 0, 0, 4)
        for n in range(count)
    ]
    return FlightRecorded(ts=990, tgid=TGID, records=b"".join(rows), overwritten=7)


def history() -> list[Event]:
    """Everything before the crash itself."""
    module = MappedModule(start=CODE[0], end=CODE[1], bias=0, path="/srv/server", identity="build-id:cafe")
    stack = StackSeen(
        tgid=TGID, id=4, pcs=(CODE[0] + 0x20,), registers={"rsp": STACK_AT}, memory=SECRET + words(CODE[0])
    )
    return [
        attached(),
        ModulesMapped(ts=2, tgid=TGID, modules=(module,)),
        ThreadSeen(tgid=TGID, tid=LOOP, comm="loop"),
        stack,
        replace(stack, id=99),
        life().added(10).closed(30).destroyed(50).stale_delivery(70),
        flight(),
        ProcessCaptured(
            ts=995,
            tgid=TGID,
            maps="1000000-1100000 r-xp 00000000 00:00 1 /srv/server\n",
            threads=(ThreadStatus(tid=LOOP, comm="loop", state="R"),),
            fdinfo={5: "pos:\t0\ntfd:        9 events:       19 data:     7f0000001000\n"},
        ),
    ]


def case(**keeper: Any) -> Case:
    kept = CaseKeeper(**keeper)
    for event in [*history(), crash(), TargetGone(ts=1100, tgid=TGID, reason="killed by signal 11")]:
        kept.feed(event)
    kept.finding(TGID, '{"rule":"stale-delivery"}')
    return next(kept.take())
