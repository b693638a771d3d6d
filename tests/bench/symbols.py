"""What a probe plan costs beside what other tools need to find the same function's instances.

Owns running each of them as a process of its own, in turn, on the same binary, and its time and peak memory.
Needs no root. A tool that is missing is named; one that takes too long is stopped, and the ratio is a bound.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.unit.symbols.big import build_big
from tests.unit.symbols.builds import C_PROFILE

LIMIT_S = 90.0  # of one run
AIMS = {"small": (0.35, 30.0), "big": (3.0, 60.0), "warm": (0.05, 30.0)}
"""Seconds and MB above a bare interpreter."""

_COLD = """
import sys
from symbols.profile import load_profile
from symbols.resolve import resolve
plan = resolve(sys.argv[1], load_profile(sys.argv[2]) if sys.argv[2] else None)
print(len(plan.sites))
"""
_WARM = """
import sys
from symbols.cached import resolve_cached
from symbols.cache import PlanCache
print(len(resolve_cached(sys.argv[1], sys.argv[2] or None, cache=PlanCache(folder=sys.argv[3])).sites))
"""
_PYELFTOOLS = """
import sys
from elftools.elf.elffile import ELFFile
wanted, found = set(), 0
with open(sys.argv[1], "rb") as file:
    for unit in ELFFile(file).get_dwarf_info().iter_CUs():
        for die in unit.iter_DIEs():
            if die.is_null():
                continue
            name = die.attributes.get("DW_AT_name")
            origin = die.attributes.get("DW_AT_abstract_origin")
            if die.tag == "DW_TAG_subprogram" and name is not None and name.value == sys.argv[2].encode():
                wanted.add(die.offset)
            elif origin is not None and origin.value + unit.cu_offset in wanted:
                found += 1
print(found)
"""
_DRGN = """
import sys, drgn
program = drgn.Program()
program.load_debug_info([sys.argv[1]])
print(program.function(sys.argv[2]))
"""


@dataclass(slots=True)
class Runs:
    """One tool on one binary."""

    seconds: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)
    note: str = ""  # why there is no figure, or only a bound

    @property
    def time(self) -> float:
        return statistics.median(self.seconds) if self.seconds else 0.0

    @property
    def memory(self) -> float:
        return statistics.median(self.peak_mb) if self.peak_mb else 0.0


def _peak_kb(pid: int) -> int:
    """VmHWM of a process, looked at every millisecond: its last moments are missed."""
    try:
        with open(f"/proc/{pid}/status") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("VmHWM")), 0)
    except OSError:
        return 0


def _run(command: list[str], runs: Runs) -> None:
    started = time.perf_counter()
    environment = {**os.environ, "DEBUGINFOD_URLS": "", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, process_group=0
    )
    peak = 0
    while True:
        peak = max(
            peak, _peak_kb(process.pid)
        )  # ru_maxrss would be ours: the child shares our memory until exec
        pid, status = os.waitpid(process.pid, os.WNOHANG)
        spent = time.perf_counter() - started
        if pid:
            break
        if spent > LIMIT_S:
            process.kill()
            _pid, status = os.waitpid(process.pid, 0)
            runs.note = f"stopped after {LIMIT_S:.0f} s"
            break
        time.sleep(0.001 if spent < 1 else 0.01)
    process.returncode = os.waitstatus_to_exitcode(status)
    said = process.stderr.read() if process.stderr is not None else b""
    if process.stderr is not None:
        process.stderr.close()
    if process.returncode and not runs.note:
        runs.note = said.decode("utf-8", "replace").strip().splitlines()[-1:][0] if said.strip() else "failed"
        return
    runs.seconds.append(spent)
    runs.peak_mb.append(peak / 1024)


def _commands(exe: Path, profile: str, function: str, cache: Path) -> dict[str, list[str] | str]:
    """Tool -> its command line, or why it cannot run."""
    python = [sys.executable, "-c"]
    found: dict[str, list[str] | str] = {
        "interpreter": [*python, "pass"],
        "cold plan": [*python, _COLD, str(exe), profile],
        "warm plan": [*python, _WARM, str(exe), profile, str(cache)],
    }
    gdb, dump = shutil.which("gdb"), shutil.which("llvm-dwarfdump")
    # gdb knows Zig's functions by their linkage names only: a search by expression is what finds them.
    find = f"break {function}" if function != "destroy" else "info functions memory_pool.*destroy"
    asks = ("set debuginfod enabled off", find, "info breakpoints")
    if gdb is None:
        found["gdb"] = "gdb is not installed"
    else:
        found["gdb"] = [gdb, "-nx", "-batch", *(part for ask in asks for part in ("-ex", ask)), str(exe)]
    found["llvm-dwarfdump"] = (
        [dump, "--name", function, "--show-children", str(exe)] if dump else "llvm-dwarfdump is not installed"
    )
    if importlib.util.find_spec("drgn") is None:
        found["drgn"] = "drgn is not installed for this interpreter"
    else:
        found["drgn"] = [*python, _DRGN, str(exe), function]
    found["pyelftools"] = [*python, _PYELFTOOLS, str(exe), function]
    return found


def measure(rounds: int, *, big: bool = True) -> dict[str, dict[str, Runs]]:
    """Binary -> tool -> its runs. Builds the bundled server, and the program with 200 MB of .debug_info."""
    from tests.targets.build import build

    results: dict[str, dict[str, Runs]] = {}
    with tempfile.TemporaryDirectory(prefix="afterfree-bench-") as name:
        profile = Path(name) / "cpool.toml"
        profile.write_text(C_PROFILE)
        modes = ("ReleaseSafe", "ReleaseFast", "ReleaseSmall", "Debug")
        targets = [(f"small: poolserver {mode}", build("poolserver", mode), "", "destroy") for mode in modes]
        if big:
            targets.append(("big: 200 MB of .debug_info", build_big(), str(profile), "conn_destroy"))
        for title, exe, given, function in targets:
            commands = _commands(exe, given, function, Path(name) / "cache")
            results[title] = {tool: Runs() for tool in commands}
            warm = commands["warm plan"]
            if isinstance(warm, list):
                _run(warm, Runs())  # fills the cache
            for number in range(rounds):
                for tool, command in commands.items():
                    runs = results[title][tool]
                    if isinstance(command, str):
                        runs.note = command
                    elif not runs.note and (number < 1 or runs.time < 10):  # slow ones once
                        _run(command, runs)
    return results


def report(results: dict[str, dict[str, Runs]]) -> list[str]:
    """The table: medians, and how many times as long and as much as our cold plan."""
    rows: list[str] = []
    for title, tools in results.items():
        rows += [title, f"  {'':16}{'seconds':>10}{'peak MB':>10}{'time/cold':>12}{'memory/cold':>13}"]
        cold, bare = tools["cold plan"], tools["interpreter"]
        for tool, runs in tools.items():
            if not runs.seconds:
                rows.append(f"  {tool:16}  {runs.note}")
                continue
            bound = "≥ " if runs.note else ""
            ratio = f"{bound}{runs.time / cold.time:.2f}" if cold.time else ""
            memory = f"{bound}{runs.memory / cold.memory:.2f}" if cold.memory else ""
            note = f"   {runs.note}" if runs.note else ""
            rows.append(f"  {tool:16}{runs.time:10.3f}{runs.memory:10.1f}{ratio:>12}{memory:>13}{note}")
        aims = (("cold", cold, AIMS[title.split(":")[0]]), ("warm", tools["warm plan"], AIMS["warm"]))
        for what, runs, (seconds, mb) in aims:
            above, more = runs.time - bare.time, runs.memory - bare.memory
            met = "met" if above <= seconds and more <= mb else "MISSED"
            rows.append(
                f"  {what} above the interpreter: {above:.3f} s, {more:.1f} MB"
                f"   aim ≤ {seconds} s, {mb:.0f} MB   {met}"
            )
        rows.append("")
    return rows


def as_json(results: dict[str, dict[str, Runs]]) -> dict[str, Any]:
    return {
        title: {
            tool: {
                "seconds": [round(s, 4) for s in runs.seconds],
                "peak_mb": [round(m, 1) for m in runs.peak_mb],
                "note": runs.note,
            }
            for tool, runs in tools.items()
        }
        for title, tools in results.items()
    }
