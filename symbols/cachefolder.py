# Owns a folder of checked cache entries: written whole or not at all, bounded, believed only when nobody else
# could have written them. Must not know what is in them, and never fails: what cannot be used is no entry.
from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from dataclasses import dataclass, field

_TAIL = 33 + 9  # SHA-256 in hex is cut to 32, then the size in 8 hex digits


def cache_folder() -> str:
    """/var/cache/afterfree for root, else $XDG_CACHE_HOME/afterfree (~/.cache/afterfree)."""
    if os.geteuid() == 0:
        return "/var/cache/afterfree"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(home, "afterfree")


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
        path = self.path(name)
        try:
            # Nobody else may have written it: it decides where probes go, and what they do.
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(handle, "rb") as file:
                status = os.fstat(file.fileno())
                if not _ours(status) or not stat.S_ISREG(status.st_mode):
                    return None
                content = self._unpack(file.read(self.most_entry + 1))
        except (OSError, ValueError):
            return None
        return content

    def used(self, name: str) -> None:
        """Mark an entry as used now: what is thrown away goes by it."""
        with contextlib.suppress(OSError):
            os.utime(self.path(name))

    def put(self, name: str, content: bytes) -> None:
        """Keep an entry. Readers see the old one or the whole new one; a failure leaves no trace."""
        if len(content) + len(self.magic) + _TAIL > self.most_entry:
            return
        path = self.path(name)
        digest = hashlib.sha256(content).hexdigest()[:32]
        scratch = f"{path}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            if not _ours(os.stat(self.folder)):
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            with os.fdopen(os.open(scratch, flags, 0o600), "wb") as file:
                file.write(self.magic + f"{digest}\n{len(content):08x}\n".encode() + content)
            os.replace(scratch, path)
            self._trim()
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(scratch)

    def _trim(self) -> None:
        """Remove what is over the bounds, oldest use first, and scratch files that a crash left."""
        entries: list[tuple[float, int, str]] = []
        newest = 0.0
        with os.scandir(self.folder) as found:
            for entry in found:
                if entry.name.endswith((self.suffix, ".tmp")) and entry.is_file(follow_symlinks=False):
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

    def _unpack(self, raw: bytes) -> bytes | None:
        if len(raw) > self.most_entry or not raw.startswith(self.magic):
            return None
        digest, size, content = raw[len(self.magic) :].split(b"\n", 2)
        if int(size, 16) != len(content) or hashlib.sha256(content).hexdigest()[:32].encode() != digest:
            return None
        return content


def _ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022
