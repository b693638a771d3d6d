"""Debug information spread over files: .dwo, .dwp, type units, and what dwz moved elsewhere."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from symbols.debugfiles import Searched
from symbols.errors import DebugFileMismatch, NoDebugInfo, SymbolError
from symbols.fetch import Debuginfod
from symbols.image import Image
from symbols.lines import Symbolizer
from symbols.plan import ProbePlan, Role
from symbols.profile import parse_profile
from symbols.resolve import resolve
from tests.unit.symbols.builds import C_PROFILE, HERE, build_c
from tests.unit.symbols.oracle import check_against_truth

C = parse_profile(C_PROFILE)
SOURCE = HERE / "programs" / "pool.c"


def build(folder: Path, compiler: str, *flags: str, source: Path = SOURCE) -> Path:
    """Built in a folder of its own: .dwo files lie there and are named relative to it."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    # -fdebug-prefix-map: the sources' names must not depend on the folder
    subprocess.run([compiler, "-g", "-c", *flags, source, "-o", "pool.o"], cwd=folder, check=True)
    subprocess.run([compiler, *flags, "pool.o", "-o", "server"], cwd=folder, check=True)
    return folder / "server"


def facts(plan: ProbePlan) -> list[tuple[object, ...]]:
    return [
        (s.role, s.address, s.source, s.enclosing, s.call_site.line if s.call_site else 0) for s in plan.sites
    ]


def nothing(tmp_path: Path, *roots: Path) -> Searched:
    return Searched(roots=tuple(map(str, roots)), server=Debuginfod(urls=(), cache=str(tmp_path / "client")))


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("dwarf", ["4", "5"])
@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_split_dwarf(compiler: str, dwarf: str, level: str, tmp_path: Path) -> None:
    flags = (f"-gdwarf-{dwarf}", level)
    whole = resolve(build_c("-g", *flags, compiler=compiler), C)
    exe = build(tmp_path / "split", compiler, *flags, "-gsplit-dwarf")
    plan = resolve(exe, C)
    assert facts(plan) == facts(whole)
    assert plan.slot.size == whole.slot.size
    assert len(plan.slot.fields) == len(whole.slot.fields)
    check_against_truth(exe, plan, tmp_path, roles="CD")
    with Image(exe) as image:
        frames = Symbolizer(image).frames(next(iter(plan.by_role(Role.DESTROY))).address)
        assert frames[-1].location is not None
        assert frames[-1].location.file.endswith("pool.c")


@pytest.mark.parametrize(("dwarf", "tool"), [("4", "dwp"), ("4", "llvm-dwp"), ("5", "llvm-dwp")])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_package(compiler: str, dwarf: str, tool: str, tmp_path: Path) -> None:
    flags = (f"-gdwarf-{dwarf}", "-O2")
    exe = build(tmp_path / "split", compiler, *flags, "-gsplit-dwarf")
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    command = ["timeout", "5", tool, "-e", "server", "-o", "server.dwp"]  # llvm-dwp 14 hangs on gcc's DWARF 5
    made = subprocess.run(command, cwd=exe.parent, capture_output=True)
    if made.returncode:
        pytest.skip(f"{tool}: {made.stderr.decode().strip()}")
    expected = facts(resolve(exe, C))
    for dwo in exe.parent.glob("*.dwo"):
        dwo.unlink()
    assert facts(resolve(exe, C)) == expected


def test_missing_and_foreign_dwo(tmp_path: Path) -> None:
    exe = build(tmp_path / "split", "gcc", "-gdwarf-5", "-O2", "-gsplit-dwarf")
    (dwo,) = exe.parent.glob("*.dwo")
    kept = dwo.read_bytes()
    dwo.unlink()
    with pytest.raises(NoDebugInfo) as missing:
        resolve(exe, C)
    assert "dwp" in missing.value.remedy
    assert dwo.name in missing.value.tried[0]
    other = build(tmp_path / "other", "gcc", "-gdwarf-5", "-O1", "-gsplit-dwarf")
    (foreign,) = other.parent.glob("*.dwo")
    shutil.copy(foreign, dwo)
    with pytest.raises(DebugFileMismatch, match="dwo_id"):
        resolve(exe, C)
    dwo.write_bytes(kept)
    assert resolve(exe, C).complete(Role.DESTROY)


def test_one_missing_dwo_of_two_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    (folder / "extra.c").write_text("int extra(int a) { return a * 3; }\n")
    for source in (SOURCE, folder / "extra.c"):
        subprocess.run(["gcc", "-g", "-gsplit-dwarf", "-O2", "-c", source], cwd=folder, check=True)
    subprocess.run(["gcc", "pool.o", "extra.o", "-o", "server"], cwd=folder, check=True)
    assert resolve(folder / "server", C).complete(Role.DESTROY)
    (folder / "extra.dwo").unlink()
    plan = resolve(folder / "server", C)
    assert plan.sites
    assert not plan.complete(Role.DESTROY)
    assert any("extra.dwo" in lost.reason for lost in plan.unprobed)


@pytest.mark.parametrize("dwarf", ["4", "5"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("split", [False, True], ids=["one file", "split"])
def test_type_units(compiler: str, dwarf: str, split: bool, tmp_path: Path) -> None:
    flags = (f"-gdwarf-{dwarf}", "-O2")
    whole = resolve(build_c("-g", *flags, compiler=compiler), C)
    more = ("-gsplit-dwarf",) if split else ()
    exe = build(tmp_path / "types", compiler, *flags, "-fdebug-types-section", *more)
    plan = resolve(exe, C)
    assert facts(plan) == facts(whole)
    assert plan.slot == whole.slot


@pytest.mark.parametrize("dwarf", ["4", "5"])
def test_dwz_in_place(dwarf: str, tmp_path: Path) -> None:
    if shutil.which("dwz") is None:
        pytest.skip("dwz is not installed")
    path = build_c("-g", f"-gdwarf-{dwarf}", "-O2")
    packed = tmp_path / "packed"
    made = subprocess.run(["dwz", "-o", packed, path], capture_output=True, text=True)
    if not packed.exists():
        pytest.skip(f"dwz: {made.stderr.strip()}")
    assert facts(resolve(packed, C)) == facts(resolve(path, C))


@pytest.mark.parametrize("dwarf", ["4", "5"])
def test_dwz_supplementary_file(dwarf: str, tmp_path: Path) -> None:
    if shutil.which("dwz") is None:
        pytest.skip("dwz is not installed")
    names = []
    for level in ("-O1", "-O2", "-Os"):
        path = build_c("-g", f"-gdwarf-{dwarf}", level)
        names.append(f"server{level}")
        shutil.copy(path, tmp_path / names[-1])
    plain = [facts(resolve(tmp_path / name, C)) for name in names]
    command = ["dwz", "-m", "common.debug", *(["--dwarf-5"] if dwarf == "5" else []), *names]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    common = tmp_path / "common.debug"
    if not common.exists():
        pytest.skip(f"dwz: {made.stderr.strip()}")
    quiet = nothing(tmp_path)
    assert [facts(resolve(tmp_path / name, C, searched=quiet)) for name in names] == plain
    home = tmp_path / "debug" / ".dwz"
    home.mkdir(parents=True)
    moved = common.rename(home / "common.debug")
    found = nothing(tmp_path, tmp_path / "debug")
    assert facts(resolve(tmp_path / names[0], C, searched=found)) == plain[0]
    moved.unlink()
    with pytest.raises(NoDebugInfo, match="supplementary") as caught:
        resolve(tmp_path / names[0], C, searched=nothing(tmp_path, tmp_path / "debug"))
    assert any(".dwz" in line for line in caught.value.tried)
    shutil.copy(tmp_path / names[1], common)
    with pytest.raises(SymbolError):  # there, and not the one that is meant
        resolve(tmp_path / names[0], C, searched=nothing(tmp_path))
