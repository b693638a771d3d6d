"""Small programs of shapes met in the field, each with the truth about itself: built, watched, judged.

Owns the format of `tests/shapes` (its README.md) and how such a program is run under `afterfree watch`.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent.parent / "shapes"
LEVELS = ("O0", "O2")
AT_ONCE = 6  # most of a run is waiting: for the attach, for the program's sleeps
# Shapes that public bug reports have. The others, of the same kinds, take one level each where time is short.
FIELD = frozenset((FOLDER / "FIELD").read_text().split())
_ABOVE = ("warning", "high", "critical")
_SLOW = float(os.environ.get("AFTERFREE_SLOW", "1"))  # how many times slower than usual the machine is
_ATTACH_S = 120.0 * _SLOW
_PROGRAM_S = 150.0 * _SLOW
_END_S = 90.0 * _SLOW
_SETTLE_S = 1.0  # what the program did last is still on its way
# They sleep for half a minute or longer: begun first, they cost nothing.
_LONG = ("kept_for_reuse", "leak600", "hup_never_closed", "slow_leak", "reconnect", "keepalive")


class Run(NamedTuple):
    shape: str
    level: str

    def __str__(self) -> str:
        return f"{self.shape}-{self.level}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What came out of one run."""

    findings: tuple[dict[str, Any], ...]  # the last state of each
    text: str  # everything that watch printed
    truth: str  # what the program says of itself
    fault: str = ""  # why the run itself is worth nothing: watch did not start, the program did not end

    def unmet(self, expect: str) -> list[str]:
        """The lines of an EXPECT file that do not hold."""
        lines = (line.split("#")[0].strip() for line in expect.splitlines())
        return [
            line
            for line in lines
            if line and not any(self._holds(token.strip()) for token in line.split("|"))
        ]

    def _holds(self, token: str) -> bool:
        if token == "=none":
            return not any(f["severity"] in _ABOVE and f["confidence"] != "uncertain" for f in self.findings)
        rules = {finding["rule"] for finding in self.findings}
        kind, rest = token[0], token[1:]
        return {"+": rest in rules, "-": rest not in rules, "~": rest in self.text}[kind]

    def short(self) -> str:
        told = (
            f"{f['severity']} {f['rule']} ({f['confidence']}, {f.get('count', 1)}x)" for f in self.findings
        )
        return f"said: {', '.join(told) or 'nothing'}; the program says of itself: {self.truth}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What counts of a shape. first: what a run beside others said, where one alone was right after all."""

    failure: str = ""
    first: str = ""


def runs() -> list[Run]:
    """Every shape at every level; with AFTERFREE_SHAPES=short the others than FIELD at -O2 only."""
    shapes = sorted(path.parent.name for path in FOLDER.glob("*/EXPECT"))
    short = os.environ.get("AFTERFREE_SHAPES") == "short"
    return [
        Run(shape, level)
        for shape in shapes
        for level in (LEVELS if shape in FIELD or not short else LEVELS[-1:])
    ]


def verdicts(wanted: Iterable[Run], folder: Path) -> dict[Run, Verdict]:
    """Run all, several at once; then each that went wrong once more, alone."""
    order = sorted(wanted, key=lambda run: (run.shape not in _LONG, run.level, run.shape))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures: dict[Run, Future[str]] = {run: pool.submit(_judge, run, folder) for run in order}
    first = {run: future.result() for run, future in futures.items()}
    found = {}
    for run, failure in first.items():
        again = _judge(run, folder) if failure else ""
        both = f"{again}\n\nthe first time, beside others:\n{failure}" if again else ""
        found[run] = Verdict(failure=both, first=failure if failure and not again else "")
    return found


def _judge(run: Run, folder: Path) -> str:
    """What is wrong with what was said; "" for nothing."""
    try:
        said = _watch(run, folder)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        detail = getattr(error, "stderr", None) or error
        return f"{run}: could not be run: {detail}"
    unmet = said.unmet((FOLDER / run.shape / "EXPECT").read_text())
    if not unmet and not said.fault:
        return ""
    lines = [f"{run}: {said.short()}"]
    lines += [said.fault] if said.fault else []
    lines += [f"not met: {line}" for line in unmet]
    claim = next((FOLDER / run.shape).glob("*.c*")).read_text().split("\n#")[0]
    return "\n".join([*lines, claim, "what watch printed:", said.text[-6000:]])


@functools.cache
def _build(run: Run, folder: Path) -> tuple[Path, dict[str, str]]:
    """(executable, what it needs in its environment). Raises CalledProcessError with the compiler's words."""
    case, exe = FOLDER / run.shape, folder / str(run)
    library = folder / f"lib{run}.so" if (case / "pool.c").exists() else None
    found = {"POOL": str(library)} if library else {}
    if exe.exists():  # built elsewhere: tests/kernels
        return exe, found
    common = ["-g", f"-{run.level}", f"-I{FOLDER}", "-w", "-pthread"]
    flags = (case / "FLAGS").read_text().split() if (case / "FLAGS").exists() else []

    def compile_with(*arguments: str | Path) -> None:
        subprocess.run([*map(str, arguments)], check=True, capture_output=True, text=True)

    if library:
        compile_with("gcc", *common, "-shared", "-fPIC", "-o", library, case / "pool.c")
        compile_with("gcc", *common, "-o", exe, case / "main.c", library, f"-Wl,-rpath,{folder}", *flags)
        return exe, found
    source = next(path for path in (case / "prog.cc", case / "prog.c") if path.exists())
    compile_with("g++" if source.suffix == ".cc" else "gcc", *common, "-o", exe, source, *flags)
    return exe, found


def _watch(run: Run, folder: Path) -> Said:
    """Start the program, attach, let it go, and collect what both say."""
    case = FOLDER / run.shape
    exe, extra = _build(run, folder)
    profile = case / "profile.toml" if (case / "profile.toml").exists() else FOLDER / "base.toml"
    go, found, out = (folder / f"{run}.{kind}" for kind in ("go", "findings", "out"))
    for old in (go, found):
        old.unlink(missing_ok=True)
    program = subprocess.Popen(
        [exe], stdout=subprocess.PIPE, text=True, env={**os.environ, **extra, "GO": str(go)}
    )
    fault, watch = "", None
    try:
        if program.stdout is None:
            raise ValueError("the program has no output")
        pid = program.stdout.readline().split()[1]
        target = ["--exe", str(exe)] if (case / "BY_EXE").exists() else ["--pid", pid]
        with out.open("w") as file:
            watch = subprocess.Popen(
                [
                    sys.executable, "-m", "agent.cli", "watch", *target,
                    "--profile", str(profile), "--findings", str(found), "--no-bundles",
                ],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        if not _started(watch, out):
            fault = "watch did not start"
        time.sleep(0.3)
        go.touch()
        try:
            truth = program.communicate(timeout=_PROGRAM_S)[0]
        except subprocess.TimeoutExpired:
            fault, truth = f"the program did not end within {_PROGRAM_S:.0f} s", "nothing"
        if not fault and program.returncode < 0:
            fault = f"the program died of signal {-program.returncode}"
        time.sleep(_SETTLE_S)
        with suppress(ProcessLookupError):
            watch.send_signal(signal.SIGINT)
        try:
            watch.wait(_END_S)
        except subprocess.TimeoutExpired:
            fault = fault or f"watch did not end within {_END_S:.0f} s"
        if not fault and watch.returncode != 0:
            fault = f"watch ended with {watch.returncode}"
    finally:
        for process in (program, watch):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        if program.stdout is not None:
            program.stdout.close()
    return Said(
        findings=_last_states(found), text=out.read_text(), truth=" ".join(truth.split()), fault=fault
    )


def _started(watch: subprocess.Popen[bytes], out: Path) -> bool:
    end = time.monotonic() + _ATTACH_S
    while time.monotonic() < end and watch.poll() is None:
        if "Ctrl-C ends" in out.read_text():
            return True
        time.sleep(0.05)
    return False


def _last_states(found: Path) -> tuple[dict[str, Any], ...]:
    """A finding is written again as it grows: only its last state counts."""
    last: dict[tuple[str, str, str], dict[str, Any]] = {}
    if found.exists():
        for line in found.read_text().splitlines():
            finding = json.loads(line)
            last[finding["rule"], str(finding.get("group")), finding["confidence"]] = finding
    return tuple(last.values())
