"""A program with at least 200 MB of .debug_info: pool.c and many copies of one generated unit.

`python -m tests.unit.symbols.big` builds it and prints its path. All of the filler's functions are static:
one object file can be linked as often as wanted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.symbols.builds import CACHE, HERE, versions_of

WANTED = 200 << 20
_STRUCTS, _FUNCTIONS = 14_000, 6_000


def filler() -> str:
    """C: many types, and functions with inlined calls."""
    lines = ["#include <stddef.h>"]
    for i in range(_STRUCTS):
        lines.append(
            f"struct node_{i} {{ struct node_{max(i - 1, 0)} *next_{i % 97}; int count_{i % 89}; long total;"
            f" char name[{i % 31 + 1}]; unsigned kind : 3; unsigned flags_{i % 13} : 5;"
            f" union {{ void *pointer; double number; unsigned char bytes[8]; }} value_{i % 7};"
            f" enum {{ red_{i}, green_{i}, blue_{i} }} color; int (*call)(struct node_{i} *, int); }};"
        )
    for i in range(_FUNCTIONS):
        lines.append(
            f"static inline int help_{i}(struct node_{i} *self, int amount) {{"
            f" int before = self->kind; self->total += amount; self->flags_{i % 13} = 3; return before; }}\n"
            f"static __attribute__((used)) long work_{i}(struct node_{i} *self, int rounds) {{ long sum = 0;"
            f" for (int round = 0; round < rounds; round++) sum += help_{i}(self, round) *"
            f" help_{i // 2}((struct node_{i // 2} *)self, {i});"
            f" return sum + self->call(self, rounds); }}"
        )
    return "\n".join(lines) + "\n"


def build_big() -> Path:
    """The program, cached under build/. Skips without gcc."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    key = hashlib.sha256(filler().encode() + (HERE / "programs" / "pool.c").read_bytes())
    key.update(Path(__file__).read_bytes() + versions_of([compiler, "--version"])[0])
    target = CACHE / f"{key.hexdigest()[:16]}-big"
    if target.exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    scratch = CACHE / f"{target.name}.{os.getpid()}.tmp"
    scratch.mkdir()
    try:
        (scratch / "filler.c").write_text(filler())
        flags = ["-g", "-O1", "-fno-eliminate-unused-debug-types"]
        for source in (scratch / "filler.c", HERE / "programs" / "pool.c"):
            subprocess.run([compiler, *flags, "-c", source], cwd=scratch, check=True, capture_output=True)
        size = _debug_info(scratch / "filler.o")
        copies = ["filler.o"] * (WANTED // size + 1)
        half = len(copies) // 2  # pool.o in the middle: nothing is found early by luck
        objects = [*copies[:half], "pool.o", *copies[half:]]
        subprocess.run([compiler, "-o", "big", *objects], cwd=scratch, check=True, capture_output=True)
        (scratch / "big").replace(target)
    finally:
        shutil.rmtree(scratch)
    return target


def _debug_info(path: Path) -> int:
    table = subprocess.run(["readelf", "-SW", path], check=True, capture_output=True, text=True).stdout
    (line,) = [line for line in table.splitlines() if " .debug_info " in line]
    return int(line.split("]")[1].split()[4], 16)


if __name__ == "__main__":
    print(build_big())
