"""Damaged files: a typed error or a plan, nothing else, and soon. `python -m tests.fuzz` is the deep run."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from symbols.errors import MalformedImage, SymbolError
from symbols.globs import matches
from symbols.image import Image
from symbols.lines import Symbolizer
from symbols.profile import parse_profile
from symbols.resolve import resolve
from symbols.suggest import suggest
from tests.fuzz.model import read
from tests.fuzz.mutations import replace_section
from tests.unit.symbols.builds import C_PROFILE, HERE, build_c

PROFILE = parse_profile(C_PROFILE)
LIMIT_S = 5.0


def _try(path: Path) -> str:
    started = time.process_time()
    try:
        resolve(path, PROFILE)
        outcome = "plan"
    except SymbolError as error:
        outcome = type(error).__name__ if error.detail and error.remedy else "silent"
    assert outcome != "silent"
    try:
        with Image(path) as image:
            symbolizer = Symbolizer(image)
            for address in (0, 0x1100, image.entry, 1 << 63):
                assert symbolizer.frames(address)
    except SymbolError:
        pass
    assert time.process_time() - started < LIMIT_S
    return outcome


@pytest.mark.parametrize("flags", [("-gdwarf-4", "-O2"), ("-gdwarf-5", "-O1")])
def test_truncated(flags: tuple[str, ...], tmp_path: Path) -> None:
    raw = build_c("-g", *flags).read_bytes()
    target = tmp_path / "cut"
    outcomes = set()
    for size in [*range(0, 80, 7), *range(80, len(raw), len(raw) // 60)]:
        target.write_bytes(raw[:size])
        outcomes.add(_try(target))
    assert "NotElf" in outcomes
    assert "MalformedImage" in outcomes


@pytest.mark.parametrize("seed", range(4))
def test_mutated(seed: int, tmp_path: Path) -> None:
    """Random bytes over headers and debug sections of both DWARF versions."""
    path = build_c("-g", "-gdwarf-4" if seed % 2 else "-gdwarf-5", "-O2")
    raw = path.read_bytes()
    with Image(path) as image:
        spans = [(s.offset, s.size) for s in image.sections if s.name.startswith(".debug") and s.size]
        spans += [(s.offset, s.size) for s in image.sections if s.name in (".symtab", ".strtab", ".eh_frame")]
    spans += [(0, 64), (len(raw) - 64 * 40, 64 * 40)]
    rng = random.Random(seed)
    target = tmp_path / "mutated"
    outcomes = []
    for _ in range(75):
        data = bytearray(raw)
        start, size = rng.choice(spans)
        for _ in range(rng.choice((1, 2, 8, 40))):
            at = start + rng.randrange(size)
            if at < len(data):
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        target.write_bytes(data)
        outcomes.append(_try(target))
    assert len(outcomes) == 75


# -- what `python -m tests.fuzz` found -----------------------------------------------------------------


def _swollen(section: str, pattern: bytes, size: int, tmp_path: Path, *flags: str) -> Path:
    """pool.c with a section that goes on with a pattern."""
    base = read(build_c("-g", *flags), "c")
    data = bytearray(base.raw)
    (found,) = base.named(section)
    content = bytes(data[found.offset : found.offset + found.size])
    replace_section(data, found, content + (pattern or content) * (size // len(pattern or content)) + b"\0")
    target = tmp_path / "swollen"
    target.write_bytes(data)
    return target


def test_thousands_of_copies_of_a_unit(tmp_path: Path) -> None:
    """Every reference was looked for in every unit."""
    _try(_swollen(".debug_info", b"", 1 << 21, tmp_path, "-gdwarf-4", "-O2"))


def test_names_without_end(tmp_path: Path) -> None:
    path = _swollen(".debug_str", b"conn_destroy", 1 << 21, tmp_path, "-gdwarf-5", "-O2")
    started = time.process_time()
    wide = parse_profile(C_PROFILE.replace('"conn_destroy"', '"conn_*d*e*s*t*r*o*y*x"'))
    with contextlib.suppress(SymbolError):
        resolve(path, wide)
    assert time.process_time() - started < LIMIT_S


def test_globs_are_linear_in_the_name() -> None:
    started = time.process_time()
    assert not matches("a*a*a*a*a*a*b", "a" * 20_000)
    assert matches("heap.*(worker.Conn(*)*).destroy", "heap." + "(worker.Conn(" * 3000 + ")).destroy")
    assert time.process_time() - started < 1.0


def test_a_search_stays_inside_the_map() -> None:
    """CPython before 3.11.4 looks one byte behind it (gh-105235): SIGSEGV where nothing is mapped there."""
    code = """
import mmap, os, tempfile
from symbols.data import Data
with tempfile.TemporaryFile() as file:
    file.write(b"ab" * (mmap.PAGESIZE // 2))
    file.flush()
    behind = mmap.mmap(-1, mmap.PAGESIZE)
    buf = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # lies right below it
    behind.close()
    data = Data(buf, 0, len(buf), "x", "x")
    assert len(data.find_all(b"ab")) == mmap.PAGESIZE // 2
    assert data.find_all(b"bac") == [] and data.find_all(b"zz") == []
    assert data.find_all(b"ab", mmap.PAGESIZE - 2) == [mmap.PAGESIZE - 2]
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_split_units_that_share_one_name(tmp_path: Path) -> None:
    """A skeleton repeated ten thousand times opened its .dwo as often, and gave its unit to all of them."""
    source = HERE / "programs" / "pool.c"
    flags = ("-g", "-gdwarf-5", "-O2", "-gsplit-dwarf", f"-ffile-prefix-map={tmp_path}=.")
    for command in (["-c", str(source), "-o", "pool.o"], ["pool.o", "-o", "server"]):
        subprocess.run(["gcc", *flags, *command], cwd=tmp_path, check=True)
    base = read(tmp_path / "server", "c")
    data = bytearray(base.raw)
    (info,) = base.named(".debug_info")
    replace_section(data, info, bytes(data[info.offset : info.offset + info.size]) * 10_000)
    (tmp_path / "server").write_bytes(data)
    assert _try(tmp_path / "server") == "plan"


def test_without_a_single_unit(tmp_path: Path) -> None:
    base = read(build_c("-g", "-O2"), "c")
    data = bytearray(base.raw)
    (info,) = base.named(".debug_info")
    replace_section(data, info, b"\0\0")
    (tmp_path / "none").write_bytes(data)
    with pytest.raises(SymbolError) as caught:
        suggest(tmp_path / "none")
    assert not isinstance(caught.value, MalformedImage)


def test_the_fuzz_command(tmp_path: Path) -> None:
    """A few cases of every kind; the numbers of the long runs are told elsewhere."""
    command = [sys.executable, "-m", "tests.fuzz", "--count", "270", "--seed", "3"]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "rules broken: 0" in done.stdout
