# Owns ProbePlan <-> JSON: loader child, recordings and caches use it. Loading validates every field:
# a plan decides which bytes of which file get a probe. Must not touch the file system.
from __future__ import annotations

from typing import Any

from symbols.errors import BadPlan
from symbols.jsonobject import MAX_ITEMS, U64, JsonObject, integer, string
from symbols.plan import (
    LOAD_BIAS,
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
    SlotField,
    SlotLayout,
    SlotVariant,
    SourceLine,
    Step,
    Unprobed,
    Userdata,
)
from symbols.registers import MACHINES

VERSION = 2
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
        "userdata": {
            "kind": plan.userdata.kind,
            "mask": plan.userdata.mask,
            "reserved": list(plan.userdata.reserved),
        },
        "slot": {
            "type_name": plan.slot.type_name,
            "size": plan.slot.size,
            "freelist_offset": plan.slot.freelist_offset,
            "object_offset": plan.slot.object_offset,
            "object_field": plan.slot.object_field,
            "object_type": plan.slot.object_type,
            "fields": [
                {
                    "path": f.path,
                    "offset": f.offset,
                    "size": f.size,
                    "type": f.type,
                    "kind": f.kind,
                    "tag_offset": f.tag_offset,
                    "tag_size": f.tag_size,
                    "tag_mask": f.tag_mask,
                    "variants": [[v.tag, v.name, v.type, v.kind] for v in f.variants],
                }
                for f in plan.slot.fields
            ],
        },
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
    if version != VERSION:
        raise BadPlan(f"version {version}, this program reads {VERSION}", key="version")
    userdata, slot = top.inner("userdata"), top.inner("slot")
    kind = userdata.text("kind")
    if kind not in ("pointer", "fd"):
        raise BadPlan("neither pointer nor fd", key="userdata.kind")
    reserved = userdata.items("reserved")
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
        userdata=Userdata(
            kind=kind,
            mask=userdata.number("mask", 0, U64),
            reserved=tuple(integer(n, "userdata.reserved", 0, U64) for n in reserved),
        ),
        slot=SlotLayout(
            type_name=slot.text("type_name"),
            size=slot.number("size", 0, 1 << 32),
            freelist_offset=slot.number_or_none("freelist_offset", 0, 1 << 32),
            object_offset=slot.number_or_none("object_offset", 0, 1 << 32),
            object_field=slot.text_or_none("object_field"),
            object_type=slot.text_or_none("object_type"),
            fields=tuple(_read_field(f) for f in slot.readers("fields")),
        ),
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


def _read_field(data: JsonObject) -> SlotField:
    variants = []
    for item in data.items("variants"):
        if not isinstance(item, list) or len(item) != 4:
            raise BadPlan("not [tag, name, type, kind]", key=data.key("variants"))
        key = data.key("variants")
        tag = integer(item[0], key, -(1 << 63), U64)
        name, type_name, kind = (string(part, key) for part in item[1:])
        variants.append(SlotVariant(tag=tag, name=name, type=type_name, kind=kind))
    return SlotField(
        path=data.text("path"),
        offset=data.number("offset", 0, 1 << 32),
        size=data.number("size", 0, 1 << 32),
        type=data.text("type"),
        kind=data.text("kind"),
        tag_offset=data.number_or_none("tag_offset", 0, 1 << 32),
        tag_size=data.number("tag_size", 0, 8),
        tag_mask=data.number("tag_mask", 0, U64),
        variants=tuple(variants),
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
    )


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
