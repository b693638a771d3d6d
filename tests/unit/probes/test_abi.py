# The C header against the Python decoder: the compiler is the judge.
from __future__ import annotations

import ctypes
import re
import shutil
import struct
import subprocess
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest

from probes import abi, bootstrap, progress, session

HEADER = Path(abi.__file__).parent / "bpf" / "abi.h"
PREFIXES: dict[str, type[IntEnum] | type[IntFlag]] = {
    "AF_C_": abi.Counter,
    "AF_SUSPECT_": abi.Suspect,
    "AF_SLOT_": abi.SlotState,
    "AF_REG_": abi.RegState,
    "AF_S_": abi.SlotFlag,
    "AF_R_": abi.RegFlag,
    "AF_F_": abi.RecordFlag,
    "AF_SIG_": abi.Signature,
    "AF_URGENT_": abi.UrgentType,
}
NOT_CODES = {"AF_C_MAX", "AF_SLOT_BYTES", "AF_SLOT_LINKS"}
FORMER_KINDS = {"ACCEPTED"}  # no program writes them any more; recordings of earlier versions have them


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Every size, offset and code of the header, as the C compiler sees them."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler is needed: apt-get install gcc"
    text = HEADER.read_text(encoding="utf-8")
    names = set(re.findall(r"^\s*#define (AF_[A-Z]+(?:_\w+)?) ", text, re.MULTILINE))
    names |= set(re.findall(r"\b(AF_[A-Z]+[A-Z_]*) = \d+", text))
    lines = ["#include <stddef.h>", "#include <stdio.h>", "#include <linux/types.h>", f'#include "{HEADER}"']
    lines += ["int main(void) {"]
    lines += [f'printf("{name} %lld\\n", (long long){name});' for name in sorted(names)]
    for kind, mirror in abi.C_NAMES.items():
        lines.append(f'printf("{kind} %zu\\n", sizeof(struct {kind}));')
        for field in mirror._fields_:
            name = field[0].rstrip("_")
            lines.append(
                f'printf("{kind}.{field[0]} %zu\\n", offsetof(struct {kind}, {name}));'
                f'printf("{kind}.{field[0]}# %zu\\n", sizeof(((struct {kind} *)0)->{name}));'
            )
    lines += ["return 0; }"]
    folder = tmp_path_factory.mktemp("abi")
    source, program = folder / "abi.c", folder / "abi"
    source.write_text("\n".join(lines), encoding="utf-8")
    subprocess.run([compiler, "-o", str(program), str(source)], check=True)
    said = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return {line.split()[0]: int(line.split()[1]) for line in said.splitlines()}


def test_every_struct_has_the_compilers_size_and_offsets(compiled: dict[str, int]) -> None:
    differences = []
    for kind, mirror in abi.C_NAMES.items():
        if compiled[kind] != ctypes.sizeof(mirror):
            differences.append(f"sizeof {kind}: C {compiled[kind]}, Python {ctypes.sizeof(mirror)}")
        for field in mirror._fields_:
            ours = getattr(mirror, field[0])
            if (compiled[f"{kind}.{field[0]}"], compiled[f"{kind}.{field[0]}#"]) != (
                ours.offset,
                ours.size,
            ):
                differences.append(f"{kind}.{field[0]}")
    assert not differences


def test_every_struct_of_the_header_has_a_mirror() -> None:
    declared = set(re.findall(r"^struct (af_\w+) \{", HEADER.read_text(encoding="utf-8"), re.MULTILINE))
    assert declared == set(abi.C_NAMES)


def test_the_record_format_is_the_record_struct(compiled: dict[str, int]) -> None:
    assert abi.RECORD.size == compiled["af_rec"] == 64
    assert tuple(field[0] for field in abi.Rec._fields_) == abi.Record._fields
    raw = bytes(abi.Rec(*range(1, 15)))
    assert abi.RECORD.unpack(raw) == tuple(range(1, 15))


@pytest.mark.parametrize("prefix", sorted(PREFIXES))
def test_codes_agree(compiled: dict[str, int], prefix: str) -> None:
    theirs = {
        name.removeprefix(prefix): value
        for name, value in compiled.items()
        if name.startswith(prefix) and name not in NOT_CODES
    }
    ours = {member.name: int(member) for member in PREFIXES[prefix]}
    assert theirs == ours


def test_kinds_agree() -> None:
    body = re.search(r"enum af_kind \{(.*?)\n\};", HEADER.read_text(encoding="utf-8"), re.DOTALL)
    assert body
    theirs = {name: int(value) for name, value in re.findall(r"AF_(\w+) = (\d+)", body[1])}
    ours = {member.name: int(member) for member in abi.Kind}
    assert theirs == {name: value for name, value in ours.items() if name not in FORMER_KINDS}
    assert not {ours[name] for name in FORMER_KINDS} & set(theirs.values()), "a former code has a new meaning"


def test_scalar_limits_agree(compiled: dict[str, int]) -> None:
    assert compiled["AF_ABI_VERSION"] == abi.ABI_VERSION
    assert compiled["AF_SLOT_BYTES"] == abi.SLOT_BYTES
    assert compiled["AF_SLOT_LINKS"] == abi.SLOT_LINKS
    assert compiled["AF_PATH"] == abi.PATH_BYTES
    assert compiled["AF_COMM"] == abi.COMM_BYTES
    assert compiled["AF_CRASH_SLOTS"] == abi.CRASH_SLOTS
    assert compiled["AF_CRASH_SLOT_BYTES"] == abi.CRASH_SLOT_BYTES
    assert compiled["AF_CRASH_EVENTS"] == abi.CRASH_EVENTS
    assert compiled["AF_CRASH_NEAR"] == abi.CRASH_NEAR_BYTES
    assert compiled["AF_CRASH_REGS"] == abi.CRASH_REGISTERS
    assert compiled["AF_CRASH_LINKS"] == abi.CRASH_LINKS
    assert compiled["AF_C_MAX"] == abi.COUNTER_MAX >= len(abi.Counter)
    assert compiled["AF_CRASH_STACK"] == abi.CRASH_STACK_BYTES
    assert compiled["AF_STACK_REGS"] == len(abi.STACK_REGISTERS)
    assert compiled["AF_STACK_BYTES"] == abi.STACK_MEMORY_BYTES


PRIVATE = {
    "af_target": (
        "armed",
        "epoch",
        "flags",
        "forks",
        "last_child",
        "forked_at",
        "not_judged",
        "spin_said",
        "answered",
        "unanswered",
    ),
    "af_slot_key": ("tgid", "epoch", "addr"),
    "af_fd_key": ("tgid", "epoch", "fd"),
    "af_reg_key": ("ep", "file", "fd", "gap"),
    "af_control": ("watch_since", "spin_quiet"),
    "af_settle_args": ("tgid_epoch", "addr"),
    "af_stack": ("ip",),
    "af_path_key": ("path",),
}
"""Structures of 10-maps.c that user space reads or writes, with their members in order."""


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Size of each, and offset and size of every member: what the compiler says."""
    text = (HEADER.parent / "10-maps.c").read_text(encoding="utf-8")
    defines = re.findall(r"^#define AF_(?:STACK_DEPTH) .*$", text, re.MULTILINE)
    structs = [
        re.search(rf"^struct {name} \{{.*?\}};", text, re.MULTILINE | re.DOTALL) for name in sorted(PRIVATE)
    ]
    lines = ["#include <stddef.h>", "#include <stdio.h>", "#include <linux/types.h>", f'#include "{HEADER}"']
    lines += ["typedef __u64 u64; typedef __u32 u32; typedef __s32 s32; typedef __s64 s64;", *defines]
    lines += [found[0] for found in structs if found]
    lines.append("int main(void) {")
    for name, members in PRIVATE.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        for member in members:
            lines.append(f'printf("{name}.{member} %zu\\n", offsetof(struct {name}, {member}));')
    lines.append("return 0; }")
    folder = tmp_path_factory.mktemp("private")
    (folder / "m.c").write_text("\n".join(lines), encoding="utf-8")
    subprocess.run(["cc", "-o", str(folder / "m"), str(folder / "m.c")], check=True)
    said = subprocess.run([str(folder / "m")], check=True, capture_output=True, text=True).stdout
    return {line.split()[0]: int(line.split()[1]) for line in said.splitlines()}


def test_private_map_keys_and_values_agree(private: dict[str, int]) -> None:
    """The map values that user space writes too are declared in 10-maps.c, not in the header."""
    assert private["af_target"] == bootstrap.TARGET.size == session.SIZES["targets"][1]
    assert private["af_slot_key"] == bootstrap.SLOT_KEY.size
    for name in ("slots", "objects", "inner"):
        assert session.SIZES[name][0] == private["af_slot_key"]
    assert private["af_fd_key"] == session.SIZES["numbers"][0] == 12
    assert private["af_reg_key"] == session.SIZES["regs"][0] == 24
    assert private["af_control"] == progress._CONTROL.size == session.SIZES["control"][1]
    assert private["af_settle_args"] == struct.calcsize("<QQ")
    assert private["af_stack"] == session.SIZES["stacks"][1]
    assert private["af_path_key"] == session.SIZES["exec_paths"][0]


def offsets(layout: struct.Struct) -> list[int]:
    """Where each item of a little-endian layout lies."""
    items = layout.format.removeprefix("<")
    return [struct.calcsize("<" + items[:count]) for count in range(len(items))]


def test_private_members_lie_where_user_space_writes_them(private: dict[str, int]) -> None:
    for name, layout in (
        ("af_target", bootstrap.TARGET),
        ("af_slot_key", bootstrap.SLOT_KEY),
        ("af_control", progress._CONTROL),
    ):
        assert [private[f"{name}.{member}"] for member in PRIVATE[name]] == offsets(layout), name
    for name in ("af_slot_key", "af_fd_key"):
        # a process's entries are found by the first eight bytes of the key
        assert (private[f"{name}.tgid"], private[f"{name}.epoch"]) == (0, 4)


def test_every_map_that_is_read_is_declared_with_these_sizes() -> None:
    text = (HEADER.parent / "10-maps.c").read_text(encoding="utf-8")
    tables = re.findall(r'BPF_F_TABLE\("(\w+)", ([\w ]+), ([\w ]+), (\w+),', text)
    key_and_value = {name: (key, value) for _kind, key, value, name in tables}
    simple = {"int": 4, "u32": 4, "s32": 4, "u64": 8}
    for name, (key_size, value_size) in session.SIZES.items():
        for kind, size in zip(key_and_value[name], (key_size, value_size), strict=True):
            if kind in simple:
                assert simple[kind] == size, name


def test_the_flags_of_a_target_agree() -> None:
    text = (HEADER.parent / "10-maps.c").read_text(encoding="utf-8")
    theirs = {name: int(value) for name, value in re.findall(r"#define AF_T_(\w+) (\d+)u", text)}
    assert theirs == {member.name: int(member) for member in abi.TargetFlag}


def test_an_epoch_is_made_alike_on_both_sides() -> None:
    """User space names the entries of a process that it attaches to, af_epoch those of one that starts."""
    text = (HEADER.parent / "60-process.c").read_text(encoding="utf-8")
    body = re.search(r"u32 af_epoch\(u64 (\w+)\)\s*\{\s*return ([^;]+);", text)
    assert body, "af_epoch has another form: compare it with bootstrap.epoch_of"
    assert body[2].replace(body[1], "now") in ("(u32)(now >> 10) | 1", "((u32)(now >> 10)) | 1")
    assert bootstrap.epoch_of(0) == 1
    assert bootstrap.epoch_of(1 << 50) <= 0xFFFF_FFFF
