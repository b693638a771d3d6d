"""Compiled programs without a compiler: where they name maps, and the copy on disk."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest

from probes import loader_bcc
from probes.compiled import Compiled, MapShape, Program, ProgramCache, cache_key, unbound
from probes.errors import LoaderFailed
from symbols.cachefolder import CacheFolder

EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)


def load_map(fd: int, kind: int = 1) -> bytes:
    """`r1 = map fd`, two instructions (BPF_LD_MAP_FD)."""
    return struct.pack("<BBhiBBhi", 0x18, kind << 4 | 1, 0, fd, 0, 0, 0, 0)


def constant(low: int, high: int) -> bytes:
    return struct.pack("<BBhiBBhi", 0x18, 1, 0, low, 0, 0, 0, high)


CODE = constant(7, 0x18) + load_map(7) + EXIT + load_map(9)
SHAPE = MapShape(kind=1, key=4, value=8, entries=16, flags=0)
COMPILED = Compiled(
    maps={"slots": SHAPE, "regs": SHAPE}, programs={"af_x": unbound(CODE, {7: "slots", 9: "regs"})}
)


def cache(folder: Path) -> ProgramCache:
    return ProgramCache(CacheFolder(magic=b"test/1\n", suffix=".bpf", folder=str(folder)))


def test_a_program_is_bound_to_other_descriptors() -> None:
    program = COMPILED.programs["af_x"]
    assert program.maps == ((2, "slots"), (5, "regs"))
    assert program.bound({"slots": 70, "regs": 90}) == constant(7, 0x18) + load_map(70) + EXIT + load_map(90)
    assert program.bound({"slots": 7, "regs": 9}) == CODE


@pytest.mark.parametrize("code", [load_map(8), load_map(7, kind=2), load_map(7, kind=4)])
def test_what_cannot_be_moved_is_not_kept(code: bytes) -> None:
    with pytest.raises(ValueError, match="instruction 0"):
        unbound(code, {7: "slots"})


def test_the_copy_is_the_same(tmp_path: Path) -> None:
    held = cache(tmp_path / "cache")
    assert held.load("k") is None
    held.store("k", COMPILED)
    assert held.load("k") == COMPILED
    (entry,) = (tmp_path / "cache").iterdir()
    assert entry.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["maps"].pop("regs"),
        lambda value: value["programs"].update(af_x=["00", []]),
        lambda value: value["programs"].update(af_x=["", []]),
        lambda value: value["programs"]["af_x"][1].append([99, "slots"]),
        lambda value: value["maps"].update(slots=[1, 2]),
        lambda value: value.pop("programs"),
        lambda value: value.update(programs=[]),
    ],
)
def test_a_damaged_copy_is_compiled_again(tmp_path: Path, change: object) -> None:
    folder = CacheFolder(magic=b"test/1\n", suffix=".bpf", folder=str(tmp_path))
    ProgramCache(folder).store("k", COMPILED)
    raw = folder.get("k")
    assert raw is not None
    value = json.loads(zlib.decompress(raw))
    change(value)  # type: ignore[operator]
    folder.put("k", zlib.compress(json.dumps(value).encode()))
    assert ProgramCache(folder).load("k") is None
    folder.put("k", b"not compressed")
    assert ProgramCache(folder).load("k") is None


def test_the_key_changes_with_everything_that_the_compiler_sees(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text("one")
    first = cache_key("text", ("-DX",), "bcc 1", (tmp_path,))
    assert first == cache_key("text", ("-DX",), "bcc 1", (tmp_path,))
    others = [
        cache_key("text2", ("-DX",), "bcc 1", (tmp_path,)),
        cache_key("text", ("-DY",), "bcc 1", (tmp_path,)),
        cache_key("text", ("-DX",), "bcc 2", (tmp_path,)),
    ]
    (tmp_path / "a.h").write_text("two")
    others.append(cache_key("text", ("-DX",), "bcc 1", (tmp_path,)))
    assert len({first, *others}) == 5


def test_programs_are_plain_values() -> None:
    assert Program(code=EXIT, maps=()).bound({}) == EXIT


def test_what_was_compiled_before_is_loaded_without_bcc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing it maps LLVM: 120 MB, and a third of what arming takes beside the verifier."""
    request = loader_bcc.LoadRequest(image="", readers="", programs=(), defines=(), pids=())
    made: list[str] = []

    def create(name: str, _shape: MapShape) -> int:
        made.append(name)
        return len(made)

    monkeypatch.setattr(loader_bcc, "_version", lambda: "0.26")
    monkeypatch.setattr(loader_bcc, "_created", create)
    monkeypatch.setattr(loader_bcc, "import_bcc", lambda: pytest.fail("bcc is loaded"))
    key = cache_key(
        loader_bcc.source_text(""), (), "bcc 0.26", (loader_bcc.SOURCES, loader_bcc.KERNEL_HEADERS)
    )
    cache(tmp_path).store(key, COMPILED)
    assert loader_bcc.compiled(request, (), cache(tmp_path)) == (COMPILED, {"slots": 1, "regs": 2})


def test_the_version_of_bcc_is_told_without_loading_it() -> None:
    bcc = pytest.importorskip("bcc")
    assert str(bcc.__version__) in loader_bcc._version()


@pytest.mark.parametrize("refused", [0, 3])
def test_programs_are_loaded_once_each_and_a_failure_ends_it(
    refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"af_{number}" for number in range(1, 40)]
    tried: list[str] = []

    def load(name: str, _kind: int, _code: bytes, _types: object) -> int:
        tried.append(name)
        if name == f"af_{refused}":
            raise LoaderFailed("no")
        return int(name[3:])

    monkeypatch.setattr(loader_bcc, "_program", load)
    many = Compiled(maps={}, programs={name: Program(code=EXIT, maps=()) for name in names})
    if refused:
        with pytest.raises(LoaderFailed):
            loader_bcc._verified(many, {}, set())
    else:
        assert loader_bcc._verified(many, {}, set()) == {name: int(name[3:]) for name in names}
        assert sorted(tried) == sorted(names)
