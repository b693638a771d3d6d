"""The plan cache: a hit is the same plan; damage, strangers and crowds only cost a resolve."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from symbols.cache import PlanCache
from symbols.cached import resolve_cached
from symbols.errors import DebugFileMismatch
from symbols.image import Image
from symbols.plan import Role
from tests.unit.symbols.builds import C_PROFILE, build_c


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "cpool.toml"
    path.write_text(C_PROFILE)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(folder=str(tmp_path / "cache"))


def entries(cache: PlanCache) -> list[Path]:
    return sorted(Path(cache.folder).iterdir())


def test_hit_is_the_same_plan_and_loads_no_resolver(profile: Path, cache: PlanCache, tmp_path: Path) -> None:
    exe = build_c("-g", "-O2")
    cold = resolve_cached(exe, profile, cache=cache)
    assert len(entries(cache)) == 1
    assert entries(cache)[0].stat().st_mode & 0o777 == 0o600
    assert Path(cache.folder).stat().st_mode & 0o777 == 0o700
    assert resolve_cached(exe, profile, cache=cache) == cold
    moved = tmp_path / "moved"
    moved.write_bytes(exe.read_bytes())
    assert resolve_cached(moved, profile, cache=cache) == replace(cold, image=str(moved))
    code = (
        "import sys; from symbols.cached import resolve_cached; from symbols.cache import PlanCache\n"
        "resolve_cached(sys.argv[1], sys.argv[2], cache=PlanCache(folder=sys.argv[3]))\n"
        "print(sorted(m for m in sys.modules if 'capstone' in m or m == 'symbols.resolve'))"
    )
    command = [sys.executable, "-c", code, str(exe), str(profile), cache.folder]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_fresh_neither_reads_nor_writes(profile: Path, cache: PlanCache) -> None:
    exe = build_c("-g", "-O2")
    plan = resolve_cached(exe, profile, cache=cache, fresh=True)
    assert not Path(cache.folder).exists()
    assert resolve_cached(exe, profile, cache=cache) == plan
    (entry,) = entries(cache)
    os.utime(entry, (1, 1))
    assert resolve_cached(exe, profile, cache=cache, fresh=True) == plan
    assert entry.stat().st_mtime == 1


def test_hit_is_fast(profile: Path, cache: PlanCache) -> None:
    exe = build_c("-g", "-O2", "-no-pie", "-Wl,--build-id=none")  # by content: the slower way
    resolve_cached(exe, profile, cache=cache)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        resolve_cached(exe, profile, cache=cache)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.05


def test_key_is_image_profile_and_version(profile: Path, cache: PlanCache) -> None:
    assert list(resolve_cached(build_c("-g", "-O2"), profile, cache=cache).by_role(Role.DISOWN))
    resolve_cached(build_c("-g", "-O1"), profile, cache=cache)
    assert len(entries(cache)) == 2
    profile.write_text(C_PROFILE.replace('disown = { function = "conn_disown", slot = "conn" }\n', ""))
    assert not list(resolve_cached(build_c("-g", "-O2"), profile, cache=cache).by_role(Role.DISOWN))
    assert len(entries(cache)) == 3
    other = replace(cache, version="another")
    with Image(build_c("-g", "-O2")) as image:
        assert other.load(image, [b"x"]) is None
    resolve_cached(build_c("-g", "-O2"), profile, cache=other)
    assert len(entries(cache)) == 4


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "checksummed nonsense", "link", "others"])
def test_damaged_entries_are_resolved_again(damage: str, profile: Path, cache: PlanCache) -> None:
    exe = build_c("-g", "-O2")
    cold = resolve_cached(exe, profile, cache=cache)
    (entry,) = entries(cache)
    raw = entry.read_bytes()
    if damage == "empty":
        entry.write_bytes(b"")
    elif damage == "cut":
        entry.write_bytes(raw[: len(raw) // 2])
    elif damage == "flipped":
        entry.write_bytes(raw[:-40] + bytes((raw[-40] ^ 1,)) + raw[-39:])
    elif damage == "checksummed nonsense":
        import hashlib

        text = b'{"version": 1}'
        digest = hashlib.sha256(text).hexdigest()[:32].encode()
        entry.write_bytes(b"afterfree-plan/2\n%b\n%08x\n%b" % (digest, len(text), text))
    elif damage == "link":
        other = entry.with_name("elsewhere")
        entry.rename(other)
        entry.symlink_to(other)
    else:
        entry.chmod(0o666)
    with Image(exe) as image:
        assert cache.load(image, [b"named", str(profile).encode(), profile.read_bytes()]) is None
    assert resolve_cached(exe, profile, cache=cache) == cold
    assert resolve_cached(exe, profile, cache=cache) == cold


def test_bounds(profile: Path, cache: PlanCache) -> None:
    exe = build_c("-g", "-O2")
    plan = resolve_cached(exe, profile, cache=cache)
    size = entries(cache)[0].stat().st_size
    small = replace(cache, most_entries=5)
    with Image(exe) as image:
        for number in range(12):
            small.store(image, [b"%d" % number], plan)
        assert len(entries(cache)) == 5
        assert small.load(image, [b"11"]) == plan
        assert small.load(image, [b"0"]) is None
        tiny = replace(cache, most_bytes=size * 2 + 10)
        tiny.store(image, [b"more"], plan)
        assert len(entries(cache)) == 2


def test_unusable_folder_is_no_cache(profile: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = PlanCache(folder=str(tmp_path / "file" / "below"))
    assert resolve_cached(build_c("-g", "-O2"), profile, cache=cache).sites
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert resolve_cached(build_c("-g", "-O2"), profile, cache=PlanCache(folder=str(shared))).sites
    assert list(shared.iterdir()) == []


def test_wrong_debug_file_is_refused_on_a_hit(profile: Path, cache: PlanCache) -> None:
    exe = build_c("-g", "-O2")
    resolve_cached(exe, profile, cache=cache)
    with pytest.raises(DebugFileMismatch):
        resolve_cached(exe, profile, debug_file=build_c("-g", "-O1"), cache=cache)


def _write(arguments: tuple[str, str, str, int]) -> int:
    exe, profile, folder, seed = arguments
    cache = PlanCache(folder=folder, most_entries=3)
    count = 0
    with Image(exe) as image:
        plan = resolve_cached(exe, profile, cache=cache)
        for number in range(60):
            key = [b"%d" % ((number + seed) % 4)]
            cache.store(image, key, plan)
            found = cache.load(image, key)
            count += found == plan
            assert found is None or found == plan
    return count


def test_concurrent_writers(profile: Path, cache: PlanCache) -> None:
    exe = str(build_c("-g", "-O2"))
    jobs = [(exe, str(profile), cache.folder, seed) for seed in range(4)]
    with ProcessPoolExecutor(4) as pool:
        assert sum(pool.map(_write, jobs)) > 0
    assert 0 < len(entries(cache)) <= 4
    assert all(path.suffix == ".plan" for path in entries(cache))
