"""A small made-up run: the events of one stale delivery, and fakes around it.

Owns no assertions. Shared by the agent's unit tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from agent.correlator.findings import Actor, CallSite, Confidence, Finding, RuleId, Severity
from agent.snapshots import Snapshots
from agent.symbolize import Answer, Question
from probes.abi import Kind
from probes.events import (
    Event,
    ModulesMapped,
    Moment,
    RecordsRead,
    StackSeen,
    TargetAttached,
    ThreadSeen,
    Tick,
)

PID = 4711
SLOT = 0x7F12A4C31040
BIAS = 0
SECOND = 1_000_000_000

PLAN: dict[str, Any] = {
    "image": "/usr/local/bin/poolserver",
    "identity": "sha256:00ff",
    "machine": "x86_64",
    "pie": False,
    "profile": "http.zig",
    "guard": None,
    "slot": {
        "type_name": "worker.Conn(poolserver.NoWebsocket)",
        "size": 56,
        "freelist_offset": 0,
        "object_offset": 0,
        "object_field": "protocol.http",
        "object_type": "worker.HTTPConn",
    },
    "segments": [{"vaddr": 0x1000000, "offset": 0, "filesz": 0x9000, "memsz": 0x9000, "executable": True}],
    "sites": [
        {
            "index": 0,
            "role": "destroy",
            "function": "heap.memory_pool.Extra(worker.Conn(poolserver.NoWebsocket),.{}).destroy",
            "kind": "inlined",
            "address": 0x1001000,
            "file_offset": 0x1000,
            "enclosing": "worker.NonBlocking.disown",
            "call_site": {"file": "/src/worker.zig", "line": 812, "column": 9},
            "declared_at": None,
            "instruction": "push rbp",
            "price": "emulated",
            "argument": "ptr",
            "source": {"register": "rbx", "constant": 0, "steps": []},
            "note": "",
        }
    ],
    "unprobed": [],
    "warnings": [],
}

ATTACHED = TargetAttached(
    ts=100 * SECOND,
    tgid=PID,
    start_time=1234,
    exe="/usr/local/bin/poolserver",
    comm="poolserver",
    bias=BIAS,
    plan=PLAN,
    bootstrapped=0,
    late=True,
)

WITNESSES: tuple[Event, ...] = (
    ATTACHED,
    ThreadSeen(tgid=PID, tid=4711, comm="srv-loop"),
    ThreadSeen(tgid=PID, tid=4713, comm="srv\x1b[31m-w0"),
    StackSeen(tgid=PID, id=1, pcs=(0x1001111, 0x1002222)),
    StackSeen(tgid=PID, id=2, pcs=(0x1001333,)),
    StackSeen(tgid=PID, id=3, pcs=(0x1001444, 0x7FFF00000000)),
)

BATCH = RecordsRead(
    records=((1, int(Kind.WAITER_SEEN), 0, 100 * SECOND + 5, 0, 0, PID, 4711, 0, -1, 5, 1, 912, -1),)
)


def at(ms: float, tid: int, stack: int, ip: int = 0) -> Moment:
    """A moment that many milliseconds after the attach."""
    ts = 100 * SECOND + int(ms * 1e6)
    return Moment(ts - 1500, ts, ip, tid, stack)


def finding(**changes: Any) -> Finding:
    """The stale delivery with all four actors."""
    values: dict[str, Any] = {
        "rule": RuleId.STALE_DELIVERY,
        "severity": Severity.CRITICAL,
        "confidence": Confidence.OBSERVED,
        "reasons": ("every step of the chain was seen, and nothing was lost in between",),
        "title": "epoll delivered an event for a slot that had already been destroyed",
        "advice": ("Remove the registration with EPOLL_CTL_DEL before close().",),
        "tgid": PID,
        "sub_class": "later-batch",
        "slot": SLOT,
        "generation": 3,
        "fd": 23,
        "epfd": 5,
        "batch": 912,
        "comm": "srv-loop",
        "actors": (
            Actor(role="registered", moment=at(12_345.678, 4711, 1)),
            Actor(role="closed", moment=at(12_349.112, 4713, 2), gap_ns=3_434_000),
            Actor(role="destroyed", moment=at(12_349.924, 4711, 3), gap_ns=812_000),
            Actor(
                role="delivered", moment=at(12_351.0, 4711, -1, 0x1001555), gap_ns=1_076_000, note="IN|RDHUP"
            ),
        ),
        "memory": bytes(8) + b"\xaa" * 40,
        "window_ns": 1_076_000,
        "sites": (CallSite(role="destroyed", address=0x1001444),),
        "group": "a1b2c3",
        "first_ts": 100 * SECOND + 12_351_000_000,
        "last_ts": 100 * SECOND + 12_351_000_000,
    }
    values.update(changes)
    return Finding(**values)


class FixedAnswers:
    """Answers every question from rules of its own; `asked` keeps them."""

    def __init__(self, missing: str = "") -> None:
        self._missing = missing

    def answer(self, question: Question) -> Answer | None:
        if self._missing:
            return {"reason": self._missing}
        if question.kind == "memory":
            return {"lines": ["protocol = .http = null   (free-list link: end of list)", "fd = 0xaaaaaaaa"]}
        address = int(question.args[0])
        table: Mapping[int, list[list[Any]]] = {
            0x1001110: [
                ["os.linux.epoll_ctl", "/opt/zig/lib/std/os/linux.zig", 1500, 12, True],
                ["worker.NonBlocking.monitorRead", "/src/worker.zig", 640, 20, False],
            ],
            0x1002221: [["worker.NonBlocking.accept", "/src/worker.zig", 402, 13, False]],
            0x1001332: [
                ["posix.close", "/opt/zig/lib/std/posix.zig", 233, 5, True],
                ["worker.Conn.close", "/src/worker.zig", 1210, 9, True],
                ["worker.processHTTPData", "/src/worker.zig", 951, 17, False],
            ],
            0x1001444: [
                [
                    "heap.memory_pool.Extra(worker.Conn).destroy",
                    "/opt/zig/lib/std/heap/memory_pool.zig",
                    120,
                    9,
                    True,
                ],
                ["worker.NonBlocking.disown", "/src/worker.zig", 812, 9, False],
            ],
            0x1001554: [["worker.NonBlocking.run", "/src/worker.zig", 512, 30, False]],
        }
        if address in table:
            return {"frames": table[address]}
        return {"reason": "no function of the executable holds this address"}


class FakeSymbols:
    """Stands in for SymbolClient: everything asked is answered at the next pump."""

    def __init__(self, delay: int = 1) -> None:
        self._answers = FixedAnswers()
        self._delay = delay
        self._known: dict[str, int] = {}
        self._log: list[tuple[Any, Answer]] = []
        self.images: dict[str, list[str]] = {}
        self.snapshots = Snapshots()

    def know_image(self, identity: str, paths: Iterable[str]) -> None:
        self.images.setdefault(identity, []).extend(paths)

    def know_modules(self, event: ModulesMapped) -> None:
        pass

    def know_plan(self, plan: Mapping[str, Any]) -> None:
        pass

    def ask(self, question: Question) -> None:
        self._known.setdefault(question.key, self._delay)

    def answer(self, question: Question) -> Answer | None:
        if self._known.get(question.key, 1) > 0:
            return None
        answer = self._answers.answer(question)
        if answer is not None:
            self._log.append(([question.kind, question.identity, list(question.args)], answer))
        return answer

    def pump(self, timeout: float = 0.0) -> None:
        self._known = {key: left - 1 for key, left in self._known.items()}

    def settle(self, timeout: float) -> None:
        self._known = dict.fromkeys(self._known, 0)

    def drain(self) -> list[tuple[Any, Answer]]:
        log, self._log = self._log, []
        return log


class ListSource:
    """An EventSource over lists of events, one list per poll."""

    def __init__(self, *polls: Iterable[Event]) -> None:
        self._polls = [list(events) for events in polls]

    def poll(self, timeout: float) -> Iterator[Event]:
        yield from self._polls.pop(0) if self._polls else []

    @property
    def finished(self) -> bool:
        return not self._polls

    def close(self) -> None:
        self._polls = []


class OnTick:
    """A judge that finds the stale delivery at the first tick."""

    def __init__(self) -> None:
        self._found: tuple[Finding, ...] = ()

    def last_words(self) -> tuple[Finding, ...]:
        return ()

    def feed(self, event: Event) -> tuple[Finding, ...]:
        if isinstance(event, Tick) and not self._found:
            self._found = (finding(),)
            return self._found
        return ()

    def findings(self) -> tuple[Finding, ...]:
        return self._found
