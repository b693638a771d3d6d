"""Recording and replay: lossless, bounded, and polite to every broken file."""

from __future__ import annotations

import json
import os
import struct
import typing
import zlib
from dataclasses import fields, is_dataclass, make_dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import codec, recording
from agent.errors import NotARecording, OtherVersion, RecordingDamaged, RecordingError, RecordingTruncated
from agent.recording import FRAME, MAGIC, PREFIX, FrameType, RecordingWriter
from agent.replay_source import RecordingSource
from probes import abi, events
from probes.abi import Record
from probes.events import Event, RecordsRead, Tick
from tests.disks import filled, small_disk
from tests.unit.agent.scenario import BATCH, WITNESSES

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
S32 = st.integers(-(2**31), 2**31 - 1)
TEXT = st.text(st.characters(exclude_categories=[]), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.tuples(
    U32, st.integers(0, 65535), st.integers(0, 65535), U64, U64, U64, U32, U32, U32, S32, S32, S32, U32, S32
)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """A strategy for one type hint of probes.events."""
    simple: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(-(2**63), 2**64 - 1),
        bool: st.booleans(),
        str: TEXT,
        bytes: st.binary(max_size=64),
        Any: JSON,
    }
    if hint in simple:
        return simple[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (UnionType, typing.Union):
        return st.none() | values(next(arg for arg in args if arg is not NoneType))
    if origin is tuple and args[-1] is not Ellipsis:
        return st.tuples(*map(values, args))
    if origin is tuple:
        return st.lists(values(args[0]), max_size=4).map(tuple)
    if origin is not None:
        return st.dictionaries(values(args[0]), values(args[1]), max_size=4)
    if issubclass(hint, IntFlag):
        return U32.map(hint)
    if issubclass(hint, IntEnum):
        return st.sampled_from(list(hint))
    if issubclass(hint, tuple):
        return st.tuples(*[U64] * len(hint._fields)).map(lambda row: hint(*row))
    assert is_dataclass(hint)
    hints = typing.get_type_hints(hint)
    return st.builds(hint, **{field.name: values(hints[field.name]) for field in fields(hint)})


EVENTS = st.one_of(
    *[values(kind) for kind in codec.TAGS.values()],
    st.lists(RECORDS, max_size=5).map(lambda rows: RecordsRead(records=tuple(rows))),
)


def write(path: Path, what: list[Event], **options: Any) -> RecordingWriter:
    writer = RecordingWriter.open(path, **options)
    for event in what:
        writer.write(event)
    writer.close({"findings": 0})
    return writer


def read(path: Path, into: list[Event] | None = None) -> list[Event]:
    source = RecordingSource.open(path)
    found = [] if into is None else into
    try:
        while not source.finished:
            found += source.poll(0)
    finally:
        source.close()
    return found


def test_every_event_type_has_a_form() -> None:
    stored = {*codec.TAGS.values(), RecordsRead}
    assert stored == set(typing.get_args(events.Event))


@given(st.lists(EVENTS, max_size=12))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, what: list[Event]) -> None:
    path = tmp_path_factory.mktemp("rec") / "r.afrec"
    write(path, what)
    assert read(path) == what


@given(EVENTS, st.data())
def test_a_truncated_file_replays_its_whole_frames(
    tmp_path_factory: pytest.TempPathFactory, event: Event, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("rec") / "r.afrec"
    write(path, [Tick(ts=1), event, Tick(ts=2), event])
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:cut])
    expected = [Tick(ts=1), event, Tick(ts=2), event]
    found: list[Event] = []
    with pytest.raises(RecordingError) as caught:
        read(path, found)
    assert found == expected[: len(found)]
    assert isinstance(caught.value, NotARecording | RecordingTruncated)
    assert caught.value.remedy


@given(st.data())
def test_garbage_is_refused_with_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("rec") / "r.afrec"
    write(path, [*WITNESSES, BATCH, Tick(ts=5)])
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(raw))
    try:
        read(path)
    except RecordingError as error:
        assert error.title  # noqa: PT017
        assert error.remedy  # noqa: PT017


def test_the_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "made" / "r.afrec"
    write(path, [])
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_an_existing_link_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    link = tmp_path / "r.afrec"
    link.symlink_to(victim)
    write(link, [])
    assert victim.read_text() == "precious"
    assert not link.is_symlink()


def test_max_size_ends_the_recording_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "r.afrec"
    noise = [
        RecordsRead(records=tuple(tuple(os.urandom(1)[0] for _ in range(14)) for _ in range(2000)))
        for _ in range(40)
    ]
    writer = write(path, list(noise), max_size=200_000)
    assert path.stat().st_size <= 200_000
    assert "--max-size" in writer.notice
    assert writer.dropped > 0
    source = RecordingSource.open(path)
    found = []
    while not source.finished:
        found += source.poll(0)
    assert found == noise[: len(found)]
    assert source.totals["dropped"] == writer.dropped
    assert "--max-size" in source.totals["stopped"]


def test_a_full_disk_is_said_once_and_the_run_goes_on() -> None:
    writer = RecordingWriter.open(Path("/dev/full"))
    for ts in range(100):
        writer.write(Tick(ts=ts))
    writer.close()
    assert "No space left" in writer.notice
    assert writer.broken
    assert writer.dropped > 0


def test_what_a_disk_that_fills_up_holds_is_what_was_counted(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        filled(disk, 100_000)
        path = disk / "r.afrec"
        writer = RecordingWriter.open(path)
        for _ in range(50):
            rows = tuple(tuple(os.urandom(1)[0] for _ in range(14)) for _ in range(2000))
            writer.write(RecordsRead(records=rows))
        writer.close()
        assert "No space left" in writer.notice
        assert writer.events
        assert writer.events + writer.dropped >= 49
        assert path.stat().st_size == writer.size
        source = RecordingSource.open(path)
        found: list[Event] = []
        with pytest.raises(RecordingTruncated):
            found.extend(event for _ in range(100) for event in source.poll(0))
        assert len(found) == writer.events


def test_other_format_version(tmp_path: Path) -> None:
    path = tmp_path / "r.afrec"
    path.write_bytes(PREFIX.pack(MAGIC, 99))
    with pytest.raises(OtherVersion, match="another version") as caught:
        RecordingSource.open(path)
    assert "99" in caught.value.detail


def test_other_record_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.afrec"
    write(path, [])
    monkeypatch.setattr(codec, "SCHEMA", "0" * 16)
    with pytest.raises(OtherVersion):
        RecordingSource.open(path)


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """(the header, what follows it)."""
    raw = path.read_bytes()
    length = FRAME.unpack_from(raw, PREFIX.size)[0]
    body = PREFIX.size + FRAME.size
    return json.loads(zlib.decompress(raw[body : body + length])), raw[body + length :]


@pytest.mark.parametrize("change", [{"abi": 1}, {"schema": "0123456789abcdef"}, {"abi": None}])
def test_a_recording_of_the_kernel_sides_first_version_is_refused_with_both_layouts(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    """The format of the file is the same; what its records and events mean is not."""
    path = tmp_path / "r.afrec"
    write(path, [*WITNESSES, BATCH])
    header, rest = header_of(path)
    header |= {"afterfree": "0.9.0"} | change
    payload = zlib.compress(json.dumps(header).encode())
    frame = FRAME.pack(len(payload), FrameType.HEADER) + payload
    path.write_bytes(PREFIX.pack(MAGIC, recording.FORMAT_VERSION) + frame + rest)
    with pytest.raises(OtherVersion, match="another version") as caught:
        RecordingSource.open(path)
    assert "afterfree 0.9.0" in caught.value.detail
    assert f"this build reads {abi.ABI_VERSION}/{codec.SCHEMA}" in caught.value.detail
    assert caught.value.remedy


def test_who_holds_a_description_survives_the_recording(tmp_path: Path) -> None:
    """(pid, fd, comm): items of different types."""
    check = events.FdinfoChecked(
        ts=1, tgid=2, epfd=3, fd=4, userdata=5, present=True, holders=((7, 8, "a b"), (9, 10, "\x1b"))
    )
    path = tmp_path / "r.afrec"
    write(path, [check])
    assert read(path) == [check]


@pytest.mark.parametrize("row", [[], [1], [1, 2], [1, 2, 3], [1, 2, "x", 4], ["x", 1, 2], "abc", None])
def test_a_holder_that_is_none_is_refused(row: Any) -> None:
    check = events.FdinfoChecked(ts=1, tgid=2, epfd=3, fd=4, userdata=5, present=True)
    tag, fields_ = codec.encode(check)
    with pytest.raises(codec.BadEvent):
        codec.decode([tag, [*fields_[:-1], [row]]])


@pytest.mark.parametrize("field", [("generation_guard", "int"), ("ino", "str")], ids=["new", "other type"])
def test_every_field_of_every_event_counts_for_the_layout(
    field: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build whose events differ in one field, even of a part, reads no recording of this one."""
    other = make_dataclass(
        "Registration", [(*field, None)], bases=(events.Registration,), frozen=True, kw_only=True
    )
    assert codec._fingerprint() == codec.SCHEMA
    monkeypatch.setattr(events, "Registration", other)
    assert codec._fingerprint() != codec.SCHEMA


def test_a_hostile_length_does_not_allocate(tmp_path: Path) -> None:
    path = tmp_path / "r.afrec"
    write(path, [])
    with path.open("ab"):
        pass
    raw = path.read_bytes()
    header_length = FRAME.unpack_from(raw, PREFIX.size)[0]
    head = raw[: PREFIX.size + FRAME.size + header_length]
    path.write_bytes(head + struct.pack("<IB", 0xFFFFFFFF, FrameType.EVENTS))
    with pytest.raises(RecordingDamaged, match="damaged"):
        read(path)


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    path = tmp_path / "r.afrec"
    write(path, [])
    raw = path.read_bytes()
    header_length = FRAME.unpack_from(raw, PREFIX.size)[0]
    head = raw[: PREFIX.size + FRAME.size + header_length]
    bomb = zlib.compress(bytes(recording.MAX_INFLATED + 1), 9)
    path.write_bytes(head + FRAME.pack(len(bomb), FrameType.RECORDS) + bomb)
    with pytest.raises(RecordingDamaged):
        read(path)


def test_totals_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "r.afrec"
    writer = RecordingWriter.open(path)
    writer.write(Tick(ts=1))
    writer.events += 1
    writer.close()
    with pytest.raises(RecordingDamaged, match="damaged"):
        read(path)


def test_answers_are_there_before_the_findings_that_need_them(tmp_path: Path) -> None:
    path = tmp_path / "r.afrec"
    writer = RecordingWriter.open(path)
    writer.write(Tick(ts=1))
    writer.write_answers([(["frames", "id", [5]], {"frames": []})])
    writer.write(Tick(ts=2))
    writer.close()
    source = RecordingSource.open(path)
    assert source.answers == {'["frames","id",[5]]': {"frames": []}}
    assert list(source.poll(0)) == [Tick(ts=1)]


def test_large_reads_are_cut_the_same_way_for_judging_and_for_recording(tmp_path: Path) -> None:
    record = Record(*range(14))
    big = RecordsRead(records=(record,) * (recording.MAX_RECORDS + 1))
    cut = list(recording.chunks(big))
    assert [len(part.records) for part in cut if isinstance(part, RecordsRead)] == [recording.MAX_RECORDS, 1]
    write(tmp_path / "r.afrec", cut)
    assert read(tmp_path / "r.afrec") == cut


def test_a_missing_file_names_the_way_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RecordingError) as caught:
        RecordingSource.open(tmp_path / "none")
    assert "afterfree record" in caught.value.remedy
