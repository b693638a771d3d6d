"""Layouts of C, C++, Rust and Zig types against gdb's `ptype /o`, leaf by leaf; bit-fields decoded."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from symbols.image import Image
from symbols.types import Type, Types, Value
from tests.requirements import require_program
from tests.unit.symbols.builds import build_c, build_rust, build_zig

Leaf = tuple[str, int, int, int]  # name, offset, first bit, size of its type
ROW = re.compile(r"^/\*\s+(?:(\d+)(?::\s*(\d+))?\s+\|)?\s*(\d+) \*/\s+(.*)$")


def ptype(exe: Path, name: str) -> tuple[set[Leaf], int]:
    """gdb's leaves of a type and its size. In the C language, whose output has every offset."""
    commands = ("set auto-load no", "set print type methods off", "set language c++", f"ptype /o {name}")
    if "zig" in exe.name or "rustc" in exe.name:
        commands = ("set auto-load no", "set language c", f"ptype /o {name}")
    command = [require_program("gdb"), "-nx", "-batch"]
    for text in commands:
        command += ["-ex", text]
    said = subprocess.run([*command, str(exe)], capture_output=True, text=True, timeout=60)
    leaves: set[Leaf] = set()
    starts, size = [0], 0
    for line in said.stdout.splitlines():
        total = re.search(r"/\* total size(?: \(bytes\))?:\s+(\d+)", line)
        row = ROW.match(line)
        if total:
            size = int(total[1])
        elif line.startswith("/* offset"):
            continue
        elif row:
            offset = int(row[1]) if row[1] else starts[-1]
            if row[4].endswith("{"):
                starts.append(offset)
            else:
                leaves.add((_name(row[4]), offset, int(row[2] or 0), int(row[3])))
        elif line.strip().startswith("}") and len(starts) > 1:
            starts.pop()
    assert leaves, said.stdout + said.stderr
    return leaves, size


def _name(declaration: str) -> str:
    text = declaration.rstrip(";")
    called = re.search(r"\(\*(\w+)\)", text)
    if called:
        return called[1]
    return re.sub(r"(\s*:\s*\d+|(\[\d*\])+)$", "", text).split()[-1].lstrip("*&")


def ours(types: Types, kind: Type, base: int = 0) -> set[Leaf]:
    """The same of our reading; tags of tagged unions, base classes and vtable pointers apart."""
    leaves: set[Leaf] = set()
    for member in types.members(kind):
        at = base + member.offset
        if member.base or member.name.startswith("_vptr"):
            continue
        if member.bits or member.type.kind not in ("struct", "union", "tagged"):
            leaves.add((member.name, at, member.bit, member.type.size))
        else:
            leaves |= ours(types, member.type, at)
    tag = types.tag_of(kind)
    if tag is not None and tag.name == "tag":  # Zig's is a field; Rust's has no name
        leaves.add((tag.name, base + tag.offset, 0, tag.type.size))
    return leaves


Build = Callable[[], Path]
Case = tuple[str, Build, list[tuple[str, str]]]  # label, build, (gdb's name, ours) of the types

CXX = ["Bits", "Base", "Derived", "Packed", "Box<int, 3>"]


def _cxx(compiler: str, *flags: str) -> Case:
    def build() -> Path:
        return build_c("-g", *flags, compiler=compiler, source="shapes.cpp")

    return f"{compiler} {' '.join(flags)}", build, [(name, name) for name in CXX]


def _zig(mode: str) -> Case:
    return f"zig {mode}", lambda: build_zig(mode, "shapes.zig"), [("'shapes.slot'", "shapes.Slot")]


CASES: list[Case] = [
    *(
        _cxx(compiler, *flags)
        for compiler in ("g++", "clang++")
        for flags in (("-O0", "-gdwarf-5"), ("-O2", "-gdwarf-4"), ("-O0", "-gdwarf-3"))
    ),
    ("gcc", lambda: build_c("-g", "-O2"), [("struct conn", "conn"), ("struct session", "session")]),
    ("rustc", lambda: build_rust(source="shapes.rs"), [("shapes::Slot", "Slot"), ("shapes::Shape", "Shape")]),
    *(_zig(mode) for mode in ("ReleaseSafe", "ReleaseSmall")),
]


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_like_ptype(case: Case) -> None:
    _label, build, names = case
    exe = build()
    with Image(exe) as image:
        types = Types(image)
        for theirs, mine in names:
            kind = types.find(mine.replace("[", "?"))
            assert kind is not None, mine
            leaves, size = ptype(exe, theirs)
            assert (ours(types, kind), kind.size) == (leaves, size), mine


def test_zigs_own_backend() -> None:
    """gdb sees no slices, optionals, tags and error unions there: what it sees agrees, we see the rest."""
    exe = build_zig("Debug", "shapes.zig")
    with Image(exe) as image:
        types = Types(image)
        slot = types.find("Slot")  # a type is named by its declaration, with LLVM by its whole path
        assert slot is not None
        mine = {(name, offset) for name, offset, _bit, _size in ours(types, slot)}
        leaves, size = ptype(exe, "'shapes.slot'")
        assert {(name, offset) for name, offset, _bit, _size in leaves} <= mine
        assert slot.size == size
        members = {member.name: member for member in types.members(slot)}
        assert [m.name for m in types.members(members["name"].type)] == ["ptr", "len"]
        flags = members["flags"]
        fields = types.members(flags.type)
        assert [(m.offset, m.bit, m.bits) for m in fields] == [(0, 0, 3), (0, 3, 5), (1, 0, 1), (1, 1, 7)]
        raw = (1 | (-2 & 0x1F) << 3 | 1 << 8 | 5 << 9).to_bytes(2, "little")
        tree = types.decode(flags.type, raw)
        assert [child.text for child in tree.children] == ["1", "-2", "true", "5"]


def _by_name(value: Value) -> dict[str, Value]:
    return {child.name: child for child in value.children}


@pytest.mark.parametrize("version", ["-gdwarf-3", "-gdwarf-5"])
def test_bit_fields_are_decoded(version: str) -> None:
    with Image(build_c("-g", version, "-O0", compiler="g++", source="shapes.cpp")) as image:
        types = Types(image)
        bits = types.find("Bits")
        assert bits is not None
        # a = 5, b = -2, c = 0x123456789a, d = 7, e = 1, f = 0, g = green
        word = 5 | (0b11110 << 3) | 0x123456789A << 8
        raw = word.to_bytes(6, "little") + bytes([7, 0b01000001]) + b"\xff\xff" + bytes(6)
        fields = _by_name(types.decode(bits, raw))
        assert {name: value.text for name, value in fields.items()} == {
            "a": "5",
            "b": "-2",
            "c": "0x123456789a",
            "d": "7",
            "e": "true",
            "f": "false",
            "g": ".green",
            "h": "-1",
        }
        assert _by_name(types.decode(bits, b"\xff"))["c"].text == "?"
        assert types.field_at(bits, 3) == "c"
        derived = types.find("Derived")
        assert derived is not None
        assert types.field_at(derived, 8) == "Base.id"
        assert types.field_at(derived, 26) == "bits.c"
        assert types.field_at(derived, 44) == "box.items[1]"
        assert any(leaf.path == "bits.c" and leaf.size == 5 for leaf in types.leaves(derived))


def test_zig_optionals_and_slices_are_decoded() -> None:
    with Image(build_zig("ReleaseSafe", "shapes.zig")) as image:
        types = Types(image)
        slot = types.find("shapes.Slot")
        assert slot is not None
        offsets = {member.name: member.offset for member in types.members(slot)}
        raw = bytearray(slot.size)
        fields = _by_name(types.decode(slot, bytes(raw)))
        assert fields["maybe"].text == fields["next"].text == "null"
        raw[offsets["maybe"]] = 9
        raw[offsets["maybe"] + 4] = 1
        raw[offsets["next"]] = 0x40
        raw[offsets["name"] + 8] = 3
        fields = _by_name(types.decode(slot, bytes(raw)))
        assert fields["next"].text == "0x40"
        assert [child.text for child in fields["maybe"].children] == ["9", "1"]
        assert [child.text for child in fields["name"].children] == ["0x0", "3"]
        assert types.field_at(slot, offsets["name"] + 8) == "name.len"


def test_rust_enums_are_decoded() -> None:
    with Image(build_rust(source="shapes.rs")) as image:
        types = Types(image)
        shape = types.find("Shape")
        assert shape is not None
        alternatives = {member.name: member for member in types.members(shape)}
        tag = types.tag_of(shape)
        assert tag is not None
        rect = alternatives["Rect"]
        raw = bytearray(shape.size)
        raw[tag.offset] = rect.tag or 0
        raw[2], raw[4] = 7, 8
        chosen = types.decode(shape, bytes(raw)).children[-1]
        assert chosen.name == "Rect"
        assert sorted(child.text for child in chosen.children) == ["7", "8"]
