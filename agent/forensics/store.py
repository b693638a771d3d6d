# Owns the folder in which bundles lie: names, limits on count, size and age, how often a crash is bundled
# in full, and what a killed process left behind. Must not read bundles or explain anything.
from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from agent.errors import OutputFailed
from agent.forensics.layout import SUFFIX

DEFAULT = Path("/var/lib/afterfree/bundles")
_COUNTERS = "counters.json"
_LOCK = ".lock"
_MOST_KEYS = 1024
_MOST_COUNTERS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """most: bundles; size: bytes of all of them; age, period: seconds; core: bytes of one mini core."""

    most: int = 20
    size: int = 2 << 30
    age: float = 30 * 86400.0
    period: float = 3600.0
    core: int = 64 << 20


@dataclass(slots=True)
class _Seen:
    """How often a crash was seen. first, last: seconds since the epoch."""

    first: float
    last: float
    bundled: float  # when its last full bundle was begun
    count: int


class BundleStore:
    """One folder, 0700."""

    def __init__(
        self, folder: Path, limits: Limits | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Creates the folder. Raises OutputFailed."""
        self.folder = folder
        self.limits = limits or Limits()
        self._clock = clock
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid == os.geteuid():
                folder.chmod(0o700)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(13, "not writable")
        except OSError as error:
            raise OutputFailed(
                f"cannot keep crash bundles in {folder}",
                detail=error.strerror or str(error),
                remedy="--bundles DIR   names another folder\n--no-bundles   watches without",
            ) from error
        self._seen = self._read()
        self._lock = _locked(folder)

    # -- names ----------------------------------------------------------------------------------

    def name(self, comm: str, pid: int) -> str:
        """A name that no bundle has yet, without suffix."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._clock()))
        safe = re.sub(r"[^A-Za-z0-9_-]", "_", comm)[:32] or "unknown"
        base = f"crash-{stamp}-{safe}-{pid}"
        name, number = base, 1
        while self.path(name).exists() or self.spool(name).exists():
            number += 1
            name = f"{base}-{number}"
        return name

    def path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"

    def spool(self, name: str) -> Path:
        """Where the case waits until its bundle is written. Hidden: not to be taken for a bundle."""
        return self.folder / f".{name}.case"

    def bundles(self) -> list[Path]:
        """Oldest first."""
        found = [path for path in self.folder.glob(f"crash-*{SUFFIX}") if path.is_file()]
        return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))

    # -- crash loops ----------------------------------------------------------------------------

    def due(self, key: str) -> bool:
        """The next crash of that kind gets a bundle."""
        now, seen = self._clock(), self._seen.get(key)
        return seen is None or now - seen.bundled >= self.limits.period or now < seen.bundled

    def again(self, key: str) -> int:
        """Count one more crash of that kind. 0: bundle it; else how often it was seen since its bundle."""
        now = self._clock()
        seen = self._seen.get(key)
        if seen is None or self.due(key):
            self._seen[key] = _Seen(seen.first if seen else now, now, now, 1)
            while len(self._seen) > _MOST_KEYS:
                del self._seen[min(self._seen, key=lambda one: self._seen[one].last)]
            self._write()
            return 0
        seen.count += 1
        seen.last = now
        self._write()
        return seen.count

    def forget(self, key: str) -> None:
        """Its bundle was not written after all: the next one is."""
        self._seen.pop(key, None)
        self._write()

    def _read(self) -> dict[str, _Seen]:
        try:
            with (self.folder / _COUNTERS).open("rb") as file:
                rows = json.loads(file.read(_MOST_COUNTERS))
            return {
                str(key): _Seen(float(row[0]), float(row[1]), float(row[2]), int(row[3]))
                for key, row in list(rows.items())[:_MOST_KEYS]
            }
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            return {}  # a fresh folder, or a damaged file: counting begins anew

    def _write(self) -> None:
        rows = {key: [s.first, s.last, s.bundled, s.count] for key, s in self._seen.items()}
        temporary = self.folder / f".{_COUNTERS}.tmp"
        with contextlib.suppress(OSError):  # counters are a convenience: bundles go on without
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(rows, file)
            temporary.rename(self.folder / _COUNTERS)

    # -- limits ---------------------------------------------------------------------------------

    def rotate(self, newest: Path | None = None) -> list[str]:
        """Remove what is beyond the limits, oldest first, never `newest`. Returns the names."""
        removed = []
        bundles = [path for path in self.bundles() if path != newest]
        sizes = {path: path.stat().st_size for path in bundles}
        total = sum(sizes.values()) + (newest.stat().st_size if newest is not None and newest.exists() else 0)
        count = len(bundles) + (newest is not None)
        for path in bundles:
            old = self._clock() - path.stat().st_mtime > self.limits.age
            if not (old or count > self.limits.most or total > self.limits.size):
                continue
            with contextlib.suppress(OSError):
                path.unlink()
                removed.append(path.name)
                count -= 1
                total -= sizes[path]
        return removed

    @property
    def sole(self) -> bool:
        """No other process of ours keeps its bundles here: what lies half done was left by a dead one."""
        return self._lock is not None

    def close(self) -> None:
        """Let another process be the sole one."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def leftovers(self) -> list[Path]:
        """Cases whose bundle was never finished (the process was killed); half-written files are removed."""
        if not self.sole:
            return []
        for path in self.folder.glob(f".crash-*{SUFFIX}.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()
        whole = []
        for path in sorted(self.folder.glob(".crash-*.case")):
            if (path / "case.json").is_file():  # written last
                whole.append(path)
            else:
                shutil.rmtree(path, ignore_errors=True)
        return whole


def _locked(folder: Path) -> IO[bytes] | None:
    """Held until this process ends, however it ends (flock(2)); None while somebody else holds it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.fdopen(os.open(folder / _LOCK, flags, 0o600), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
