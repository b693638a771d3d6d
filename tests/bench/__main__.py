"""`python -m tests.bench`: what watching and resolving cost, as tables and JSON lines. Needs root and BPF.

`--only symbols`: only what a probe plan costs beside other tools, without root.

Everything is measured on this machine in one run, the variants in turn, so that what else happens here
hits all of them; ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench import bystander, replay, symbols, target
from tests.requirements import missing_for_bpf

AIMS = {
    "throughput against empty programs": 0.95,
    "daemon CPU, % of a core": 3.0,
    "daemon resident, KiB": 40 * 1024,
    "replay, events/s": 300_000,
}


def _per_variant(costs: target.Costs) -> list[str]:
    rows = [f"{'':12}{'':12}{'per second':>12}{'CPU each':>12}{'against none':>14}{'against empty':>15}"]
    for kind in target.LOADS:
        for variant in target.VARIANTS:
            sample = costs.median(variant, kind)
            row = f"{kind:12}{variant:12}{sample.rate:12,.0f}{sample.cpu_us:9.1f} µs"
            if variant != "without":
                row += f"{costs.ratio(variant, 'without', kind)[0]:14.3f}"
            if variant == "afterfree":
                row += f"{costs.ratio(variant, 'empty', kind)[0]:15.3f}"
            rows.append(row)
    return rows


def _verdicts(figures: dict[str, float]) -> list[str]:
    rows = []
    for what, value in figures.items():
        aim = AIMS[what.split(":")[0]]
        least = aim in (AIMS["throughput against empty programs"], AIMS["replay, events/s"])
        met = value >= aim if least else value <= aim
        sign = "≥" if least else "≤"
        digits = 0 if value > 100 else 3
        rows.append(f"  {what:48}{value:14,.{digits}f}   aim {sign} {aim:,g}   {'met' if met else 'MISSED'}")
    return rows


def _result(costs: target.Costs, speeds: dict[str, replay.Speed], rounds: int) -> dict[str, Any]:
    throughput: dict[str, Any] = {}
    for kind in target.LOADS:
        throughput[kind] = {
            variant: {
                "per_second": round(costs.median(variant, kind).rate),
                "target_cpu_us": round(costs.median(variant, kind).cpu_us, 2),
                "rounds": [round(sample.rate) for sample in costs.samples[variant, kind]],
            }
            for variant in target.VARIANTS
        }
        for variant, base in (("empty", "without"), ("afterfree", "without"), ("afterfree", "empty")):
            rate, cpu = costs.ratio(variant, base, kind)
            throughput[kind][f"{variant}/{base}"] = {"rate": round(rate, 4), "target_cpu": round(cpu, 4)}
    return {
        "schema": "afterfree.bench/1",
        "cpus": os.cpu_count(),
        "kernel": os.uname().release,
        "load_average": os.getloadavg()[0],
        "rounds": rounds,
        "throughput": throughput,
        "daemon": {
            "cpu_percent": round(statistics.median(costs.daemon_cpu), 3),
            "rss_kib": max(costs.daemon_kb),
            "helpers_cpu_percent": round(statistics.median(costs.helpers_cpu), 3),
            "helpers_rss_kib": max(costs.helpers_kb),
            "start_to_watching_s": round(statistics.median(costs.attach_s), 2),
            "loader_s": round(statistics.median(costs.arm_s), 2),
            "loader_empty_s": round(statistics.median(costs.arm_empty_s), 2),
        },
        "replay": {
            name: {
                "records": speed.records,
                "from_file_per_s": round(speed.file),
                "judged_events": speed.judged_events,
                "judged_per_s": round(speed.judged),
            }
            for name, speed in speeds.items()
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="rounds over all variants (6)")
    parser.add_argument("--connections", type=int, default=20_000, help="of the replayed recording")
    parser.add_argument("--only", choices=("symbols", "watching", "bystander"), help="one section")
    parser.add_argument("--server", metavar="COMMAND", help="watching: this server, not the bundled one")
    parser.add_argument("--port", type=int, default=0, help="where it listens on loopback")
    parser.add_argument("--no-big", action="store_true", help="symbols: without the 200 MB program")
    arguments = parser.parse_args()
    if arguments.only == "symbols":
        return _symbols(arguments.rounds, big=not arguments.no_big)
    missing = missing_for_bpf()
    if missing:
        sys.stderr.write(f"bench: this needs {missing}\n")
        return 3
    if arguments.only == "bystander":
        return _bystander(arguments.rounds)
    with tempfile.TemporaryDirectory(prefix="afterfree-bench-") as name:
        costs = target.measure(arguments.rounds, Path(name), command=arguments.server, port=arguments.port)
        speeds = replay.measure(Path(name), arguments.connections)
    result = _result(costs, speeds, arguments.rounds)
    figures = {
        **{
            f"throughput against empty programs: {kind}": costs.ratio("afterfree", "empty", kind)[0]
            for kind in target.LOADS
        },
        "daemon CPU, % of a core": result["daemon"]["cpu_percent"],
        "daemon resident, KiB": float(result["daemon"]["rss_kib"]),
        **{f"replay, events/s: {name}, from the file": speed.file for name, speed in speeds.items()},
    }
    cost = result["daemon"]
    armed = (
        f"armed: {cost['loader_s']:.2f} s in the loader child ({cost['loader_empty_s']:.2f} s with empty "
        f"programs), {cost['start_to_watching_s']:.2f} s from the command to watching"
    )
    lines = [
        f"{arguments.rounds} rounds, medians; {result['cpus']} CPUs, load {result['load_average']:.1f}",
        "",
        *_per_variant(costs),
        "",
        armed,
        f"helpers: {cost['helpers_cpu_percent']:.2f} % of a core, {cost['helpers_rss_kib']:,} KiB",
    ]
    for name, speed in speeds.items():
        lines.append(
            f"replay {name}: {speed.records:,} records, {speed.file:,.0f} events/s from the file; "
            f"{speed.judged_events:,} events through the correlator at {speed.judged:,.0f}/s"
        )
    sys.stdout.write("\n".join([*lines, "", *_verdicts(figures), ""]) + "\n" + json.dumps(result) + "\n")
    return 0 if arguments.only else _symbols(arguments.rounds, big=not arguments.no_big)


def _bystander(rounds: int) -> int:
    with tempfile.TemporaryDirectory(prefix="afterfree-bench-") as name:
        samples = bystander.measure(rounds, Path(name))
    body = {
        "schema": "afterfree.bench.bystander/1",
        "rounds": rounds,
        "ns": {f"{tool}: {loop}": taken for (tool, loop), taken in samples.items()},
    }
    sys.stdout.write("\n".join(bystander.report(samples)) + "\n" + json.dumps(body) + "\n")
    return 0


def _symbols(rounds: int, *, big: bool) -> int:
    results = symbols.measure(rounds, big=big)
    body = {"schema": "afterfree.bench.symbols/1", "rounds": rounds, "tools": symbols.as_json(results)}
    sys.stdout.write("\n".join(symbols.report(results)) + "\n" + json.dumps(body) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
