# Owns a folder of checked cache entries: written whole or not at all, bounded, believed only when nobody else
# could have written them. Must not know what is in them, and never fails: what cannot be used is no entry.
from __future__ import annotations

import contextlib
import os
import stat
import zlib
from dataclasses import dataclass, field
from functools import cache

from symbols.hashes import sha256
from symbols.safefiles import Folder

_TAIL = 33 + 9  # SHA-256 in hex is cut to 32, then the size in 8 hex digits


def cache_folder() -> str:
    """/var/cache/afterfree for root, else $XDG_CACHE_HOME/afterfree (~/.cache/afterfree)."""
    if os.geteuid() == 0:
        return "/var/cache/afterfree"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(home, "afterfree")


@cache
def our_version() -> str:
    """Changes with every edit of symbols/: names, sizes and times of its files."""
    folder = os.path.dirname(__file__)
    value = 0
    for name in sorted(os.listdir(folder)):
        if name.endswith(".py"):
            status = os.stat(os.path.join(folder, name))
            value = zlib.crc32(f"{name} {status.st_size} {status.st_mtime_ns}".encode(), value)
    return f"{value:08x}"


@dataclass(slots=True, kw_only=True)
class CacheFolder:
    """Entries of one kind (`magic`, `suffix`) in one folder; the ones not used for longest go first.

    most_bytes, most_entry: bytes of all entries of this kind, and of one.
    """

    magic: bytes
    suffix: str
    folder: str = field(default_factory=cache_folder)
    most_entries: int = 256
    most_bytes: int = 64 << 20
    most_entry: int = 16 << 20

    def path(self, name: str) -> str:
        """Where the entry of that name lies, or would."""
        return os.path.join(self.folder, name + self.suffix)

    def get(self, name: str) -> bytes | None:
        """The content, where owner, mode, magic, size and checksum agree."""
        try:
            # Nobody else may have written it: it decides where probes go, and what they do.
            with Folder.open(self.folder) as folder:
                return self._unpack(folder.read(name + self.suffix, self.most_entry))
        except (OSError, ValueError):
            return None

    def used(self, name: str) -> None:
        """Mark an entry as used now: what is thrown away goes by it."""
        with contextlib.suppress(OSError):
            os.utime(self.path(name))

    def put(self, name: str, content: bytes) -> None:
        """Keep an entry. Readers see the old one or the whole new one; a failure leaves no trace."""
        if len(content) + len(self.magic) + _TAIL > self.most_entry:
            return
        digest = sha256(content).hexdigest()[:32]
        with contextlib.suppress(OSError), Folder.open(self.folder, make=True) as folder:
            whole = self.magic + f"{digest}\n{len(content):08x}\n".encode() + content
            folder.replace(name + self.suffix, whole, durable=False)
            self._trim(folder)

    def _trim(self, folder: Folder) -> None:
        """Remove what is over the bounds, oldest use first, and scratch files that a crash left."""
        entries: list[tuple[float, int, str]] = []
        newest = 0.0
        for name, status in folder.entries():
            if name.endswith((self.suffix, ".tmp")) and stat.S_ISREG(status.st_mode):
                newest = max(newest, status.st_mtime)
                entries.append((status.st_mtime, status.st_size, name))
        entries.sort(reverse=True)
        kept = total = 0
        for used, size, name in entries:
            stale = name.endswith(".tmp") and used < newest - 3600
            if not stale and kept < self.most_entries and total + size <= self.most_bytes:
                kept, total = kept + 1, total + size
                continue
            folder.remove(name)  # another process trims too

    def _unpack(self, raw: bytes) -> bytes | None:
        if len(raw) > self.most_entry or not raw.startswith(self.magic):
            return None
        digest, size, content = raw[len(self.magic) :].split(b"\n", 2)
        if int(size, 16) != len(content) or sha256(content).hexdigest()[:32].encode() != digest:
            return None
        return content
