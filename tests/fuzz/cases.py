"""From a number to a case: which base, which mutation, which ways in. The same number gives the same case.

Owns the choice. Must not run anything.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz import others
from tests.fuzz.bases import bases
from tests.fuzz.model import Base
from tests.fuzz.mutations import MUTATIONS
from tests.fuzz.others import Samples
from tests.fuzz.subjects import EXECUTABLE

OTHER_KINDS = ("core", "plan", "profile", "recording")
KINDS = (*MUTATIONS, "companion", "mixed", *OTHER_KINDS)

_FITTING = {
    "lines": "symbolize", "frames": "unwind", "symbols": "symbolize", "code": "resolve",
    "expressions": "resolve", "links": "resolve", "companion": "resolve", "lists": "symbolize",
}  # fmt: skip
"""The way in that reads what a mutation damages; others come besides by chance."""


@dataclass(frozen=True, slots=True)
class Case:
    kind: str
    name: str  # file name of the mutated file
    content: bytes
    subjects: tuple[str, ...]
    origin: str  # the base's name
    functions: tuple[int, ...] = ()
    beside: dict[str, bytes] = field(default_factory=dict)


class Cases:
    """The good files, and the way from a number to a case."""

    def __init__(self, seed: int, kinds: tuple[str, ...] = KINDS) -> None:
        self.bases, self.missing = bases()
        self.samples: Samples = others.samples()
        if not self.samples.core:
            self.missing.append("core: gdb is not there, or may not trace")
            kinds = tuple(kind for kind in kinds if kind != "core")
        self._seed = seed
        self._kinds = kinds

    def kind_of(self, index: int) -> str:
        return self._kinds[index % len(self._kinds)]

    def rng(self, index: int) -> random.Random:
        return random.Random(f"{self._seed}/{self.kind_of(index)}/{index}")

    def make(self, index: int) -> Case:
        kind, rng = self.kind_of(index), self.rng(index)
        if kind in OTHER_KINDS:
            good, name = self.samples, {"plan": "entry.plan", "profile": "p.toml"}.get(kind, kind)
            make: dict[str, Callable[[], bytes]] = {
                "core": lambda: others.core(good.core, rng),
                "plan": lambda: others.plan(good.plan, rng),
                "profile": lambda: others.profile(good.profiles, rng),
                "recording": lambda: others.recording(good.recording, rng),
            }
            return Case(kind, name, make[kind](), (kind,), f"a good {kind}")
        base = rng.choice([b for b in self.bases if b.companions] if kind == "companion" else self.bases)
        data = bytearray(base.raw)
        beside = {name: companion.raw for name, companion in base.companions.items()}
        if kind == "companion":
            name, companion = rng.choice(sorted(base.companions.items()))
            changed = bytearray(companion.raw)
            _mutate(companion, changed, rng, rng.choice((1, 1, 2)))
            beside[name] = bytes(changed)
        elif kind == "mixed":
            _mutate(base, data, rng, rng.choice((2, 3, 5)))
        else:
            MUTATIONS[kind](base, data, rng)
        names, weights = list(EXECUTABLE), [weight for _subject, weight in EXECUTABLE.values()]
        first = _FITTING.get(kind) or rng.choices(names, weights)[0]
        second = rng.choices(names, weights)[0]
        subjects = (first,) if second == first or rng.random() < 0.5 else (first, second)
        return Case(kind, "server", bytes(data), subjects, base.name, tuple(base.functions), beside)


def _mutate(base: Base, data: bytearray, rng: random.Random, times: int) -> None:
    for name in rng.choices(list(MUTATIONS), k=times):
        if data:
            MUTATIONS[name](base, data, rng)


def lay_out(case: Case, folder: Path, exe: Path) -> Path:
    """The case's files in a folder; the path of the mutated one."""
    for name, content in case.beside.items():
        _fresh(folder / name, content)
    if case.kind == "plan" and not (folder / "exe").exists():
        (folder / "exe").symlink_to(exe)
    return _fresh(folder / case.name, case.content)


def _fresh(path: Path, content: bytes) -> Path:
    path.unlink(missing_ok=True)  # another inode: the one before may still be mapped
    path.write_bytes(content)
    return path
