"""Runs in the guest: what OUT/request.json asks for, one line of OUT/results.jsonl for each thing that ran.

Each line is there when its thing is over, so that a guest that is ended by a limit has told what it did.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from probes import btf
from probes.sysbpf import possible_cpus

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path("/var/cache/afterfree")
AT_ONCE = 2  # shapes, on as many processors

Row = tuple[str, bool, str]  # what ran, whether it passed, what there is to say


def facts() -> Iterator[Row]:
    """What compiling for this kernel elsewhere needs: see ahead.py."""
    found = {
        "release": platform.release(),
        "version": platform.version(),
        "cpus": possible_cpus(),
        "definitions": btf.definitions(),
    }
    yield "facts", True, json.dumps(found)


def doctor(*, ahead: bool) -> Iterator[Row]:
    """Compiles here, with nothing taken from elsewhere, unless it was done ahead."""
    done = _afterfree("doctor", module="tests.kernels.doctored" if ahead else "agent.cli")
    yield "doctor, compiled ahead" if ahead else "doctor", done.returncode == 0, done.stdout + done.stderr


def shapes(names: list[str], folder: Path) -> Iterator[Row]:
    from tests.integration import shapes as judge

    def judged(name: str) -> Row:
        run = judge.Run(*name.rsplit("-", 1))
        failure = judge._judge(run, folder)
        return name, not failure, failure

    with ThreadPoolExecutor(AT_ONCE) as pool:
        again = []
        for row in pool.map(judged, names):
            if row[1]:
                yield row
            else:
                again.append(row)
    for name, _, failure in again:
        alone = judged(name)
        yield name, alone[1], f"{alone[2]}\n\nthe first time, beside others:\n{failure}"


def demo() -> Iterator[Row]:
    done = _afterfree("demo")
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    explained = "stale-delivery" in said and "used a Conn that was already destroyed" in said
    yield "demo", done.returncode == 0 and explained, said[-20_000:]


def truth(cases: str) -> Iterator[Row]:
    """The cases of test_ground_truth.py that pytest's expression selects, with fewer connections.

    One that says itself that events were lost proves nothing of the counts: it is tried once more.
    """
    rows, said = _counted("-k", cases, _TRUTH)
    lost = [name for name, passed, _ in rows if not passed] if "events were lost" in said else []
    again = {name: (passed, words) for name, passed, words in _counted(*_ids(lost))[0]} if lost else {}
    for name, first, words in rows:
        passed, more = again.get(name, (first, ""))
        yield name, passed, f"{more}\n\nthe first time:\n{words}" if more else words
    if not rows:
        yield "pytest", False, said[-4000:]


_TRUTH = "tests/integration/test_ground_truth.py"


def _ids(names: list[str]) -> list[str]:
    return [f"{_TRUTH}::{name}" for name in names]


def _counted(*selected: str) -> tuple[list[Row], str]:
    """(a row for each case, everything that pytest said)."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", "--timeout=0", *selected],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.findall(r"^(PASSED|FAILED|ERROR) \S+::(.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    counts = "\n".join(line.strip() for line in done.stdout.splitlines() if "ReleaseSafe  " in line)
    rows = [
        (name, status == "PASSED", counts if status == "PASSED" else done.stdout[-12000:])
        for status, name in found
    ]
    return rows, done.stdout + done.stderr


def _afterfree(*words: str, module: str = "agent.cli") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def _warm() -> None:
    """Read the compiler's libraries in one go: else the loader has every page brought by itself."""
    for pattern in ("libbcc*.so.*", "libLLVM-*.so.1", "libclang-*.so.*"):
        for path in Path("/usr/lib/x86_64-linux-gnu").glob(pattern):
            if not path.is_symlink():
                with path.open("rb") as file:
                    while file.read(1 << 20):
                        pass


def _in_memory(folder: Path) -> None:
    """The folder's files under the same names, on a file system that no host is asked for."""
    if not folder.is_dir():
        return
    aside = Path("/dev/shm") / folder.name
    shutil.copytree(folder, aside)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], check=True)
    shutil.copytree(aside, folder, dirs_exist_ok=True)
    shutil.rmtree(aside)


def _heartbeat() -> None:
    """On the console: what a guest that is ended by a limit was doing."""
    while True:
        time.sleep(30)
        said = subprocess.run(
            ["ps", "-eo", "pid,ppid,stat,time,wchan:16,args", "--sort", "-time"],
            capture_output=True, text=True, check=False,
        ).stdout.splitlines()  # fmt: skip
        print(f"--- {time.monotonic():.0f} s", *(line[:150] for line in said[:9]), sep="\n", flush=True)


def _rows(suite: str, run: Callable[[], Iterator[Row]]) -> Iterator[dict[str, Any]]:
    """One of each thing that ran; one of a suite that broke; one that says that it is over."""
    began = time.monotonic()
    there = set(CACHE.glob("*.bpf"))
    try:
        for name, passed, words in run():
            seconds = round(time.monotonic() - began)
            yield {"suite": suite, "name": name, "passed": passed, "words": words, "seconds": seconds}
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        yield {"suite": suite, "name": suite, "passed": False, "words": words, "seconds": 0}
    yield {"suite": suite, "over": True, "compiled": len(set(CACHE.glob("*.bpf")) - there)}


def main() -> int:
    threading.Thread(target=_heartbeat, daemon=True).start()
    out = Path(sys.argv[1])
    request: dict[str, Any] = json.loads((out / "request.json").read_text())
    os.environ.update(request["environment"])
    os.environ.update(HOME="/root", PATH=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=False)
    if "facts" not in request["suites"]:
        _warm()
    for folder in request["folders"]:
        _in_memory(Path(folder))
    CACHE.mkdir(parents=True, exist_ok=True)  # the host's, which others fill: not for here
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "none", str(CACHE)], check=True)
    suites: dict[str, Callable[[], Iterator[Row]]] = {
        "facts": facts,
        "doctor": lambda: doctor(ahead=request["ahead"]),
        "shapes": lambda: shapes(request["shapes"], Path(request["programs"])),
        "demo": demo,
        "truth": lambda: truth(request["truth"]),
    }
    with (out / "results.jsonl").open("a") as results:
        for suite in request["suites"]:
            if suite != "doctor" or request["ahead"]:
                shutil.copytree(request["cache"], CACHE, dirs_exist_ok=True)
            CACHE.chmod(0o700)
            for row in _rows(suite, suites[suite]):
                print(json.dumps(row), file=results, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
