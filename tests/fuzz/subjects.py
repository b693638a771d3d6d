"""Every way into the code that reads untrusted files, as a function of a path that names its outcome.

Owns calling them and telling a typed refusal from anything else, which passes through. Must not mutate.
"""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from agent.errors import RecordingError
from agent.replay_source import RecordingSource
from symbols.cache import PlanCache
from symbols.cached import resolve_cached
from symbols.cfi import FrameTable
from symbols.corefile import CoreFile
from symbols.debugfiles import Searched
from symbols.dwarf import Dwarf
from symbols.errors import STRAY_ERRORS, SymbolError, stray
from symbols.fetch import Debuginfod
from symbols.image import Image
from symbols.lines import Symbolizer
from symbols.modules import Module, Modules, modules_of
from symbols.overlay import describe_bytes
from symbols.profile import load_profile, parse_profile
from symbols.resolve import resolve
from symbols.suggest import suggest
from symbols.types import Types
from symbols.unwind import Unwinder
from tests.unit.symbols.builds import C_PROFILE

PROFILE = parse_profile(C_PROFILE)
WIDE = parse_profile(C_PROFILE.replace('"conn_destroy"', '"*destroy"').replace('"conn_create"', '"?onn_cr*"'))

Subject = Callable[[Path, random.Random, "list[int]"], str]


class Untyped(Exception):
    """A refusal without detail or remedy."""


def refusal(error: SymbolError) -> str:
    """The name of a typed refusal; of one that careful code should have foreseen, also where it came from."""
    if not error.detail or not error.remedy:
        raise Untyped(f"{type(error).__name__}: {error!r}") from error
    if error.__cause__ is not None and "not understood (" in error.detail:
        frames = traceback.extract_tb(error.__cause__.__traceback__)
        ours = [frame for frame in frames if "/symbols/" in frame.filename] or list(frames)
        where = f"{os.path.basename(ours[-1].filename)}:{ours[-1].lineno}" if ours else "?"
        return f"stray {type(error.__cause__).__name__} {where}"
    return type(error).__name__


def nowhere(path: Path) -> Searched:
    """Only beside the file: no system folders, no server."""
    return Searched(roots=(str(path.parent),), server=Debuginfod(urls=(), cache=str(path.parent)))


def _resolve(path: Path, rng: random.Random, _functions: list[int]) -> str:
    resolve(path, WIDE if rng.random() < 0.2 else PROFILE, searched=nowhere(path))
    return "plan"


def _cached(path: Path, rng: random.Random, _functions: list[int]) -> str:
    profile = path.parent / "profile.toml"
    if not profile.exists():
        profile.write_text(C_PROFILE)
    cache = PlanCache(folder=str(path.parent / "cache"), most_entries=4)
    resolve_cached(path, profile, cache=cache)
    resolve_cached(path, profile, cache=cache)
    return "plan"


def _symbolize(path: Path, rng: random.Random, functions: list[int]) -> str:
    with Image(path) as image:
        symbolizer = Symbolizer(image)
        for address in _addresses(image, rng, functions):
            for frame in symbolizer.frames(address):
                str(frame)
    return "frames"


def _types(path: Path, rng: random.Random, _functions: list[int]) -> str:
    with Image(path) as image:
        try:
            dwarf = Dwarf(image, nowhere(path))
            try:
                types = Types(dwarf)
                found = [types.find(name) for name in ("conn", "session", "[]u8", "?onn*", "shapes*", "*")]
                for kind in found:
                    if kind is None:
                        continue
                    types.leaves(kind)
                    types.enumerators(kind)
                    for offset in (0, 8, 0x2F8, 1 << 40):
                        types.field_at(kind, offset)
                    types.decode(kind, rng.randbytes(min(max(kind.size, 0), 4096)))
            finally:
                dwarf.close()
        except STRAY_ERRORS as error:
            return refusal(_as_stray(error, image.path))
    return "types"


def _as_stray(error: Exception, path: str) -> SymbolError:
    """Types answers inside resolve() and the symbol worker, which both turn these into typed errors."""
    typed = stray(error, path)
    typed.__cause__ = error
    return typed


def _suggest(path: Path, _rng: random.Random, _functions: list[int]) -> str:
    return "profile" if suggest(path) else "nothing"


def _unwind(path: Path, rng: random.Random, functions: list[int]) -> str:
    with Image(path) as image:
        table = FrameTable(image)
        addresses = _addresses(image, rng, functions)
        for address in addresses:
            table.row(address)
        module = Module(0, 1 << 47, 0, str(path), image, table)
        memory = rng.randbytes(4096)
        low = 0x7FFF_0000_0000
        for place in range(0, 4088, 8):  # half of the stack are code addresses
            if rng.random() < 0.5 and addresses:
                value = rng.choice(addresses) & 0xFFFF_FFFF_FFFF_FFFF
                memory = memory[:place] + value.to_bytes(8, "little") + memory[place + 8 :]

        def read(address: int, count: int) -> bytes | None:
            return (
                memory[address - low : address - low + count] if 0 <= address - low <= 4096 - count else None
            )

        unwinder = Unwinder(Modules([module]), read)
        for address in addresses[:6]:
            unwinder.unwind(
                {"rip": address, "rsp": low + 8 * rng.randrange(64), "rbp": low + 8 * rng.randrange(500)}
            )
    return "frames"


def _addresses(image: Image, rng: random.Random, functions: list[int]) -> list[int]:
    some = rng.sample(functions, min(4, len(functions)))
    return [
        *some,
        *(a + rng.randrange(64) for a in some),
        image.entry,
        0,
        rng.getrandbits(rng.choice((16, 64))),
    ]


def _core(path: Path, _rng: random.Random, _functions: list[int]) -> str:
    images: dict[str, Image | None] = {}

    def open_image(name: str) -> Image | None:
        if name not in images:
            try:
                images[name] = Image(name) if os.path.isabs(name) and len(images) < 8 else None
            except SymbolError:
                images[name] = None
        return images[name]

    file = CoreFile(path)
    try:
        unwinder = Unwinder(modules_of(file.files, open_image), file.memory)
        for thread in file.threads[:16]:
            unwinder.unwind(thread.registers)
    finally:
        file.close()
        for image in images.values():
            if image is not None:
                image.close()
    return "frames"


def _plan_file(path: Path, _rng: random.Random, _functions: list[int]) -> str:
    cache = PlanCache(folder=str(path.parent), version="fuzz")
    with Image(path.parent / "exe") as image:  # the one whose plan was mutated
        os.replace(path, cache.path(image, ()))
        plan = cache.load(image, ())
        if plan is not None:
            describe_bytes(plan.slot, b"\xaa" * 512)
    return "miss" if plan is None else "hit"


def _profile_file(path: Path, _rng: random.Random, _functions: list[int]) -> str:
    return "profile" if load_profile(path) else "nothing"


def _recording_file(path: Path, _rng: random.Random, _functions: list[int]) -> str:
    source = RecordingSource.open(path)
    try:
        while not source.finished:
            for event in source.poll(0):
                str(type(event))
    finally:
        source.close()
    return "events"


EXECUTABLE: dict[str, tuple[Subject, int]] = {
    "resolve": (_resolve, 8), "symbolize": (_symbolize, 5), "types": (_types, 3), "suggest": (_suggest, 2),
    "unwind": (_unwind, 4), "cached": (_cached, 1),
}  # fmt: skip
"""Ways in for an executable, and how often each is taken."""

OTHER: dict[str, Subject] = {
    "core": _core, "plan": _plan_file, "profile": _profile_file, "recording": _recording_file,
}  # fmt: skip


def run(name: str, path: Path, rng: random.Random, functions: Iterable[int] = ()) -> str:
    """The outcome of one way in: a result's or a typed refusal's name. Anything else is raised."""
    subject = EXECUTABLE[name][0] if name in EXECUTABLE else OTHER[name]
    try:
        return subject(path, rng, list(functions))
    except SymbolError as error:
        return refusal(error)
    except RecordingError as error:
        if not error.title or not error.remedy:
            raise Untyped(repr(error)) from error
        return type(error).__name__
