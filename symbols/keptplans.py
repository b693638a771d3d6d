# Owns plans by the file that they are of, as it lies on the disk: one that was resolved before is at hand
# without a look into the file, so that nobody who reads ELF has to be started. Must not read executables.
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from symbols.cachefolder import CacheFolder, cache_folder, our_version
from symbols.files import shipped
from symbols.hashes import sha256

_MAGIC = b"afterfree-kept-plan/1\n"
_SUFFIX = ".kept"
_RACY_NS = 10_000_000_000
"""A file that was changed so short before it was read may change once more within one tick of its clock."""

_SECOND_NS = 1_000_000_000
"""Whole seconds are what file systems keep that were packed at once (squashfs, erofs, ISO 9660): there
another build may well have the inode, the size and the times of the one before."""


class KeptPlans:
    """Plans in JSON form (symbols.serial), by device, inode, size and times of their image. Nobody but root
    can set the time of the last change of an inode (ctime), so that what agrees in all is the same file."""

    def __init__(self, folder: str | None = None, clock_ns: Callable[[], int] = time.time_ns) -> None:
        """folder: None for the one of all caches."""
        self._folder = CacheFolder(
            magic=_MAGIC, suffix=_SUFFIX, folder=folder or cache_folder(), most_bytes=16 << 20
        )
        self._clock_ns = clock_ns

    def key(self, image: str, profile: tuple[str, bytes] | None) -> str:
        """Of a file as it is now and what its plan depends on besides: the profile's path and text, or all
        shipped ones. "" where there is no such file, or its times do not tell when it was changed last."""
        try:
            status = os.stat(image)
        except (OSError, ValueError):
            return ""
        if max(status.st_mtime_ns, status.st_ctime_ns) > self._clock_ns() - _RACY_NS:
            return ""
        if not status.st_ctime_ns % _SECOND_NS:
            return ""
        parts: Iterable[bytes] = shipped().values()
        if profile is not None:
            parts = (b"named", os.fsencode(profile[0]), profile[1])
        digest = sha256(
            f"{our_version()} {status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} "
            f"{status.st_ctime_ns}".encode()
        )
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part)
        return str(digest.hexdigest()[:40])

    def get(self, key: str, image: str) -> dict[str, Any] | None:
        """The plan kept under a key, for the path by which its file is known now."""
        text = self._folder.get(key) if key else None
        if text is None:
            return None
        try:
            plan = json.loads(text)
        except (ValueError, RecursionError):
            return None
        self._folder.used(key)
        return {**plan, "image": image} if isinstance(plan, dict) else None

    def put(self, key: str, plan: Mapping[str, Any]) -> None:
        """Keep a plan; a failure leaves no trace."""
        if key:
            self._folder.put(key, json.dumps(plan, separators=(",", ":")).encode())
