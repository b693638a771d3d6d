"""The compiler matrix: one real binary per case, and what a plan of it must agree with.

Owns the cases, how they are built (cached by sources, commands and compiler versions) and the judgement
of one: the program's own account of a scripted run against gdb's stops at the plan's sites.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from symbols.errors import NoDestroySite
from symbols.image import Image
from symbols.instances import Finder
from symbols.plan import ProbePlan, Role
from symbols.profile import Profile, parse_profile
from symbols.resolve import close_session, open_session, resolve
from tests.requirements import require_program, skip_or_fail
from tests.unit.symbols import walk
from tests.unit.symbols.builds import CACHE, ZIG_PROFILE
from tests.unit.symbols.oracle import Hit, run

PROGRAMS = Path(__file__).parent / "programs"
OLD_ZIG = "0.15.2"

_C = """
name = "matrix-c"
[slot]
type = "conn"
create = { function = "pool_create", returns = "slot" }
destroy = { function = "pool_destroy", slot = "slot" }
disown = { function = "conn_disown", slot = "conn" }
dispatch = { function = "session_state", object = "s" }
freelist_link = { offset = 0 }
"""
_CPP = """
name = "matrix-c++"
[slot]
type = "Conn"
create = { function = "_ZN3net4PoolINS_4ConnEE6createEv", returns = "slot" }
destroy = { function = "_ZN3net4PoolINS_4ConnEE7destroyEPS1_", slot = "slot" }
disown = { function = "_ZN3net6Server6disownEPNS_4ConnE", slot = "conn" }
dispatch = { function = "_ZNK3net7Session3getEv", object = "this" }
freelist_link = { offset = 0 }
"""
_RUST = """
name = "matrix-rust"
[slot]
type = "Conn"
create = { function = "create<pools::Conn>", returns = "slot" }
destroy = { function = "destroy<pools::Conn>", slot = "slot" }
disown = { function = "disown", slot = "conn" }
freelist_link = { offset = 0 }
"""
_REPEATS = """
name = "repeats"
[slot]
type = "conn"
destroy = { function = "pool_destroy", slot = "slot" }
dispatch = { function = "session_state", object = "s" }
freelist_link = { offset = 0 }
"""
_LETTERS = {"C": Role.CREATE, "D": Role.DESTROY, "O": Role.DISOWN, "S": Role.DISPATCH}


@dataclass(frozen=True)
class Case:
    """One binary: commands run in an empty folder, the last of which leaves `server` there."""

    name: str
    profile: Profile
    sources: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...] = ()
    twin: str = ""  # the case with the same code whose entries are all in one file

    def build(self) -> Path:
        """The cached binary. Skips (fails under AFTERFREE_NO_SKIP=1) where a compiler is missing."""
        for program in self.needs:
            require_program(program)
        commands = [tuple(_expand(part) for part in command) for command in self.commands]
        key = hashlib.sha256(repr((commands, self.sources)).encode())
        for source in self.sources:
            key.update(hashlib.sha256((PROGRAMS / source).read_bytes()).digest())
        for command in commands:
            key.update(_version(command[0]))
        folder = CACHE / f"matrix-{key.hexdigest()[:16]}-{re.sub(r'[^a-z0-9.+-]+', '-', self.name)}"
        with _locked(folder.name):
            if not (folder / "done").exists():  # split debug information names the folder: no rename
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                for command in commands:
                    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
                    if made.returncode:
                        raise RuntimeError(f"{' '.join(command)}: {made.stderr[-2000:]}")
                (folder / "done").touch()
        return folder / "server"


def _expand(part: str) -> str:
    if part == "{zig-old}":
        return str(_old_zig())
    if part == "{zig}":
        return str(_zig_of(Path(__import__("ziglang").__file__).parent))
    return part.replace("{p}", str(PROGRAMS))


def _zig_of(package: Path) -> Path:
    return package / "zig"


def _old_zig() -> Path:
    """A second Zig, beside the one of the environment."""
    home = CACHE / f"ziglang-{OLD_ZIG}"
    with _locked("ziglang"):
        if not (home / "done").exists():
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check"]
            command = [*pip, "--upgrade", "--target", str(home), f"ziglang=={OLD_ZIG}"]
            made = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if made.returncode:
                skip_or_fail(f"ziglang {OLD_ZIG} cannot be installed: {made.stderr.strip()[-300:]}")
            (home / "done").touch()
    return _zig_of(home / "ziglang")


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """One builder of a thing at a time, among threads and processes."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def _version(program: str) -> bytes:
    flag = "version" if Path(program).name == "zig" else "--version"
    return subprocess.run([program, flag], capture_output=True).stdout.split(b"\n")[0]


# -- cases ---------------------------------------------------------------------------------------


def _c_case(compiler: str, program: str, *flags: str, after: Sequence[tuple[str, ...]] = ()) -> Case:
    sources: tuple[str, ...] = ("levels.c", "other_pool.c") if program == "levels" else ("clones.c",)
    compiled = (*sources, "truth.c")
    command = (compiler, "-g", *flags, *(f"{{p}}/{source}" for source in compiled), "-o", "server")
    name = f"{compiler} {program} {' '.join((*flags, *(step[0] for step in after)))}"
    needs = (compiler, *(step[0] for step in after))
    headers = ("truth.h", "levels.h")
    twin = ""
    if "-gsplit-dwarf" in flags:
        dwarf = () if "-gdwarf-4" in flags else ("-gdwarf-5",)
        one_file = [flag for flag in flags if flag != "-gsplit-dwarf"]
        twin = " ".join((compiler, program, *one_file, *dwarf))
    return Case(name, parse_profile(_C), (*compiled, *headers), (command, *after), needs, twin)


def _cpp_case(compiler: str, *flags: str) -> Case:
    plain = "gcc" if compiler == "g++" else "clang"
    notes = [flag for flag in flags if flag == "-DINLINE_NOTES"]
    commands = (
        (plain, "-g", "-O2", *notes, "-c", "{p}/truth.c", "-o", "truth.o"),
        (compiler, "-g", *flags, "{p}/templates.cpp", "truth.o", "-o", "server"),
    )
    sources = ("templates.cpp", "truth.c", "truth.h")
    name = f"{compiler} templates {' '.join(flags)}"
    return Case(name, parse_profile(_CPP), sources, commands, (compiler, plain))


def repeats_case(compiler: str, *flags: str) -> Case:
    """Dispatches in unrolled loops (no case of the matrix: it has neither creates nor disowns)."""
    command = (compiler, "-g", *flags, "{p}/repeats.c", "{p}/truth.c", "-o", "server")
    sources = ("repeats.c", "truth.c", "truth.h")
    name = f"{compiler} repeats {' '.join(flags)}"
    return Case(name, parse_profile(_REPEATS), sources, (command,), (compiler,))


def _rust_case(*flags: str) -> Case:
    command = ("rustc", "-g", "--edition", "2021", *flags, "{p}/pools.rs", "-o", "server")
    name = f"rustc pools {' '.join(flags)}"
    return Case(name, parse_profile(_RUST), ("pools.rs",), (command,), ("rustc",))


def _zig_case(which: str, mode: str, *flags: str) -> Case:
    # A fixed CPU: the kernel refuses uprobes on AVX-512 instructions, which "native" may bring.
    command = (which, "build-exe", "{p}/pools.zig", "-O", mode, "-fno-strip", "-mcpu=x86_64_v3", *flags)
    version = "0.15" if which == "{zig-old}" else "0.16"
    name = f"zig {version} {mode} {' '.join(flags)}"
    return Case(
        name,
        parse_profile(ZIG_PROFILE.replace("pool.", "pools.").replace("memory_pools.", "memory_pool.")),
        ("pools.zig",),
        ((*command, "-femit-bin=server"),),
    )


def _cases() -> Iterable[Case]:
    for compiler in ("gcc", "clang"):
        for level in ("-O0", "-O2", "-O3"):
            for dwarf in ("-gdwarf-4", "-gdwarf-5"):
                yield _c_case(compiler, "levels", level, dwarf)
        for level in ("-O1", "-Os"):
            yield _c_case(compiler, "levels", level)
        for flags in (
            ("-O2", "-flto"),
            ("-O3", "-flto"),
            ("-O2", "-gsplit-dwarf"),
            ("-O2", "-gsplit-dwarf", "-gdwarf-4"),
            ("-O2", "-gz=zlib"),
            ("-O2", "-fdebug-types-section"),
            ("-O2", "-no-pie"),
            ("-O2", "-static"),
            ("-O2", "-fno-omit-frame-pointer"),
            ("-O2", "-ffunction-sections", "-Wl,--gc-sections"),
        ):
            yield _c_case(compiler, "levels", *flags)
        for level in ("-O1", "-O2", "-O3", "-Os"):
            yield _c_case(compiler, "levels", level, "-DINLINE_NOTES")
        yield _c_case(compiler, "levels", "-O3", "-DINLINE_NOTES", "-funroll-loops")
        yield _c_case(compiler, "levels", "-O3", "-DINLINE_NOTES", "-flto")
        zstd = ("objcopy", "--compress-debug-sections=zstd", "server")
        yield _c_case(compiler, "levels", "-O2", after=[zstd])
        for level in ("-O0", "-O2", "-O3", "-Os"):
            yield _c_case(compiler, "clones", level)
            yield _c_case(compiler, "clones", level, "-DPART")
        yield _c_case(compiler, "clones", "-O2", "-flto")
        yield _c_case(compiler, "clones", "-O2", "-flto", "-DPART")
    yield _c_case("clang", "levels", "-O2", "-flto=thin")
    for dwarf in ("-gdwarf-4", "-gdwarf-5"):
        yield _c_case("gcc", "levels", "-O2", dwarf, after=[("dwz", "server")])
    yield _c_case("gcc", "levels", "-O3", "-fno-reorder-blocks-and-partition")
    yield _c_case("gcc", "levels", "-O3", "-funroll-all-loops")
    for compiler in ("g++", "clang++"):
        for level in ("-O0", "-O2", "-O3"):
            yield _cpp_case(compiler, level)
        yield _cpp_case(compiler, "-O2", "-flto")
        yield _cpp_case(compiler, "-O3", "-DINLINE_NOTES")
        yield _cpp_case(compiler, "-O2", "-gdwarf-4", "-fdebug-types-section")
    for level in ("0", "1", "2", "3", "s"):
        yield _rust_case("-C", f"opt-level={level}")
    yield _rust_case("-C", "opt-level=3", "-C", "panic=abort", "-C", "lto=fat", "-C", "codegen-units=1")
    for which in ("{zig}", "{zig-old}"):
        for mode in ("Debug", "ReleaseSafe", "ReleaseFast", "ReleaseSmall"):
            yield _zig_case(which, mode, "-fllvm")
            yield _zig_case(which, mode, "-fno-llvm")


CASES = {case.name: case for case in _cases()}

# A small core for every change: each compiler, inlined and split, what once was missed or counted twice.
CORE = (
    "gcc levels -O2 -gdwarf-5",
    "gcc levels -O3 -DINLINE_NOTES",
    "gcc clones -O3 -DPART",
    "gcc levels -O2 -gsplit-dwarf",
    "clang levels -O2 -gdwarf-5",
    "clang levels -O3 -DINLINE_NOTES",
    "clang++ templates -O2",
    "g++ templates -O2",
    "rustc pools -C opt-level=0",
    "zig 0.16 ReleaseSafe -fllvm",
)


# -- judgement -----------------------------------------------------------------------------------


@dataclass
class Verdict:
    """One row of the matrix. wrong: differences that nothing explains."""

    found: int = 0
    confirmed: int = 0  # sites at which gdb stopped and read what the program said
    read: int = 0  # hits whose argument gdb could also read by itself, with the same value
    refused: Counter[str] = field(default_factory=Counter)
    counts: dict[Role, tuple[int, int]] = field(default_factory=dict)  # role -> hits, truth
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        hits = " ".join(f"{role.value} {seen}/{truth}" for role, (seen, truth) in self.counts.items())
        numbers = (self.found, self.confirmed, sum(self.refused.values()))
        row = "{:3} found {:3} confirmed {:2} refused".format(*numbers) + f"  {hits}"
        reasons = "".join(f"\n{'':46}refused {n}x {reason}" for reason, n in sorted(self.refused.items()))
        return row + reasons + "".join(f"\n{'':46}WRONG {text}" for text in self.wrong)


def same_as_walk(case: Case, tmp: Path) -> list[str]:
    """What the search and a walk over every entry do not agree on, as text."""
    specs = list(case.profile.functions.values())
    # Split entries are compared with those of the same code in one file: their walk needs three files.
    twin = CASES[case.twin] if case.twin else case
    walked = walk.instances(twin.build(), specs, tmp)
    ours: Counter[walk.Fact] = Counter()
    with Image(case.build()) as image:
        session = open_session(image)
        finder = Finder(image, session.dwarf, session.search, session.scopes)
        for spec in specs:
            for one in finder.find(spec)[0]:
                ours[one.kind, one.name, tuple(sorted(one.ranges))] += 1
        close_session(session)
    assert walked, "the walk found nothing"
    more = [
        (side, fact) for side, facts in (("walk", walked - ours), ("search", ours - walked)) for fact in facts
    ]
    return [
        f"only by {side}: {kind.value} {name} {' '.join(f'{lo:#x}-{hi:#x}' for lo, hi in ranges)}"
        for side, (kind, name, ranges) in more
    ]


def judge(case: Case, tmp: Path) -> Verdict:
    """Resolve, run under gdb at every site, compare with what the program says it did."""
    verdict, path = Verdict(), case.build()
    try:
        plan = resolve(path, case.profile)
    except NoDestroySite as error:
        verdict.wrong.append(f"no plan: {error}: {'; '.join(error.found)}")
        return verdict
    verdict.found = len(plan.sites)
    verdict.refused = Counter(f"{lost.role.value}: {lost.reason}" for lost in plan.unprobed)
    nothing = [line for line in plan.warnings if "has no code" in line or "no function matches" in line]
    verdict.refused.update(nothing)
    hits, output = run(path, plan, tmp)
    if not re.search(r"^sum ", output, re.MULTILINE):
        verdict.wrong.append(f"the program did not come to its end: {output[-300:]}")
    truth = [
        (_LETTERS[letter], int(value, 16))
        for letter, value in re.findall(r"^([CDOS]) (?:0x)?([0-9a-f]+)$", output, re.MULTILINE)
    ]
    _compare(case, plan, hits, truth, verdict)
    return verdict


def _compare(
    case: Case, plan: ProbePlan, hits: list[Hit], truth: list[tuple[Role, int]], verdict: Verdict
) -> None:
    role_of = {site.index: site.role for site in plan.sites}
    seen = [(role_of[hit.index], hit.value) for hit in hits if hit.value]
    bad = set()
    for role in case.profile.functions:
        mine = [value for which, value in seen if which is role]
        theirs = [value for which, value in truth if which is role]
        verdict.counts[role] = (len(mine), len(theirs))
        if not theirs:
            verdict.wrong.append(f"{role.value}: the program made none")
        if plan.complete(role):
            if mine != theirs:
                bad.add(role)
                verdict.wrong.append(f"{role.value}: {_difference(mine, theirs)}")
        elif not _is_part(mine, theirs):
            bad.add(role)
            verdict.wrong.append(f"{role.value}: sees what did not happen: {_difference(mine, theirs)}")
        elif not any(reason.startswith(f"{role.value}: ") for reason in verdict.refused):
            verdict.wrong.append(f"{role.value}: incomplete without a reason")
    if not verdict.wrong and all(map(plan.complete, case.profile.functions)) and seen != truth:
        verdict.wrong.append("the order of events of different kinds differs")
    stopped = {hit.index for hit in hits}
    verdict.confirmed = sum(index in stopped and role not in bad for index, role in role_of.items())
    verdict.read = sum(hit.own == hit.value for hit in hits)


def _is_part(mine: list[int], theirs: list[int]) -> bool:
    rest = iter(theirs)
    return all(value in rest for value in mine)


def _difference(mine: list[int], theirs: list[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), -1)
    if at < 0:
        return f"{len(mine)} hits, {len(theirs)} true"
    return f"{len(mine)} hits, {len(theirs)} true; hit {at} is {mine[at]:#x}, true {theirs[at]:#x}"
