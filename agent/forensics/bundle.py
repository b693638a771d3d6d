# Owns the bundle format: the names in it, the manifest, packing, and opening one that comes from elsewhere.
# Must not explain or render. A bundle that is read is trusted in nothing.
from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from agent.errors import AgentError
from agent.forensics.layout import MANIFEST, SCHEMA
from symbols.safefiles import append, existing

MOST_BYTES = 1 << 30  # of everything in a bundle that is opened
MOST_FILES = 256
_MOST_TEXT = 64 << 20
_CHUNK = 1 << 20
_LEVEL = 6


_ZSTD = b"\x28\xb5\x2f\xfd"  # a frame's magic number: RFC 8878, 3.1.1
_REMEDY = "afterfree report BUNDLE.tar.zst   (as `afterfree watch` wrote it; a folder works as well)"


class BadBundle(AgentError):
    """The file is no bundle, or a damaged or hostile one."""


def _bad(path: str, detail: str) -> BadBundle:
    return BadBundle(
        f"cannot read the bundle {path}",
        detail=detail,
        remedy=_REMEDY,
    )


def _no_bundle(path: str, detail: str) -> BadBundle:
    return BadBundle(f"not a bundle: {path}", detail=detail, remedy=_REMEDY)


def hash_of(file: BinaryIO) -> str:
    """SHA-256 of the rest of a file, hexadecimal."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


Content = bytes | int
"""Of one file in a bundle: itself, or a descriptor of a regular file, whose position does not count."""


def listing(files: Mapping[str, Content]) -> dict[str, dict[str, Any]]:
    """{name: {sha256, size}} of every file but the manifest."""
    found = {}
    for name, content in sorted(files.items()):
        if name != MANIFEST:
            with _reader(content) as file:
                found[name] = {"sha256": hash_of(file), "size": file.tell()}
    return found


def pack(files: Mapping[str, Content], out: BinaryIO, root: str) -> None:
    """Write a bundle (.tar.zst) into an unbuffered file; the manifest comes first. Raises OSError.

    root: the one directory in which the members lie; it is named like the bundle.
    """
    whole = cast("BinaryIO", _Whole(out))
    with (
        zstandard.ZstdCompressor(level=_LEVEL).stream_writer(whole, closefd=False) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in [MANIFEST, *(name for name in sorted(files) if name != MANIFEST)]:
            with _reader(files[name]) as file:
                member = tarfile.TarInfo(f"{root}/{name}")
                member.size = file.seek(0, os.SEEK_END)
                file.seek(0)
                member.mode = 0o600
                member.mtime = int(time.time())
                tar.addfile(member, file)


class _Whole(io.RawIOBase):
    """A file whose writes are whole or fail: a compressor does not look at how much was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        append(self._file, data)
        return len(data)


def _reader(content: Content) -> BinaryIO:
    if isinstance(content, bytes):
        return io.BytesIO(content)
    file = os.fdopen(os.dup(content), "rb")
    file.seek(0)
    return file


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An opened bundle: its manifest, and its files in memory or on disk."""

    path: str
    manifest: Mapping[str, Any]
    files: Mapping[str, Path] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()  # files whose content is not what the manifest says

    def text(self, name: str) -> str:
        """One of its text files; "" when it is not in it."""
        path = self.files.get(name)
        if path is None:
            return ""
        with existing(path) as file:
            return file.read(_MOST_TEXT).decode("utf-8", "backslashreplace")

    def value(self, name: str) -> Any:
        """One of its JSON files; None when it is not in it. Raises BadBundle."""
        text = self.text(name)
        if not text:
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _bad(self.path, f"{name} is no JSON: {error}") from error


def open_bundle(path: str | Path, scratch: Path) -> Bundle:
    """Open a .tar.zst (its members are written below `scratch`) or an unpacked folder. Raises BadBundle.

    Members may be plain files with plain names only; number and total size are limited.
    """
    given = Path(path)
    try:
        if given.is_dir():
            folder = given
            if not (folder / MANIFEST).is_file():  # not every folder is worth a walk through all of it
                raise _no_bundle(str(path), f"it holds no {MANIFEST}")
            files = {name: folder / name for name in _names(folder)[:MOST_FILES]}
            if any(file.is_symlink() for file in files.values()):
                raise _bad(str(path), "it holds symbolic links")
        else:
            files = _unpack(given, scratch)
    except OSError as error:
        raise _bad(str(path), error.strerror or str(error)) from error
    except (tarfile.TarError, zstandard.ZstdError, EOFError) as error:
        raise _bad(str(path), f"it is damaged or was cut off: {error}") from error
    found = Bundle(path=str(path), manifest={}, files=files)
    manifest = found.value(MANIFEST)
    if not isinstance(manifest, dict):
        raise _bad(str(path), f"it holds no {MANIFEST}")
    if manifest.get("schema") != SCHEMA:
        raise _bad(
            str(path), f"its format is {str(manifest.get('schema'))[:60]!r}, this build reads {SCHEMA}"
        )
    return Bundle(path=str(path), manifest=manifest, files=files, damaged=_damaged(manifest, files))


def _unpack(path: Path, scratch: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    left = MOST_BYTES
    with existing(path) as raw:
        if raw.read(len(_ZSTD)) != _ZSTD:
            raise _no_bundle(str(path), "it does not begin as a .tar.zst does")
    with (
        existing(path) as raw,
        zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(raw) as unpacked,
        tarfile.open(
            fileobj=io.BufferedReader(_Limited(unpacked, MOST_BYTES + (64 << 20))), mode="r|"
        ) as tar,
    ):
        for member in tar:
            if member.isdir():
                continue
            name = member.name.partition("/")[2]
            if not member.isfile() or not _plain(name):
                raise _bad(str(path), f"it holds {member.name[:80]!r}, which is no plain file")
            left -= member.size
            if left < 0 or len(files) >= MOST_FILES:
                raise _bad(str(path), f"it unpacks to more than {MOST_BYTES >> 20} MiB or {MOST_FILES} files")
            target = scratch / f"{len(files):03}"
            source = tar.extractfile(member)
            if source is None:
                raise _bad(str(path), f"{name} cannot be read")
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as out:
                while chunk := source.read(_CHUNK):
                    out.write(chunk)
            files[name] = target
    return files


def _plain(name: str) -> bool:
    parts = name.split("/")
    return 0 < len(parts) <= 2 and all(
        part and part not in (".", "..") and len(part) < 100 and all(c.isalnum() or c in "._-" for c in part)
        for part in parts
    )


class _Limited(io.RawIOBase):
    """At most so many bytes of a stream: a small file can unpack to any size."""

    def __init__(self, stream: Any, most: int) -> None:
        self._stream, self._left = stream, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(min(len(buffer), _CHUNK))
        self._left -= len(data)
        if self._left < 0:
            raise OSError("it unpacks to more than the limit")
        buffer[: len(data)] = data
        return len(data)


def _damaged(manifest: Mapping[str, Any], files: Mapping[str, Path]) -> tuple[str, ...]:
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        return ("manifest.json lists no files",)
    wrong = [f"{str(name)[:80]} is missing" for name in listed if name not in files]
    for name, path in files.items():
        if name == MANIFEST:
            continue
        entry = listed.get(name)
        with existing(path) as file:
            if not isinstance(entry, dict) or hash_of(file) != entry.get("sha256"):
                wrong.append(f"{name} is not what was written")
    return tuple(wrong)
