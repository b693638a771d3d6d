"""A shape tells the types of a line, and hostile lines are told apart from those it was learnt of."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import codec
from agent.errors import RecordingDamaged
from agent.recording import FRAME, FrameType, RecordingWriter
from agent.replay_source import RecordingSource
from agent.shapes import ShapedLines
from probes.events import Event, Tick
from tests.unit.agent.correlator.playbook import life

NUMBERS = st.sampled_from([0, 1, -1, 12, 10**17, -(10**17), 10**18, 2**64, -(2**63), 2**70])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | st.sampled_from(["", "a", '"', "\\", "1", "[1]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)
LIFE = replace(life().added(10).delivered(20).closed(30).destroyed(40).stale_delivery(50), memory=b"\xaa" * 9)


def types(value: Any) -> Any:
    """What a decoder may rely on."""
    if isinstance(value, list):
        return [types(item) for item in value]
    if isinstance(value, dict):
        return {"items": len(value)}
    if type(value) is int:
        return "int" if abs(value) < 10**18 else "long"
    return type(value).__name__


def shaped(*values: Any) -> list[tuple[Any, bytes]]:
    text = "\n".join(json.dumps(value, separators=(",", ":")) for value in values)
    return list(ShapedLines().values(text.encode()))


@given(st.lists(JSON, min_size=2, max_size=6))
def test_values_of_one_shape_have_the_same_types(values: list[Any]) -> None:
    learnt: dict[bytes, Any] = {}
    for value, shape in shaped(*values):
        if shape:
            assert learnt.setdefault(shape, types(value)) == types(value)


def test_lines_of_our_own_have_shapes_and_most_the_same() -> None:
    lines = shaped(*[codec.encode(replace(LIFE, batch=batch, comm="x" * batch)) for batch in range(50)])
    assert len({shape for _, shape in lines}) == 1
    assert lines[0][1]


def _frames(path: Path, *frames: str) -> Path:
    writer = RecordingWriter.open(path)
    writer.close()
    whole = path.read_bytes()
    end = FRAME.size + FRAME.unpack_from(whole, len(whole) - _last_frame(whole))[0]
    body = b""
    for text in frames:
        packed = zlib.compress(text.encode())
        body += FRAME.pack(len(packed), FrameType.EVENTS) + packed
    path.write_bytes(whole[:-end] + body)
    return path


def _last_frame(whole: bytes) -> int:
    """Bytes of the END frame: the payload's length is told by its head."""
    return next(
        size
        for size in range(FRAME.size, len(whole))
        if struct.unpack_from("<IB", whole, len(whole) - size) == (size - FRAME.size, FrameType.END)
    )


def _read(path: Path) -> tuple[list[Event], str]:
    source = RecordingSource.open(path)
    found: list[Event] = []
    try:
        while True:
            found += source.poll(0)
    except RecordingDamaged as error:
        return found, error.detail
    finally:
        source.close()


def _line(event: Event) -> str:
    return json.dumps(codec.encode(event), separators=(",", ":"))


GOOD = _line(LIFE)


@pytest.mark.parametrize(
    "bad", ["[]", "true", "null", "1.5", "1e3", '"7"', "{}", str(2**64), str(-(2**63) - 1), "[1]"]
)
def test_a_wrong_type_among_thousands_of_right_ones_is_found(tmp_path: Path, bad: str) -> None:
    wrong = GOOD.replace(f",{LIFE.wait_exit},", f",{bad},", 1)
    assert wrong != GOOD
    frame = "\n".join([GOOD] * 100)
    found, detail = _read(_frames(tmp_path / "r", frame, frame, f"{GOOD}\n{wrong}\n{GOOD}"))
    assert found == [LIFE] * 201
    assert "does not decode" in detail


def test_lines_that_are_parts_of_values_are_no_events(tmp_path: Path) -> None:
    """Two lines that are one value, one line that is two: as many values as lines, each another's shape."""
    tick = _line(Tick(ts=5))
    assert tick == '["tick",[5]]'
    known = "\n".join([tick, GOOD] * 50)
    torn = "\n".join(['["tick",[5', "7]]", f"{tick},{GOOD}"])
    found, detail = _read(_frames(tmp_path / "r", known, torn))
    assert found == [Tick(ts=5), LIFE] * 50
    assert "does not decode" in detail


def test_what_is_learnt_is_bounded() -> None:
    lines = ShapedLines()
    for length in range(3000):
        list(lines.values(json.dumps([[0]] * length, separators=(",", ":")).encode()))
    assert len(lines._whole) <= 512
    assert max(map(len, lines._whole)) <= 1024
