"""Where afterfree is called from, and with which variables: it works everywhere, and runs nobody else's code.

In our hands is every child, and the module path of the first process once our own first line runs. Not in
our hands is what Python does before that: with PYTHONPATH set and without -I it imports sitecustomize,
usercustomize and whatever the console script's own two lines name from there; `python -m agent.cli` without
-P imports `agent` from the current folder; PYTHONHOME without -I takes another standard library. So the first
process is started with -I where the variables are hostile, and what it hands on is what is tested; the
console script alone is tested in a hostile folder, and with a PYTHONPATH that it can still take off.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from agent.forensics import bundle, layout
from tests.integration.harness import server
from tests.targets.build import SOURCE_DIR, build

SCRIPT = Path(sys.executable).with_name("afterfree")
PROFILE = SOURCE_DIR / "cserver.toml"

PACKAGES = ("agent", "probes", "symbols", "tests", "elftools", "capstone", "bcc")
MODULES = (
    "sitecustomize", "usercustomize", "json", "click", "rich", "zstandard", "ctypes", "socket", "struct",
    "subprocess", "signal", "select", "hashlib", "tomllib", "runpy", "startup", "readline",
)  # fmt: skip
BY_PYTHON_ITSELF = {"sitecustomize", "usercustomize"}


@dataclass(frozen=True, slots=True)
class Trap:
    """A folder of modules that write down that they were executed, and by which process."""

    folder: Path
    marker: Path

    def sprung(self) -> list[tuple[str, int, str]]:
        """(module, process, its command line)"""
        if not self.marker.exists():
            return []
        rows = [row.split("\t", 2) for row in self.marker.read_text().splitlines()]
        return [(name, int(pid), command) for name, pid, command in rows]

    def set(self, *names: str) -> None:
        """A package for every name with a slash at its end, else a module."""
        for name in names:
            path = self.folder / (f"{name}__init__.py" if name.endswith("/") else f"{name}.py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                f"import os, sys\nwith open({str(self.marker)!r}, 'a') as marker:\n"
                f"    marker.write({name.rstrip('/')!r} + '\\t%d\\t%s\\n' % (os.getpid(), sys.orig_argv))\n"
            )

    def variables(self) -> dict[str, str]:
        """Every PYTHON* that names code, and some that change what Python does."""
        return {
            "PYTHONPATH": str(self.folder),
            "PYTHONSTARTUP": str(self.folder / "startup.py"),
            "PYTHONHOME": str(self.folder),
            "PYTHONUSERBASE": str(self.folder / "user"),
            "PYTHONPLATLIBDIR": "nowhere",
            "PYTHONINSPECT": "1",
            "PYTHONBREAKPOINT": "startup.breakpoint",
            "PYTHONWARNINGS": "error",
            "PYTHONIOENCODING": "utf-16",
            "PYTHONPYCACHEPREFIX": str(self.folder / "pycache"),
        }


def trap(folder: Path, *names: str) -> Trap:
    made = Trap(folder / "trap", folder / "marker")
    made.folder.mkdir(parents=True)
    made.set(*names)
    return made


@pytest.fixture
def everything(tmp_path: Path) -> Trap:
    made = trap(tmp_path, *(f"{name}/" for name in PACKAGES), *MODULES)
    made.set("probes/proc_helper", "probes/loader_main", "agent/symbolize_worker", "agent/cli")
    user = f"user/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages/usercustomize"
    made.set(user)
    (made.folder / user).with_name("evil.pth").write_text("import usercustomize\n")
    # what the kernel side is compiled from
    for name in ("abi.h", "linux/types.h", "bcc/helpers.h"):
        (made.folder / name).parent.mkdir(exist_ok=True)
        (made.folder / name).write_text("#error a file of the current folder was included\n")
    return made


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who runs afterfree from a folder, with variables."""

    first: Sequence[str]  # how the first process is started
    cwd: Path
    variables: Mapping[str, str]

    def run(self, *args: str, code: int = 0) -> str:
        """Standard output of a command that must work."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(
            [*self.first, *args],
            cwd=self.cwd,
            env={**env, **self.variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, f"{args} ended with {done.returncode}: {done.stderr}\n{done.stdout}"
        return done.stdout


@contextmanager
def small_server(tmp: Path) -> Iterator[int]:
    with server("gcc-O2", tmp, exe=build("cserver", "gcc-O2")) as target:
        yield target.pid


def every_command(caller: Caller, tmp: Path) -> None:
    """All nine; each one must have done its work."""
    caller = replace(caller, variables={**caller.variables, "TMPDIR": str(tmp)})  # of the demo's bundle
    demo = caller.run("demo")
    packed = re.search(r"afterfree report (/\S+\.tar\.zst)", demo)
    assert packed, demo
    assert "mini core of" in demo
    assert "getState" in caller.run("report", packed[1])
    (tmp / "bundle").mkdir()
    opened = bundle.open_bundle(Path(packed[1]), tmp / "bundle")
    exe = os.path.relpath(build("poolserver", "ReleaseSafe"), caller.cwd)  # what is named is found from here
    assert "getState" in caller.run("postmortem", str(opened.files[layout.CORE]), "--exe", exe)
    plan = json.loads(caller.run("symbols", exe, "--no-cache", "--format", "json"))
    assert plan["sites"]
    recording = tmp / "r.afrec"
    with small_server(tmp) as pid:
        profile = os.path.relpath(PROFILE, caller.cwd)
        target = ("--pid", str(pid), "--profile", profile, "--duration", "0.5")
        assert "1 target" in caller.run("watch", *target, "--no-bundles")
        assert "1 target" in caller.run("record", *target, "-o", str(recording))
        census = json.loads(caller.run("census", *target, "--format", "json"))
        assert census["processes"] == 1
    assert "1 target" in caller.run("replay", str(recording))
    assert json.loads(caller.run("census", str(recording), "--format", "json"))["processes"] == 1
    assert json.loads(caller.run("doctor", "--format", "json"))["ok"] is True


@pytest.mark.bpf
@pytest.mark.slow
def test_every_command_from_the_root_folder(tmp_path: Path) -> None:
    every_command(Caller([str(SCRIPT)], Path("/"), {}), tmp_path)


@pytest.mark.bpf
@pytest.mark.slow
def test_every_command_from_a_hostile_folder_with_hostile_variables(tmp_path: Path, everything: Trap) -> None:
    """Demo and doctor compile the kernel side in any case."""
    caller = Caller([sys.executable, "-I", str(SCRIPT)], everything.folder, everything.variables())
    every_command(caller, tmp_path)
    assert everything.sprung() == []


@pytest.mark.bpf
def test_the_console_script_in_a_hostile_folder(tmp_path: Path, everything: Trap) -> None:
    caller = Caller([str(SCRIPT)], everything.folder, {})
    with small_server(tmp_path) as pid:
        target = ("--pid", str(pid), "--profile", str(PROFILE), "--duration", "0.5")
        assert "1 target" in caller.run("watch", *target, "--bundles", str(tmp_path / "bundles"))
    assert everything.sprung() == []


@pytest.mark.bpf
def test_the_console_script_takes_a_hostile_path_off(tmp_path: Path) -> None:
    """What Python imports by itself at its start runs once, in the first process, and in no child."""
    made = trap(tmp_path, *(f"{name}/" for name in PACKAGES if name != "agent"), *MODULES)
    for name in ("signal", "struct", "select", "subprocess", "json", "socket", "ctypes", "hashlib", "runpy"):
        (made.folder / f"{name}.py").unlink()  # a .pth of the system may import any of these before us
    caller = Caller([str(SCRIPT)], made.folder, {"PYTHONPATH": f"{made.folder}{os.pathsep}"})
    with small_server(tmp_path) as pid:
        target = ("--pid", str(pid), "--profile", str(PROFILE), "--duration", "0.5")
        assert "1 target" in caller.run("watch", *target, "--no-bundles")
    sprung = made.sprung()
    assert {name for name, _, _ in sprung} <= BY_PYTHON_ITSELF
    assert all(str(SCRIPT) in command and "child_main" not in command for _, _, command in sprung), sprung
    assert len({pid for _, pid, _ in sprung}) == 1


@pytest.mark.bpf
def test_a_module_of_the_checkout_in_a_hostile_folder(tmp_path: Path, everything: Trap) -> None:
    """`python -P -m agent.cli`: without -P, Python takes `agent` from the current folder."""
    caller = Caller([sys.executable, "-P", "-m", "agent.cli"], everything.folder, {})
    assert json.loads(caller.run("symbols", str(build("poolserver", "ReleaseSafe")), "--format", "json"))
    assert everything.sprung() == []


def test_the_trap_works(everything: Trap) -> None:
    """What the tests above would see."""
    command = [sys.executable, "-c", "import probes.loader_main, json"]
    env = {**os.environ, "PYTHONPATH": str(everything.folder)}
    subprocess.run(command, cwd=everything.folder, env=env, check=True, timeout=60)
    names = {name for name, _, _ in everything.sprung()}
    assert {"sitecustomize", "probes", "probes/loader_main", "json"} <= names
