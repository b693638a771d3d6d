# Owns the probe plan as lines for people. Works on the plan's JSON form, so that no DWARF reader is loaded.
# Must not print.
from __future__ import annotations

import posixpath
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from agent.sanitize import printable
from agent.text import Line, Span, line, short_name, table
from symbols.remedies import remedy

_REMEDIES = 4


def plan_lines(plan: Mapping[str, Any], *, short: bool = False) -> list[Line]:
    """Table of the sites and of what cannot be probed. short: leaves out notes and addresses' fine print."""
    slot = plan.get("slot") or {}
    rows = [
        line(Span("image    ", "label"), printable(plan.get("image"))),
        line(
            Span("identity ", "label"),
            f"{printable(plan.get('identity'))}  {plan.get('machine')}",
            _pie(plan),
        ),
        line(Span("profile  ", "label"), printable(plan.get("profile")), _guard(plan)),
        line(Span("slot     ", "label"), _slot(slot)),
        *_object(slot),
        *_userdata(plan),
        line(""),
    ]
    sites = plan.get("sites") or []
    rows += _sites(sites)
    if not short:
        notes = [site for site in sites if site.get("note")]
        if notes:
            rows.append(line(""))
        rows += [line("  ", Span(f"{_hex(s.get('address'))}: {printable(s['note'])}", "dim")) for s in notes]
    rows += _entries(plan.get("entries") or [])
    rows += _counting(slot, sites)
    unprobed = plan.get("unprobed") or []
    if unprobed:
        plural = "s" if len(unprobed) > 1 else ""
        rows += [line(""), line(Span(f"{len(unprobed)} instance{plural} cannot be probed", "warning"))]
        rows += table(
            ("role", "function", "instance", "where", "reason"), (_missing(item) for item in unprobed)
        )
        rows.append(line("  ", Span("findings that depend on one of these are marked uncertain", "dim")))
        rows += _remedies(unprobed)
    rows += [line(Span("warning  ", "warning"), printable(text)) for text in plan.get("warnings") or ()]
    return rows


def _remedies(unprobed: Sequence[Mapping[str, Any]]) -> list[Line]:
    """What can be done about them, each once."""
    texts = []
    for item in unprobed:
        call = item.get("declared_at") or item.get("call_site")
        file = str(call.get("file", "")) if isinstance(call, Mapping) else ""
        text = remedy(str(item.get("role")), str(item.get("function")), str(item.get("reason")), file)
        if text not in texts:
            texts.append(text)
    shown = [part for text in texts[:_REMEDIES] for part in textwrap.wrap(printable(text, 400), 86)]
    return [line(Span("  remedy   " if not i else " " * 11, "label"), part) for i, part in enumerate(shown)]


def _pie(plan: Mapping[str, Any]) -> str:
    return "  position independent" if plan.get("pie") else "  fixed address"


def _guard(plan: Mapping[str, Any]) -> str:
    return f"   guards itself: {printable(plan['guard'])}" if plan.get("guard") else ""


def _slot(slot: Mapping[str, Any]) -> str:
    text = f"{short_name(str(slot.get('type_name', '?')), 60)}, {slot.get('size', 0)} bytes"
    if slot.get("freelist_offset") is not None:
        text += f", free-list link at +{slot['freelist_offset']:#x}"
    if slot.get("count_offset") is not None:
        text += f", references counted in {printable(slot.get('count_field'))} at +{slot['count_offset']:#x}"
        text += f" (frees at {slot.get('frees_at', 1)})"
    return text


def _object(slot: Mapping[str, Any]) -> list[Line]:
    """How what dispatch probes see is tied to the slot."""
    if slot.get("object_is_slot"):
        delta = slot.get("object_delta") or 0
        text = f"lies at {delta:+#x} of the slot" if delta else "is the slot"
    elif slot.get("object_offset") is not None:
        text = f"what {printable(slot.get('object_field'))} at +{slot['object_offset']:#x} points to"
    else:
        return []
    if slot.get("object_type"):
        text += f" ({short_name(str(slot['object_type']), 60)})"
    return [line(Span("object   ", "label"), text)]


def _userdata(plan: Mapping[str, Any]) -> list[Line]:
    """Where userdata points, unless it is simply the slot's address."""
    userdata = plan.get("userdata") or {}
    embedded = (plan.get("slot") or {}).get("embedded") or ()
    if userdata.get("kind") == "fd":
        return [line(Span("userdata ", "label"), "a file descriptor")]
    if userdata.get("offset"):
        return [line(Span("userdata ", "label"), f"points to +{userdata['offset']:#x} of the slot")]
    if embedded:
        places = ", ".join(f"+{offset:#x}" for offset in embedded)
        text = f"the slot's address; structs that it may point to instead lie at {places}"
        return [line(Span("userdata ", "label"), text)]
    return []


def _counting(slot: Mapping[str, Any], sites: Sequence[Mapping[str, Any]]) -> list[Line]:
    """A destroy whose code looks as if only its last call frees."""
    counting = [site for site in sites if site.get("counts")]
    if not counting or slot.get("count_offset") is not None:
        return []
    names = sorted({short_name(str(site.get("function", "")), 60) for site in counting})
    at = counting[0].get("counts_at")
    paths = [field.get("path") for field in slot.get("fields") or () if field.get("offset") == at]
    field = printable(paths[0]) if paths else "FIELD"
    which = f"{field!r}" if paths else "a field"
    text = (
        f"{', '.join(names)} decrements {which} of the slot and may return without freeing: if it counts"
        f' references, say count = "{field}" in the profile\'s destroy; until then every call is taken for'
        " the end of the slot"
    )
    return [line(""), line(Span("note     ", "warning"), text)]


def _sites(sites: Sequence[Mapping[str, Any]]) -> list[Line]:
    """A heading per probed function, a row per instance; columns aligned over all of them."""
    header = ("instance", "call site", "address", "argument", "price", "instruction")
    cells = table(header, (_site(site) for site in sites))
    rows, heading = [cells[0]], ""
    for site, cell in zip(sites, cells[1:], strict=True):
        own = f"{site.get('role')}  {short_name(str(site.get('function', '')), 80)}"
        if own != heading:
            heading = own
            rows.append(line(Span(own, "source")))
        rows.append(cell)
    return rows


def _entries(entries: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Functions that are probed at their entry for what the sites inside them need."""
    if not entries:
        return []
    cells = table(
        ("entry of", "address", "kept", "price", "instruction"),
        (
            (
                short_name(str(entry.get("function", "")), 60),
                _hex(entry.get("address")),
                source_text(entry.get("value") or {}),
                str(entry.get("price", "")),
                printable(entry.get("instruction", ""), 40),
            )
            for entry in entries
        ),
    )
    return [line(""), *cells]


def _site(site: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(site.get("kind")),
        _where(site),
        _hex(site.get("address")),
        f"{site.get('argument', '')} = {source_text(site.get('source') or {})}",
        str(site.get("price", "")),
        printable(site.get("instruction", ""), 40) + (" (not taken)" if _not_taken(site) else ""),
    )


def _not_taken(site: Mapping[str, Any]) -> bool:
    """Whether a hit is the branch that falls through."""
    instruction, when = str(site.get("instruction", "")), str(site.get("when") or "")
    return bool(when) and instruction.split(" ", maxsplit=1)[0] != f"j{when}"


def _missing(item: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(item.get("role")),
        short_name(str(item.get("function", "")), 46),
        str(item.get("kind")),
        _where(item),
        str(item.get("reason", "")),
    )


def _where(site: Mapping[str, Any]) -> str:
    call = site.get("call_site") or site.get("declared_at")
    if isinstance(call, Mapping):
        return f"{posixpath.basename(str(call.get('file', '?')))}:{call.get('line', 0)}"
    return short_name(str(site.get("enclosing", "")), 32)


def _hex(value: object) -> str:
    return f"{value:#x}" if isinstance(value, int) else str(value or "?")


def source_text(source: Mapping[str, Any]) -> str:
    """An argument source the way symbols.plan.ArgSource writes it."""
    entry = source.get("entry")
    if isinstance(entry, Mapping):
        text = f"entry({source_text(entry)})"
    else:
        text = str(source.get("register") or _hex(source.get("constant", 0)))
    for kind, *rest in source.get("steps") or ():
        match kind, rest:
            case "add", [amount]:
                text = f"{text}{amount:+#x}"
            case "deref", [size]:
                text = f"*({text})" if size == 8 else f"*(u{size * 8})({text})"
            case "extend", [size, signed]:
                text = f"({'i' if signed else 'u'}{size * 8})({text})"
            case "apply", [op, operand]:
                text = f"({text} {op} {source_text(operand)})"
    return text
