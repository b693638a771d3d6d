"""Boots each kernel, runs each suite in it, says a line for each; the status is 1 when something failed."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration import shapes
from tests.kernels import ahead
from tests.kernels.images import FOLDER, KERNELS, Image, Kernel, unpacked
from tests.targets.build import CACHE_DIR, PROCESSOR, build

ROOT = Path(__file__).resolve().parents[2]
EMULATED = "x86_64_v3"  # what qemu emulates: AVX-512 of this machine ends a program there with SIGILL
PROGRAMS = FOLDER / "shapes"
SUITES = ("doctor", "demo", "truth", "shapes")  # in this order: the longest comes last
LIMIT_S = 4 * 3600.0  # for one boot with everything it runs
FACTS_S = 3600.0  # for one that says what its kernel is like: half a minute on an idle machine

SHAPES = (
    "dup_outlives", "dup2_over", "fork_holds_ok", "scm", "et_worker_close", "worker_close_waiting",
    "two_fds",
    "destroy_then_other_closes", "double_close_reuse", "batch_uaf_plain", "oneshot_bug", "graveyard",
    "pool_free_then_close", "two_epolls_bug", "epollhup_spin", "uring_close", "many_threads", "exec_self_bug",
)  # fmt: skip
"""What kernels differ in: when a close is over, who holds a file, what interrupts what."""
TRUTH = "ReleaseSafe and (dup-outlives-close or del-after-close or double-destroy) and not mixed"
CONNECTIONS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One suite on one kernel. failed: (what, words)."""

    suite: str
    passed: int
    failed: tuple[tuple[str, str], ...]
    over: bool  # it came to its end
    seconds: float
    compiled: int = (
        0  # programs of the kernel side that the guest had to compile: ahead.py does not know them
    )

    def line(self, kernel: Kernel, release: str) -> str:
        count = f"{self.passed} of {self.passed + len(self.failed)} passed"
        names = f": {', '.join(name for name, _ in self.failed)}" if self.failed else ""
        cut = "" if self.over else ", not all of it: the time was over, or the guest ended"
        there = f", {self.compiled} compiled there" if self.compiled else ""
        took = f"({self.seconds:.0f} s{there})"
        return f"{kernel.name:10} {release:26} {self.suite:7} {count}{names}{cut} {took}"


def outcomes(text: str, suites: Iterable[str]) -> list[Outcome]:
    """What the guest's results.jsonl says of each suite that was asked for."""
    rows: list[dict[str, Any]] = []
    for line in text.splitlines():
        with suppress(ValueError):  # cut off in the middle
            rows.append(json.loads(line))
    found = []
    for suite in suites:
        mine = [row for row in rows if row["suite"] == suite]
        ran = [row for row in mine if "name" in row]
        found.append(
            Outcome(
                suite=suite,
                passed=sum(row["passed"] for row in ran),
                failed=tuple((row["name"], row["words"]) for row in ran if not row["passed"]),
                over=any(row.get("over") for row in mine),
                seconds=max((row["seconds"] for row in ran), default=0),
                compiled=max((row.get("compiled", 0) for row in mine), default=0),
            )
        )
    return found


def boot(kernel: Kernel, image: Image, request: dict[str, Any], limit: float) -> str:
    """Run the guest's side in that kernel; its results.jsonl, as far as it came within `limit` seconds."""
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix="boot-") as folder:
        out = Path(folder)
        (out / "request.json").write_text(json.dumps(request))
        (out / "results.jsonl").touch()
        inner = f"cd {ROOT} && exec {sys.executable} -m tests.kernels.guest {out}"
        tree = "-fsdev local,id=tree,path=/,security_model=none,readonly=on,multidevs=remap"
        command = [
            str(Path(sys.executable).with_name("vng")), "-r", str(image.vmlinuz),
            "--disable-kvm", "--force-9p", "--disable-microvm", "--user", "root", "--cpus", "2",
            "--memory", "3G",
            # a guest starts with 9p alone: KVM within a virtual machine hangs on the machines that test this
            f"--qemu-opts= -cpu max {tree} -device virtio-9p-pci,fsdev=tree,mount_tag=tree",
            "--rwdir", str(out),
            *(word for option in kernel.append for word in ("--append", option)),
            "--verbose", "--exec", f"sh {ROOT}/tests/kernels/enter.sh {out} '{inner}'",
        ]  # fmt: skip
        path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        with (FOLDER / f"{kernel.name}.log").open("wb") as log:
            guest = subprocess.Popen(
                ["nice", "-n", "19", *command],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, env={"PATH": path, "HOME": "/root"},
            )  # fmt: skip
            _yielding(guest.pid)
            try:
                guest.wait(limit)
            except subprocess.TimeoutExpired:
                pass
            finally:
                _end(guest)
        said = (out / "results.jsonl").read_text()
        (FOLDER / f"{kernel.name}.jsonl").write_text(said)
        return said


def _yielding(pid: int) -> None:
    """sched(7), autogroup: a nice value counts within a session; among them this one does."""
    with suppress(OSError):  # a kernel without autogroups
        Path(f"/proc/{pid}/autogroup").write_text("19")


def _end(guest: subprocess.Popen[bytes]) -> None:
    """vng, virtme-run and qemu: the group that we started."""
    with suppress(ProcessLookupError):
        os.killpg(guest.pid, signal.SIGKILL)
    guest.wait()


def facts(kernel: Kernel, image: Image) -> Path:
    """What compiling for it needs, asked of the kernel itself once."""
    wanted = hashlib.sha256((ROOT / "probes" / "btf.py").read_bytes()).hexdigest()[:16]
    path = image.root / f"facts-{wanted}.json"
    if not path.exists():
        said = boot(kernel, image, _request(["facts"], [], image, folders=[]), FACTS_S)
        rows = [json.loads(line) for line in said.splitlines()]
        told = [row["words"] for row in rows if row.get("passed")]
        if not told:
            raise RuntimeError(
                f"{image.release} did not boot, or said nothing: see {FOLDER / kernel.name}.log"
            )
        path.write_text(told[0])
    return path


def _request(
    suites: Sequence[str], names: Sequence[str], image: Image, folders: Sequence[Path], *, early: bool = False
) -> dict[str, Any]:
    """early: doctor, too, takes what was compiled ahead."""
    cache = image.root / "cache"
    cache.mkdir(exist_ok=True, mode=0o700)
    return {
        "suites": list(suites),
        "shapes": list(names),
        "programs": str(PROGRAMS),
        "folders": [str(folder) for folder in folders],
        "cache": str(cache),
        "truth": TRUTH,
        "ahead": early,
        "environment": {
            PROCESSOR: EMULATED,
            "AFTERFREE_SLOW": "20",
            "AFTERFREE_CONNECTIONS": str(CONNECTIONS),
        },
    }


def programs(names: Sequence[str], suites: Sequence[str]) -> list[str]:
    """Build the shapes and the servers that the suites need; what ahead.py is to compile for."""
    shutil.rmtree(PROGRAMS, ignore_errors=True)
    PROGRAMS.mkdir(parents=True)
    found = []
    for name in names:
        run = shapes.Run(*name.rsplit("-", 1))
        exe, extra = shapes._build(run, PROGRAMS)
        case = shapes.FOLDER / run.shape
        profile = case / "profile.toml" if (case / "profile.toml").exists() else shapes.FOLDER / "base.toml"
        found.append(f"{extra.get('POOL', exe)}={profile}")
    if "demo" in suites:
        found.append(f"{build('poolserver', 'ReleaseSafe')}=")
    if "doctor" in suites:
        found.append(ahead.DOCTOR)
    if "truth" in suites:
        found.append(f"{ahead.TRUTH}{build('poolserver', 'ReleaseSafe')}=")
        build("loadgen", "ReleaseSafe")
    return found


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.kernels", description=__doc__)
    options.add_argument("--kernel", action="append", choices=[kernel.name for kernel in KERNELS])
    options.add_argument("--suite", action="append", choices=SUITES)
    options.add_argument(
        "--shape", action="append", help="NAME-O2, or all; default: those that kernels differ in"
    )
    options.add_argument(
        "--limit", type=float, default=LIMIT_S, help="seconds for one boot (default: %(default)s)"
    )
    options.add_argument(
        "--ahead", action="store_true", help="doctor, too, takes what was compiled on this machine"
    )
    asked = options.parse_args()
    os.environ[PROCESSOR] = EMULATED
    chosen = [kernel for kernel in KERNELS if not asked.kernel or kernel.name in asked.kernel]
    suites = [suite for suite in SUITES if not asked.suite or suite in asked.suite]
    names = asked.shape or [f"{name}-O2" for name in SHAPES]
    if names == ["all"]:
        names = [str(run) for run in shapes.runs()]
    if "shapes" in suites:
        more = "" if asked.shape == ["all"] else " (every one: --shape all)"
        print(f"shapes: {len(names)} of {len(shapes.runs())} runs of tests/shapes{more}", flush=True)
    if "truth" in suites:
        print(f"truth: {CONNECTIONS} connections in each of the cases {TRUTH!r}", flush=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    built = programs(names if "shapes" in suites else [], suites)
    failed = False
    for kernel in chosen:
        began = time.monotonic()
        try:
            image = unpacked(kernel)
            # the kernel of preempt=full is the same: what its compiler makes, the other boot has shown
            early = asked.ahead or bool(kernel.append)
            _compile(facts(kernel, image), image, [word for word in built if early or word != ahead.DOCTOR])
            request = _request(suites, names, image, [PROGRAMS, CACHE_DIR], early=early)
            said = boot(kernel, image, request, asked.limit)
        except (OSError, LookupError, RuntimeError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", None) or error
            print(f"{kernel.name:10} could not be tried: {detail}", flush=True)
            failed = True
            continue
        for outcome in outcomes(said, suites):
            print(outcome.line(kernel, image.release), flush=True)
            for name, words in outcome.failed:
                print(f"--- {kernel.name} {outcome.suite} {name}\n{words}\n---", flush=True)
            failed |= bool(outcome.failed) or not outcome.over or not outcome.passed
        print(f"{kernel.name:10} {time.monotonic() - began:.0f} s in all", flush=True)
    return int(failed)


def _compile(known: Path, image: Image, built: Sequence[str]) -> None:
    """Two at a time, for the machine that this is."""
    cache = image.root / "cache"
    halves = [half for half in (built[::2], built[1::2]) if half]

    def compile_half(half: Sequence[str]) -> None:
        command = [sys.executable, "-m", "tests.kernels.ahead", str(known), str(cache), *half]
        subprocess.run(["nice", "-n", "10", *command], cwd=ROOT, check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_half, halves))


if __name__ == "__main__":
    sys.exit(main())
