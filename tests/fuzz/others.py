"""Mutated files that are no executables: cores, cached plans, profiles, recordings.

Owns making them from good ones. Must not judge what reading them gives (subjects.py does).
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.recording import FRAME, PREFIX, RecordingWriter
from probes.events import Tick
from symbols.cache import PlanCache
from symbols.cached import resolve_cached
from symbols.corefile import CoreFile
from tests.fuzz.bases import folder_of
from tests.fuzz.mutations import number, put, scribble
from tests.unit.agent.scenario import BATCH, WITNESSES
from tests.unit.symbols import backtraces
from tests.unit.symbols.builds import C_PROFILE, ZIG_PROFILE, build_c

_PIECES = (
    *'"[]{}=.*?#\n\\\t\0 ', "\ud7ff", "name", "slot", "0x", "-1", "1e999", "true", "[[", '"""', "*" * 300,
    "{a=" * 500, "[" * 5000, "[slot]", "1979-05-27", "inf", "9" * 5000, "reserved = [0, 1]",
)  # fmt: skip
_KEPT = 12 << 10  # bytes of each thread's stack


@dataclass(frozen=True, slots=True)
class Samples:
    """Good files of every other kind. core: empty where gdb is missing."""

    core: bytes
    plan: bytes
    exe: Path
    profiles: tuple[str, ...]
    recording: bytes


def samples() -> Samples:
    exe = build_c("-g", "-O2")
    folder = folder_of("plan", lambda f: _plan(exe, f), exe.read_bytes())
    entry = next((folder / "cache").iterdir())
    texts = [C_PROFILE, ZIG_PROFILE]
    shipped = Path(__file__).parents[2] / "symbols" / "profiles"
    texts += [path.read_text() for path in sorted(shipped.rglob("*.toml"))]
    recording = folder_of("recording", _recording, b"1") / "sample.afrec"
    return Samples(_core(), entry.read_bytes(), exe, tuple(texts), recording.read_bytes())


def _plan(exe: Path, folder: Path) -> None:
    profile = folder / "profile.toml"
    profile.write_text(C_PROFILE)
    resolve_cached(exe, profile, cache=PlanCache(folder=str(folder / "cache")))


def _recording(folder: Path) -> None:
    writer = RecordingWriter.open(folder / "sample.afrec")
    for event in (*WITNESSES, BATCH, Tick(ts=5), *WITNESSES, BATCH, Tick(ts=9)):
        writer.write(event)
    writer.close({"findings": 0})


def _core() -> bytes:
    """A core of stacks.c in its signal handler, cut down to the notes and the tops of the stacks."""
    exe = build_c("-g", "-O2", "-pthread", source="stacks.c")

    def make(folder: Path) -> None:
        with subprocess.Popen([exe], stdout=subprocess.PIPE) as process:
            try:
                if process.stdout is None or process.stdout.readline() != b"ready\n":
                    raise OSError("stacks did not start")
                backtraces.wait_until_asleep(process.pid)
                core, _truth = backtraces.dump(process.pid, folder)
            finally:
                process.send_signal(signal.SIGKILL)
        (folder / "core").write_bytes(cut_down(core))
        core.unlink()

    try:
        return (folder_of("core", make, exe.read_bytes()) / "core").read_bytes()
    except BaseException as error:  # pytest's Skipped is none of Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return b""


def cut_down(core: Path) -> bytes:
    """A core with the same notes and only the memory just above the threads' stack pointers."""
    raw = core.read_bytes()
    phoff, (_size, count) = struct.unpack_from("<Q", raw, 32)[0], struct.unpack_from("<HH", raw, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", raw, phoff + 56 * i) for i in range(count)]
    notes = b"".join(raw[h[2] : h[2] + h[5]] for h in headers if h[0] == 4)
    file = CoreFile(core)
    try:
        parts = []
        for rsp in sorted({thread.registers["rsp"] - 256 for thread in file.threads}):
            for size in (_KEPT, _KEPT // 2, 1024):
                memory = file.memory(rsp, size)
                if memory is not None:
                    parts.append((rsp, memory))
                    break
    finally:
        file.close()
    table = 64 + 56 * (1 + len(parts))
    body, rows = notes, [struct.pack("<IIQQQQQQ", 4, 4, table, 0, 0, len(notes), 0, 4)]
    for address, memory in parts:
        place = table + len(body)
        rows.append(struct.pack("<IIQQQQQQ", 1, 6, place, address, 0, len(memory), len(memory), 1))
        body += memory
    head = bytearray(raw[:64])
    struct.pack_into("<QQ", head, 32, 64, 0)
    struct.pack_into("<HHHHHH", head, 52, 64, 56, len(rows), 0, 0, 0)
    return bytes(head) + b"".join(rows) + body


# -- mutations ---------------------------------------------------------------------------------------


def core(good: bytes, rng: random.Random) -> bytes:
    data = bytearray(good)
    count, phoff = data[56], 64
    for _ in range(rng.choice((1, 1, 2, 6))):
        how = rng.random()
        if how < 0.2:
            scribble(data, 0, 64, rng, 1)
        elif how < 0.45:
            at, size = rng.choice(((0, 4), (8, 8), (16, 8), (32, 8), (40, 8)))
            put(data, phoff + 56 * rng.randrange(max(count, 1)) + at, size, number(rng, size, len(data)))
        elif how < 0.8:
            scribble(data, phoff + 56 * count, len(data) // 3, rng, rng.choice((1, 4, 30)))  # notes
        elif how < 0.95:
            scribble(data, len(data) // 2, len(data) // 2, rng, rng.choice((1, 8, 200)))  # stacks
        else:
            del data[rng.randrange(len(data)) :]
    return bytes(data)


def plan(good: bytes, rng: random.Random) -> bytes:
    """A cache entry: damaged as bytes, or as a plan with the right checksum around it."""
    if rng.random() < 0.3:
        data = bytearray(good)
        scribble(data, 0, rng.choice((60, len(data))), rng, rng.choice((1, 4, 20)))
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        return bytes(data)
    head, text = good[: -len(good.split(b"\n", 3)[3])], good.split(b"\n", 3)[3]
    body = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 5))):
        _change(body, rng)
    fresh = json.dumps(body).encode()
    if rng.random() < 0.1:
        fresh = b"[" * rng.choice((10, 100_000)) + fresh
    digest = hashlib.sha256(fresh).hexdigest()[:32]
    return head.split(b"\n")[0] + f"\n{digest}\n{len(fresh):08x}\n".encode() + fresh


def _change(value: Any, rng: random.Random) -> None:
    """Another value somewhere in a JSON tree."""
    while True:
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        inner = value[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.85:
            value = inner
            continue
        how = rng.random()
        if how < 0.12 and isinstance(value, dict):
            del value[key]
        elif how < 0.2 and isinstance(value, list):
            value += [inner] * rng.choice((1, 3, 5000))
        elif isinstance(inner, int) and how < 0.7:
            value[key] = number(rng, 8) - rng.choice((0, 0, 1 << 63))
        else:
            others = (
                None,
                True,
                -1,
                0,
                1 << 200,
                1.5,
                1e400,
                "",
                "x" * 100_000,
                "\0\x1b[31m",
                "\ud800",
                [],
                {},
                [[]],
            )
            value[key] = rng.choice(others)
        return


def profile(texts: tuple[str, ...], rng: random.Random) -> bytes:
    text = rng.choice(texts)
    for _ in range(rng.choice((1, 1, 2, 4, 10))):
        at = rng.randrange(len(text) + 1)
        how = rng.random()
        if how < 0.4:
            text = text[:at] + rng.choice(_PIECES) + text[at:]
        elif how < 0.7:
            text = text[:at] + text[at + rng.choice((1, 3, 30)) :]
        else:
            other = rng.choice(texts)
            low = rng.randrange(len(other))
            text = text[:at] + other[low : low + rng.randrange(80)] + text[at:]
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    if rng.random() < 0.15:
        scribble(data, 0, len(data), rng, 3)
    return bytes(data)


def recording(good: bytes, rng: random.Random) -> bytes:
    import zlib

    data = bytearray(good)
    how = rng.random()
    if how < 0.35:
        scribble(data, 0, len(data), rng, rng.choice((1, 2, 8, 40)))
    elif how < 0.5:
        del data[rng.randrange(len(data)) :]
    else:  # one frame's contents change, its compression is right
        at, places = PREFIX.size, []
        while at + FRAME.size <= len(data):
            length, kind = FRAME.unpack_from(data, at)
            places.append((at, length, kind))
            at += FRAME.size + length
        at, length, kind = rng.choice(places)
        content = bytearray(zlib.decompress(bytes(data[at + FRAME.size : at + FRAME.size + length])))
        if rng.random() < 0.1:
            content *= 1 << rng.randrange(1, 14)
        scribble(content, 0, len(content), rng, rng.choice((1, 4, 30)))
        if rng.random() < 0.3 and content:
            del content[rng.randrange(len(content)) :]
        packed = zlib.compress(bytes(content))
        kind = kind if rng.random() < 0.85 else rng.randrange(9)
        data[at : at + FRAME.size + length] = FRAME.pack(len(packed), kind) + packed
    return bytes(data)
