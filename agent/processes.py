# Owns reading /proc for "which process runs which executable". Must not attach, parse ELF or wait.
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from agent.errors import NoSuchTarget, PrerequisiteMissing
from symbols.errors import NotAFile

_MOST_LIBRARIES = 256
_MOST_MAPS = 4 << 20  # bytes


class FileId(NamedTuple):
    """What a uprobe binds to: the inode. A binary renamed into place is another file."""

    device: int
    inode: int


class FileState(NamedTuple):
    """A file and its content, as far as stat tells: changes when a binary is replaced or rewritten."""

    id: FileId
    size: int
    mtime_ns: int


class Proc:
    """The process table. `root` lets tests use a folder of their own."""

    def __init__(self, root: str = "/proc") -> None:
        self._root = Path(root)

    def pids(self) -> Iterator[int]:
        """All process ids there are now."""
        for name in os.listdir(self._root):
            if name.isdigit():
                yield int(name)

    def exists(self, pid: int) -> bool:
        return (self._root / str(pid)).is_dir()

    def executable(self, pid: int) -> tuple[str, FileId]:
        """A path that opens the executable of `pid`, and its identity.

        The path is the ordinary one while that names the same file, else /proc/PID/exe, which also
        opens deleted files and files of another mount namespace.
        Raises NoSuchTarget, PrerequisiteMissing.
        """
        link = self._root / str(pid) / "exe"
        try:
            status = os.stat(link)
            name = os.readlink(link)
        except FileNotFoundError as error:
            if self.exists(pid):
                raise NoSuchTarget(
                    f"process {pid} has no executable",
                    detail="It is a kernel thread, or it has just ended.",
                    remedy="name the id of a server process",
                ) from error
            raise no_such_process(pid) from error
        except ProcessLookupError as error:
            raise no_such_process(pid) from error
        except PermissionError as error:
            if os.geteuid() == 0:
                raise NoSuchTarget(
                    f"the kernel lets not even root look at process {pid}",
                    detail="It is outside this container's namespaces, or a security module guards it.",
                    remedy=f"run afterfree on the node itself, or where this works: readlink /proc/{pid}/exe",
                ) from error
            raise PrerequisiteMissing(
                f"not allowed to look at process {pid}",
                detail="It belongs to another user, and attaching needs root in any case.",
                remedy="run the same command with sudo",
            ) from error
        identity = FileId(status.st_dev, status.st_ino)
        try:
            there = os.stat(name)
        except OSError:
            return str(link), identity
        if FileId(there.st_dev, there.st_ino) == identity:
            return name, identity
        return str(link), identity

    def libraries(self, pid: int) -> list[str]:
        """Paths that open the shared objects mapped for execution, in order of their addresses; at most
        _MOST_LIBRARIES. Empty when the process is gone or cannot be looked at."""
        try:
            with open(self._root / str(pid) / "maps", "rb") as file:
                lines = file.read(_MOST_MAPS).splitlines()
            own = os.stat(self._root / str(pid) / "exe").st_ino
        except OSError:
            return []
        found: dict[str, None] = {}
        for text in lines:
            fields = text.split(None, 5)
            if len(fields) < 6 or b"x" not in fields[1] or not fields[5].startswith(b"/"):
                continue
            inode, path = int(fields[4]), os.fsdecode(fields[5])
            there = f"{self._root}/{pid}/root{path}"
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == inode:
                    there = path
            if inode not in (0, own) and len(found) < _MOST_LIBRARIES:
                found[there] = None
        return list(found)

    def running(self, wanted: FileId) -> tuple[int, ...]:
        """Processes that execute that file now, in order of their ids."""
        found = []
        for pid in self.pids():
            try:
                status = os.stat(self._root / str(pid) / "exe")
            except OSError:
                continue
            if (status.st_dev, status.st_ino) == wanted:
                found.append(pid)
        return tuple(sorted(found))


def no_such_process(pid: int) -> NoSuchTarget:
    return NoSuchTarget(
        f"there is no process {pid}",
        causes=("it has ended, or was restarted under another id", "the id is of another pid namespace"),
        remedy="pgrep -a NAME\nafterfree watch --exe PROGRAM   (finds its processes, now and later)",
    )


def file_state(path: str) -> FileState:
    """Raises NoSuchTarget when `path` is not a file that can be looked at."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise NoSuchTarget(
            f"there is no executable {path}",
            detail=error.strerror or str(error),
            remedy="give the path of the program itself; `readlink /proc/PID/exe` shows a running one's",
        ) from error
    if not os.path.isfile(path):
        raise NoSuchTarget(f"not a file: {path}", detail="not a regular file", remedy=NotAFile.default_remedy)
    return FileState(FileId(status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns)
