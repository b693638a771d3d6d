"""Go: functions that start again after growing their stack are one call, and one probe hit."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from symbols.plan import Role
from symbols.profile import parse_profile
from symbols.resolve import resolve
from tests.requirements import require_program
from tests.unit.symbols.builds import HERE

CALLS = 20


@pytest.mark.parametrize("flags", ["", "-N -l"])
def test_a_function_that_starts_again_is_probed_once(flags: str, tmp_path: Path) -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("go is not installed")
    shutil.copy(HERE / "programs" / "grows.go", tmp_path)
    env = os.environ | {"GO111MODULE": "off", "GOFLAGS": ""}
    command = [go, "build", f"-gcflags={flags}", "-o", "grows", "grows.go"]
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)
    profile = "name = 'go'\n[slot]\ndestroy = { function = 'main.release', slot = 'c' }"
    plan = resolve(tmp_path / "grows", parse_profile(profile))
    assert plan.complete(Role.DESTROY)
    (site,) = plan.sites
    assert site.address > site.ranges[0][0]
    script = tmp_path / "count.gdb"
    lines = ["set auto-load no", "set pagination off", "handle all nostop noprint pass"]
    lines += [f"break *{site.address:#x}", "commands", "silent", 'printf "freed\\n"', "continue", "end"]
    script.write_text("\n".join([*lines, "run", ""]))
    command = [require_program("gdb"), "-nx", "-batch", "-x", str(script), str(tmp_path / "grows")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "exited normally" in said, said
    assert said.count("freed") == CALLS
