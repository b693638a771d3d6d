"""gdb as the oracle: runs a program with breakpoints at a plan's sites and evaluates their sources."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

from symbols.plan import Add, ProbePlan, Role

_SCRIPT = """
import gdb, json
gdb.execute("set pagination off"); gdb.execute("set confirm off")
gdb.execute("set startup-with-shell off"); gdb.execute("set disable-randomization on")
sites = json.loads({sites!r}); pie = {pie!r}; log = open({log!r}, "w")
def by_name(function, argument):
    # As gdb itself reads it, in the innermost block of the function; None when it cannot.
    try:
        frame = gdb.newest_frame()
        block = gdb.block_for_pc(frame.pc())
        while block is not None and not block.is_global and not block.is_static:
            for symbol in block:
                if symbol.name == argument and (symbol.is_argument or symbol.is_variable):
                    value = symbol.value(frame)
                    return None if value.is_optimized_out else int(value) & (2**64 - 1)
            if block.function is not None:
                return None
            block = block.superblock
    except (gdb.error, RuntimeError, ValueError, OverflowError):
        pass
    return None
class Site(gdb.Breakpoint):
    def __init__(self, index, address, register, constant, steps, function, argument, when, moved):
        super().__init__("*%#x" % address)
        self.data = (index, register, constant, steps, function, argument, when, moved)
    def stop(self):
        index, register, value, steps, function, argument, when, moved = self.data
        if when and not int(gdb.parse_and_eval(when)):
            return False
        own = None if moved else by_name(function, argument)  # its scope begins later
        if register is not None:
            value = int(gdb.newest_frame().read_register(register)) & (2**64 - 1)
        for kind, amount in steps:
            if kind == "add":
                value = (value + amount) & (2**64 - 1)
            else:
                raw = gdb.selected_inferior().read_memory(value, amount).tobytes()
                value = int.from_bytes(raw, "little")
        log.write(json.dumps([index, value, own]) + "\\n"); log.flush()
        return False
bias = 0
if pie:
    gdb.execute("starti")
    for line in gdb.execute("info proc mappings", to_string=True).splitlines():
        if line.strip().endswith({path!r}):
            bias = int(line.split()[0], 16)
            break
for index, address, *rest in sites:
    Site(index, address + bias, *rest)
gdb.execute("continue" if pie else "run")
"""


_LESS = "(($eflags >> 7 ^ $eflags >> 11) & 1)"
_TAKEN = {"o": "$eflags & 0x800", "b": "$eflags & 1", "e": "$eflags & 0x40", "be": "$eflags & 0x41"}
_TAKEN |= {"s": "$eflags & 0x80", "p": "$eflags & 4", "l": _LESS, "le": f"($eflags & 0x40) || {_LESS}"}
_TAKEN |= {"ae": "!($eflags & 1)", "a": "!($eflags & 0x41)", "ge": f"!{_LESS}"}
_TAKEN |= {"g": f"!(($eflags & 0x40) || {_LESS})"}


def taken(when: str) -> str:
    """Site.when in gdb's language: not 0 when the jump is taken."""
    if when.startswith("n"):
        return f"!({_TAKEN[when[1:]]})"
    return _TAKEN[when] if when else ""


class Hit(NamedTuple):
    index: int  # of the site
    value: int  # by the plan's source
    own: int | None  # by gdb's own reading of the argument; None where it has none


def hits(path: Path, plan: ProbePlan, tmp: Path) -> tuple[dict[int, list[int]], str]:
    """(site index -> values in order, the program's output)."""
    found: dict[int, list[int]] = defaultdict(list)
    trace, output = run(path, plan, tmp)
    for hit in trace:
        found[hit.index].append(hit.value)
    return found, output


def run(path: Path, plan: ProbePlan, tmp: Path) -> tuple[list[Hit], str]:
    """(every hit in order, the program's output)."""
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not installed")
    sites = [
        (
            s.index,
            s.address,
            s.source.register,
            s.source.constant,
            [("add", x.amount) if isinstance(x, Add) else ("deref", x.size) for x in s.source.steps],
            s.function,
            s.argument,
            taken(s.when),
            s.stands_for is not None,
        )
        for s in plan.sites
    ]
    script, log = tmp / "sites.py", tmp / "hits.jsonl"
    script.write_text(_SCRIPT.format(sites=json.dumps(sites), pie=plan.pie, log=str(log), path=str(path)))
    command = [
        "gdb",
        "-nx",
        "-batch",
        "-ex",
        "set auto-load no",
        "-x",
        str(script),
        "--args",
        str(path),
        "60",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert log.exists(), done.stdout + done.stderr
    return [Hit(*json.loads(line)) for line in log.read_text().splitlines()], done.stdout


def check_against_truth(path: Path, plan: ProbePlan, tmp: Path, *, roles: str = "CDOS") -> None:
    """Every role's sites together saw exactly what the program itself printed, in number and value."""
    found, output = hits(path, plan, tmp)
    letters = {Role.CREATE: "C", Role.DESTROY: "D", Role.DISOWN: "O", Role.DISPATCH: "S"}
    for role, letter in letters.items():
        if letter not in roles:
            continue
        truth = sorted(int(v, 16) for v in re.findall(rf"^{letter} 0x([0-9a-f]+)$", output, re.MULTILINE))
        seen = sorted(v for s in plan.by_role(role) for v in found[s.index] if v)
        assert truth, (role, output[-500:])
        assert seen == truth, role
