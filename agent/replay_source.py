# Owns reading recordings: an EventSource over a file that is trusted in nothing.
# Must not judge; memory stays bounded by one frame whatever the file says.
from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from agent import codec
from agent.errors import NotARecording, OtherVersion, RecordingDamaged, RecordingError, RecordingTruncated
from agent.recording import FORMAT_VERSION, FRAME, MAGIC, MAX_INFLATED, MAX_PAYLOAD, PREFIX, FrameType
from agent.shapes import ShapedLines
from probes import abi
from probes.events import Event, RecordsRead
from probes.records import StoredRecords
from symbols.safefiles import existing

_MAX_ANSWERS = 64 << 20


class RecordingSource:
    """Replays a recording: each `poll` yields the events of one frame, without root or kernel.

    A damaged or truncated file yields everything that is whole; the poll after that raises a
    RecordingError.
    """

    def __init__(self, file: BinaryIO, path: str) -> None:
        self.path = path
        self.header: dict[str, Any] = {}
        self.totals: dict[str, Any] = {}  # of the end marker, once read
        self.answers: dict[str, Any] = {}  # canonical question -> answer
        self._file = file
        self._offset = 0
        self._ended = False
        self._events = 0
        self._lines = ShapedLines()
        self._decoder = codec.Decoder()
        self._records = 0
        self._read_header()
        self._collect_answers()

    @classmethod
    def open(cls, path: str | Path) -> RecordingSource:
        """Raises RecordingError (NotARecording, OtherVersion, …) or OSError-derived messages."""
        try:
            file = existing(path)
        except OSError as error:
            raise RecordingError(
                f"cannot read the recording {path}",
                detail=error.strerror or str(error),
                remedy="afterfree record --exe PROGRAM -o FILE   (makes one)",
            ) from error
        try:
            return cls(file, str(path))
        except BaseException:
            file.close()
            raise

    @property
    def finished(self) -> bool:
        return self._ended

    def close(self) -> None:
        self._file.close()

    def poll(self, timeout: float) -> Iterator[Event]:  # noqa: ARG002 - a file never waits
        """Events of the next frame. Raises RecordingTruncated or RecordingDamaged at the bad place."""
        if self._ended:
            return
        kind, payload = self._next_frame()
        if kind == FrameType.RECORDS:
            yield self._records_read(payload)
        elif kind == FrameType.EVENTS:
            yield from self._events_of(payload)
        elif kind == FrameType.END:
            self._finish(payload)
        elif kind != FrameType.ANSWERS:
            raise self._damaged(f"a frame of type {kind} in the middle")

    def _read_header(self) -> None:
        prefix = self._file.read(PREFIX.size)
        if len(prefix) < PREFIX.size or not prefix.startswith(MAGIC):
            raise NotARecording(
                f"{self.path} is not a recording",
                detail="it is empty" if not prefix else "it does not begin with AFTERFREE-REC",
                remedy="afterfree record --exe PROGRAM -o FILE   (makes one)",
            )
        version = PREFIX.unpack(prefix)[1]
        if version != FORMAT_VERSION:
            raise self._other_version(
                f"the file has format {version}, this build reads format {FORMAT_VERSION}"
            )
        self._offset = PREFIX.size
        kind, payload = self._next_frame()
        if kind != FrameType.HEADER:
            raise self._damaged("the header is missing")
        header = self._object(payload)
        if header.get("abi") != abi.ABI_VERSION or header.get("schema") != codec.SCHEMA:
            raise self._other_version(
                f"it was written by afterfree {header.get('afterfree', '?')} with record layout "
                f"{header.get('abi', '?')}/{header.get('schema', '?')}, "
                f"this build reads {abi.ABI_VERSION}/{codec.SCHEMA}"
            )
        self.header = header

    def _other_version(self, detail: str) -> OtherVersion:
        return OtherVersion(
            f"{self.path} is a recording of another version",
            detail=detail,
            remedy="replay it with the version of afterfree that made it",
        )

    def _next_frame(self) -> tuple[int, bytes]:
        kind, length = self._frame_head()
        raw = self._file.read(length)
        if len(raw) < length:
            raise self._truncated(f"a frame of {length} bytes has only {len(raw)}")
        inflate = zlib.decompressobj()
        try:
            payload = inflate.decompress(raw, MAX_INFLATED)
        except zlib.error as error:
            raise self._damaged(f"a frame does not decompress: {error}") from error
        if not inflate.eof or inflate.unused_data:
            raise self._damaged("a frame decompresses to more than is allowed, or to less than it says")
        self._offset += FRAME.size + length
        return kind, payload

    def _frame_head(self) -> tuple[int, int]:
        head = self._file.read(FRAME.size)
        if len(head) < FRAME.size:
            raise self._truncated("the end marker is missing")
        length, kind = FRAME.unpack(head)
        if length > MAX_PAYLOAD:
            raise self._damaged(f"a frame claims {length} bytes")
        return kind, length

    def _records_read(self, payload: bytes) -> RecordsRead:
        if len(payload) % abi.RECORD.size:
            raise self._damaged(f"{len(payload)} bytes of records are not a multiple of {abi.RECORD.size}")
        records = StoredRecords(payload)
        self._events += 1
        self._records += len(records)
        return RecordsRead(records=records)

    def _events_of(self, payload: bytes) -> Iterator[Event]:
        decode = self._decoder.decode
        try:
            for value, shape in self._lines.values(payload):
                event = decode(value, shape)
                self._events += 1
                yield event
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"an event does not decode: {error}") from error

    def _object(self, payload: bytes) -> dict[str, Any]:
        try:
            value = json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"a frame is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise self._damaged("a frame is not a JSON object")
        return value

    def _finish(self, payload: bytes) -> None:
        self.totals = self._object(payload)
        if self.totals.get("events") != self._events or self.totals.get("records") != self._records:
            raise self._damaged(
                f"the end marker counts {self.totals.get('events')} events and "
                f"{self.totals.get('records')} records, the file holds {self._events} and {self._records}"
            )
        if self._file.read(1):
            raise self._damaged("there are bytes after the end marker")
        self._ended = True

    def _collect_answers(self) -> None:
        """Read ahead for the ANSWERS frames: findings need them before they come in the file.

        Only frame heads are read; what is wrong with the rest is for `poll` to say, in its place.
        """
        if not self._file.seekable():
            return
        start, used = self._offset, 0
        size = os.fstat(self._file.fileno()).st_size if hasattr(self._file, "fileno") else None
        try:
            while used < _MAX_ANSWERS:
                kind, length = self._frame_head()
                if kind == FrameType.END:
                    break
                if kind != FrameType.ANSWERS:
                    self._file.seek(length, os.SEEK_CUR)
                    if size is not None and self._file.tell() >= size:
                        break
                    continue
                self._file.seek(-FRAME.size, os.SEEK_CUR)
                payload = self._next_frame()[1]
                used += len(payload)
                self._keep_answers(payload)
        except RecordingError:
            pass
        finally:
            self._offset, self._ended = start, False
            self._file.seek(start)

    def _keep_answers(self, payload: bytes) -> None:
        for line in payload.split(b"\n"):
            try:
                question, answer = json.loads(line)
            except (ValueError, TypeError, RecursionError) as error:
                raise self._damaged(f"an answer does not decode: {error}") from error
            self.answers[json.dumps(question, separators=(",", ":"))] = answer

    def _truncated(self, detail: str) -> RecordingTruncated:
        self._ended = True
        return RecordingTruncated(
            f"{self.path} is truncated",
            detail=f"{detail}, at byte {self._offset}. Everything before that was replayed.",
            causes=("the recorder was killed", "the disk was full", "the copy was interrupted"),
            remedy="copy it again, or take the findings above as those of the first part",
            offset=self._offset,
        )

    def _damaged(self, detail: str) -> RecordingDamaged:
        self._ended = True
        return RecordingDamaged(
            f"{self.path} is damaged",
            detail=f"{detail}, at byte {self._offset}. Everything before that was replayed.",
            remedy="copy it again from where it was recorded",
            offset=self._offset,
        )
