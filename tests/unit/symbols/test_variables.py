"""Variables at a pc: every pointer that gdb can read in a core has the value that gdb reads."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from symbols.corefile import CoreFile
from symbols.image import Image
from symbols.modules import Modules, modules_of
from symbols.plan import Add, ArgSource, Deref, Role
from symbols.resolve import close_session, open_session, resolve
from symbols.unwind import Unwinder
from symbols.variables import Variable, Variables, evaluate
from tests.requirements import require_program
from tests.unit.symbols.builds import build_zig
from tests.unit.symbols.crashes import crash

# One row per physical frame: pointers of it and of the frames inlined into it.
_SCRIPT = """
import gdb, json
rows, row, frame = [], {{}}, gdb.newest_frame()
while frame is not None:
    block = frame.block() if frame.find_sal().symtab else None
    while block is not None and not block.is_static and not block.is_global:
        for symbol in block:
            if (symbol.is_variable or symbol.is_argument) and symbol.name not in row:
                value = symbol.value(frame)
                if value.type.strip_typedefs().code == gdb.TYPE_CODE_PTR and not value.is_optimized_out:
                    row[symbol.name] = int(value)
        if block.function is not None:
            break
        block = block.superblock
    if frame.type() != gdb.INLINE_FRAME:
        rows.append(row)
        row = {{}}
    frame = frame.older()
open({out!r}, "w").write(json.dumps(rows))
"""


def _by_gdb(core: Path, exe: Path, tmp: Path) -> list[dict[str, int]]:
    out, script = tmp / "variables.json", tmp / "variables.py"
    script.write_text(_SCRIPT.format(out=str(out)))
    command = [require_program("gdb"), "-nx", "-batch"]
    for text in ("set debuginfod enabled off", f"file {exe}", f"core-file {core}", f"source {script}"):
        command += ["-ex", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert out.exists(), done.stderr
    rows: list[dict[str, int]] = json.loads(out.read_text())
    return rows


@pytest.mark.parametrize("flags", [("-O0",), ("-O1",), ("-O2",), ("-O2", "-no-pie")], ids=" ".join)
def test_like_gdb(flags: tuple[str, ...], tmp_path: Path) -> None:
    one = crash(tmp_path, "stale", *flags)
    wanted = _by_gdb(one.core, one.exe, tmp_path)
    core = CoreFile(one.core)
    with Image(one.exe) as image:
        session = open_session(image)
        modules = Modules(modules_of(core.files, lambda path: image if path == str(one.exe) else None))
        trace = Unwinder(modules, core.memory).unwind(core.threads[0].registers)
        variables = Variables(session)
        compared = 0
        for row, frame in zip(wanted, trace.frames, strict=False):
            module = modules.find(frame.lookup)
            if module is None or module.image is None:
                break
            ours: dict[str, Variable] = {}
            for variable in variables.at(frame.lookup - module.bias):
                ours.setdefault(variable.name, variable)
            for name, value in row.items():
                if "at the function's entry" in ours[name].reason:
                    continue  # gdb asks the caller's call site
                assert ours[name].value(frame.registers, core.memory) == value, (name, frame)
                assert variables.pointee(ours[name].type) is not None
                compared += 1
        close_session(session)
    core.close()
    assert compared >= 2, "gdb itself reads too little to compare"


@pytest.mark.parametrize("mode", ["Debug", "ReleaseSafe", "ReleaseFast"])
def test_what_a_plan_reads_is_in_scope_at_its_sites(mode: str) -> None:
    """The plan found its arguments by another way: from the function, not from the address."""
    from symbols.profile import parse_profile
    from tests.unit.symbols.builds import ZIG_PROFILE

    exe = build_zig(mode)
    plan = resolve(exe, parse_profile(ZIG_PROFILE))
    compared = 0
    with Image(exe) as image:
        session = open_session(image)
        variables = Variables(session)
        for site in plan.sites:
            if site.role is Role.CREATE or site.note or site.argument not in ("ptr", "conn", "self"):
                continue
            found = [
                v for v in variables.at(site.address) if v.name == site.argument and v.source is not None
            ]
            if not found:
                continue  # unoptimized code: its home is not filled yet, the plan knows the register
            assert site.source in [v.source for v in found] or mode == "Debug", site
            assert all(variables.pointee(v.type) is not None for v in found)
            compared += 1
        close_session(session)
    assert compared


def test_a_variable_that_is_nowhere_has_a_reason(tmp_path: Path) -> None:
    one = crash(tmp_path, "stale", "-O2")
    with Image(one.exe) as image:
        session = open_session(image)
        variables = Variables(session)
        symbol = next(function for function in image.functions if function.name == "main")
        lost = [v for v in variables.at(symbol.address) if v.source is None]
        assert lost
        assert all(variable.reason for variable in lost)
        assert variables.at(0x1) == []
        close_session(session)


def test_sources_are_evaluated_step_by_step() -> None:
    memory = {0x1008: 0x2000, 0x2010: 0x77}

    def read(address: int, count: int) -> bytes | None:
        value = memory.get(address)
        return value.to_bytes(8, "little")[:count] if value is not None else None

    chain = ArgSource(register="rbx", steps=(Add(8), Deref(8), Add(0x10), Deref(4)))
    assert evaluate(chain, {"rbx": 0x1000}, read) == 0x77
    assert evaluate(chain, {"rbx": 0x3000}, read) is None
    assert evaluate(chain, {}, read) is None
    assert evaluate(ArgSource(constant=5), {}, read) == 5
    assert evaluate(ArgSource(register="rax", steps=(Add(-1),)), {"rax": 0}, read) == 0xFFFF_FFFF_FFFF_FFFF
