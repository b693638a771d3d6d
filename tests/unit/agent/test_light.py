"""What short commands load. Seconds depend on the machine; modules do not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from agent import __version__
from symbols.cache import PlanCache
from symbols.cached import resolve_cached
from tests.unit.symbols.builds import C_PROFILE, build_c

ROOT = Path(__file__).resolve().parents[3]
READERS = {
    "symbols.resolve",
    "symbols.dwarf",
    "symbols.lines",
    "symbols.cfi",
    "capstone",
    "elftools",
    "zstandard",
}


def loaded(code: str, *arguments: str) -> tuple[set[str], str]:
    """(modules that a fresh interpreter has loaded after the code, what it wrote before)."""
    text = f"import sys\nsys.argv = {['afterfree', *arguments]!r}\n{code}"
    text = f"import atexit, sys\natexit.register(lambda: print(sorted(sys.modules), file=sys.stderr))\n{text}"
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return set(json.loads(done.stderr.splitlines()[-1].replace("'", '"'))), done.stdout


MAIN = "from agent import entry\nentry.main()"


def test_the_version_is_said_without_what_reads_command_lines() -> None:
    modules, said = loaded(MAIN, "--version")
    assert said == f"afterfree {__version__}\n"
    assert modules.isdisjoint({"click", "rich", "agent.cli", "dataclasses"} - ambient())


def test_a_plan_is_shown_without_the_events_of_a_watch(tmp_path: Path) -> None:
    profile = tmp_path / "p.toml"
    profile.write_text(C_PROFILE)
    exe = build_c("-g", "-O2")
    code = f"from agent import cli\ncli.run(['symbols', {str(exe)!r}, '--profile', {str(profile)!r}])"
    modules, said = loaded(code)
    assert "conn_destroy" in said
    assert modules.isdisjoint(READERS | {"probes.events", "probes.session", "agent.correlator", "ctypes"})


def test_a_plan_that_is_kept_is_handed_out_without_any_reader(tmp_path: Path) -> None:
    profile = tmp_path / "p.toml"
    profile.write_text(C_PROFILE)
    exe = build_c("-g", "-O2")
    kept = resolve_cached(exe, profile, cache=PlanCache(folder=str(tmp_path)))
    code = (
        "import agent.symbolize_worker\n"
        "from symbols.cache import PlanCache\n"
        "from symbols.cached import resolve_cached\n"
        f"cache = PlanCache(folder={str(tmp_path)!r})\n"
        f"print(len(resolve_cached({str(exe)!r}, {str(profile)!r}, cache=cache).sites))"
    )
    modules, said = loaded(code)
    assert said == f"{len(kept.sites)}\n"
    assert modules.isdisjoint(READERS | {"agent.stack_worker"})


def ambient() -> set[str]:
    """What an interpreter of this environment loads by itself (an editable installation's finder)."""
    return loaded("")[0]


def test_a_watch_without_units_loads_no_compressor() -> None:
    """shutil brings them all: half a megabyte of each daemon."""
    code = "import agent.commands.watch, agent.supervisor\nfrom agent.units import Units\nUnits()"
    modules, _ = loaded(code)
    assert modules.isdisjoint({"shutil", "lzma", "bz2", "tempfile"} - ambient())


def test_nothing_that_stays_with_a_watch_loads_openssl() -> None:
    """3.4 MB of each process: worth it for a program's digest (symbols/image.py), not for names."""
    code = "import agent.commands.live, agent.symbolize_keeper, agent.symbolize_worker, probes.session"
    modules, _ = loaded(code)
    assert modules.isdisjoint({"hashlib", "_hashlib", "_ssl"} - ambient())
