"""Builds the bundled programs and caches them by content.

Owns the compiler command line and the cache under ``build/targets/``. Must not run what it builds.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE_DIR = Path(__file__).resolve().parent
CACHE_DIR = SOURCE_DIR.parent.parent / "build" / "targets"

#: Zig's optimisation modes. Debug uses Zig's own x86-64 backend, the others LLVM.
MODES = ("Debug", "ReleaseSafe", "ReleaseFast", "ReleaseSmall")

#: Root source file and the files it imports, per program.
PROGRAMS: dict[str, tuple[str, ...]] = {
    "poolserver": (
        "poolserver.zig",
        "worker.zig",
        "orphans.zig",
        "truth.zig",
        "bugs.zig",
        "lists.zig",
        "thread_pool.zig",
        "sys.zig",
    ),
    "loadgen": ("loadgen.zig", "sys.zig"),
    "cserver": (
        "cserver.c",
        "cserver_options.c",
        "cserver_truth.c",
        "cserver_conn.h",
        "cserver_options.h",
        "cserver_truth.h",
    ),
}

#: How C programs are built: compiler and optimisation.
C_MODES: dict[str, tuple[str, str]] = {
    "gcc-O2": ("gcc", "-O2"),
    "gcc-O0": ("gcc", "-O0"),
    "clang-O2": ("clang", "-O2"),
    "clang-O0": ("clang", "-O0"),
}

# ReleaseFast and ReleaseSmall strip and drop frame pointers by default; people who want to know where
# their server frees its slots keep both. -fno-llvm names Debug's default backend, so that a later
# default does not change what is tested.
_COMMON = ("-fno-strip", "-fno-omit-frame-pointer")
_BY_MODE: dict[str, tuple[str, ...]] = {
    "Debug": ("-fno-llvm",),
    "ReleaseSafe": (),
    "ReleaseFast": (),
    "ReleaseSmall": (),
}
_TIMEOUT_S = 600

PROCESSOR = "AFTERFREE_PROCESSOR"
"""Environment: the processor that Zig compiles for, where that is another than this one (tests/kernels)."""


class BuildError(Exception):
    """The compiler refused or is missing.

    Attributes:
        command: the command line that failed.
        output: what the compiler wrote, standard output and error.
    """

    def __init__(self, message: str, *, command: tuple[str, ...], output: str) -> None:
        super().__init__(f"{message}\n{' '.join(command)}\n{output}".rstrip())
        self.command = command
        self.output = output


def _is_c(name: str) -> bool:
    return PROGRAMS[name][0].endswith(".c")


def _command(name: str, mode: str) -> tuple[str, ...]:
    """The compiler command line, all but the output."""
    if _is_c(name):
        compiler, level = C_MODES[mode]
        sources = [str(SOURCE_DIR / source) for source in PROGRAMS[name] if source.endswith(".c")]
        return (compiler, "-std=gnu11", level, "-g", "-Wall", "-Wextra", "-Werror", "-pthread", *sources)
    root = str(SOURCE_DIR / PROGRAMS[name][0])
    processor = os.environ.get(PROCESSOR)
    flags = (*_COMMON, *_BY_MODE[mode], *([f"-mcpu={processor}"] if processor else []))
    return (sys.executable, "-m", "ziglang", "build-exe", root, f"-O{mode}", *flags)


def _digest(name: str, mode: str, version: str) -> str:
    h = hashlib.sha256()
    for part in (name, mode, version, *_command(name, mode)[1:]):
        h.update(part.encode() + b"\0")
    for source in PROGRAMS[name]:
        h.update((SOURCE_DIR / source).read_bytes() + b"\0")
    return h.hexdigest()[:16]


def _zig_version() -> str:
    # Asked of the package's metadata: starting the compiler only to ask costs more than a cache hit.
    from importlib import metadata

    try:
        return metadata.version("ziglang")
    except metadata.PackageNotFoundError:
        raise BuildError(
            "the Zig compiler is missing: pip install ziglang==0.16.0 for this interpreter",
            command=(sys.executable, "-m", "ziglang"),
            output="",
        ) from None


def _c_version(compiler: str) -> str:
    command = (compiler, "--version")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(
            f"the C compiler {compiler} is missing: apt-get install {compiler}", command=command, output=""
        ) from error
    return answer.stdout


def build(name: str, mode: str, *, out_dir: Path | None = None) -> Path:
    """Builds one program in one mode, or finds it in the cache.

    Args:
        name: a key of ``PROGRAMS``.
        mode: one of ``MODES``, for C programs of ``C_MODES``.
        out_dir: cache directory, by default ``build/targets/`` of the repository.

    Returns:
        Path of the executable, ``<cache>/<hash of sources and flags>/<name>-<mode>``.

    Raises:
        ValueError: no such program or mode.
        BuildError: the compiler is missing, failed or took longer than ten minutes.
    """
    if name not in PROGRAMS:
        raise ValueError(f"no such program: {name} (one of {', '.join(PROGRAMS)})")
    modes = tuple(C_MODES) if _is_c(name) else MODES
    if mode not in modes:
        raise ValueError(f"no such mode: {mode} (one of {', '.join(modes)})")
    version = _c_version(C_MODES[mode][0]) if _is_c(name) else _zig_version()
    directory = (out_dir or CACHE_DIR) / _digest(name, mode, version)
    target = directory / f"{name}-{mode}"
    if target.exists():
        return target
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory):
        if not target.exists():
            _build(name, mode, target)
    return target


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One builder at a time: a second one would replace an executable that a test is already running."""
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _build(name: str, mode: str, target: Path) -> None:
    # Built beside its place and renamed into it, so that nobody meets half a file.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
        built = Path(scratch) / target.name
        output = ("-o", str(built)) if _is_c(name) else (f"-femit-bin={built}",)
        command = (*_command(name, mode), *output)
        try:
            result = subprocess.run(
                command,
                cwd=scratch,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BuildError(
                f"building {name} ({mode}) took longer than {_TIMEOUT_S} s",
                command=command,
                output=str(error.output or ""),
            ) from error
        if result.returncode != 0 or not built.exists():
            raise BuildError(
                f"building {name} ({mode}) failed with exit status {result.returncode}",
                command=command,
                output=result.stdout,
            )
        os.replace(built, target)


def main() -> int:
    """Command line: ``python -m tests.targets.build poolserver ReleaseSafe``; prints the path."""
    parser = argparse.ArgumentParser(description="build a bundled test program")
    parser.add_argument("name", choices=sorted(PROGRAMS))
    parser.add_argument("mode", choices=(*MODES, *C_MODES))
    parser.add_argument("--out-dir", type=Path)
    args = parser.parse_args()
    try:
        print(build(args.name, args.mode, out_dir=args.out_dir))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
