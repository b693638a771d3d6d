# Owns how files are made and opened in folders that others may have a hand in: by descriptors, one component
# at a time, never through a link that somebody else could have put there. Everything of ours that writes goes
# through here. Must not know what is written.
from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from typing import BinaryIO

_MOST_LINKS = 40  # as the kernel's own walk (MAXSYMLINKS, linux/namei.h)
_MOST_PARTS = 4096  # of a path with what its links add
_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# a FIFO must not block us: what is opened is looked at first
_OLD = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_STREAM = re.compile(r"/(?:dev/fd|proc/self/fd)/(\d{1,6})\Z")
_SINKS = ("/dev/null", "/dev/full")
_NAMED_STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class UnsafePath(PermissionError):
    """Others have a hand in it. strerror: who and how; remedy: for the user."""

    def __init__(self, path: str, why: str, remedy: str) -> None:
        super().__init__(errno.EPERM, why, path)
        self.remedy = remedy


def trusted(status: os.stat_result) -> bool:
    """It belongs to root or to us, and nobody else may write it."""
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & _OTHERS


class Folder:
    """A folder by its descriptor. Names in it are plain; nothing is followed. Use `with`, or close it."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, make: bool = False, own: bool = True) -> Folder:
        """Walk to a folder. make: what is missing of it, 0700 whatever the umask; what is there stays so.

        own: nobody but root and us may have a hand in it or in any folder on the way, as OpenSSH's
        StrictModes and systemd's safe paths demand it; a folder with the sticky bit on the way (/tmp) may be
        written by all, since what is ours in it is left alone. Otherwise links are not followed from the
        first folder on that others control: they could lead us to where they may not write. Raises
        UnsafePath and OSError.
        """
        given = os.path.join(os.getcwd(), os.fspath(path))
        fd = _walk(given, make, own)
        try:
            if own:
                _check(os.fstat(fd), given, last=True)
            return cls(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd), given)
        finally:
            os.close(fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def where(self, name: str) -> str:
        return os.path.join(self.path, name)

    # -- folders in it ---------------------------------------------------------------------------

    def folder(self, name: str, *, make: bool = False) -> Folder:
        """A folder of ours in it. make: where it is not there, 0700. Raises UnsafePath and OSError."""
        if make:
            with contextlib.suppress(FileExistsError):
                _make(self.fd, name)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            _check(os.fstat(fd), self.where(name), last=True)
        except BaseException:
            os.close(fd)
            raise
        return Folder(fd, self.where(name))

    def entries(self) -> Iterator[tuple[str, os.stat_result]]:
        """(name, lstat) of what is in it, sorted; what goes away meanwhile is left out."""
        for name in sorted(os.listdir(self.fd)):
            with contextlib.suppress(FileNotFoundError):
                yield name, self.stat(name)

    def stat(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def has(self, name: str) -> bool:
        try:
            self.stat(name)
        except OSError:
            return False
        return True

    # -- files in it -----------------------------------------------------------------------------

    def new(self, name: str) -> int:
        """A new file for writing, 0600: a descriptor. Raises FileExistsError where there is anything."""
        fd = os.open(name, _NEW, 0o600, dir_fd=self.fd)
        os.fchmod(fd, 0o600)  # a umask of 0777 leaves nothing of the mode
        return fd

    def opened(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A regular file that only root or we can have written: a descriptor. Raises UnsafePath, OSError."""
        fd = os.open(name, flags | _OLD, 0o600, dir_fd=self.fd)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise UnsafePath(self.where(name), f"it is {kind(status.st_mode)}", "remove it")
            _check(status, self.where(name), last=True)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def read(self, name: str, most: int) -> bytes:
        """The content of such a file. Raises also ValueError where it is longer than `most` bytes."""
        with os.fdopen(self.opened(name), "rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise ValueError(f"{self.where(name)} is longer than {most} bytes")
        return content

    def replace(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Write a file, 0600; the older one stays whole until the new one is. Raises OSError.

        durable: wait until it is on the disk.
        """
        scratch = self.scratch(name)
        try:
            with os.fdopen(self.new(scratch), "wb") as file:
                file.write(content)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            self.rename(scratch, name)
        except BaseException:
            self.remove(scratch)
            raise

    @staticmethod
    def scratch(name: str) -> str:
        """A name that nobody can know before us."""
        return f".{name.lstrip('.')}.{os.urandom(6).hex()}.tmp"

    def rename(self, name: str, to: str) -> None:
        os.rename(name, to, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def remove(self, name: str) -> None:
        """A file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def remove_all(self, name: str) -> None:
        """A folder with all that is in it, as far as it goes; links in it are removed, not followed."""
        import shutil  # it brings every compressor, and is rarely needed

        shutil.rmtree(name, ignore_errors=True, dir_fd=self.fd)

    def sync(self) -> None:
        """Make renames durable (fsync(2))."""
        os.fsync(self.fd)


def output(path: str | os.PathLike[str]) -> BinaryIO:
    """A file that the user named, for writing and unbuffered: 0600, its missing folders 0700.

    An older file of that name, or a link, is removed and never written to: the others that hold it open do
    not get what is written. /dev/stdout, /dev/stderr and /dev/fd/N are the descriptors that we were given;
    /dev/null and /dev/full are themselves. Anything else that is no file is refused: opening a FIFO waits for
    a reader, and who reads it is not known. Raises UnsafePath and OSError.
    """
    name = os.fspath(path)
    number = _stream(name)
    if number is not None:
        return os.fdopen(os.dup(number), "wb", buffering=0)
    if name in _SINKS:
        return open(name, "wb", buffering=0)
    parent, last = os.path.split(name)
    if not last or last in (".", ".."):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    with Folder.open(parent or ".", make=True, own=False) as folder:
        with contextlib.suppress(FileNotFoundError):
            mode = folder.stat(last).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
                remedy = "name a file; for another program: -o /dev/stdout | PROGRAM"
                raise UnsafePath(name, f"it is {kind(mode)}, not a file", remedy)
            folder.remove(last)
        return os.fdopen(folder.new(last), "wb", buffering=0)


def append(file: BinaryIO, content: bytes) -> None:
    """Write all of it to an unbuffered file, or nothing, as far as the file can be cut again.

    Raises OSError, and ValueError where it is closed.
    """
    left = memoryview(content)
    try:
        while left:
            left = left[file.write(left) or 0 :]
    except OSError:
        with contextlib.suppress(OSError):  # a pipe takes nothing back
            file.truncate(file.seek(len(left) - len(content), os.SEEK_CUR))
        raise


def existing(path: str | os.PathLike[str]) -> BinaryIO:
    """A file that the user named, for reading. What is no regular file is refused instead of waited for.

    Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"it is {kind(mode)}, not a file", os.fspath(path))
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def kind(mode: int) -> str:
    """What a name stands for, in words: "a FIFO"."""
    return _KINDS.get(stat.S_IFMT(mode), "no regular file")


def _stream(path: str) -> int | None:
    found = _STREAM.match(path)
    return int(found.group(1)) if found else _NAMED_STREAMS.get(path)


def _walk(path: str, make: bool, own: bool) -> int:
    """A descriptor (O_PATH) of the folder at an absolute path."""
    todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    at = os.open("/", _PATH | os.O_DIRECTORY)
    known, links, ours = ["/"], 0, True
    try:
        while todo:
            above = os.fstat(at)
            where = os.path.join(*known)
            if own:
                _check(above, where)
            ours = ours and not _hand(above)
            part = todo.pop()
            try:
                below = os.open(part, _PATH, dir_fd=at)
            except FileNotFoundError:
                if not make or part == "..":
                    raise
                _make(at, part)
                below = os.open(part, _PATH, dir_fd=at)
            status = os.fstat(below)
            if not stat.S_ISLNK(status.st_mode):
                os.close(at)
                at = below
                known = known[:-1] or ["/"] if part == ".." else [*known, part]
                continue
            try:
                _check_link(status, above, os.path.join(where, part), ours)
                to = os.readlink("", dir_fd=below)
            finally:
                os.close(below)
            links += 1
            todo += [one for one in reversed(to.split("/")) if one not in ("", ".")]
            if links > _MOST_LINKS or len(todo) > _MOST_PARTS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if to.startswith("/"):
                os.close(at)
                at = os.open("/", _PATH | os.O_DIRECTORY)
                known = ["/"]
        if not stat.S_ISDIR(os.fstat(at).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    except OSError as error:
        os.close(at)
        if error.filename is None or not os.path.isabs(os.fsdecode(error.filename)):
            error.filename = path
        raise
    return at


def _make(at: int, name: str) -> None:
    """A folder, 0700 whatever the umask and the ACLs of the one above say."""
    try:
        os.mkdir(name, 0o700, dir_fd=at)
    except FileExistsError:
        return  # somebody was quicker: it is looked at like any other
    fd = os.open(name, _PATH | os.O_DIRECTORY, dir_fd=at)
    try:
        if os.fstat(fd).st_uid == os.geteuid():
            os.chmod(f"/proc/self/fd/{fd}", 0o700)  # fchmod(2) refuses O_PATH, and 0 may not be opened
    finally:
        os.close(fd)


def _hand(status: os.stat_result, *, last: bool = False) -> str:
    """Who else has a hand in a folder or file; "" for nobody. last: the sticky bit does not help."""
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to user {status.st_uid}"
    if status.st_mode & _OTHERS and (last or not status.st_mode & stat.S_ISVTX):
        return "everybody may write it" if status.st_mode & stat.S_IWOTH else "its group may write it"
    return ""


def _check(status: os.stat_result, path: str, *, last: bool = False) -> None:
    hand = _hand(status, last=last)
    if not hand:
        return
    if status.st_uid not in (0, os.geteuid()):
        remedy = "name a folder in which only root can write"
    elif status.st_mode & stat.S_ISVTX:
        remedy = f"name a folder of its own in it, which is made: {os.path.join(path, 'NAME')}"
    else:
        remedy = f"chmod go-w {path}   (if nobody else has business there), or name another folder"
    raise UnsafePath(path, f"{path}: {hand}", remedy)


def _check_link(link: os.stat_result, above: os.stat_result, path: str, ours: bool) -> None:
    """A link counts where nobody but root and we can have put it (fs.protected_symlinks, and more)."""
    if not ours:
        why = "it is a link in a folder that others control"
    elif above.st_mode & _OTHERS and link.st_uid not in (0, os.geteuid()):
        why = f"it is a link of user {link.st_uid}"
    else:
        return
    raise UnsafePath(path, f"{path}: {why}", "name the folder that it leads to")
