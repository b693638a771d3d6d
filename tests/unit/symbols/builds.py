"""Builds the test programs, cached by source, flags and compiler version under build/."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.targets.build import C_MODES, build

HERE = Path(__file__).parent
CACHE = HERE.parents[2] / "build" / "tests-symbols"

C_PROFILE = """
name = "cpool"
[slot]
type = "conn"
create = { function = "conn_create", returns = "slot" }
destroy = { function = "conn_destroy", slot = "conn" }
disown = { function = "conn_disown", slot = "conn" }
dispatch = { function = "session_state", object = "s" }
freelist_link = { offset = 0 }
"""

ZIG_PROFILE = """
name = "zpool"
[slot]
type = "pool.Conn(*)"
create = { function = "heap.memory_pool.*(pool.Conn(*)*).create", returns = "slot" }
destroy = { function = "heap.memory_pool.*(pool.Conn(*)*).destroy", slot = "ptr" }
disown = { function = "pool.Loop.disown", slot = "conn" }
dispatch = { function = "pool.HTTPConn.getState", object = "self" }
freelist_link = { offset = 0 }
"""


def _build(source: Path, command: list[str], versions: list[str], name: str) -> Path:
    key = hashlib.sha256()
    for part in (source.read_bytes(), *(c.encode() for c in command), *versions_of(versions)):
        key.update(hashlib.sha256(part).digest())
    target = CACHE / f"{key.hexdigest()[:16]}-{name}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        subprocess.run([*command, str(scratch)], cwd=source.parent, check=True, capture_output=True)
        _place(scratch, target)
    return target


def _place(scratch: Path, target: Path) -> None:
    """The first of two that built at once wins: a test may be running its executable by now."""
    with contextlib.suppress(FileExistsError):
        target.hardlink_to(scratch)
    scratch.unlink()


def versions_of(command: list[str]) -> list[bytes]:
    return [subprocess.run(command, capture_output=True, check=True).stdout.splitlines()[0]]


def build_c(
    *flags: str, compiler: str = "gcc", source: str = "pool.c", folder: Path = HERE / "programs"
) -> Path:
    """A program of a folder, by default programs/, with these flags. Skips when the compiler is missing."""
    path = shutil.which(compiler)
    if path is None:
        pytest.skip(f"{compiler} is not installed")
    text = folder / source
    name = f"{compiler}{''.join(flags)}".replace("/", "_")
    return _build(text, [path, *flags, source, "-o"], [path, "--version"], name)


def build_cserver(mode: str) -> Path:
    """The bundled C server, in a mode of tests.targets.build.C_MODES. Skips when the compiler is missing."""
    compiler, _level = C_MODES[mode]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    return build("cserver", mode)


def cross_build_c(*flags: str, source: str = "pool.c") -> Path:
    """A program of programs/ for aarch64, by Zig's clang. Skips when Zig is missing."""
    pytest.importorskip("ziglang")
    zig = [sys.executable, "-m", "ziglang"]
    # musl: nothing but its own sources is needed. Without UBSan, which Zig turns on and clang does not.
    target = ["-target", "aarch64-linux-musl", "-static", "-fno-sanitize=all"]
    command = [*zig, "cc", *target, "-g", *flags, source, "-o"]
    return _build(HERE / "programs" / source, command, [*zig, "version"], f"aarch64{''.join(flags)}")


def build_rust(*flags: str, source: str) -> Path:
    """A Rust program of programs/. Skips when rustc is missing."""
    path = shutil.which("rustc")
    if path is None:
        pytest.skip("rustc is not installed")
    command = [path, "-g", *flags, source, "-o"]
    return _build(HERE / "programs" / source, command, [path, "--version"], f"rustc{''.join(flags)}")


def build_zig(mode: str, source_name: str = "pool.zig", *, machine: str = "x86_64") -> Path:
    """A Zig program of programs/ in a build mode. Skips when Zig is missing."""
    pytest.importorskip("ziglang")
    zig = [sys.executable, "-m", "ziglang"]
    source = HERE / "programs" / source_name
    # A fixed CPU: the kernel refuses uprobes on AVX-512 instructions, which "native" may bring.
    target = ["-mcpu=x86_64_v3"] if machine == "x86_64" else ["-target", f"{machine}-linux"]
    command = [*zig, "build-exe", source_name, "-O", mode, "-fno-strip", *target]
    return _build_zig(source, command, [*zig, "version"], f"zig-{mode}")


def _build_zig(source: Path, command: list[str], version: list[str], name: str) -> Path:
    key = hashlib.sha256(source.read_bytes() + " ".join(command[1:]).encode() + versions_of(version)[0])
    target = CACHE / f"{key.hexdigest()[:16]}-{name}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        subprocess.run(
            [*command, f"-femit-bin={scratch}"], cwd=HERE / "programs", check=True, capture_output=True
        )
        _place(scratch, target)
    return target
