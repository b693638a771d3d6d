"""A core of a small server's crash: explained, compared with what the program says; and bad cores."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path

import pytest

from agent.cli import run
from agent.forensics.explanation import Cause, Certainty, Explanation, Outcome, Topic
from agent.forensics.postmortem import CoreMismatch, explain_core
from symbols.errors import MalformedImage, NotElf, SymbolError
from tests.unit.symbols.builds import build_c
from tests.unit.symbols.crashes import Crash, crash

FLAGS = [("-O0",), ("-O2",), ("-O2", "-no-pie"), ("-O1", "-gdwarf-4"), ("-O3", "-fno-omit-frame-pointer")]


def _explained(one: Crash) -> Explanation:
    return explain_core(str(one.core), str(one.exe), profile=str(one.profile))


def _sentences(item: Explanation, topic: Topic) -> str:
    return " ".join(statement.text for statement in item.statements if statement.topic is topic)


@pytest.fixture(scope="module")
def stale(tmp_path_factory: pytest.TempPathFactory) -> Crash:
    return crash(tmp_path_factory.mktemp("stale"), "stale", "-O2")


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_a_null_session_of_a_freed_slot(flags: tuple[str, ...], tmp_path: Path) -> None:
    one = crash(tmp_path, "stale", *flags)
    item = _explained(one)
    assert (item.signal, item.field, item.offset) == (11, "session.state", 0x2F8)
    assert (item.slot, item.slot_field) == (one.slot, "u.session")
    assert item.function == "session_state"
    assert (item.cause, item.certainty) == (Cause.FREED_BEFORE_USE, Certainty.CONFIRMED)
    assert "2 slots and then ends" in _sentences(item, Topic.FREE_LIST)
    assert "number 2" in _sentences(item, Topic.FREE_LIST)
    assert "entry 1" in _sentences(item, Topic.DELIVERY)
    # The other connections' slots are found wherever the compiler kept a way to them.
    if "-O0" in flags:
        assert "5 other slots" in _sentences(item, Topic.CONNECTIONS)
    outcomes = {one.name: one.outcome for one in item.alternatives}
    assert outcomes["a pointer that was never initialised"] is Outcome.EXCLUDED
    assert outcomes["a recycled slot"] is Outcome.EXCLUDED
    assert outcomes["a double destroy"] is Outcome.UNLIKELY  # without a history it cannot be excluded
    # What a core cannot know is said.
    assert (item.closer, item.destroyer, item.steps) == (0, 0, ())
    assert "nothing was watching" in item.unknown[0]
    assert next(s for s in item.statements if s.topic is Topic.ORDER).certainty is Certainty.UNKNOWN


@pytest.mark.parametrize("flags", [("-O0",), ("-O2",)], ids=" ".join)
def test_a_ring_in_the_free_list(flags: tuple[str, ...], tmp_path: Path) -> None:
    one = crash(tmp_path, "twice", *flags)
    item = _explained(one)
    assert (item.signal, item.cause, item.rule) == (6, Cause.DESTROYED_TWICE, "double-destroy")
    assert f"comes back to {one.slot:#x}" in _sentences(item, Topic.FREE_LIST)
    outcomes = {one.name: one.outcome for one in item.alternatives}
    assert outcomes["a double destroy"] is Outcome.CAUSE


@pytest.mark.parametrize("flags", [("-O0",), ("-O2",)], ids=" ".join)
@pytest.mark.parametrize("shape", ["own_base", "null_base", "null_way", "lost_base"])
def test_a_load_whose_base_is_gone_blames_no_other_way(
    shape: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    """Whatever is left of the slot's address, no slot is made up of a constant of another way."""
    one = crash(tmp_path, shape, *flags)
    item = _explained(one)
    assert (item.signal, item.function, item.offset) == (11, shape, 0x2F8)
    assert (item.slot, item.slot_field) == (one.slot, "u.session")
    outcomes = {one.name: one.outcome for one in item.alternatives}
    sure = Outcome.EXCLUDED if shape in ("own_base", "null_base") else Outcome.UNLIKELY
    assert outcomes["a bad pointer from elsewhere"] is sure
    assert item.cause is Cause.FREED_BEFORE_USE


def test_without_file_backed_pages_the_code_comes_from_the_executable(stale: Crash, tmp_path: Path) -> None:
    """gdb's core holds no code at all; its instruction was still read."""
    assert "[rax + 0x2f8]" in _sentences(_explained(stale), Topic.FAULT)


def test_the_command(stale: Crash, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["postmortem", str(stale.core), "--exe", str(stale.exe), "--profile", str(stale.profile)]
    assert run(arguments) == 0
    text = capsys.readouterr().out
    assert f"slot {stale.slot:#x}" in text
    assert "session.state (offset 0x2f8)" in text
    assert len(text.splitlines()) < 60
    assert max(map(len, text.splitlines())) <= 110
    assert run([*arguments, "--format", "json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["schema"] == "afterfree.explanation/1"
    assert Explanation.from_json(value) == _explained(stale)


def test_another_build_of_the_program(stale: Crash, capsys: pytest.CaptureFixture[str]) -> None:
    other = build_c("-g", "-O1", source="crash.c")
    with pytest.raises(CoreMismatch, match=r"another build|does not say that it maps"):
        explain_core(str(stale.core), str(other), profile=str(stale.profile))
    command = ["postmortem", str(stale.core), "--exe", str(other), "--profile", str(stale.profile)]
    assert run(command) == 1
    assert "next" in capsys.readouterr().err


def test_the_executable_may_have_moved(stale: Crash, tmp_path: Path) -> None:
    moved = shutil.copy(stale.exe, tmp_path / "renamed")
    item = explain_core(str(stale.core), str(moved), profile=str(stale.profile))
    assert item.slot == stale.slot


@pytest.mark.parametrize("flags", [("-O2",), ("-O2", "-Wl,--build-id=none")], ids=["build-id", "none"])
def test_a_stripped_build_is_the_one_it_was_stripped_from(flags: tuple[str, ...], tmp_path: Path) -> None:
    one = crash(tmp_path, "stale", *flags, strip=True)
    item = _explained(one)
    assert (item.slot, item.slot_field, item.function) == (one.slot, "u.session", "session_state")
    other = build_c("-g", "-O1", *flags[1:], source="crash.c")
    with pytest.raises(CoreMismatch):
        explain_core(str(one.core), str(other), profile=str(one.profile))


def test_files_that_are_no_core(stale: Crash, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("not a core")
    for path in (text, stale.exe):
        with pytest.raises(NotElf):
            explain_core(str(path), str(stale.exe), profile=str(stale.profile))


@pytest.mark.parametrize(
    ("magic", "said"),
    [
        (b"\x28\xb5\x2f\xfd", "zstd -d"),
        (b"\x04\x22\x4d\x18", "lz4 -d"),
        (b"\x1f\x8b\x08", "gzip -dc"),
        (b"\xfd7zXZ\0", "xz -dc"),
        (b"BZh9", "bzip2 -dc"),
    ],
    ids=["zstd", "lz4", "gzip", "xz", "bzip2"],
)
def test_a_compressed_core_is_named_with_what_unpacks_it(
    magic: bytes, said: str, stale: Crash, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "core.packed"
    packed.write_bytes(magic + bytes(100))
    assert run(["postmortem", str(packed), "--exe", str(stale.exe), "--profile", str(stale.profile)]) == 1
    text = capsys.readouterr().err
    assert "compressed with" in text
    assert said in text


def test_a_truncated_core_says_so(stale: Crash, tmp_path: Path) -> None:
    raw = bytearray(stale.core.read_bytes())
    (phoff,), (count,) = struct.unpack_from("<Q", raw, 32), struct.unpack_from("<H", raw, 56)
    heads = [phoff + 56 * index for index in range(count)]
    loads = [at for at in heads if struct.unpack_from("<I", raw, at)[0] == 1]
    last = max(loads, key=lambda at: int(struct.unpack_from("<Q", raw, at + 8)[0]))
    # gdb writes the notes last, the kernel writes them first: the end is moved away, not cut off
    size = len(raw) - struct.unpack_from("<Q", raw, last + 8)[0] + 4096
    struct.pack_into("<QQ", raw, last + 32, size, size)
    cut = tmp_path / "core.cut"
    cut.write_bytes(raw)
    item = explain_core(str(cut), str(stale.exe), profile=str(stale.profile))
    assert f"truncated: it holds {len(raw)} of {len(raw) + 4096} bytes" in " ".join(item.unknown)
    assert "truncated" not in " ".join(_explained(stale).unknown)
    cut.write_bytes(raw[: phoff + 56 * count])
    with pytest.raises(SymbolError, match="truncated"):
        explain_core(str(cut), str(stale.exe), profile=str(stale.profile))
    cut.write_bytes(raw[: phoff + 56])
    with pytest.raises(SymbolError, match="cut off"):
        explain_core(str(cut), str(stale.exe), profile=str(stale.profile))


@pytest.mark.parametrize(("signal", "code"), [(0, 0), (19, 0), (15, 0), (11, 0), (11, -6)])
def test_no_fault_is_made_up_where_none_was(signal: int, code: int, stale: Crash, tmp_path: Path) -> None:
    """A core of a living process (gcore), and of one that somebody else ended."""
    raw = bytearray(stale.core.read_bytes())
    at, where = raw.index(b"CORE\0", 64), set()
    while at >= 0:  # elf_prstatus: pr_info, pr_cursig; siginfo: si_signo, si_errno, si_code
        kind = int.from_bytes(raw[at - 4 : at], "little")
        if kind in (1, 0x53494749):
            where.add(kind)
            raw[at + 8 : at + 12] = signal.to_bytes(4, "little")
        if kind == 1:
            raw[at + 20 : at + 22] = signal.to_bytes(2, "little")
        if kind == 0x53494749:
            raw[at + 16 : at + 20] = code.to_bytes(4, "little", signed=True)
        at = raw.find(b"CORE\0", at + 1)
    assert where == {1, 0x53494749}
    living = tmp_path / "core.living"
    living.write_bytes(raw)
    item = explain_core(str(living), str(stale.exe), profile=str(stale.profile))
    assert item.headline.startswith("no crash")
    assert (item.field, item.function, item.slot, item.cause) == ("", "", 0, Cause.UNKNOWN)
    assert "nothing faulted" in _sentences(item, Topic.FAULT) or "was sent" in _sentences(item, Topic.FAULT)
    assert not [sentence for sentence in item.unknown if "no registers" in sentence]


def test_damaged_cores_give_typed_errors_or_an_honest_answer(stale: Crash, tmp_path: Path) -> None:
    raw = stale.core.read_bytes()
    rng = random.Random(4)
    bad = tmp_path / "core.bad"
    outcomes = set()
    for attempt in range(60):
        data = bytearray(raw)
        if attempt % 3 == 0:
            del data[rng.randrange(64, len(data)) :]
        else:
            # headers and notes, where the structure is; and stacks and heap, where the pointers are
            limit = 8192 if attempt % 3 == 1 else len(data)
            for _ in range(rng.choice((1, 8, 64))):
                data[rng.randrange(16, limit)] = rng.randrange(256)
        bad.write_bytes(data)
        try:
            item = explain_core(str(bad), str(stale.exe), profile=str(stale.profile))
            outcomes.add(type(item).__name__)
        except SymbolError as error:
            outcomes.add(type(error).__name__)
    assert "Explanation" in outcomes
    assert outcomes & {"MalformedImage", "CoreMismatch", "NotElf"}


def test_a_core_without_threads(stale: Crash, tmp_path: Path) -> None:
    raw = bytearray(stale.core.read_bytes())
    at = raw.index(b"CORE\0", 64)
    while at >= 0:  # NT_PRSTATUS is type 1, behind the name's size and the descriptor's
        if raw[at - 4 : at] == b"\1\0\0\0":
            raw[at - 4] = 0x77
        at = raw.find(b"CORE\0", at + 1)
    bad = tmp_path / "core.blind"
    bad.write_bytes(raw)
    with pytest.raises(MalformedImage, match="no thread"):
        explain_core(str(bad), str(stale.exe), profile=str(stale.profile))
