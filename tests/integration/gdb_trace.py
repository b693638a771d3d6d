"""Runs inside gdb (-x): reads at the addresses of the plan, and independently at what gdb itself finds.

Input: JSON in AF_GDB_REQUEST: {"sites": [[address, address of its hits, source, when], …], "names": {role:
[linkage name, argument]}, "output": file}. `source` and `when` are expressions of gdb, built from the plan.
Writes {"sites": [[address, value]], "names": {role: [value or null, …]}} when the program has ended.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import gdb  # type: ignore[import-not-found]  # only exists inside gdb

REQUEST = json.loads(os.environ["AF_GDB_REQUEST"])
MASK = (1 << 64) - 1
hits: list[list[int]] = []
named: dict[str, list[int | None]] = {role: [] for role in REQUEST["names"]}


class AtAddress(gdb.Breakpoint):
    """A site of the plan, its argument read as the plan says."""

    def __init__(self, address: int, told: int, source: str, when: str) -> None:
        super().__init__(f"*{address:#x}")
        self.address, self.source, self.when = told, source, when

    def stop(self) -> bool:
        if self.when and not int(gdb.parse_and_eval(self.when)):
            return False
        hits.append([self.address, int(gdb.parse_and_eval(self.source)) & MASK])
        return False


class ByName(gdb.Breakpoint):
    """Every location gdb has for a function, inlined ones too; its parameter as gdb reads it."""

    def __init__(self, role: str, function: str, argument: str) -> None:
        super().__init__(f"'{function}'")
        self.role, self.argument = role, argument

    def stop(self) -> bool:
        value = None
        try:
            seen = gdb.selected_frame().read_var(self.argument)
            value = None if seen.is_optimized_out else int(seen) & MASK
        except (ValueError, gdb.error):
            pass
        named[self.role].append(value)
        return False


gdb.execute("set breakpoint pending off")
gdb.execute("set pagination off")
gdb.execute("handle SIGTERM nostop noprint pass")
for site in REQUEST["sites"]:
    AtAddress(*site)
for role, (function, argument) in REQUEST["names"].items():
    try:
        ByName(role, function, argument)
    except (RuntimeError, gdb.error):
        named.pop(role)
gdb.execute("run")
Path(REQUEST["output"]).write_text(json.dumps({"sites": hits, "names": named}))
