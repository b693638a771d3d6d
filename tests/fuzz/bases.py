"""The good files that are mutated: small ones, of every way debug information can be written.

Owns building them (cached under build/). What a missing compiler would bring is left out and named.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.model import Base, read
from tests.unit.symbols.builds import CACHE, HERE, build_c, versions_of

_PLAIN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("gcc", ("-g", "-gdwarf-4", "-O2")),
    ("gcc", ("-g", "-gdwarf-5", "-O2")),
    ("gcc", ("-g", "-gdwarf-5", "-O0")),
    ("gcc", ("-g", "-gdwarf-3", "-O1", "-no-pie")),
    ("gcc", ("-g", "-gdwarf-5", "-gdwarf64", "-O2")),
    ("gcc", ("-g", "-gdwarf-5", "-O2", "-fdebug-types-section")),
    ("gcc", ("-g", "-gdwarf-4", "-O2", "-fdebug-types-section")),
    ("gcc", ("-g", "-gdwarf-5", "-O2", "-fno-asynchronous-unwind-tables")),
    ("clang", ("-g", "-gdwarf-5", "-O2")),
    ("clang", ("-g", "-gdwarf-4", "-O1")),
    ("gcc", ("-g", "-gdwarf-5", "-O2", "-gz=zlib")),
    ("gcc", ("-g", "-gdwarf-4", "-O2", "-gz=zlib-gnu")),
)


def folder_of(name: str, make: Callable[[Path], None], *inputs: bytes) -> Path:
    """A folder under build/ that `make` fills once."""
    key = hashlib.sha256(b"\0".join((name.encode(), Path(__file__).read_bytes(), *inputs))).hexdigest()[:16]
    target = CACHE / f"{key}-fuzz-{name}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        scratch = CACHE / f"{target.name}.{os.getpid()}.tmp"
        scratch.mkdir()
        make(scratch)
        scratch.replace(target)
    return target


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def _split(folder: Path, compiler: str, version: str) -> None:
    # A relative compilation directory: the .dwo is found beside the mutated executable.
    flags = ("-g", f"-gdwarf-{version}", "-O2", "-gsplit-dwarf", f"-ffile-prefix-map={folder}=.")
    _run(folder, compiler, *flags, "-c", str(HERE / "programs" / "pool.c"), "-o", "pool.o")
    _run(folder, compiler, *flags, "pool.o", "-o", "server")


def _linked(folder: Path) -> None:
    source = str(HERE / "programs" / "pool.c")
    _run(folder, "gcc", "-g", "-O2", source, "-o", "server")
    _run(folder, "objcopy", "--only-keep-debug", "server", "server.debug")
    _run(folder, "strip", "server")
    _run(folder, "objcopy", "--add-gnu-debuglink=server.debug", "server")


def _dwz(folder: Path) -> None:
    source = str(HERE / "programs" / "pool.c")
    for name in ("server", "other"):
        _run(folder, "gcc", "-g", "-gdwarf-4", "-O2", source, "-o", name)
    _run(folder, "dwz", "-m", "common", "server", "other")


def bases() -> tuple[list[Base], list[str]]:
    """(the base files, what could not be built and why)."""
    found: list[Base] = []
    missing: list[str] = []
    for compiler, flags in _PLAIN:
        name = f"{compiler} {' '.join(flags)}"
        try:
            found.append(read(build_c(*flags, compiler=compiler), "c", name=name))
        except (pytest.skip.Exception, subprocess.CalledProcessError, OSError) as error:
            missing.append(f"{name}: {error}")
    text = (HERE / "programs" / "pool.c").read_bytes()
    for compiler, version in (("gcc", "5"), ("gcc", "4"), ("clang", "5"), ("clang", "4")):
        name = f"split-{compiler}-{version}"
        if shutil.which(compiler) is None:
            missing.append(f"{name}: {compiler} is not installed")
            continue
        stamp = versions_of([compiler, "--version"])[0]
        folder = folder_of(name, lambda f, c=compiler, v=version: _split(f, c, v), text, stamp)  # type: ignore[misc]
        found.append(read(folder / "server", "c", _beside(folder, "*.dwo"), name))
    others: tuple[tuple[str, str, Callable[[Path], None], str], ...] = (
        ("linked", "objcopy", _linked, "server.debug"),
        ("dwz", "dwz", _dwz, "common"),
    )
    for name, program, make, pattern in others:
        if shutil.which(program) is None:
            missing.append(f"{name}: {program} is not installed")
            continue
        folder = folder_of(name, make, text)
        found.append(read(folder / "server", "c", _beside(folder, pattern), name))
    try:
        found.append(read(build_c("-g", "-O1", compiler="g++", source="shapes.cpp"), "c", name="shapes.cpp"))
    except (pytest.skip.Exception, subprocess.CalledProcessError) as error:
        missing.append(f"shapes.cpp: {error}")
    return found, missing


def _beside(folder: Path, pattern: str) -> dict[str, Base]:
    return {path.name: read(path, "c") for path in folder.glob(pattern)}
