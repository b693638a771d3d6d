# Owns the parent side of the loader child: spawn it, hand it the request, take the descriptors.
# Must not import bcc.
from __future__ import annotations

import array
import contextlib
import ctypes
import json
import os
import platform
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from probes import abi, children, errors, readers
from probes.sysbpf import possible_cpus
from symbols.plan import ProbePlan, Role

TIMEOUT_S = 3600.0
"""Compiling and verifying take 3 s; on an emulated machine under load they took more than five minutes."""
LEAVING_S = 60.0  # for its end, after it has answered or closed its socket
MAX_ANSWER = 1 << 20
MAX_FDS = 65536
RECORDER_BYTES = 64 << 20
LIFETIME_BYTES = 16 << 20
MIN_RECORDS = 256  # per CPU, however many there are
MAX_EMBEDDED = 8  # places within a slot that userdata is looked for at
PROGRAM = "af_"  # names in Handles.maps that begin so are of programs
MAX_ENTERED = 16384  # calls whose entry values are kept; the least recently used go first


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Sizes of the kernel side; every one is a hard limit. Ring sizes are powers of two, per CPU."""

    ring_records: int = 32768  # less where there are many CPUs: RECORDER_BYTES in all
    lifetime_records: int = 4096  # likewise: LIFETIME_BYTES
    max_slots: int = 32768
    max_threads: int = 8192
    urgent_pages: int = 2048
    max_targets: int = 4096
    empty: bool = False
    ask: bool = True  # False: as on a kernel without BTF, where registrations cannot be asked for

    def fitted(self, cpus: int) -> LoadOptions:
        """The same with powers of two, and ring sizes that keep within the budgets on this many CPUs."""
        return replace(
            self,
            ring_records=_fit(self.ring_records, RECORDER_BYTES // (cpus * abi.RECORD.size)),
            lifetime_records=_fit(
                self.lifetime_records, LIFETIME_BYTES // (cpus * ctypes.sizeof(abi.Lifetime))
            ),
            urgent_pages=_power_of_two(self.urgent_pages),
        )


@dataclass(slots=True)
class Handles:
    """What the daemon holds: while these descriptors are open the probes are in place."""

    maps: dict[str, int]
    links: list[int]
    missing: tuple[str, ...]
    options: LoadOptions
    seconds: float

    def close(self) -> None:
        for fd in [*self.links, *self.maps.values()]:
            os.close(fd)
        self.links.clear()
        self.maps.clear()


def _power_of_two(value: int) -> int:
    return 1 << max(value - 1, 1).bit_length()


def _fit(wanted: int, limit: int) -> int:
    """The power of two that holds `wanted`, or the largest one within `limit`."""
    fitting = _power_of_two(wanted)
    while fitting > max(limit, MIN_RECORDS):
        fitting //= 2
    return fitting


def defines(plan: ProbePlan, options: LoadOptions) -> tuple[str, ...]:
    """The plan and the sizes as compiler definitions (listed in probes/bpf/10-maps.c)."""
    if plan.userdata.kind != "pointer":
        raise errors.Unsupported(
            f"userdata of kind {plan.userdata.kind!r} cannot be followed live",
            detail="the kernel side follows slots whose address is the userdata",
            remedy='a profile with [userdata] kind = "pointer", or { mask = … } for tagged pointers',
        )
    slot = plan.slot
    dispatch = any(plan.by_role(Role.DISPATCH)) and (slot.object_is_slot or slot.object_offset is not None)
    create = any(plan.by_role(Role.CREATE))
    pointed = dispatch and not slot.object_is_slot
    counted = slot.count_offset is not None
    return plain_defines(
        options,
        mask=plan.userdata.mask,
        reserved=plan.userdata.reserved,
        offset=plan.userdata.offset,
        embedded=tuple(o for o in slot.embedded if o != plan.userdata.offset)[:MAX_EMBEDDED],
        have_create=create,
        create_complete=create and not any(gap.role is Role.CREATE for gap in plan.unprobed),
        object_delta=slot.object_delta if dispatch and slot.object_is_slot else None,
        count=(slot.count_offset or 0, slot.count_size, slot.frees_at) if counted else None,
        have_dispatch=dispatch,
        object_offset=(slot.object_offset or 0) if pointed else -1,
        slot_size=slot.size or 64,
        link_offset=slot.freelist_offset,
        max_entered=MAX_ENTERED if plan.entries else 64,
    )


def plain_defines(
    options: LoadOptions | None = None,
    *,
    mask: int = 0xFFFF_FFFF_FFFF_FFFF,
    reserved: tuple[int, ...] = (),
    offset: int = 0,
    embedded: tuple[int, ...] = (),
    have_create: bool = False,
    create_complete: bool = False,
    object_delta: int | None = None,
    count: tuple[int, int, int] | None = None,
    have_dispatch: bool = False,
    object_offset: int = -1,
    slot_size: int = 64,
    link_offset: int | None = None,
    max_entered: int = 64,
) -> tuple[str, ...]:
    """The compiler definitions; without arguments, those of a plan without any probe site."""
    options = (options or LoadOptions()).fitted(possible_cpus())
    tests = "||".join(["(u)<4096ull", *(f"(u)=={value:#x}ull" for value in reserved)])
    return (
        f"-DAF_RING_RECORDS={options.ring_records}",
        f"-DAF_LIFE_RECORDS={options.lifetime_records}",
        f"-DAF_MAX_SLOTS={options.max_slots}",
        f"-DAF_MAX_THREADS={options.max_threads}",
        f"-DAF_URGENT_PAGES={options.urgent_pages}",
        f"-DAF_MAX_TARGETS={options.max_targets}",
        f"-DAF_CPUS={possible_cpus()}",
        f"-DAF_UD_MASK={mask:#x}ull",
        f"-DAF_UD_OFFSET={offset}",
        *((f"-DAF_EMBEDDED(x)={' '.join(f'x({at})' for at in embedded)}",) if embedded else ()),
        f"-DAF_IS_RESERVED(u)=({tests})",
        f"-DAF_HAVE_CREATE={int(have_create)}",
        f"-DAF_CREATE_COMPLETE={int(create_complete)}",
        f"-DAF_HAVE_DISPATCH={int(have_dispatch)}",
        f"-DAF_OBJECT_IS_SLOT={int(object_delta is not None)}",
        f"-DAF_OBJECT_DELTA={object_delta or 0}",
        f"-DAF_OBJECT_OFFSET={object_offset}",
        f"-DAF_SLOT_SIZE={min(slot_size, abi.SLOT_BYTES)}",
        f"-DAF_CRASH_SLOT_SIZE={min(slot_size, abi.CRASH_SLOT_BYTES)}",
        f"-DAF_LINK_OFFSET={-1 if link_offset is None else link_offset}",
        f"-DAF_COUNT_OFFSET={-1 if count is None else count[0]}",
        f"-DAF_COUNT_SIZE={1 if count is None else count[1]}",
        f"-DAF_FREES_AT={1 if count is None else count[2]}ull",
        f"-DAF_MAX_ENTERED={max_entered}",
    )


def load(plan: ProbePlan, *, image: str, pids: tuple[int, ...], options: LoadOptions) -> Handles:
    """Compile and attach in a child process; returns its descriptors. pids empty: every process of the image.

    Raises a ProbeError subclass with what the child said.
    """
    if plan.machine != platform.machine():
        raise errors.WrongArchitecture(plan.machine, platform.machine())
    generated = readers.generate(plan)
    options = options.fitted(possible_cpus())
    began = time.monotonic()
    message, fds = _answered(
        {
            "image": image,
            "readers": generated.text,
            "programs": generated.programs,
            "defines": defines(plan, options),
            "pids": pids,
            "empty": options.empty,
            "ask": options.ask,
        }
    )
    names = message["maps"]
    return Handles(
        maps=dict(zip(names, fds, strict=False)),
        links=fds[len(names) :],
        missing=tuple(message.get("missing", ())),
        options=options,
        seconds=time.monotonic() - began,
    )


def tried() -> tuple[int, tuple[str, ...]]:
    """(attach points, tracepoints that this kernel lacks) of the kernel side without any probe site: compiled
    anew, verified, attached and let go. Raises as `load` does."""
    message, fds = _answered(
        {
            "image": "/proc/self/exe",
            "readers": "",
            "programs": (),
            "defines": plain_defines(),
            "pids": (),
            "empty": False,
            "fresh": True,
        }
    )
    for fd in fds:
        os.close(fd)
    return len(fds) - len(message["maps"]), tuple(map(str, message.get("missing", ())))


def attach(programs: Sequence[tuple[int, str]]) -> list[int]:
    """Put loaded programs on more tracepoints: (descriptor of the program, "category:event").

    Returns what holds them there; a tracepoint that this kernel lacks is left out. Raises a ProbeError.
    """
    held = sorted({program for program, _ in programs})
    _, fds = _answered({"attach": list(programs)}, held)
    return fds


def _answered(request: dict[str, Any], lent: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
    """The loader child's answer and its descriptors. lent: descriptors that it gets under their numbers.
    Raises a ProbeError with what the child said."""
    deadline = time.monotonic() + TIMEOUT_S
    message: dict[str, Any] = {}
    fds: list[int] = []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            child = children.Child(
                children.command("probes.loader_main", str(theirs.fileno())),
                stdin=subprocess.PIPE,
                pass_fds=(theirs.fileno(), *lent),
                session=False,  # Ctrl-C while it compiles is for it too
            )
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it is gone: that shows below
                child.stdin.write(json.dumps(request).encode())
                child.stdin.close()
            message, fds = _receive(ours, deadline)
        finally:
            limit = _ended(child, deadline)
    if isinstance(message.get("maps"), list) and len(fds) == message.get("fds"):
        return message, fds
    for fd in fds:
        os.close(fd)
    if not message and (
        child.returncode == -signal.SIGINT or child.last_words().endswith("KeyboardInterrupt")
    ):
        raise KeyboardInterrupt  # Ctrl-C was for both of us
    raise _failure(message, child, limit)


def _ended(child: children.Child, deadline: float) -> float:
    """Wait for the end of a child that has nothing more to say: the limit (s) that ended it, 0: none did."""
    limit = TIMEOUT_S
    if child.poll() is not None or time.monotonic() < deadline:
        limit = LEAVING_S
        try:
            child.wait(limit)
        except subprocess.TimeoutExpired:
            pass
        else:
            return 0.0
    child.kill()
    child.wait()
    return limit


def _receive(channel: socket.socket, deadline: float) -> tuple[dict[str, Any], list[int]]:
    data = b""
    fds: list[int] = []
    expected: int | None = None
    message: dict[str, Any] = {}
    poller = select.poll()  # not select(2): the daemon may hold more than 1024 descriptors
    poller.register(channel, select.POLLIN)
    while expected is None or len(fds) < expected:
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(1000 * left):
            break
        chunk, got, _, _ = socket.recv_fds(channel, 65536, 253)
        fds.extend(array.array("i", got))
        if not chunk or len(data) > MAX_ANSWER or len(fds) > MAX_FDS:
            break
        data += chunk
        if expected is None and b"\n" in data:
            message = json.loads(data.split(b"\n", 1)[0])
            expected = int(message.get("fds", 0))
    return message, fds


def _failure(message: dict[str, Any], child: children.Child, limit: float) -> errors.ProbeError:
    tail = child.last_words()
    kind = {
        cls.__name__: cls for cls in (errors.PrerequisiteMissing, errors.LoaderFailed, errors.ProbeError)
    }.get(str(message.get("error")))
    if message.get("hint") == "prerequisite":
        kind = errors.PrerequisiteMissing
    if not message:
        return _unanswered(child, tail, limit)
    detail = str(message.get("detail", ""))
    if tail and tail not in detail:
        detail = f"{detail}\n{tail}".strip()
    return (kind or errors.LoaderFailed)(
        str(message.get("title", "the loader failed")),
        detail=detail,
        causes=tuple(map(str, message.get("causes", ()))),
        remedy=str(message.get("remedy", "afterfree doctor")),
    )


def _unanswered(child: children.Child, tail: str, limit: float) -> errors.ProbeError:
    if limit:
        return errors.LoaderTooSlow(
            f"the loader child was killed by our own limit of {limit:.0f} s",
            detail=f"it had not compiled, verified and attached the kernel side by then\n{tail}".strip(),
            causes=(
                "this machine is very slow, or under heavy load",
                "the compiler or the kernel's verifier goes round in circles",
            ),
            remedy="run the same command again when there is less load\nafterfree doctor",
        )
    code = child.returncode
    causes: tuple[str, ...] = (
        "the installation is damaged, or was replaced meanwhile: its last words say what is missing",
    )
    if code == -signal.SIGKILL:
        causes = (
            "the kernel killed it for lack of memory (LLVM needs some hundred MB): dmesg names it then",
            "somebody else killed it",
        )
    elif code in (-signal.SIGINT, -signal.SIGTERM):
        causes = ("somebody ended it, as with Ctrl-C",)
    elif code < 0:
        causes = (
            "a defect of bcc or its LLVM",
            "the distribution's libbcc and python3-bpfcc do not fit together",
        )
    return errors.LoaderFailed(
        f"the loader child {child.ending()} before it had answered",
        detail=tail,
        causes=causes,
        remedy="afterfree doctor",
    )
