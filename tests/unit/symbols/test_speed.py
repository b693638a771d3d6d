"""What processor time a plan takes and what it holds in memory. Limits are loose here: machines differ."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.symbols.big import WANTED, build_big
from tests.unit.symbols.builds import C_PROFILE, ZIG_PROFILE, build_zig

_CODE = """
import json, sys, time

def memory(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))

before = memory("VmHWM")
started = time.process_time()
from symbols.profile import load_profile
from symbols.resolve import resolve
imported = time.process_time()
plan = resolve(sys.argv[1], load_profile(sys.argv[2]))
ended = time.process_time()
print(json.dumps({
    "sites": len(plan.sites), "import_s": imported - started, "resolve_s": ended - imported,
    "peak_kb": memory("VmHWM") - before, "anon_kb": memory("RssAnon"),
}))
"""


def measure(exe: Path, profile: str, tmp_path: Path) -> dict[str, float]:
    file = tmp_path / "profile.toml"
    file.write_text(profile)
    command = [sys.executable, "-c", _CODE, str(exe), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    found: dict[str, float] = json.loads(done.stdout)
    return found


def test_cold_plan_of_a_server(tmp_path: Path) -> None:
    best = min(
        (measure(build_zig("ReleaseSafe"), ZIG_PROFILE, tmp_path) for _ in range(3)),
        key=lambda m: m["import_s"] + m["resolve_s"],
    )
    assert best["sites"]
    assert best["import_s"] + best["resolve_s"] < 1.0  # 0.3 s on a quiet machine
    assert best["peak_kb"] < 40 << 10


@pytest.mark.slow
def test_200_megabytes_of_debug_info(tmp_path: Path) -> None:
    found = measure(build_big(), C_PROFILE, tmp_path)
    assert WANTED >= 200 << 20
    assert found["sites"] >= 3
    assert found["resolve_s"] < 6.0  # 1.4 s on a quiet machine
    assert found["peak_kb"] < 128 << 10
    assert found["anon_kb"] < 64 << 10
