# Owns scenarios (what each thread of a program does) and playing them over the simulated kernel in some order, or in
# every order; what the probe programs reported is decoded by the project's own decoder.
from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from tests.host.build import library

MOST_OPS = 16
THREADS = 4
OPS = (
    "socket", "epoll", "add", "mod", "del", "close", "dup", "dup2", "wait", "create", "destroy", "return",
    "dispatch", "ready", "drain", "fork", "child_exit", "send", "received", "close_range", "slow_close", "late_close",
)  # fmt: skip
"""Names by enum op_kind of player.c."""

STEPS = {
    "socket": 1, "epoll": 2, "add": 3, "mod": 3, "del": 3, "close": 3, "dup": 2, "dup2": 3, "wait": 3, "create": 1,
    "destroy": 1, "return": 1, "dispatch": 1, "ready": 1, "drain": 1, "fork": 2, "child_exit": 2, "send": 1,
    "received": 1, "close_range": 2, "slow_close": 4, "late_close": 4,
}  # fmt: skip
PHASES = {
    1: ("",), 2: (" effect", " exit"), 3: (" enter", " effect", " exit"), 4: (" enter", " table", " put", " exit"),
}  # fmt: skip
EVENTS = {"level": 0, "edge": 1, "oneshot": 2}
KINDS = ("right", "false alarm", "missed", "lifetimes", "audit", "lost")


class _Op(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint8) for name in ("kind", "a", "b", "c", "d", "after", "until", "gap")]


class _Scenario(ctypes.Structure):
    _fields_ = [
        ("threads", ctypes.c_uint32),
        ("prepared", ctypes.c_uint32),
        ("counts", ctypes.c_uint32 * THREADS),
        ("prepare", _Op * MOST_OPS),
        ("ops", (_Op * MOST_OPS) * THREADS),
    ]


class _Violation(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("kind", "what", "slot", "step")]


class _Search(ctypes.Structure):
    _fields_ = [
        ("tried", ctypes.c_uint64),
        ("violations", ctypes.c_uint64),
        ("length", ctypes.c_uint32),
        ("switches", ctypes.c_uint32),
        ("first", _Violation),
        ("schedule", ctypes.c_uint8 * 128),
    ]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Calls by thread, each line "op operands" separated by ";": numbers are slots, words are descriptors.

    "after T N": the next call begins only when thread T's call N (from 0) is through. `prepare` is played first.
    """

    prepare: str
    threads: Sequence[str]
    name: str = ""
    names: dict[str, int] = field(default_factory=dict, compare=False)

    def calls(self, thread: int) -> list[str]:
        lines = [part.strip() for part in self.threads[thread].split(";")]
        return [line for line in lines if line and not line.startswith("after ")]

    def packed(self) -> _Scenario:
        made = _Scenario(threads=len(self.threads))
        made.prepared = self._pack(self.prepare, made.prepare)
        for index, text in enumerate(self.threads):
            made.counts[index] = self._pack(text, made.ops[index])
        return made

    def _pack(self, text: str, ops: ctypes.Array[_Op]) -> int:
        count, after = 0, (0, 0)
        for part in text.split(";"):
            words = part.split()
            if not words:
                continue
            if words[0] == "after":
                after = (1 + int(words[1]), int(words[2]))
                continue
            kind, *operands = words
            values = [self._operand(word) for word in operands] + [0] * 4
            ops[count] = _Op(OPS.index(kind), *values[:4], *after)
            count, after = count + 1, (0, 0)
        return count

    def _operand(self, word: str) -> int:
        if word.isdigit():
            return int(word)
        if word in EVENTS:
            return EVENTS[word]
        return self.names.setdefault(word, len(self.names))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the oracle says of one order."""

    kind: str
    what: str
    code: int
    slot: int
    step: int

    def __bool__(self) -> bool:
        return self.kind != "right"


@dataclass(frozen=True, slots=True)
class Search:
    tried: int
    violations: int
    verdict: Verdict
    schedule: bytes


def _verdict(found: _Violation) -> Verdict:
    from probes.abi import Counter, Suspect

    kind = KINDS[found.kind]
    what = str(found.what)
    if kind in ("false alarm", "missed"):
        what = Suspect(found.what).name.lower().replace("_", "-")
    elif kind in ("audit", "lost"):
        known = {counter.value: counter.name for counter in Counter}
        what = known.get(found.what, what)
    elif kind == "lifetimes":
        what = f"{found.what} told"
    return Verdict(kind, what, found.what, found.slot, found.step)


class Machine:
    """The probe programs of one shape (build.SHAPES) over the simulated kernel. Not for two threads at once."""

    def __init__(self, shape: str) -> None:
        self.shape = shape
        self._lib = ctypes.CDLL(str(library(shape)))
        self._lib.host_message.restype = ctypes.c_void_p
        sizes = [self._lib.host_sizes(which) for which in range(3)]
        if sizes != [ctypes.sizeof(_Scenario), ctypes.sizeof(_Search), len(OPS)]:
            raise RuntimeError(f"machine.py and machine.c differ: {sizes}")

    def look_for(self, only: Verdict | None = None, but: Sequence[tuple[str, int]] = ()) -> None:
        """From now on: everything, or one kind of violation only, or everything but some."""
        for kind in range(1, len(KINDS)):
            whats = ~0 if only is None else 1 << (only.code & 63) if only.kind == KINDS[kind] else 0
            for name, code in but:
                whats &= ~(1 << code) if name == KINDS[kind] else ~0
            self._lib.host_look_for(kind, ctypes.c_uint64(whats & (1 << 64) - 1))

    def run(self, scenario: Scenario, schedule: bytes) -> Verdict:
        """One order: a thread per step; what the schedule leaves over is played thread by thread."""
        found = _Violation()
        packed = scenario.packed()
        self._lib.host_run(ctypes.byref(packed), schedule, len(schedule), ctypes.byref(found))
        return _verdict(found)

    def every_order(self, scenario: Scenario, limit: int) -> Search:
        """At most `limit` orders."""
        search = _Search()
        packed = scenario.packed()
        self._lib.host_all(ctypes.byref(packed), ctypes.c_uint64(limit), ctypes.byref(search))
        return self._searched(search)

    def some_orders(self, scenario: Scenario, count: int, seed: int) -> Search:
        search = _Search()
        packed = scenario.packed()
        self._lib.host_some(
            ctypes.byref(packed), ctypes.c_uint64(count), ctypes.c_uint64(seed), ctypes.byref(search)
        )
        return self._searched(search)

    def _searched(self, search: _Search) -> Search:
        schedule = bytes(search.schedule[: search.length])
        return Search(search.tried, search.violations, _verdict(search.first), schedule)

    def messages(self) -> list[bytes]:
        """The urgent messages of the last step that was played."""
        found = []
        for index in range(self._lib.host_messages()):
            at = self._lib.host_message(index)
            size = ctypes.c_uint32.from_address(at + 4).value
            found.append(ctypes.string_at(at, size))
        return found


@cache
def machine(shape: str) -> Machine:
    return Machine(shape)


def orders(scenario: Scenario) -> int:
    """How many orders its steps have, waiting for others left out."""
    total, ways = 0, 1
    for thread in range(len(scenario.threads)):
        for _ in range(sum(STEPS[call.split()[0]] for call in scenario.calls(thread))):
            total += 1
            ways *= total
        for step in range(1, 1 + sum(STEPS[call.split()[0]] for call in scenario.calls(thread))):
            ways //= step
    return ways


def smaller(
    machine: Machine, scenario: Scenario, verdict: Verdict, most: int = 20_000
) -> tuple[Scenario, Search]:
    """The scenario without the calls that the violation does without, and the order with the fewest switches."""
    machine.look_for(verdict)
    try:
        found = _looked(machine, scenario, most)
        while True:
            for candidate in _without_one(scenario):
                tried = _looked(machine, candidate, most)
                if tried.violations:
                    scenario, found = candidate, tried
                    break
            else:
                return scenario, found
    finally:
        machine.look_for()


def _looked(machine: Machine, scenario: Scenario, most: int) -> Search:
    if orders(scenario) <= most:
        return machine.every_order(scenario, most)
    return machine.some_orders(scenario, most, 1)


def _without_one(scenario: Scenario) -> list[Scenario]:
    candidates = []
    for index, text in enumerate(scenario.threads):
        others = [*scenario.threads[:index], *scenario.threads[index + 1 :]]
        if others:
            candidates.append(Scenario(scenario.prepare, others, scenario.name))
        parts = text.split(";")
        for at in range(len(parts)):
            less = ";".join(parts[:at] + parts[at + 1 :])
            threads = [*scenario.threads[:index], less, *scenario.threads[index + 1 :]]
            if len(parts) > 1:
                candidates.append(Scenario(scenario.prepare, threads, scenario.name))
    parts = scenario.prepare.split(";")
    candidates += [
        Scenario(";".join(parts[:at] + parts[at + 1 :]), scenario.threads, scenario.name)
        for at in range(len(parts))
    ]
    return candidates


def story(scenario: Scenario, schedule: bytes) -> str:
    """The order in words, a line per step."""
    lines = [f"prepared: {scenario.prepare}"]
    at = [[0, 0] for _ in scenario.threads]
    for number, thread in enumerate(schedule):
        calls = scenario.calls(thread)
        call, step = at[thread]
        if call >= len(calls):
            continue
        kind = calls[call].split()[0]
        count = STEPS[kind]
        phase = (" enter", " table", " exit", " put")[step] if kind == "late_close" else PHASES[count][step]
        lines.append(f"{number:3} {'    ' * thread}{thread}: {calls[call]}{phase}")
        at[thread] = [call, step + 1] if step + 1 < count else [call + 1, 0]
    return "\n".join(lines)
