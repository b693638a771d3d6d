"""Arguments that are computed, or known at the function's entry only: gdb stops at the plan's addresses, and
the sources evaluated there give what the program itself says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from symbols.plan import LOAD_BIAS, Apply, ProbePlan, Role
from symbols.profile import parse_profile
from symbols.resolve import resolve
from symbols.serial import plan_to_json
from tests.unit.symbols import evaluate
from tests.unit.symbols.builds import build_c

PROFILE = """
name = "computed"
[slot]
type = "conn"
destroy = { function = "conn_destroy", slot = "c" }
freelist_link = { offset = 0 }
"""

SCRIPT = """
import gdb, json
exec(open({evaluate!r}).read())
for line in ("pagination off", "confirm off", "startup-with-shell off", "disable-randomization on"):
    gdb.execute("set " + line)
plan = json.load(open({plan!r}))
log, kept = open({log!r}, "w"), {{}}
gdb.execute("starti")
bias = 0
if plan["pie"]:
    rows = gdb.execute("info proc mappings", to_string=True).splitlines()
    bias = int(next(row for row in rows if row.strip().endswith(plan["image"])).split()[0], 16)
def read(source, entry=None):
    frame = gdb.newest_frame()
    register = lambda name: bias if name == "bias" else int(frame.read_register(name)) & M
    memory = lambda at, size: gdb.selected_inferior().read_memory(at, size).tobytes()
    return value_of(source, register, memory, entry)
class Entry(gdb.Breakpoint):
    def stop(self):
        kept[self.site["index"], read(self.site["frame"])] = read(self.site["value"])
        return False
class Site(gdb.Breakpoint):
    def stop(self):
        site = self.site
        entry = kept[site["entry"], read(site["frame"])] if site["entry"] is not None else None
        log.write("%d %d\\n" % (site["index"], read(site["source"], entry)))
        log.flush()
        return False
for kind, sites in ((Entry, plan["entries"]), (Site, plan["sites"])):
    for site in sites:
        made = kind("*%#x" % (site["address"] + bias))
        made.site = site
gdb.execute("continue")
"""


def seen_and_said(exe: Path, plan: ProbePlan, tmp: Path) -> tuple[list[int], list[int]]:
    """(what the destroy sites gave, what the program printed), each in order of value."""
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not installed")
    script, log, data = tmp / "sites.py", tmp / "log", tmp / "plan.json"
    data.write_text(json.dumps(plan_to_json(plan)))
    script.write_text(SCRIPT.format(evaluate=evaluate.__file__, plan=str(data), log=str(log)))
    command = ["gdb", "-nx", "-batch", "-ex", "set auto-load no", "-x", str(script), str(exe)]
    done = subprocess.run(command, input="ge", capture_output=True, text=True, timeout=60)
    assert log.exists(), done.stderr
    seen = sorted(int(line.split()[1]) for line in log.read_text().splitlines())
    return seen, sorted(int(text, 16) for text in re.findall(r"D 0x([0-9a-f]+)$", done.stdout, re.MULTILINE))


@pytest.mark.parametrize("flags", [("-O1",), ("-O2",), ("-O2", "-no-pie"), ("-O2", "-gdwarf-4")])
def test_indexed_slots(flags: tuple[str, ...], tmp_path: Path) -> None:
    exe = build_c("-g", *flags, source="computed.c")
    plan = resolve(exe, parse_profile(PROFILE))
    assert len(list(plan.by_role(Role.DESTROY))) == 3
    assert not plan.unprobed
    sources = [site.source for site in plan.sites]
    assert any(isinstance(step, Apply) for source in sources for step in source.steps)
    assert any(LOAD_BIAS in source.registers() for source in sources)
    seen, said = seen_and_said(exe, plan, tmp_path)
    assert seen == said
    assert len(said) == 15


@pytest.mark.parametrize("flags", [("-O2",), ("-O2", "-gdwarf-4"), ("-O3", "-fno-omit-frame-pointer")])
def test_values_of_the_entry(flags: tuple[str, ...], tmp_path: Path) -> None:
    exe = build_c("-g", "-pthread", *flags, source="entered.c")
    plan = resolve(exe, parse_profile(PROFILE))
    assert [entry.function for entry in plan.entries] == ["finish"]
    assert not plan.unprobed
    seen, said = seen_and_said(exe, plan, tmp_path)
    assert seen == said
    assert len(said) == 64
