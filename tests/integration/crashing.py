"""Runs of the bundled target that really die, and what its ground truth then says of a slot's life."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.forensics.explanation import Cause
from tests.integration.harness import load
from tests.requirements import require_program
from tests.targets.build import build

Truth = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Switch:
    """How to make the target die; client: the load's mix, its concurrency."""

    name: str
    server: tuple[str, ...]
    mix: str
    concurrency: int
    modes: tuple[str, ...] = ("Debug", "ReleaseSafe", "ReleaseFast")
    program: str = "poolserver"


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


def core_of(switch: Switch, mode: str, tmp: Path) -> tuple[Path, Path, Truth]:
    """(core, executable, truth): the kernel's core where it writes plain files, else one of gdb's."""
    exe, truth = build(switch.program, mode), tmp / "truth.jsonl"
    command = [str(exe), "--port", "0", "--workers", "3", *switch.server, "--duration-s", "60"]
    command += ["--truth", str(truth)]
    if "/" in pattern() or pattern().startswith("|"):
        command = [require_program("gdb"), "-nx", "-batch", *_gdb(tmp / "core"), "--args", *command]
    process = subprocess.Popen(
        command,
        cwd=tmp,
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
    found = sorted(tmp.glob("core*"))
    assert found, f"no core was written: {said[-500:]}"
    return found[0], exe, rows(truth)


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
