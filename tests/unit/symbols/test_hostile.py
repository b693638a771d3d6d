"""Damaged files: a typed error or a plan, nothing else, and soon. (The deep run is part 2.)"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from symbols.errors import SymbolError
from symbols.image import Image
from symbols.lines import Symbolizer
from symbols.profile import parse_profile
from symbols.resolve import resolve
from tests.unit.symbols.builds import C_PROFILE, build_c

PROFILE = parse_profile(C_PROFILE)
LIMIT_S = 5.0


def _try(path: Path) -> str:
    started = time.monotonic()
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
    assert time.monotonic() - started < LIMIT_S
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
