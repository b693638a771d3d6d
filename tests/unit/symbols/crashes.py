"""Crashes of programs/crash.c as core files, made by gdb; and what the program said of itself."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.requirements import require_program, skip_or_fail
from tests.unit.symbols.builds import build_c

PROFILE = """
name = "ccrash"
[slot]
type = "conn"
create = { function = "conn_create", returns = "slot" }
destroy = { function = "conn_destroy", slot = "conn" }
dispatch = { function = "session_state", object = "s" }
freelist_link = { offset = 0 }
"""


@dataclass(frozen=True, slots=True)
class Crash:
    core: Path
    exe: Path
    profile: Path
    slot: int
    pool: int


def crash(tmp: Path, how: str, *flags: str, strip: bool = False) -> Crash:
    """Run crash.c under gdb until it dies, and keep its core. how: "stale", "twice" or one of its shapes.

    strip: what runs is a stripped copy; `exe` is the file with the debug information.
    """
    exe, core, profile = build_c("-g", *flags, source="crash.c"), tmp / f"core.{how}", tmp / "profile.toml"
    profile.write_text(PROFILE)
    command = [require_program("gdb"), "-nx", "-batch"]
    for text in ("set debuginfod enabled off", f"run {how}", f"generate-core-file {core}", "kill"):
        command += ["-ex", text]
    ran = exe
    if strip:
        ran = tmp / "stripped"
        subprocess.run([require_program("strip"), "-o", str(ran), str(exe)], check=True)
    done = subprocess.run([*command, str(ran)], capture_output=True, text=True, timeout=60)
    found = re.search(r"slot=(0x[0-9a-f]+) pool=(0x[0-9a-f]+)", done.stdout)
    if not core.exists():
        skip_or_fail(f"permission to run a program under gdb: {done.stderr[-200:]}")
    assert found is not None, done.stdout
    return Crash(core, exe, profile, int(found[1], 16), int(found[2], 16))
