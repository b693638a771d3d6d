"""Where the kernel keeps things: hand-made BTF, broken BTF, this kernel's own, and tracepoint formats."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from probes import btf
from probes.btf import BadBtf, Btf, fields, kernel_offsets, member_offsets, tracepoint_offsets
from probes.errors import LoaderFailed
from symbols.cachefolder import CacheFolder

INT, POINTER, ARRAY, STRUCT, UNION, ENUM, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, ENUM64 = (
    1, 2, 3, 4, 5, 6, 13, 14, 15, 16, 17, 19,
)  # fmt: skip
Member = tuple[str, int, int]  # name, type number, bits from the beginning


class Blob:
    """A BTF writer (Documentation/bpf/btf.rst); types are numbered from 1 in the order they are added."""

    def __init__(self) -> None:
        self.text = b"\0"
        self.types = b""
        self.count = 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        at = len(self.text)
        self.text += text.encode() + b"\0"
        return at

    def add(self, kind: int, name: str = "", count: int = 0, size: int = 0, more: bytes = b"") -> int:
        self.types += struct.pack("<III", self.name(name), kind << 24 | count, size) + more
        self.count += 1
        return self.count

    def struct(self, name: str, *members: Member, kind: int = STRUCT, bitfields: bool = False) -> int:
        rows = b"".join(struct.pack("<III", self.name(text), of, bits) for text, of, bits in members)
        number = self.add(kind, name, len(members), 64, rows)
        if bitfields:  # kind_flag: bits 24 to 31 of a member's offset are its width
            at = len(self.types) - len(rows) - 8
            info = struct.unpack_from("<I", self.types, at)[0] | 1 << 31
            self.types = self.types[:at] + struct.pack("<I", info) + self.types[at + 4 :]
        return number

    def bytes(self) -> bytes:
        head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.text))
        return head + self.types + self.text


def every_other_kind(blob: Blob) -> None:
    """One of each kind whose length a reader must know to get over it."""
    blob.add(INT, "int", size=4, more=bytes(4))
    blob.add(POINTER, size=1)
    blob.add(ARRAY, more=bytes(12))
    blob.add(ENUM, "colour", 2, 4, bytes(16))
    blob.add(FUNC_PROTO, count=3, more=bytes(24))
    blob.add(VAR, "here", more=bytes(4))
    blob.add(DATASEC, ".bss", 2, more=bytes(24))
    blob.add(FLOAT, "double", size=8)
    blob.add(DECL_TAG, "tag", more=bytes(4))
    blob.add(ENUM64, "wide", 2, 8, bytes(24))


def kernel_like(count: str = "f_ref") -> Blob:
    """Every structure and member that the programs need, each at its own place. count: of references."""
    blob = Blob()
    every_other_kind(blob)
    wanted: dict[str, list[str]] = {}
    for structure, member in (*btf.MEMBERS.values(), ("file", count)):
        wanted.setdefault(structure, []).append(member)
    for number, (structure, members) in enumerate(wanted.items()):
        rows = [(member, 1, 64 * (10 * number + place)) for place, member in enumerate(members)]
        blob.struct(structure, *rows)
    return blob


def test_members_after_types_of_every_kind() -> None:
    blob = Blob()
    every_other_kind(blob)
    blob.struct("file", ("f_mode", 1, 0), ("f_ep", 1, 832))
    found = Btf(blob.bytes(), ["file"])
    assert (found.offset("file", "f_mode"), found.offset("file", "f_ep")) == (0, 104)


def test_members_of_anonymous_members_count_from_the_outermost() -> None:
    blob = Blob()
    inner = blob.struct("", ("a", 1, 0), ("deep", 1, 64))
    union = blob.struct("", ("b", 1, 0), ("", inner, 32), kind=UNION)
    blob.struct("epitem", ("rbn", 1, 0), ("", union, 192), ("ffd", 1, 320))
    found = Btf(blob.bytes(), ["epitem"])
    assert found.offset("epitem", "deep") == (192 + 32 + 64) // 8
    assert found.offset("epitem", "ffd") == 40


def test_a_named_member_keeps_its_members_to_itself() -> None:
    blob = Blob()
    inner = blob.struct("link", ("next", 1, 64))
    blob.struct("epitem", ("fllink", inner, 0))
    with pytest.raises(BadBtf, match=r"no epitem\.next"):
        Btf(blob.bytes(), ["epitem"]).offset("epitem", "next")


def test_a_bitfields_width_is_no_part_of_its_place() -> None:
    blob = Blob()
    blob.struct("file", ("flag", 1, 3 << 24 | 65), bitfields=True)
    assert Btf(blob.bytes(), ["file"]).offset("file", "flag") == 8


def test_a_name_that_only_begins_like_it_is_another() -> None:
    blob = Blob()
    blob.struct("file_lock", ("f_ep", 1, 0))
    blob.struct("file", ("f_ep_lock", 1, 0), ("f_ep", 1, 64))
    assert Btf(blob.bytes(), ["file"]).offset("file", "f_ep") == 8


@pytest.mark.parametrize(("structure", "member"), [("file", "nothing"), ("nothing", "f_ep")])
def test_what_is_not_there_is_named(structure: str, member: str) -> None:
    blob = Blob()
    blob.struct("file", ("f_ep", 1, 0))
    with pytest.raises(BadBtf, match=f"no {structure}.{member}"):
        Btf(blob.bytes(), ["file", "nothing"]).offset(structure, member)


def test_all_that_the_programs_need() -> None:
    offsets = member_offsets(kernel_like().bytes())
    assert offsets.keys() == {*btf.MEMBERS, *btf.COUNT}
    assert len({offsets[name] for name in (*btf.MEMBERS, "AF_FILE_COUNT")}) == len(btf.MEMBERS) + 1


@pytest.mark.parametrize(("member", "kind"), [("f_count", 0), ("f_ref", 1)])
def test_a_file_counts_its_references_in_one_of_two_forms(member: str, kind: int) -> None:
    """atomic_long_t f_count, or file_ref_t f_ref since 6.13."""
    offsets = member_offsets(kernel_like(member).bytes())
    assert offsets["AF_FILE_COUNT"] > 0
    assert offsets["AF_FILE_REF"] == kind


def test_a_kernel_whose_files_count_otherwise_can_still_be_asked() -> None:
    offsets = member_offsets(kernel_like("f_other").bytes())
    assert (offsets["AF_FILE_COUNT"], offsets["AF_FILE_REF"]) == (-1, 0)


def test_every_place_to_cut_it_gives_an_answer_or_an_error() -> None:
    whole = kernel_like().bytes()
    right = member_offsets(whole)
    for cut in range(len(whole)):
        try:
            assert member_offsets(whole[:cut]) == right
        except BadBtf:
            continue


@pytest.mark.parametrize("value", [0, 0xFF])
def test_every_byte_may_be_wrong(value: int) -> None:
    whole = kernel_like().bytes()
    for at in range(len(whole)):
        try:
            member_offsets(whole[:at] + bytes((value,)) + whole[at + 1 :])
        except BadBtf:
            continue


def test_an_anonymous_member_that_contains_itself_ends() -> None:
    blob = Blob()
    blob.struct("", ("", 1, 8), ("", 1, 8))
    blob.struct("file", ("", 1, 0))
    with pytest.raises(BadBtf):
        Btf(blob.bytes(), ["file"]).offset("file", "f_ep")


@pytest.mark.parametrize("data", [b"", b"\x9f\xeb", bytes(64), b"\xeb\x9f" + bytes(62)])
def test_what_is_no_btf(data: bytes) -> None:
    with pytest.raises(BadBtf):
        member_offsets(data)


def test_this_kernels_own() -> None:
    if not btf.VMLINUX.exists():
        pytest.skip(f"this kernel has no {btf.VMLINUX}")
    offsets = member_offsets(btf.VMLINUX.read_bytes())
    # facts of every kernel so far: struct epoll_filefd is {file, fd} behind the item's list nodes
    assert 0 < offsets["AF_ITEM_FFD"] < offsets["AF_ITEM_EP"] < 256
    assert offsets["AF_FDT_MAX"] == 0
    assert all(0 <= value < 16384 for value in offsets.values())


@pytest.fixture
def cache(tmp_path: Path) -> CacheFolder:
    return CacheFolder(magic=b"test\n", suffix=".btf", folder=str(tmp_path / "cache"))


def test_it_is_read_once_per_kernel(
    tmp_path: Path, cache: CacheFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    vmlinux = tmp_path / "vmlinux"
    whole = kernel_like().bytes()
    vmlinux.write_bytes(whole)
    monkeypatch.setattr(btf, "VMLINUX", vmlinux)
    first = kernel_offsets(cache)
    assert first == member_offsets(whole)
    vmlinux.write_bytes(bytes(len(whole)))
    assert kernel_offsets(cache) == first, "the cache answers while the kernel is the same"
    vmlinux.write_bytes(bytes(len(whole) + 1))
    assert kernel_offsets(cache) is None, "another kernel is another entry"


@pytest.mark.parametrize("entry", [b"{}", b"[1]", b"null", b"{", b'{"AF_FILE_EP": "x"}', b"\xff"])
def test_a_cache_entry_that_is_not_one_is_read_anew(
    entry: bytes, tmp_path: Path, cache: CacheFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(kernel_like().bytes())
    monkeypatch.setattr(btf, "VMLINUX", vmlinux)
    monkeypatch.setattr(CacheFolder, "get", lambda _self, _name: entry)
    assert kernel_offsets(cache) == member_offsets(vmlinux.read_bytes())


def test_a_kernel_that_cannot_be_asked(
    tmp_path: Path, cache: CacheFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No BTF, or one without file.f_ep (before 5.11): the programs are compiled to go without."""
    monkeypatch.setattr(btf, "VMLINUX", tmp_path / "none")
    assert kernel_offsets(cache) is None
    monkeypatch.setattr(btf, "kernel_offsets", lambda: None)
    monkeypatch.setattr(btf, "ROOTS", (tmp_path,))
    made = btf.definitions()
    assert "-DAF_ASK=0" in made
    assert not any(name in flag for flag in made for name in btf.MEMBERS)


def test_a_kernel_that_can_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict.fromkeys(btf.MEMBERS, 8)
    monkeypatch.setattr(btf, "kernel_offsets", lambda: known)
    monkeypatch.setattr(btf, "ROOTS", (tmp_path,))
    made = btf.definitions()
    assert {"-DAF_ASK=1", "-DAF_FILE_EP=8"} <= set(made)
    names = {flag.removeprefix("-D").split("=")[0] for flag in made}
    assert names == {"AF_ASK", *btf.MEMBERS, *btf.FIELDS}


FORMAT = """\
name: sched_process_exec
ID: 311
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:__data_loc char[] filename;	offset:8;	size:4;	signed:0;
	field:pid_t pid;	offset:12;	size:4;	signed:1;
	field:char comm[16];	offset:16;	size:16;	signed:0;
	field:const struct epoll_event * event;	offset:40;	size:8;	signed:0;

print fmt: "filename=%s pid=%d", __get_str(filename), REC->pid
"""


def test_the_fields_of_a_format() -> None:
    found = fields(FORMAT)
    assert found["filename"] == (8, 4)
    assert found["comm"] == (16, 16)
    assert found["event"] == (40, 8)
    assert fields("field:offset:;\n\xff" + "field:" * 100) == {}


@pytest.fixture
def tracefs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(btf, "ROOTS", (tmp_path / "none", tmp_path))
    return tmp_path


def describe(tracefs: Path, tracepoint: str, **places: tuple[int, int]) -> None:
    folder = tracefs / "events" / tracepoint
    folder.mkdir(parents=True, exist_ok=True)
    rows = (f"\tfield:long {name};\toffset:{at};\tsize:{size};\n" for name, (at, size) in places.items())
    (folder / "format").write_text("".join(rows))


def test_places_of_tracepoint_fields(tracefs: Path) -> None:
    describe(tracefs, "task/task_newtask", pid=(8, 4), clone_flags=(32, 8))
    offsets = tracepoint_offsets()
    assert (offsets["AF_TP_NEWTASK_PID"], offsets["AF_TP_NEWTASK_FLAGS"]) == (8, 32)
    assert offsets["AF_TP_FAULT_ADDRESS"] == 0, "0: this kernel has no such tracepoint"
    assert offsets.keys() == btf.FIELDS.keys()


@pytest.mark.parametrize(
    ("tracepoint", "places", "said"),
    [
        ("syscalls/sys_enter_close", {"fd": (24, 8)}, "sys_enter_close has fd at 24, not at 16"),
        ("syscalls/sys_enter_epoll_ctl", {"event": (48, 8)}, "sys_enter_epoll_ctl has event at 48"),
        ("syscalls/sys_exit_close", {"ret": (20, 8)}, "sys_exit_close has ret at 20"),
        ("task/task_newtask", {"pid": (8, 8), "clone_flags": (32, 8)}, "no field pid of 4 bytes"),
        ("signal/signal_generate", {"sig": (8, 4), "pid": (16, 4)}, "no field code of 4 bytes"),
    ],
)
def test_a_format_that_does_not_fit_is_refused(
    tracefs: Path, tracepoint: str, places: dict[str, tuple[int, int]], said: str
) -> None:
    describe(tracefs, tracepoint, **places)
    with pytest.raises(LoaderFailed) as caught:
        tracepoint_offsets()
    assert said in caught.value.title
    assert caught.value.remedy


def test_the_formats_of_this_kernel_fit() -> None:
    if not any((root / "events" / "task").is_dir() for root in btf.ROOTS):
        pytest.skip("tracefs is not mounted, or cannot be read")
    offsets = tracepoint_offsets()
    assert 0 < offsets["AF_TP_NEWTASK_PID"] < offsets["AF_TP_NEWTASK_FLAGS"]
