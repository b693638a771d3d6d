"""Runs of the bundled target that really die, and what its ground truth then says of a slot's life."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.forensics.explanation import Cause, Certainty, Explanation, Topic
from tests.integration.harness import load
from tests.requirements import require_program
from tests.targets.build import build

Truth = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Switch:
    """How to make the target die; client: the load's mix, its concurrency."""

    name: str
    bugs: tuple[str, ...]
    mix: str
    concurrency: int
    modes: tuple[str, ...] = ("Debug", "ReleaseSafe", "ReleaseFast")
    program: str = "poolserver"

    @property
    def server(self) -> tuple[str, ...]:
        """The target's options. A life is in the truth as soon as it ends: there may be no later moment."""
        detail = ("--truth-detail", "ended") if self.program == "poolserver" else ()
        return (*self.bugs, *detail)


SWITCHES = (
    Switch("dup", ("--bug", "dup-outlives-close"), "dup", 1),
    Switch(
        "worker",
        ("--bug", "close-on-worker", "--bug", "dup-outlives-close", "--window-us", "4000"),
        "dup",
        1,
    ),
    Switch(
        "sweep",
        ("--bug", "stale-sweep", "--keepalive-timeout-ms", "60", "--request-timeout-ms", "60"),
        "timeout",
        4,
    ),
    Switch("batch", ("--bug", "free-in-batch"), "poke", 16),
    Switch("recycled", ("--bug", "recycled"), "recycle", 2),
    # ReleaseFast goes on for ever with a broken list: it does not die of it
    Switch("double", ("--bug", "double-destroy", "--every", "50"), "correct", 8, ("Debug", "ReleaseSafe")),
)

C_SWITCHES = (
    Switch("dup", ("--bug", "dup-outlives-close"), "dup", 1, ("gcc-O0", "gcc-O2"), "cserver"),
    Switch("batch", ("--bug", "free-in-batch"), "poke", 16, ("gcc-O0", "gcc-O2"), "cserver"),
)

CONNECTIONS = 400
SMALL = ("--port", "0", "--workers", "3")


def rows(path: Path) -> Truth:
    """The truth file of a target that died: its last line may be cut."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def life(truth: Truth, slot: int, generation: int = 0) -> dict[str, Any]:
    """What really happened to a slot: of one generation, or the last one that was written."""
    lives = [row for row in truth if row.get("life") and row["slot"] == slot]
    if generation:
        lives = [row for row in lives if row["generation"] == generation]
    assert lives, f"the truth knows nothing of {slot:#x}, generation {generation}"
    return lives[-1]


def cause(one: dict[str, Any]) -> Cause:
    """Which ordering failed, as the target itself saw it."""
    if one.get("destroys", 0) > 1:
        return Cause.DESTROYED_TWICE
    if one.get("freed_in_batch"):
        return Cause.FREED_IN_BATCH
    if one.get("description_outlives_close"):
        return Cause.DESCRIPTION_SURVIVED
    return Cause.NEVER_REMOVED if one.get("freed_while_registered") else Cause.UNKNOWN


def assert_like_truth(item: Explanation, truth: Truth, switch: Switch) -> None:
    """The explanation of a watched crash names what the target knows it did."""
    if item.cause is Cause.STALE_LINK:
        # The sweep's second pass met a slot that had ended in order.
        assert switch.name == "sweep"
        assert cause(life(truth, item.slot, item.generation)) is Cause.UNKNOWN
        assert any("sweepStaleLinks" in frame or "disown" in frame for frame in item.stack)
        assert (item.rule, item.fix_kind) == ("", "unlink-first")
        return
    if item.cause is Cause.RECYCLED and switch.name in ("sweep", "recycled"):
        # An older life's registration brought the event; the one that crashed ended in order, if in a batch.
        real = life(truth, item.slot, item.generation)
        assert real.get("recycled_deliveries", 0) + real.get("recycled_ambiguous", 0)
        assert not real.get("freed_while_registered")
        assert item.rule == "recycled-delivery"
        return
    real = life(truth, item.slot, item.generation)
    if switch.name == "sweep" and real.get("destroys", 0) > 1 and item.cause is not Cause.DESTROYED_TWICE:
        # A stale event came before the second destroy: it is to blame, and the second destroy is told.
        assert real.get("stale_deliveries", 0)
        said = next(one.text for one in item.statements if one.topic is Topic.ORDER)
        assert "The slot was destroyed again" in said
        return
    expected = Cause.DESTROYED_TWICE if switch.name == "double" else cause(real)
    assert item.cause is expected, (item.cause, expected, real, item)
    assert item.destroyer == real.get("destroy_tid", 0)
    if switch.name == "double":
        assert (item.rule, item.fix_kind) == ("double-destroy", "destroy-once")
        return
    assert item.thread == "loop" or switch.name == "sweep"  # which may take a slot from under a worker
    assert item.closer == real.get("close_tid", 0)
    # that one may also die in the sweep's own code: in a list, or at the lock of a freed connection
    if switch.name != "sweep" or item.function.endswith("HTTPConn.getState"):
        assert panicked(item) or (item.field.rpartition(".")[2], item.offset) == ("_state", 0x2F8)
        assert item.slot_field == "protocol.http"
    assert item.fix_kind == ("deferred-free" if item.cause is Cause.FREED_IN_BATCH else "del-before-close")
    assert item.certainty in (Certainty.CONFIRMED, Certainty.OBSERVED, Certainty.UNCERTAIN)
    assert (item.certainty is Certainty.UNCERTAIN) == any("lost" in sentence for sentence in item.unknown)
    roles = [step.role for step in item.steps]
    assert roles[-1] == "crashed"
    assert roles.index("registered") < roles.index("destroyed")


def panicked(item: Explanation) -> bool:
    """A link to another slot, read as an object: a checked build finds its state corrupt and aborts."""
    return item.signal == signal.SIGABRT and not item.field


def core_of(switch: Switch, mode: str, tmp: Path) -> tuple[Path, Path, Truth]:
    """(core, executable, truth): the kernel's core where it writes plain files, else one of gdb's.

    One that was recycled or swept may end in a circle of links instead, and spin: it is tried anew.
    """
    exe, said = build(switch.program, mode), ""
    for attempt in range(4):
        folder = tmp / str(attempt)
        folder.mkdir()
        said = _run(switch, exe, folder)
        found = sorted(folder.glob("core*"))
        if found:
            return found[0], exe, rows(folder / "truth.jsonl")
    raise AssertionError(f"no core was written: {said[-500:]}")


def _run(switch: Switch, exe: Path, folder: Path) -> str:
    """One run until it dies or its time is over; what it said."""
    command = [str(exe), *SMALL, *switch.server, "--duration-s", "20"]
    command += ["--truth", str(folder / "truth.jsonl")]
    if "/" in pattern() or pattern().startswith("|"):
        command = [require_program("gdb"), "-nx", "-batch", *_gdb(folder / "core"), "--args", *command]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    resource.prlimit(process.pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
    client = None
    try:
        assert process.stdout is not None
        port = next(
            int(row.split("port=")[1].split()[0]) for row in process.stdout if row.startswith("ready ")
        )
        client = load(port, switch.mix, connections=CONNECTIONS, concurrency=switch.concurrency)
        said = process.stdout.read()
        process.wait(60)
    finally:
        process.kill()
        process.wait()
        if client is not None:
            client.kill()
            client.communicate()
    return said


def pattern() -> str:
    return Path("/proc/sys/kernel/core_pattern").read_text().strip()


def _gdb(core: Path) -> list[str]:
    quiet = ("set debuginfod enabled off", "handle SIGPIPE nostop noprint pass")
    return [part for text in (*quiet, "run", f"generate-core-file {core}", "kill") for part in ("-ex", text)]


def main() -> None:
    """`python -m tests.integration.crashing dup ReleaseSafe FOLDER`: a core to look at by hand."""
    name, mode, folder = sys.argv[1:4]
    switch = next(one for one in SWITCHES if one.name == name)
    Path(folder).mkdir(parents=True, exist_ok=True)
    print(*core_of(switch, mode, Path(folder))[:2])


if __name__ == "__main__":
    main()
