"""Instances of wanted functions by a walk over every debugging entry with pyelftools: slow, simple, and
independent of our search.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from elftools.dwarf.ranges import BaseAddressEntry
from elftools.elf.elffile import ELFFile

from symbols.plan import InstanceKind
from symbols.profile import FunctionSpec, matches

Fact = tuple[InstanceKind, str, tuple[tuple[int, int], ...]]
"""(kind, linkage name, ranges): what both sides say of an instance."""

_NAMES = ("DW_AT_linkage_name", "DW_AT_MIPS_linkage_name", "DW_AT_name")
_ORIGINS = ("DW_AT_abstract_origin", "DW_AT_specification")


def instances(path: Path, specs: list[FunctionSpec], tmp: Path) -> Counter[Fact]:
    """Every out-of-line and inlined instance that has code."""
    plain = tmp / "plain"
    subprocess.run(["objcopy", "--decompress-debug-sections", path, plain], check=True)
    found: Counter[Fact] = Counter()
    with plain.open("rb") as file:
        elf = ELFFile(file)
        low = min(s["p_vaddr"] for s in elf.iter_segments() if s["p_type"] == "PT_LOAD" and s["p_flags"] & 1)
        info = elf.get_dwarf_info(follow_links=False)
        for unit in info.iter_CUs():
            for die in unit.iter_DIEs():
                if die.tag not in ("DW_TAG_subprogram", "DW_TAG_inlined_subroutine"):
                    continue
                chain = _chain(die)
                if not any(matches(s.pattern, name) for s in specs for one in chain for name in _names(one)):
                    continue
                ranges = tuple(sorted(_ranges(info, unit, die)))
                if not ranges or ranges[-1][0] < low:
                    continue  # declarations, abstract instances, code that the linker dropped
                inlined = die.tag == "DW_TAG_inlined_subroutine"
                kind = InstanceKind.INLINED if inlined else InstanceKind.OUT_OF_LINE
                found[kind, _linkage(chain), ranges] += 1
    return found


def _chain(die: Any) -> list[Any]:
    chain = [die]
    while len(chain) < 16:
        name = next((name for name in _ORIGINS if name in chain[-1].attributes), None)
        if name is None:
            break
        chain.append(chain[-1].get_DIE_from_attribute(name))
    return chain


def _names(die: Any) -> list[str]:
    values = (die.attributes[name].value for name in _NAMES if name in die.attributes)
    return [value.decode("utf-8", "replace") for value in values if isinstance(value, bytes)]


def _linkage(chain: list[Any]) -> str:
    for attribute in _NAMES:
        for die in chain:
            if attribute in die.attributes:
                return str(die.attributes[attribute].value.decode("utf-8", "replace"))
    return ""


def _ranges(info: Any, unit: Any, die: Any) -> list[tuple[int, int]]:
    attributes = die.attributes
    if "DW_AT_ranges" in attributes:
        base = unit.get_top_DIE().attributes.get("DW_AT_low_pc")
        start = base.value if base is not None else 0
        spans = []
        for entry in info.range_lists().get_range_list_at_offset(attributes["DW_AT_ranges"].value, unit):
            if isinstance(entry, BaseAddressEntry):
                start = entry.base_address
                continue
            offset = 0 if getattr(entry, "is_absolute", False) else start
            if entry.begin_offset != entry.end_offset:
                spans.append((entry.begin_offset + offset, entry.end_offset + offset))
        return spans
    if "DW_AT_low_pc" not in attributes:
        return []
    low = attributes["DW_AT_low_pc"].value
    high = attributes.get("DW_AT_high_pc")
    if high is None:
        return []
    size = high.value - low if high.form == "DW_FORM_addr" else high.value
    return [(low, low + max(size, 1))]  # empty: one place, which we take for one byte
