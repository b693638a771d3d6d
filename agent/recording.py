# Owns the recording file format and its writer. The reader is agent/replay_source.py.
# Must not judge or show anything; knows events only through agent/codec.py.
from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO

from agent import __version__, codec
from agent.errors import OutputFailed
from probes import abi
from probes.events import Event, RecordsRead, Tick
from symbols.safefiles import UnsafePath, append, output

MAGIC = b"AFTERFREE-REC\0"
FORMAT_VERSION = 1
PREFIX = struct.Struct("<14sH")
"""The first 16 bytes: magic, format version."""
FRAME = struct.Struct("<IB")
"""Before every payload: its length in bytes, its FrameType. Every payload is a zlib stream."""

MAX_PAYLOAD = 16 << 20
MAX_INFLATED = 32 << 20
MAX_RECORDS = 1 << 16
"""Records in one RecordsRead frame: 4 MiB, which bounds the reader's memory."""

_EVENTS_BUFFER = 256 << 10
_RESERVE = 1 << 20
_LEVEL = 1  # zlib; the records of one slot differ little, higher levels cost four times the CPU for 10 %


class FrameType(IntEnum):
    HEADER = 1  # JSON object: versions, kernel, machine, options
    EVENTS = 2  # JSON lines, agent.codec
    RECORDS = 3  # one RecordsRead: the 64-byte records as the kernel wrote them
    ANSWERS = 4  # JSON lines [question, answer]: the symbols that findings used
    END = 5  # JSON object: totals, why it ended


def chunks(event: Event) -> Iterator[Event]:
    """`event`, or several RecordsRead of at most MAX_RECORDS records.

    The runner judges exactly these, so that a replay sees the same cuts as the live run.
    """
    if isinstance(event, RecordsRead) and len(event.records) > MAX_RECORDS:
        for start in range(0, len(event.records), MAX_RECORDS):
            yield RecordsRead(records=event.records[start : start + MAX_RECORDS])
    else:
        yield event


def private_file(path: Path) -> BinaryIO:
    """Open `path` as safefiles.output does: recordings hold process memory. Raises OutputFailed."""
    try:
        return output(path)
    except OSError as error:
        raise OutputFailed(
            f"cannot write {path}",
            detail=error.strerror or str(error),
            remedy=error.remedy
            if isinstance(error, UnsafePath)
            else "name a file in a folder that you may write to",
        ) from error


class RecordingWriter:
    """Writes one recording. Every method is total after `open`: a full disk ends the recording, says
    so once in `notice`, and the run goes on."""

    def __init__(self, file: BinaryIO, *, path: Path, max_size: int, options: Mapping[str, Any]) -> None:
        self.path = path
        self.notice = ""  # why recording stopped early; "" while it goes on
        self.events = 0
        self.records = 0
        self.dropped = 0  # events after it stopped early
        self.size = 0
        self._max_size = max_size
        self._file = file
        self._lines: list[str] = []
        self._buffered = 0
        self.full = False  # that was because there is no room
        self.broken = False  # the file itself failed: `notice` says how
        self._write(PREFIX.pack(MAGIC, FORMAT_VERSION))
        header = {
            "format": FORMAT_VERSION,
            "abi": abi.ABI_VERSION,
            "schema": codec.SCHEMA,
            "afterfree": __version__,
            "kernel": platform.release(),
            "machine": platform.machine(),
            "options": dict(options),
        }
        self._frame(FrameType.HEADER, _json(header).encode(), limit=0)

    @classmethod
    def open(
        cls, path: Path, *, max_size: int = 0, options: Mapping[str, Any] | None = None
    ) -> RecordingWriter:
        """Create `path`. max_size: bytes; 0 unbounded. Raises OutputFailed."""
        return cls(private_file(path), path=path, max_size=max_size, options=options or {})

    def write(self, event: Event) -> None:
        """Append one event (a RecordsRead of at most MAX_RECORDS records, see `chunks`)."""
        if self.notice:
            self.dropped += 1
            return
        if isinstance(event, RecordsRead):
            self._flush_events()
            pack = abi.RECORD.pack
            raw = b"".join([pack(*record) for record in event.records])
            if self._frame(FrameType.RECORDS, raw):
                self.records += len(event.records)
                self.events += 1
            return
        line = _json(codec.encode(event))
        self._lines.append(line)
        self._buffered += len(line) + 1
        if self._buffered >= _EVENTS_BUFFER or isinstance(event, Tick):
            # A tick a second bounds what a SIGKILL can cost.
            self._flush_events()
            self._sync(hard=False)

    def write_answers(self, answers: Iterable[tuple[Any, Any]]) -> None:
        """Keep the symbols that findings used, so that a replay needs no executable."""
        lines = [_json([question, answer]) for question, answer in answers]
        if lines:
            self._flush_events()
            # Still wanted when --max-size was reached: the reserve is for them.
            self._frame(FrameType.ANSWERS, "\n".join(lines).encode(), limit=self._max_size, force=True)

    def close(self, totals: Mapping[str, Any] | None = None) -> None:
        """Write the end marker with totals, and make it durable."""
        if self._file.closed:
            return
        self._flush_events()
        end = {
            "events": self.events,
            "records": self.records,
            "dropped": self.dropped,
            "stopped": self.notice,
            "totals": dict(totals or {}),
        }
        self._frame(FrameType.END, _json(end).encode(), limit=0, force=True)
        self._sync(hard=True)
        with contextlib.suppress(OSError):
            self._file.close()

    def _flush_events(self) -> None:
        if not self._lines:
            return
        lines, self._lines, self._buffered = self._lines, [], 0
        if self._frame(FrameType.EVENTS, "\n".join(lines).encode()):
            self.events += len(lines)
        else:
            self.dropped += len(lines)

    def _frame(self, kind: FrameType, raw: bytes, *, limit: int | None = None, force: bool = False) -> bool:
        if self.broken or (self.notice and not force):
            return False
        payload = zlib.compress(raw, _LEVEL)
        if len(payload) > MAX_PAYLOAD or len(raw) > MAX_INFLATED:
            self.notice = f"one event of {len(raw)} bytes is more than a frame holds"
            return False
        most = max(self._max_size - min(_RESERVE, self._max_size // 8), 1) if limit is None else limit
        if self._max_size and most and self.size + FRAME.size + len(payload) > most:
            if not self.notice:
                self.notice = f"the recording reached --max-size ({self._max_size} bytes)"
            return False
        return self._write(FRAME.pack(len(payload), kind) + payload)

    def _write(self, data: bytes) -> bool:
        """Whole or not at all, as far as the file can be cut: what is counted as written is there."""
        try:
            append(self._file, data)
        except (OSError, ValueError) as error:
            self._fail(error)
            return False
        self.size += len(data)
        return True

    def _fail(self, error: Exception) -> None:
        self.broken = True
        self.full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self.notice = self.notice or f"the recording cannot be written any more: {reason}"

    def _sync(self, *, hard: bool) -> None:
        if self.broken or self._file.closed:
            return
        try:
            self._file.flush()
            if hard:
                os.fsync(self._file.fileno())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # pipes and ttys cannot be synced
                self._fail(error)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
