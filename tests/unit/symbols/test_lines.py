"""pc -> frames, against llvm-symbolizer."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from symbols.dwarf import Dwarf
from symbols.image import Image
from symbols.lines import Symbolizer
from symbols.linetable import LineTables
from symbols.scopes import Scopes
from symbols.search import Search
from tests.unit.symbols.builds import build_c, build_zig
from tests.unit.symbols.matrix import CASES


def _expected(path: Path, addresses: list[int]) -> list[list[tuple[str, str]]]:
    if shutil.which("llvm-symbolizer") is None:
        pytest.skip("llvm-symbolizer is not installed")
    command = ["llvm-symbolizer", f"--obj={path}", "--inlines", "--functions=linkage"]
    out = subprocess.run([*command, *map(hex, addresses)], capture_output=True, text=True, check=True).stdout
    blocks = [block.splitlines() for block in out.rstrip("\n").split("\n\n")]
    return [[(b[i], b[i + 1].rsplit(":", 1)[0]) for i in range(0, len(b) - 1, 2)] for b in blocks]


@pytest.mark.parametrize("which", ["gcc4", "gcc5", "clang", "zig"])
def test_frames_agree_with_llvm_symbolizer(which: str) -> None:
    path = {
        "gcc4": lambda: build_c("-g", "-gdwarf-4", "-O2"),
        "gcc5": lambda: build_c("-g", "-gdwarf-5", "-O2"),
        "clang": lambda: build_c("-g", "-gdwarf-5", "-O1", compiler="clang"),
        "zig": lambda: build_zig("ReleaseSafe"),
    }[which]()
    rng = random.Random(11)
    with Image(path) as image:
        names = {"main", "dispatch", "conn_disown", "conn_create"} if which != "zig" else set()
        functions = [f for f in image.functions if f.size > 8 and (not names or f.name in names)]
        addresses = sorted(
            {
                f.address + rng.randrange(f.size)
                for f in rng.sample(functions, min(60, len(functions)))
                for _ in range(1 if which == "zig" else 20)
            }
        )
        symbolizer = Symbolizer(image)
        ours = [
            [(f.function, f"{f.location.file}:{f.location.line}" if f.location else "??:0") for f in frames]
            for frames in map(symbolizer.frames, addresses)
        ]
    differ = 0
    for mine, theirs in zip(ours, _expected(path, addresses), strict=True):
        # The outermost name: ours is DWARF's, theirs the symbol table's ("x.2", "main").
        same = mine[:-1] == theirs[:-1] and mine[-1][1].split(":")[-1] == theirs[-1][1].split(":")[-1]
        differ += not same
    assert differ <= len(addresses) // 50  # compiler-made functions without a file of their own


def test_zig_debug_inlines_are_given_a_file() -> None:
    """llvm-symbolizer says start.zig for these: Zig's own backend writes no call_file."""
    with Image(build_zig("Debug")) as image:
        symbolizer = Symbolizer(image)
        deep = [
            frames
            for f in image.functions[::12]
            for frames in [symbolizer.frames(f.address + f.size // 2)]
            if len(frames) > 1
        ]
        assert deep
        assert all(f.location and f.location.file not in ("?", "") for frames in deep for f in frames)


def test_tables_of_units_that_are_not_asked_about_are_not_read() -> None:
    """A C library has two thousand units, each with an abbreviation table of its own."""
    case = CASES["clang levels -O2 -gdwarf-5"]  # gcc numbers the root last
    with Image(case.build()) as image:
        dwarf = Dwarf(image)
        assert len(dwarf.units) > 1
        assert [len(unit.abbrevs) for unit in dwarf.units] == [1] * len(dwarf.units)
        scopes = Scopes(image, dwarf, Search(dwarf), LineTables(dwarf))
        main = next(one.address for one in image.functions if one.name == "main")
        function = scopes.function_of(main)
        assert function is not None
        assert [unit for unit in dwarf.units if len(unit.abbrevs) > 1] == [function.die.unit]


def test_fallbacks_and_cache(tmp_path: Path) -> None:
    path = build_c("-g", "-O2")
    stripped, bare = tmp_path / "nodebug", tmp_path / "bare"
    subprocess.run(["strip", "-g", "-o", stripped, path], check=True)
    subprocess.run(["strip", "-o", bare, path], check=True)
    with Image(path) as image:
        main = next(f for f in image.functions if f.name == "main")
        symbolizer = Symbolizer(image, capacity=4)
        for address in range(main.address, main.address + 32):
            assert symbolizer.frames(address)[-1].function == "main"
        assert len(symbolizer._cache) == 4
    with Image(stripped) as image:
        (frame,) = Symbolizer(image).frames(main.address + 4)
        assert (frame.function, frame.location) == ("main", None)
    with Image(bare) as image:
        (frame,) = Symbolizer(image).frames(main.address + 4)
        assert (frame.function, frame.location) == ("?", None)
