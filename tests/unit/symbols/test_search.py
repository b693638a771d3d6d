"""The byte search finds what a walk over every entry finds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from symbols import dwarf_const as dw
from symbols.dwarf import Dwarf
from symbols.globs import glob_regex
from symbols.image import Image
from symbols.lists import locations_of, ranges_of
from symbols.search import FUNCTION_TAGS, Search
from tests.unit.symbols.builds import build_c, build_zig

BINARIES = [
    lambda: build_c("-g", "-gdwarf-4", "-O2"),
    lambda: build_c("-g", "-gdwarf-5", "-O2"),
    lambda: build_c("-g", "-gdwarf-5", "-O1", compiler="clang"),
    lambda: build_zig("ReleaseSafe"),
    lambda: build_zig("Debug"),
]


@pytest.fixture(params=BINARIES, ids=["gcc4", "gcc5", "clang5", "zig-safe", "zig-debug"])
def binary(request: pytest.FixtureRequest) -> Path:
    return request.param()


def test_names_and_references_agree_with_the_scan(binary: Path) -> None:
    with Image(binary) as image:
        dwarf = Dwarf(image)
        search = Search(dwarf)
        everything = [dwarf.die(o, u) for u in dwarf.units for o, _a in search.scan(u, FUNCTION_TAGS)]
        dies = [die for die in everything if die is not None]
        rng = random.Random(3)
        for die in rng.sample(dies, min(25, len(dies))):
            name = dwarf.string(die, dw.AT_linkage_name) or dwarf.string(die, dw.AT_name)
            if name is None or set(name) & {"*", "?"}:
                continue
            dwarf.refill()
            expected = {
                d.offset
                for d in dies
                if name in (dwarf.string(d, dw.AT_linkage_name), dwarf.string(d, dw.AT_name))
            }
            assert {d.offset for d in search.named(name, FUNCTION_TAGS)} == expected
            dwarf.refill()
            origins = (dw.AT_abstract_origin, dw.AT_specification)
            referring = {
                d.offset
                for d in dies
                for t in [dwarf.target(d, a) for a in origins]
                if t is not None and t.offset == die.offset
            }
            assert {d.offset for d in search.referring(die.offset, FUNCTION_TAGS)} == referring


def test_entry_boundaries_are_told_from_other_bytes() -> None:
    with Image(build_zig("ReleaseSafe")) as image:
        dwarf = Dwarf(image)
        search = Search(dwarf)
        tags = {a.tag for u in dwarf.units for a in u.abbrevs.values()}
        real = [(u, o) for u in dwarf.units for o, _a in search.scan(u, tags)]
        offsets = {o for _u, o in real}
        rng = random.Random(5)
        for unit, offset in rng.sample(real, 200):
            dwarf.refill()
            assert search._is_entry(unit, offset)
            wrong = offset + 1
            if wrong < unit.end and wrong not in offsets and image.section(".debug_info").uint(wrong, 1):
                assert not search._is_entry(unit, wrong)


def test_entries_ranges_and_locations_agree_with_pyelftools() -> None:
    for flags in (("-gdwarf-4", "-O2"), ("-gdwarf-5", "-O2")):
        path = build_c("-g", *flags)
        with Image(path) as image, path.open("rb") as file:
            dwarf = Dwarf(image)
            theirs = ELFFile(file).get_dwarf_info()
            count = 0
            for unit in theirs.iter_CUs():
                for entry in unit.iter_DIEs():
                    if entry.is_null():
                        continue
                    die = dwarf.die(entry.offset)
                    assert die is not None
                    assert die.end == entry.offset + entry.size
                    name = entry.attributes.get("DW_AT_name")
                    if name is not None:
                        assert dwarf.string(die, dw.AT_name) == name.value.decode()
                    count += bool(ranges_of(dwarf, die)) + bool(locations_of(dwarf, die))
            assert count > 10


@pytest.mark.parametrize("pattern", ["*destroy", "?onn_*", "*conn*", "*.destroy", "heap.*.destroy", "*a?n"])
def test_globs_agree_with_the_scan(binary: Path, pattern: str) -> None:
    with Image(binary) as image:
        dwarf = Dwarf(image)
        search = Search(dwarf)
        regex = glob_regex(pattern)
        expected = {
            die.offset
            for unit in dwarf.units
            for offset, _abbrev in search.scan(unit, FUNCTION_TAGS)
            if (die := dwarf.die(offset, unit)) is not None and search._own_name_matches(die, regex)
        }
        dwarf.refill()
        assert {die.offset for die in search.named(pattern, FUNCTION_TAGS)} == expected


def test_addresses_agree_with_the_scan(binary: Path) -> None:
    with Image(binary) as image:
        dwarf = Dwarf(image)
        search = Search(dwarf)
        lows: dict[int, set[int]] = {}
        for unit in dwarf.units:
            for offset, _abbrev in search.scan(unit, (dw.TAG_subprogram,)):
                die = dwarf.die(offset, unit)
                low = dwarf.address(die, dw.AT_low_pc) if die is not None else None
                if low is not None:
                    lows.setdefault(low, set()).add(offset)
        wanted = random.Random(7).sample(sorted(lows), min(25, len(lows)))
        for low in wanted:
            dwarf.refill()
            assert {die.offset for die in search.subprograms_at(low)} == lows[low]


def test_short_indices_need_no_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """strx1, addrx and wide globs are found by bytes too: clang's DWARF 5 has all of them."""
    with Image(build_c("-g", "-gdwarf-5", "-O1", compiler="clang")) as image:
        search = Search(Dwarf(image))
        expected = [die.offset for die in search.named("conn_destroy", FUNCTION_TAGS)]

        def refused(*_arguments: object) -> None:
            raise AssertionError("scanned")

        monkeypatch.setattr(search, "scan", refused)
        assert [die.offset for die in search.named("conn_destroy", FUNCTION_TAGS)] == expected != []
        assert [die.offset for die in search.named("*destroy", FUNCTION_TAGS)] == expected
        main = next(symbol for symbol in image.functions if symbol.name == "main")
        assert len(search.subprograms_at(main.address)) == 1
