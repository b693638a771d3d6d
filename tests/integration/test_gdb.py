"""What our uprobes count and read is what gdb counts and reads on the same scripted run.

One client, one step at a time, so that two runs make the same hits in the same order. Compared twice: at
the plan's own addresses, and at the locations that gdb finds by the functions' names, where a site that the
plan misses would show.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import pytest

from probes import abi, events
from probes.session import SessionOptions
from symbols.plan import ArgSource, Deref, ProbePlan, Role
from tests.integration.harness import attached, conclude, plan_of, server, wait_for
from tests.requirements import require_program
from tests.targets.build import build
from tests.unit.symbols.oracle import taken

pytestmark = [pytest.mark.bpf, pytest.mark.slow]

ROUNDS = 60
SERVER = ("--workers", "1", "--request-timeout-ms", "120000", "--keepalive-timeout-ms", "120000")
KINDS = {
    abi.Kind.CREATED: Role.CREATE,
    abi.Kind.DESTROYED: Role.DESTROY,
    abi.Kind.DISOWNED: Role.DISOWN,
    abi.Kind.DISPATCHED: Role.DISPATCH,
}
ENDINGS = (
    b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",  # a worker answers, the loop closes
    b"BREW coffee\r\n\r\n",  # the parser refuses it
    b"",  # the client shuts down its side
)


@dataclass(frozen=True)
class Hit:
    role: Role
    address: int
    value: int


def script(pid: int, port: int) -> None:
    """Three connections at a time, ended one after the other in changing order and manner.

    A step begins when the one before has its effect: accepted connections show in /proc/PID/fd, and the
    loop thread destroys a slot right after the close that the client sees.
    """
    folder = f"/proc/{pid}/fd"
    orders = list(permutations(range(3)))
    idle = len(os.listdir(folder))
    for number in range(ROUNDS):
        clients = []
        for _ in range(3):
            clients.append(socket.create_connection(("127.0.0.1", port), 30))
            _until_open(folder, idle + len(clients))
        for position in orders[number % len(orders)]:
            with clients[position] as client:
                _end(client, ENDINGS[(number + position) % len(ENDINGS)])
        _until_open(folder, idle)


def _until_open(folder: str, number: int) -> None:
    wait_for(lambda: len(os.listdir(folder)) == number, what=f"{number} descriptors")


def _end(client: socket.socket, request: bytes) -> None:
    with suppress(ConnectionResetError):
        if request:
            client.sendall(request)
        else:
            client.shutdown(socket.SHUT_WR)
        while client.recv(4096):
            pass


def by_us(mode: str, tmp: Path) -> list[Hit]:
    """Our hits; the slots are those of the target's own books, address by address."""
    with (
        server(mode, tmp, *SERVER, "--truth-detail", "all") as target,
        attached(target, options=SessionOptions(stream=True)) as (session, run),
    ):
        run.feed(list(session.poll(0)))
        script(target.pid, target.port)
        conclude(session, run, target)
        lives = [life for life in target.truth() if life.get("life")]
    assert run.lost() == {}
    records = [
        abi.Record(*record)
        for event in run.events
        if isinstance(event, events.RecordsRead)
        for record in event.records
    ]
    hits = [Hit(KINDS[abi.Kind(r.kind)], r.enter, r.addr) for r in records if r.kind in KINDS]
    freed = [life["slot"] for life in sorted(lives, key=lambda life: life["destroy_ns"])]
    assert [hit.value for hit in hits if hit.role is Role.CREATE] == [life["slot"] for life in lives]
    assert [hit.value for hit in hits if hit.role is Role.DESTROY] == freed
    assert [hit.value for hit in hits if hit.role is Role.DISOWN] == freed
    return hits


def by_gdb(plan: ProbePlan, exe: Path, tmp: Path) -> tuple[list[Hit], dict[Role, list[int | None]]]:
    output = tmp / "gdb.json"
    wanted = {site.role: (site.function, site.argument) for site in plan.sites}
    request = {
        "sites": [
            [site.address, site.stands_for or site.address, expression(site.source), taken(site.when)]
            for site in plan.sites
        ],
        "names": {role.value: [*pair] for role, pair in wanted.items()},
        "output": str(output),
    }
    trace = Path(__file__).with_name("gdb_trace.py")
    command = [require_program("gdb"), "-batch", "-nx", "-x", str(trace), "--args", str(exe), *SERVER]
    gdb = subprocess.Popen(
        [*command, "--truth", str(tmp / "gdb-truth.jsonl")],
        stdout=subprocess.PIPE,
        stderr=(tmp / "gdb.err").open("wb"),
        text=True,
        env={**os.environ, "AF_GDB_REQUEST": json.dumps(request)},
    )
    try:
        assert gdb.stdout is not None
        ready = next((line for line in gdb.stdout if line.startswith("ready ")), "")
        assert ready, f"the target did not start under gdb: {(tmp / 'gdb.err').read_text()}"
        fields = dict(part.split("=") for part in ready.split()[1:])
        pid = int(fields["pid"])
        script(pid, int(fields["port"]))
        os.kill(pid, signal.SIGTERM)
        gdb.communicate(timeout=60)
    finally:
        if gdb.poll() is None:
            gdb.kill()  # and the target with it (PTRACE_O_EXITKILL)
            gdb.wait()
    answer = json.loads(output.read_text())
    roles = {site.stands_for or site.address: site.role for site in plan.sites}
    hits = [Hit(roles[address], address, value) for address, value in answer["sites"]]
    return hits, {Role(name): values for name, values in answer["names"].items()}


def expression(source: ArgSource) -> str:
    """The plan's way to an argument in gdb's language."""
    text = f"(unsigned long)${source.register}" if source.register is not None else f"{source.constant:#x}ul"
    for step in source.steps:
        if isinstance(step, Deref):
            text = f"(unsigned long)*(unsigned {_C_TYPES[step.size]} *)({text})"
        else:
            text = f"({text} + {step.amount})"
    return text


_C_TYPES = {1: "char", 2: "short", 4: "int", 8: "long"}


def pattern(values: Iterable[int]) -> list[int]:
    """Addresses by order of first use: two runs map their pools at different places."""
    seen: dict[int, int] = {}
    return [seen.setdefault(value, len(seen)) for value in values]


def shape(hits: Sequence[Hit]) -> list[tuple[int, int]]:
    slots = pattern(hit.value for hit in hits if hit.role is not Role.DISPATCH)
    objects = pattern(hit.value for hit in hits if hit.role is Role.DISPATCH)
    numbers = {True: iter(objects), False: iter(slots)}
    return [(hit.address, next(numbers[hit.role is Role.DISPATCH])) for hit in hits]


@pytest.mark.parametrize("mode", ["ReleaseSafe", "ReleaseFast", "Debug"])
def test_hits_and_arguments_are_those_of_gdb(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exe = build("poolserver", mode)
    plan = plan_of(exe)
    ours = by_us(mode, tmp_path)
    theirs, named = by_gdb(plan, exe, tmp_path)
    counts, seen = (Counter((hit.role.value, hex(hit.address)) for hit in hits) for hits in (ours, theirs))
    with capsys.disabled():
        row = "  ".join(
            f"{role} {address} {n}/{seen[role, address]}" for (role, address), n in counts.items()
        )
        print(f"\n  {mode:12} {row}  (ours/gdb)", end="")

    connections = 3 * ROUNDS
    per_role = Counter(hit.role for hit in ours)
    assert {role: per_role[role] for role in Role} == dict.fromkeys(Role, connections), per_role
    assert counts == seen
    assert shape(ours) == shape(theirs)

    if mode != "Debug":
        # An inlined create has disjoint ranges; gdb breaks at the lowest address, which nothing runs through.
        named.pop(Role.CREATE, None)
    assert named.keys() >= {Role.DESTROY, Role.DISOWN, Role.DISPATCH}
    read = 0
    for role, values in named.items():
        mine = [hit.value for hit in ours if hit.role is role]
        assert len(values) == len(mine), (
            f"{role.value}: gdb stops {len(values)} times by name, we {len(mine)}"
        )
        if mode == "Debug":
            continue  # gdb stops inside the prologue, where the parameters are not in their places yet
        known = [index for index, value in enumerate(values) if value is not None]
        read += len(known)
        theirs_read = [value for value in values if value is not None]
        assert pattern(theirs_read) == pattern(mine[index] for index in known), role
    assert read >= connections or mode == "Debug", "gdb could read no parameter by itself"
