# Owns the bundle format: the names in it, the manifest, packing, and opening one that comes from elsewhere.
# Must not explain or render. A bundle that is read is trusted in nothing.
from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from agent.errors import AgentError
from agent.forensics.layout import MANIFEST, SCHEMA, SUFFIX, sync_folder

MOST_BYTES = 1 << 30  # of everything in a bundle that is opened
MOST_FILES = 256
_MOST_TEXT = 64 << 20
_CHUNK = 1 << 20
_LEVEL = 6


class BadBundle(AgentError):
    """The file is no bundle, or a damaged or hostile one."""


def _bad(path: str, detail: str) -> BadBundle:
    return BadBundle(
        f"cannot read the bundle {path}",
        detail=detail,
        remedy="afterfree report BUNDLE.tar.zst   (as `afterfree watch` wrote it; a folder works as well)",
    )


def hash_of(file: BinaryIO) -> str:
    """SHA-256 of the rest of a file, hexadecimal."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def listing(folder: Path) -> dict[str, dict[str, Any]]:
    """{name: {sha256, size}} of every file in a bundle's folder but the manifest."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            with path.open("rb") as file:
                files[name] = {"sha256": hash_of(file), "size": path.stat().st_size}
    return files


def pack(folder: Path, target: Path) -> int:
    """Write a folder as `target` (.tar.zst, 0600), under its name only when it is whole. Returns bytes.

    The members lie in one directory that is named like the bundle. Raises OSError.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    root = target.name.removesuffix(SUFFIX)
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as raw:
            with (
                zstandard.ZstdCompressor(level=_LEVEL).stream_writer(raw, closefd=False) as packed,
                tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
            ):
                names = [MANIFEST, *(name for name in listing_names(folder) if name != MANIFEST)]
                for name in names:
                    _add(tar, folder / name, f"{root}/{name}")
            raw.flush()
            os.fsync(raw.fileno())
            size = raw.tell()
        os.rename(temporary, target)
        sync_folder(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return size


def listing_names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    with path.open("rb") as file:
        member = tarfile.TarInfo(name)
        member.size = os.fstat(file.fileno()).st_size
        member.mode = 0o600
        member.mtime = int(os.fstat(file.fileno()).st_mtime)
        tar.addfile(member, file)


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
        with path.open("rb") as file:
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
                raise _bad(str(path), f"it holds no {MANIFEST}")
            files = {name: folder / name for name in listing_names(folder)[:MOST_FILES]}
            if any(file.is_symlink() for file in files.values()):
                raise _bad(str(path), "it holds symbolic links")
        else:
            files = _unpack(given, scratch)
    except (OSError, tarfile.TarError, zstandard.ZstdError, EOFError) as error:
        raise _bad(str(path), str(error)) from error
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
    with (
        path.open("rb") as raw,
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
        with path.open("rb") as file:
            if not isinstance(entry, dict) or hash_of(file) != entry.get("sha256"):
                wrong.append(f"{name} is not what was written")
    return tuple(wrong)
