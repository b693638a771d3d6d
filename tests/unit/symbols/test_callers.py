"""Branches that are found by their bytes, against a disassembler."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from symbols.callers import Callers
from symbols.image import Image
from symbols.instances import Finder
from symbols.resolve import close_session, open_session
from tests.requirements import require_program
from tests.unit.symbols.builds import build_c, build_cserver, build_zig


@pytest.mark.parametrize("name", ["tails", "cserver", "zig"])
def test_every_direct_branch_to_a_function_is_found(name: str) -> None:
    path = {
        "tails": lambda: build_c("-g", "-O2", source="tails.c"),
        "cserver": lambda: build_cserver("gcc-O2"),
        "zig": lambda: build_zig("ReleaseSafe"),
    }[name]()
    known = _branches(path)
    with Image(path) as image:
        session = open_session(image)
        finder = Finder(image, session.dwarf, session.search, session.scopes)
        callers = Callers(image, session.scopes, finder)
        tried = 0
        for symbol in session.debug.functions[:: 5 if name == "zig" else 1]:
            calls, _reasons = callers.of(symbol.address)
            function = session.scopes.function_of(symbol.address)
            if function is None or function.low != symbol.address:
                continue
            found = {call.address for call in calls}
            described = {
                at
                for at in known[symbol.address]
                if (holder := session.scopes.function_of(at)) is not None and holder.low != symbol.address
            }
            assert found == described, symbol.name
            tried += bool(found)
        close_session(session)
    assert tried >= 5


def _branches(path: Path) -> dict[int, set[int]]:
    """Target -> addresses of calls and jumps to it, as objdump reads the code."""
    command = [require_program("objdump"), "-d", "--no-show-raw-insn", "-M", "intel", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[int, set[int]] = defaultdict(set)
    for line in said.splitlines():
        address, _colon, text = line.strip().partition(":\t")
        words = text.replace("bnd ", "").split()
        if len(words) >= 2 and (words[0] == "call" or words[0][0] == "j"):
            try:
                found[int(words[1], 16)].add(int(address, 16))
            except ValueError:
                continue  # through a register or memory
    return found
