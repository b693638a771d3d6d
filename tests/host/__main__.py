"""Try every order of small programs against the kernel side's C: `python -m tests.host [--deep]`.

Neither root nor BPF: the C is compiled for this machine. The last line says how many orders were tried.
"""

from __future__ import annotations

import argparse
import sys

from tests.host.build import SHAPES
from tests.host.campaign import Tally, at_random, written
from tests.host.machine import machine


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.host", description=__doc__)
    parser.add_argument(
        "--deep", action="store_true", help="up to 1,000,000 orders of each program (minutes)"
    )
    parser.add_argument("--seconds", type=float, default=0, help="of random programs for each shape")
    parser.add_argument("--seed", type=int, default=1, help="of the random programs")
    options = parser.parse_args()
    limit = 1_000_000 if options.deep else 20_000
    seconds = options.seconds or (120 if options.deep else 5)
    total, failed = Tally(), 0
    for shape in SHAPES:
        tally = Tally()
        played = machine(shape)
        found = written(played, limit, tally)
        found += at_random(played, options.seed, seconds, 1 << 30, 20_000 if options.deep else 1000, tally)
        print(f"{shape:10} {tally.programs:7,} programs, {tally.orders:12,} orders, {len(found)} wrong")
        for text in found:
            print(f"\n{text}\n")
        total.orders += tally.orders
        total.programs += tally.programs
        total.sampled += tally.sampled
        failed += len(found)
    whole = total.programs - total.sampled
    print(f"{whole:,} programs in every order, {total.sampled:,} in some, {failed} wrong")
    print(f"interleavings tried: {total.orders:,}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
