# The C header against the Python decoder: the compiler is the judge.
from __future__ import annotations

import re
import shutil
import subprocess
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest

from probes import abi, bootstrap, session

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
NOT_CODES = {"AF_C_MAX", "AF_SLOT_BYTES"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Every size, offset and code of the header, as the C compiler sees them."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler is needed: apt-get install gcc"
    text = HEADER.read_text(encoding="utf-8")
    names = set(re.findall(r"^\s*#define (AF_[A-Z]+_\w+) ", text, re.MULTILINE))
    names |= set(re.findall(r"\b(AF_[A-Z]+[A-Z_]*) = \d+", text))
    lines = ["#include <stddef.h>", "#include <stdio.h>", "#include <linux/types.h>", f'#include "{HEADER}"']
    lines += ["int main(void) {"]
    lines += [f'printf("{name} %lld\\n", (long long){name});' for name in sorted(names)]
    for struct, mirror in abi.C_NAMES.items():
        lines.append(f'printf("{struct} %zu\\n", sizeof(struct {struct}));')
        for field in mirror._fields_:
            name = field[0].rstrip("_")
            lines.append(
                f'printf("{struct}.{field[0]} %zu\\n", offsetof(struct {struct}, {name}));'
                f'printf("{struct}.{field[0]}# %zu\\n", sizeof(((struct {struct} *)0)->{name}));'
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
    for struct, mirror in abi.C_NAMES.items():
        import ctypes

        if compiled[struct] != ctypes.sizeof(mirror):
            differences.append(f"sizeof {struct}: C {compiled[struct]}, Python {ctypes.sizeof(mirror)}")
        for field in mirror._fields_:
            ours = getattr(mirror, field[0])
            if (compiled[f"{struct}.{field[0]}"], compiled[f"{struct}.{field[0]}#"]) != (
                ours.offset,
                ours.size,
            ):
                differences.append(f"{struct}.{field[0]}")
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
    assert theirs == {member.name: int(member) for member in abi.Kind}


def test_scalar_limits_agree(compiled: dict[str, int]) -> None:
    assert compiled["AF_SLOT_BYTES"] == abi.SLOT_BYTES
    assert compiled["AF_C_MAX"] == abi.COUNTER_MAX >= len(abi.Counter)
    assert compiled["AF_CRASH_STACK"] == abi.CRASH_STACK_BYTES
    assert compiled["AF_STACK_REGS"] == len(abi.STACK_REGISTERS)
    assert compiled["AF_STACK_BYTES"] == abi.STACK_MEMORY_BYTES


def test_private_map_values_agree(tmp_path: Path) -> None:
    """The map values user space writes too (targets, fds) are declared in 10-maps.c, not in the header."""
    text = (HEADER.parent / "10-maps.c").read_text(encoding="utf-8")
    structs = "\n".join(
        match[0]
        for match in re.finditer(
            r"^struct af_(target|fd|slot_key|reg_key|fd_key|desc_key) \{.*?\};",
            text,
            re.MULTILINE | re.DOTALL,
        )
    )
    source = tmp_path / "m.c"
    source.write_text(
        "#include <stdio.h>\ntypedef unsigned long long u64; typedef unsigned u32; typedef int s32;\n"
        + structs
        + '\nint main(void) { printf("%zu %zu %zu %zu %zu %zu\\n", '
        "sizeof(struct af_target),"
        " sizeof(struct af_fd), sizeof(struct af_slot_key), sizeof(struct af_reg_key),"
        " sizeof(struct af_fd_key),"
        " sizeof(struct af_desc_key)); }",
        encoding="utf-8",
    )
    subprocess.run(["cc", "-o", str(tmp_path / "m"), str(source)], check=True)
    sizes = subprocess.run([str(tmp_path / "m")], check=True, capture_output=True, text=True).stdout.split()
    ours = [
        bootstrap.TARGET,
        bootstrap.FD,
        bootstrap.SLOT_KEY,
        bootstrap.REG_KEY,
        bootstrap.FD_KEY,
        bootstrap.DESC_KEY,
    ]
    assert [int(size) for size in sizes] == [layout.size for layout in ours]
    assert session.SIZES["fds"][1] == bootstrap.FD.size
    assert session.SIZES["targets"][1] == bootstrap.TARGET.size
