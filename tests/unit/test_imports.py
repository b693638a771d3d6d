"""Who may import bcc: one module, and only when it is used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def importers() -> set[str]:
    found = set()
    for package in ("agent", "probes", "symbols"):
        for path in (ROOT / package).rglob("*.py"):
            if any(name.split(".")[0] == "bcc" for name in imports(path)):
                found.add(str(path.relative_to(ROOT)))
    return found


def test_bcc_is_imported_in_one_place() -> None:
    assert importers() == {"probes/loader_bcc.py"}
