"""`python -m tests.fuzz`: mutated files over every way in, in forked workers under limits.

No crash, nothing over 5 s or 512 MB, every refusal a typed error: exit status 1 otherwise, and each case
that broke a rule is named by its number, which makes it again (`--case NUMBER` with the same --seed).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz import engine
from tests.fuzz.cases import KINDS, Cases, lay_out


def _report(tally: engine.Tally, seconds: float, verbose: bool) -> str:
    total, runs = sum(tally.cases.values()), sum(tally.runs.values())
    rows = [f"{total:,} mutated files, {runs:,} runs in {seconds:,.0f} s", ""]
    rows += [f"  {kind:18}{count:10,}" for kind, count in sorted(tally.cases.items())]
    rows += ["", *(f"  {name:18}{count:10,} runs" for name, count in sorted(tally.runs.items()))]
    if verbose:
        rows += ["", *(f"  {name:60}{count:10,}" for name, count in sorted(tally.outcomes.items()))]
    strays = {name: count for name, count in tally.outcomes.items() if ": stray " in name}
    rows += ["", f"typed, but not foreseen in its place: {sum(strays.values()):,} in {len(strays)} places"]
    slow, index, subject = tally.slowest
    rows.append(f"slowest: {slow:.2f} s of processor time (case {index}, {subject})")
    rows.append(f"largest: {tally.largest_mb:.0f} MB resident")
    rows.append(f"rules broken: {len(tally.bugs)}")
    for bug in tally.bugs[:50]:
        rows.append(f"\n== case {bug.index} ({bug.kind}, {bug.subject})\n{bug.what}")
    return "\n".join(rows) + "\n"


def _one(cases: Cases, index: int, keep: Path | None) -> int:
    case, worst = cases.make(index), 0
    sys.stdout.write(f"case {index}: {case.kind} of {case.origin}, {len(case.content):,} bytes\n")
    with tempfile.TemporaryDirectory(prefix="afterfree-fuzz-") as name:
        folder = keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        for subject in case.subjects:
            path = lay_out(case, folder, cases.samples.exe)
            outcome, bug, seconds = engine.attempt(subject, path, cases.rng(index), case.functions)
            sys.stdout.write(f"{subject}: {outcome} in {seconds:.2f} s\n{bug}")
            worst |= bool(bug)
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=5000, help="mutated files (5000)")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after this long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--jobs", type=int, default=1, help="workers (1)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="comma-separated")
    parser.add_argument("--case", type=int, help="run one case here, without limits on memory")
    parser.add_argument("--keep", type=Path, help="with --case: leave its files in this folder")
    parser.add_argument("--verbose", action="store_true", help="all outcomes")
    arguments = parser.parse_args()
    kinds = tuple(arguments.kinds.split(","))
    if not set(kinds) <= set(KINDS):
        parser.error(f"kinds are {', '.join(KINDS)}")
    cases = Cases(arguments.seed, kinds)
    for missing in cases.missing:
        sys.stdout.write(f"left out: {missing}\n")
    if arguments.case is not None:
        return _one(cases, arguments.case, arguments.keep)
    started = time.monotonic()
    tally = engine.run(
        cases, arguments.count, seconds=arguments.seconds, jobs=arguments.jobs, first=arguments.first
    )
    sys.stdout.write(_report(tally, time.monotonic() - started, arguments.verbose))
    return 1 if tally.bugs else 0


if __name__ == "__main__":
    sys.exit(main())
