# Owns the plan cache: resolved plans on disk, by the image's identity, the profile and our own code. A hit is
# as good as a resolve: everything read from it is checked, and whatever does not check is resolved again.
# Must not resolve (resolve.py does) and never fails: a cache that cannot be used is no cache.
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from symbols.errors import SymbolError
from symbols.image import Image
from symbols.plan import ProbePlan
from symbols.serial import plan_from_json, plan_to_json

_MAGIC = b"afterfree-plan/1\n"
_HEAD = len(_MAGIC) + 33 + 9  # SHA-256 in hex is cut to 32, then the size in 8 hex digits
_MOST_ENTRY = 16 << 20
_SUFFIX = ".plan"


def cache_folder() -> str:
    """/var/cache/afterfree for root, else $XDG_CACHE_HOME/afterfree (~/.cache/afterfree)."""
    if os.geteuid() == 0:
        return "/var/cache/afterfree"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(home, "afterfree")


def our_version() -> str:
    """Changes with every edit of symbols/: names, sizes and times of its files."""
    folder = os.path.dirname(__file__)
    value = 0
    for name in sorted(os.listdir(folder)):
        if name.endswith(".py"):
            status = os.stat(os.path.join(folder, name))
            value = zlib.crc32(f"{name} {status.st_size} {status.st_mtime_ns}".encode(), value)
    return f"{value:08x}"


@dataclass(slots=True)
class PlanCache:
    """Plans in one folder. Bounded: most_entries and most_bytes; the ones not used for longest go first."""

    folder: str = field(default_factory=cache_folder)
    most_entries: int = 256
    most_bytes: int = 64 << 20
    version: str = field(default_factory=our_version)

    def load(self, image: Image, parts: Iterable[bytes]) -> ProbePlan | None:
        """The plan of this very image with these inputs, under its present path; None: resolve."""
        path = self._path(image, parts)
        try:
            # Nobody else may have written it: a plan decides where probes go.
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(handle, "rb") as file:
                status = os.fstat(file.fileno())
                if not _ours(status) or not stat.S_ISREG(status.st_mode):
                    return None
                raw = file.read(_MOST_ENTRY + 1)
            body = _unpack(raw)
            plan = plan_from_json({**body, "image": image.path}) if body is not None else None
        except (OSError, ValueError, RecursionError, SymbolError):
            return None
        if plan is None or plan.identity != image.identity or plan.segments != image.segments:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # last use: what is thrown away goes by it
        return plan

    def store(self, image: Image, parts: Iterable[bytes], plan: ProbePlan) -> None:
        """Keep a plan. Readers see the old entry or the whole new one; a failure leaves no trace."""
        path = self._path(image, parts)
        text = json.dumps(plan_to_json(plan), separators=(",", ":"), sort_keys=True).encode()
        if len(text) + _HEAD > _MOST_ENTRY:
            return
        digest = hashlib.sha256(text).hexdigest()[:32]
        scratch = f"{path}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            if not _ours(os.stat(self.folder)):
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            with os.fdopen(os.open(scratch, flags, 0o600), "wb") as file:
                file.write(_MAGIC + f"{digest}\n{len(text):08x}\n".encode() + text)
            os.replace(scratch, path)
            self._trim()
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(scratch)

    def _path(self, image: Image, parts: Iterable[bytes]) -> str:
        key = hashlib.sha256(f"{self.version}\0{image.identity}\0{image.machine}".encode())
        for part in parts:
            key.update(len(part).to_bytes(8, "little") + part)
        return os.path.join(self.folder, key.hexdigest()[:40] + _SUFFIX)

    def _trim(self) -> None:
        """Remove what is over the bounds, oldest use first, and scratch files that a crash left."""
        entries: list[tuple[float, int, str]] = []
        newest = 0.0
        with os.scandir(self.folder) as found:
            for entry in found:
                if entry.name.endswith((_SUFFIX, ".tmp")) and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    newest = max(newest, status.st_mtime)
                    entries.append((status.st_mtime, status.st_size, entry.path))
        entries.sort(reverse=True)
        kept = total = 0
        for used, size, path in entries:
            stale = path.endswith(".tmp") and used < newest - 3600
            if not stale and kept < self.most_entries and total + size <= self.most_bytes:
                kept, total = kept + 1, total + size
                continue
            with contextlib.suppress(FileNotFoundError):  # another process trims too
                os.unlink(path)


def _ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _unpack(raw: bytes) -> Mapping[str, Any] | None:
    """The plan's JSON where magic, size and checksum agree."""
    if len(raw) > _MOST_ENTRY or not raw.startswith(_MAGIC):
        return None
    digest, size, text = raw[len(_MAGIC) :].split(b"\n", 2)
    if int(size, 16) != len(text) or hashlib.sha256(text).hexdigest()[:32].encode() != digest:
        return None
    body = json.loads(text)
    return body if isinstance(body, dict) else None
