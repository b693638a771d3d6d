# Owns making the kernel side's C a library for this machine: the same text that bcc compiles, behind shim.h.
from __future__ import annotations

import atexit
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from probes.loader import LoadOptions, plain_defines
from probes.loader_bcc import KERNEL_HEADERS, SOURCES, source_text

HERE = Path(__file__).resolve().parent
BUILT = HERE.parent / "targets" / ".build" / "host"
AFTER = ("kernel.c", "truth.c", "verdicts.c", "player.c", "steps.c", "steps_fds.c", "machine.c")

# What probes/readers.py makes of a plan whose sites are at their functions' entries (create: at its return).
READERS = """
int af_site_create(struct pt_regs *ctx) { return af_hit_create(ctx, ctx->ip, ctx->ax); }
int af_site_destroy(struct pt_regs *ctx) { return af_hit_destroy(ctx, ctx->ip, ctx->di, 1); }
int af_site_dispatch(struct pt_regs *ctx) { return af_hit_dispatch(ctx, ctx->ip, ctx->di, 1); }
"""

SHAPES: dict[str, dict[str, object]] = {
    "complete": {"have_create": True, "create_complete": True},
    "dispatch": {"have_create": True, "create_complete": True, "have_dispatch": True, "object_delta": 0},
    "no-create": {},
    "partial": {"have_create": True},
}
"""Which functions of the program are probed: every create, none, or some."""


def _flags(shape: str) -> Sequence[str]:
    options = LoadOptions(
        ring_records=256, lifetime_records=256, max_slots=64, max_threads=16, urgent_pages=1024
    )
    defines = plain_defines(options, **SHAPES[shape])  # type: ignore[arg-type]
    return [flag for flag in defines if not flag.startswith("-DAF_CPUS=")] + ["-DAF_CPUS=1"]


def _own() -> list[Path]:
    return sorted((*HERE.glob("*.c"), *HERE.glob("*.h")))


def text() -> str:
    """The whole translation unit."""
    parts = [f'#include "{HERE / "shim.h"}"', source_text(READERS)]
    return "\n".join([*parts, *(f'#include "{HERE / name}"' for name in AFTER)])


@cache
def library(shape: str) -> Path:
    """Path of the library of a shape, built when the C has changed. Raises RuntimeError with gcc's words."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise RuntimeError("a C compiler is needed: apt-get install gcc")
    program, flags = text(), _flags(shape)
    headers = [path.read_text(encoding="utf-8") for path in (*sorted(SOURCES.glob("*.h")), *_own())]
    key = hashlib.sha256("\0".join([program, *flags, *headers]).encode()).hexdigest()[:16]
    output = BUILT / f"{shape}-{key}.so"
    if output.exists():
        return output
    BUILT.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="building-", dir=BUILT))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source, fresh = folder / "program.c", folder / "program.so"
    source.write_text(program, encoding="utf-8")
    command = [
        compiler, "-std=gnu11", "-O2", "-g", "-shared", "-fPIC", "-fno-strict-aliasing",
        "-Wall", "-Wno-unused", "-Wno-unknown-pragmas",
        f"-I{KERNEL_HEADERS / 'include'}", f"-I{SOURCES}", *flags,
        "-o", str(fresh), str(source),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"gcc refused the kernel side:\n{done.stderr[-4000:]}")
    fresh.rename(output)  # whole, whoever else builds it meanwhile
    return output
