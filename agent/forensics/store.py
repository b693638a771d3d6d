# Owns the folder in which bundles lie: names, limits on count, size and age, how often a crash is bundled
# in full, and what a killed process left behind. Must not read bundles or explain anything.
from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from agent.errors import OutputFailed
from agent.forensics.layout import CASE, SUFFIX
from symbols.safefiles import Folder, UnsafePath

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
    bundle: str = ""  # the file name of that bundle; "" not known


class BundleStore:
    """One folder in which nobody but root and we have a hand; 0700 when it has to be made."""

    def __init__(
        self, folder: Path, limits: Limits | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Creates the folder; one that is there keeps its mode. Raises OutputFailed."""
        self.folder = folder
        self.limits = limits or Limits()
        self._clock = clock
        self.strange: list[Path] = []
        try:
            self._held = Folder.open(folder, make=True)
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=self._held.fd):
                raise PermissionError(errno.EACCES, "not writable")
            self._lock = _locked(self._held)
        except OSError as error:
            remedy = f"{error.remedy}\n" if isinstance(error, UnsafePath) else ""
            raise OutputFailed(
                f"cannot keep crash bundles in {folder}",
                detail=error.strerror or str(error),
                causes=("who can write there could read or swap what root keeps there",) if remedy else (),
                remedy=f"{remedy}--bundles DIR   names another folder\n--no-bundles   watches without",
            ) from error
        self._seen = self._read()

    # -- names ----------------------------------------------------------------------------------

    def name(self, comm: str, pid: int) -> str:
        """A name that no bundle has yet, without suffix."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._clock()))
        safe = re.sub(r"[^A-Za-z0-9_-]", "_", comm)[:32] or "unknown"
        base = f"crash-{stamp}-{safe}-{pid}"
        name, number = base, 1
        while self._held.has(self.path(name).name) or self._held.has(self.spool(name).name):
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
        return [self.folder / name for name, _ in self._bundles()]

    def _bundles(self) -> list[tuple[str, os.stat_result]]:
        found = [
            (name, status)
            for name, status in self._held.entries()
            if name.startswith("crash-") and name.endswith(SUFFIX) and stat.S_ISREG(status.st_mode)
        ]
        return sorted(found, key=lambda one: (one[1].st_mtime, one[0]))

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

    def bundled_as(self, key: str, name: str) -> None:
        """Crashes of that kind have this bundle, or will. name: a bundle's, with or without suffix."""
        seen = self._seen.get(key)
        if seen is not None:
            seen.bundle = name.removesuffix(SUFFIX) + SUFFIX
            self._write()

    def bundle_of(self, key: str) -> Path | None:
        """The bundle of the crashes of that kind, which may have been removed since."""
        seen = self._seen.get(key)
        return self.folder / seen.bundle if seen is not None and seen.bundle else None

    def forget(self, key: str) -> None:
        """Its bundle was not written after all: the next one is."""
        self._seen.pop(key, None)
        self._write()

    def _read(self) -> dict[str, _Seen]:
        try:
            rows = json.loads(self._held.read(_COUNTERS, _MOST_COUNTERS))
            found = {
                str(key): _Seen(
                    float(row[0]), float(row[1]), float(row[2]), int(row[3]), _bundle_name(row[4:])
                )
                for key, row in list(rows.items())[:_MOST_KEYS]
            }
        except (
            OSError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            ArithmeticError,  # a number beyond every float, an infinite count
            RecursionError,
        ):
            return {}  # a fresh folder, or a damaged file: counting begins anew
        if not all(math.isfinite(one.first + one.last + one.bundled) for one in found.values()):
            return {}
        return found

    def _write(self) -> None:
        rows = {key: [s.first, s.last, s.bundled, s.count, s.bundle] for key, s in self._seen.items()}
        with contextlib.suppress(OSError):  # counters are a convenience: bundles go on without
            self._held.replace(_COUNTERS, json.dumps(rows).encode())

    # -- limits ---------------------------------------------------------------------------------

    def rotate(self, newest: Path | None = None) -> list[str]:
        """Remove what is beyond the limits, oldest first, never `newest`. Returns the names."""
        removed = []
        spared = newest.name if newest is not None else ""
        bundles = self._bundles()
        total = sum(status.st_size for _, status in bundles)
        count = len(bundles)
        for name, status in bundles:
            old = self._clock() - status.st_mtime > self.limits.age
            if name == spared or not (old or count > self.limits.most or total > self.limits.size):
                continue
            with contextlib.suppress(OSError):
                self._held.remove(name)
                removed.append(name)
                count -= 1
                total -= status.st_size
        return removed

    def remove(self, path: Path) -> None:
        """A bundle, or a case with all that is in it."""
        with contextlib.suppress(OSError):
            if path.name.endswith(SUFFIX):
                self._held.remove(path.name)
            else:
                self._held.remove_all(path.name)

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
        """Cases whose bundle was never finished (the process was killed); half-written files are removed.

        What has such a name and is not ours is left alone, and named in `strange`.
        """
        if not self.sole:
            return []
        whole = []
        for name, status in self._held.entries():
            if name.startswith(".") and name.endswith(".tmp") and not stat.S_ISDIR(status.st_mode):
                with contextlib.suppress(OSError):
                    self._held.remove(name)
            elif name.startswith(".crash-") and name.endswith(".case"):
                try:
                    with self._held.folder(name) as case:
                        complete = case.has(CASE)  # written last
                except OSError:
                    self.strange.append(self.folder / name)
                    continue
                if complete:
                    whole.append(self.folder / name)
                else:
                    self._held.remove_all(name)
        return whole


def _locked(folder: Folder) -> IO[bytes] | None:
    """Held until this process ends, however it ends (flock(2)); None while somebody else holds it.

    Raises OSError where the lock is no file of ours.
    """
    file = os.fdopen(folder.opened(_LOCK, os.O_RDWR | os.O_CREAT), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _bundle_name(row: object) -> str:
    """A file name from the counters, which may be damaged; an older version kept none."""
    name = row[0] if isinstance(row, list) and row else ""
    plain = isinstance(name, str) and re.fullmatch(r"crash-[A-Za-z0-9_-]{1,200}", name.removesuffix(SUFFIX))
    return str(name) if plain and str(name).endswith(SUFFIX) else ""
