# Owns what --redact takes out of a case before anything of it reaches a disk: memory other than registers,
# return addresses of stacks, and slots. Must not write or judge.
from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace

from agent.forensics.case import Case
from probes.events import CrashSeen, Event, ModulesMapped, StackSeen

_STACK_REACH = 1 << 20


def redacted(event: Event, case: Case) -> Event:
    """`event` without other memory: words of a stack that point neither into code nor up the stack become 0.

    The latter are saved frame pointers, without which the stack cannot be unwound.
    """
    if isinstance(event, CrashSeen):
        ranges = (*_code(case), _above(event.registers))
        return replace(event, stack=_pointers_only(event.stack, ranges), near={})
    if isinstance(event, StackSeen) and event.memory:
        ranges = (*_code(case), _above(event.registers))
        return replace(event, memory=_pointers_only(event.memory, ranges))
    return event


def _above(registers: Mapping[str, int]) -> tuple[int, int]:
    top = registers.get("rsp", 0)
    return (top, top + _STACK_REACH)


def _code(case: Case) -> tuple[tuple[int, int], ...]:
    mapped = next((event for event in case.events if isinstance(event, ModulesMapped)), None)
    return tuple((m.start, m.end) for m in mapped.modules) if mapped is not None else ()


def _pointers_only(stack: bytes, known: tuple[tuple[int, int], ...]) -> bytes:
    whole = len(stack) - len(stack) % 8
    words = struct.unpack(f"<{whole // 8}Q", stack[:whole])
    kept = (word if any(start <= word < end for start, end in known) else 0 for word in words)
    return struct.pack(f"<{whole // 8}Q", *kept)
