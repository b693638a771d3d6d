# Owns how the readers of symbols/ get at files: by themselves, or, in a process that gave up its rights,
# through one that has kept them (probes/confined.py). Must not know what is read.
from __future__ import annotations

import os
from functools import cache
from typing import Protocol

from symbols.safefiles import existing


class Files(Protocol):
    """Paths are those of the process that does it: of its root, and of its current folder."""

    def open(self, path: str) -> int:
        """A descriptor for reading; the caller closes it. A FIFO is not waited for. Raises OSError."""

    def read(self, path: str, most: int) -> bytes:
        """The first bytes of a file that the user named. Raises OSError."""

    def exists(self, path: str) -> bool:
        """Whether there is anything, a link that leads nowhere included."""

    def real(self, path: str) -> str:
        """The path without links, as far as it is there."""

    def link(self, path: str) -> str:
        """What a link says. Raises OSError."""

    def same(self, one: str, other: str) -> bool:
        """Whether both are one file; False where either cannot be looked at."""

    def scratch(self) -> int:
        """An empty file without a name, for what is too large for memory; the caller closes it."""

    def fetch(self, build_id: str, ask: bool) -> tuple[str | None, list[str]] | None:
        """A debug file from debuginfod's cache or (ask) servers, and what was tried; None: fetch it here."""


class Direct:
    """With the rights of this process."""

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)

    def read(self, path: str, most: int) -> bytes:
        with existing(path) as file:
            return file.read(most)

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def real(self, path: str) -> str:
        return os.path.realpath(path)

    def link(self, path: str) -> str:
        return os.readlink(path)

    def same(self, one: str, other: str) -> bool:
        try:
            return os.path.samefile(one, other)
        except OSError:
            return False

    def scratch(self) -> int:
        import tempfile  # lazily: it brings a dozen modules

        with tempfile.TemporaryFile(prefix="afterfree-section.") as file:
            return os.dup(file.fileno())

    def fetch(self, build_id: str, ask: bool) -> tuple[str | None, list[str]] | None:  # noqa: ARG002
        return None


@cache
def shipped() -> dict[str, bytes]:
    """The profiles that come with the package, by path. Asked for once before rights are given up, they are
    known afterwards, too."""
    folder = os.path.join(os.path.dirname(__file__), "profiles")
    names = sorted(name for name in os.listdir(folder) if name.endswith(".toml"))
    direct = Direct()
    return {path: direct.read(path, 1 << 20) for path in (os.path.join(folder, name) for name in names)}


_USED: list[Files] = [Direct()]  # of the whole process: set once, when it gives up its rights


def files() -> Files:
    """What this process has."""
    return _USED[-1]


def use(given: Files) -> None:
    """From now on, get at files through this."""
    _USED[-1] = given
