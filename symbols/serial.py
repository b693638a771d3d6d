# Owns ProbePlan <-> JSON: loader child, recordings and caches use it. Loading validates every field:
# a plan decides which bytes of which file get a probe. Must not touch the file system.
from __future__ import annotations

from typing import Any

from symbols.errors import BadPlan
from symbols.jsonobject import MAX_ITEMS, U64, JsonObject, integer, string
from symbols.plan import (
    LOAD_BIAS,
    MAX_RANGES,
    MAX_STEPS,
    Add,
    Addr,
    Apply,
    ArgSource,
    Deref,
    EntrySite,
    Extend,
    InstanceKind,
    Op,
    Price,
    ProbePlan,
    Role,
    Segment,
    Site,
    SourceLine,
    Step,
    Unprobed,
)
from symbols.registers import CONDITIONS, MACHINES
from symbols.serialslot import read_slot, read_userdata, slot_to_json, userdata_to_json

VERSION = 3
_READ = (2, VERSION)  # 2: of older recordings
_REGISTERS = frozenset(name for machine in MACHINES.values() for name in machine.registers) | {LOAD_BIAS}


def plan_to_json(plan: ProbePlan) -> dict[str, Any]:
    """JSON-ready values only; plan_from_json(plan_to_json(p)) == p."""
    return {
        "version": VERSION,
        "image": plan.image,
        "identity": plan.identity,
        "machine": plan.machine,
        "pie": plan.pie,
        "profile": plan.profile,
        "guard": plan.guard,
        "userdata": userdata_to_json(plan.userdata),
        "slot": slot_to_json(plan.slot),
        "segments": [
            {
                "vaddr": s.vaddr,
                "offset": s.offset,
                "filesz": s.filesz,
                "memsz": s.memsz,
                "executable": s.executable,
            }
            for s in plan.segments
        ],
        "sites": [_site(site) for site in plan.sites],
        "unprobed": [
            {
                "role": u.role.value,
                "function": u.function,
                "kind": u.kind.value,
                "address": u.address,
                "enclosing": u.enclosing,
                "call_site": _line(u.call_site),
                "reason": u.reason,
            }
            for u in plan.unprobed
        ],
        "warnings": list(plan.warnings),
        "entries": [
            {
                "index": e.index,
                "function": e.function,
                "address": e.address,
                "file_offset": e.file_offset,
                "instruction": e.instruction,
                "price": e.price.value,
                "value": source_to_json(e.value),
                "frame": source_to_json(e.frame),
            }
            for e in plan.entries
        ],
    }


def _site(site: Site) -> dict[str, Any]:
    return {
        "index": site.index,
        "role": site.role.value,
        "function": site.function,
        "kind": site.kind.value,
        "address": site.address,
        "file_offset": site.file_offset,
        "enclosing": site.enclosing,
        "call_site": _line(site.call_site),
        "declared_at": _line(site.declared_at),
        "instruction": site.instruction,
        "price": site.price.value,
        "argument": site.argument,
        "source": source_to_json(site.source),
        "note": site.note,
        "entry": site.entry,
        "frame": None if site.frame is None else source_to_json(site.frame),
        "at_entry": site.at_entry,
        "ranges": [list(pair) for pair in site.ranges],
        "counts": site.counts,
        "counts_at": site.counts_at,
        "stands_for": site.stands_for,
        "when": site.when,
    }


def source_to_json(source: ArgSource) -> dict[str, Any]:
    """One argument source, as the plan's JSON holds it."""
    return {
        "register": source.register,
        "constant": source.constant,
        "entry": None if source.entry is None else source_to_json(source.entry),
        "steps": [_step(step) for step in source.steps],
    }


def _step(step: Step) -> list[Any]:
    match step:
        case Add():
            return ["add", step.amount]
        case Deref():
            return ["deref", step.size]
        case Extend():
            return ["extend", step.size, step.signed]
        case Apply():
            return ["apply", step.op.value, source_to_json(step.operand)]


def _line(line: SourceLine | None) -> dict[str, Any] | None:
    return None if line is None else {"file": line.file, "line": line.line, "column": line.column}


def plan_from_json(data: object) -> ProbePlan:
    """The plan a JSON value holds. Raises BadPlan (with the key) for anything that does not validate."""
    top = JsonObject(data, "plan")
    version = top.number("version", 0, U64)
    if version not in _READ:
        known = " and ".join(str(number) for number in _READ)
        raise BadPlan(f"version {version}, this program reads {known}", key="version")
    segments = tuple(_read_segment(s) for s in top.readers("segments"))
    sites = tuple(_read_site(s) for s in top.readers("sites"))
    if [site.index for site in sites] != list(range(len(sites))):
        raise BadPlan("sites are not numbered by position", key="sites")
    entries = tuple(_read_entry(e) for e in top.readers("entries"))
    if [entry.index for entry in entries] != list(range(len(entries))):
        raise BadPlan("entries are not numbered by position", key="entries")
    probed: list[Site | EntrySite] = [*sites, *entries]
    for one in probed:
        if not any(_in_segment(s, one) for s in segments):
            raise BadPlan(f"{one.function} is probed in no executable segment", key="sites")
    for site in sites:
        _check_entry(site, entries)
    return ProbePlan(
        image=top.text("image"),
        identity=top.text("identity"),
        machine=top.text("machine"),
        pie=top.flag("pie"),
        profile=top.text("profile"),
        guard=top.text_or_none("guard"),
        userdata=read_userdata(top.inner("userdata")),
        slot=read_slot(top.inner("slot")),
        segments=segments,
        sites=sites,
        unprobed=tuple(_read_unprobed(u) for u in top.readers("unprobed")),
        warnings=tuple(string(w, "warnings") for w in top.items("warnings")),
        entries=entries,
    )


def _check_entry(site: Site, entries: tuple[EntrySite, ...]) -> None:
    wanted = site.source.at_entry()
    kept = None if site.entry is None or site.entry >= len(entries) else entries[site.entry]
    if not wanted and site.entry is None and site.frame is None:
        return
    if kept is None or site.frame is None or wanted != (kept.value,):
        raise BadPlan(f"site {site.index} and its entry do not agree", key="sites")
    for source in (kept.value, kept.frame, site.frame):
        if source.at_entry():
            raise BadPlan("an entry value of an entry value", key="entries")


def _in_segment(segment: Segment, site: Site | EntrySite) -> bool:
    at = site.address - segment.vaddr
    return segment.executable and 0 <= at < segment.filesz and site.file_offset == segment.offset + at


def _read_segment(data: JsonObject) -> Segment:
    return Segment(
        vaddr=data.number("vaddr", 0, U64),
        offset=data.number("offset", 0, U64),
        filesz=data.number("filesz", 0, U64),
        memsz=data.number("memsz", 0, U64),
        executable=data.flag("executable"),
    )


def _read_site(data: JsonObject) -> Site:
    return Site(
        index=data.number("index", 0, MAX_ITEMS),
        role=data.enum("role", Role),
        function=data.text("function"),
        kind=data.enum("kind", InstanceKind),
        address=Addr(data.number("address", 0, U64)),
        file_offset=data.number("file_offset", 0, U64),
        enclosing=data.text("enclosing"),
        call_site=data.line("call_site"),
        declared_at=data.line("declared_at"),
        instruction=data.text("instruction"),
        price=data.enum("price", Price),
        argument=data.text("argument"),
        source=_read_source(data.inner("source")),
        note=data.text("note"),
        entry=data.number_or_none("entry", 0, MAX_ITEMS),
        frame=None if data.absent("frame") else _read_source(data.inner("frame")),
        at_entry=data.flag("at_entry") if data.has("at_entry") else False,
        ranges=_read_ranges(data) if data.has("ranges") else (),
        counts=data.flag("counts") if data.has("counts") else False,
        counts_at=_read_offset(data, "counts_at"),
        stands_for=_read_place(data),
        when=_read_when(data),
    )


def _read_place(data: JsonObject) -> Addr | None:
    place = data.number_or_none("stands_for", 0, U64) if data.has("stands_for") else None
    return None if place is None else Addr(place)


def _read_when(data: JsonObject) -> str:
    when = data.text("when") if data.has("when") else ""
    if when and when.removeprefix("n") not in CONDITIONS:
        raise BadPlan(f"no condition of a jump: {when!r}", key=data.key("when"))
    return when


def _read_offset(data: JsonObject, name: str) -> int | None:
    return data.number_or_none(name, -(1 << 32), 1 << 32) if data.has(name) else None


def _read_ranges(data: JsonObject) -> tuple[tuple[int, int], ...]:
    key, ranges = data.key("ranges"), []
    for item in data.items("ranges"):
        if not isinstance(item, list) or len(item) != 2:
            raise BadPlan("not [low, high]", key=key)
        low = integer(item[0], key, 0, U64)
        ranges.append((low, integer(item[1], key, low, U64)))
    if len(ranges) > MAX_RANGES:
        raise BadPlan(f"more than {MAX_RANGES}", key=key)
    return tuple(ranges)


def _read_entry(data: JsonObject) -> EntrySite:
    return EntrySite(
        index=data.number("index", 0, MAX_ITEMS),
        function=data.text("function"),
        address=Addr(data.number("address", 0, U64)),
        file_offset=data.number("file_offset", 0, U64),
        instruction=data.text("instruction"),
        price=data.enum("price", Price),
        value=_read_source(data.inner("value")),
        frame=_read_source(data.inner("frame")),
    )


def _read_source(data: JsonObject, depth: int = 0) -> ArgSource:
    if depth > MAX_STEPS:
        raise BadPlan(f"nested deeper than {MAX_STEPS}", key=data.key("steps"))
    register = data.text_or_none("register")
    if register is not None and register not in _REGISTERS:
        raise BadPlan(f"unknown register {register!r}", key=data.key("register"))
    entry = None if data.absent("entry") else _read_source(data.inner("entry"), depth + 1)
    if entry is not None and register is not None:
        raise BadPlan("starts from a register and from the entry", key=data.key("register"))
    steps = tuple(_read_step(item, data.key("steps"), depth) for item in data.items("steps"))
    source = ArgSource(register=register, constant=data.number("constant", 0, U64), steps=steps, entry=entry)
    if source.weight() > MAX_STEPS:
        raise BadPlan(f"more than {MAX_STEPS} steps", key=data.key("steps"))
    return source


def _read_step(item: object, key: str, depth: int) -> Step:
    match item:
        case ["add", amount]:
            return Add(integer(amount, key, -(1 << 63), U64))
        case ["deref", 1 | 2 | 4 | 8 as size]:
            return Deref(integer(size, key, 1, 8))
        case ["extend", 1 | 2 | 4 | 8 as size, bool(signed)]:
            return Extend(integer(size, key, 1, 8), signed)
        case ["apply", op, operand]:
            try:
                return Apply(Op(op), _read_source(JsonObject(operand, key), depth + 1))
            except ValueError:
                raise BadPlan("unknown operation", key=key) from None
    raise BadPlan("neither add, deref, extend nor apply with what belongs to it", key=key)


def _read_unprobed(data: JsonObject) -> Unprobed:
    address = data.number_or_none("address", 0, U64)
    return Unprobed(
        role=data.enum("role", Role),
        function=data.text("function"),
        kind=data.enum("kind", InstanceKind),
        address=None if address is None else Addr(address),
        enclosing=data.text("enclosing"),
        call_site=data.line("call_site"),
        reason=data.text("reason"),
    )
