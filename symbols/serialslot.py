# Owns the parts of a plan's JSON that describe slot and userdata, both ways. What plans of older recordings
# do not say has the value that it had then. serial.py has the rest.
from __future__ import annotations

from typing import Any

from symbols.errors import BadPlan
from symbols.jsonobject import U64, JsonObject, integer, string
from symbols.plan import MAX_EMBEDDED, SlotField, SlotLayout, SlotVariant, Userdata

_MOST = 1 << 32  # bytes of a slot


def userdata_to_json(userdata: Userdata) -> dict[str, Any]:
    return {
        "kind": userdata.kind,
        "mask": userdata.mask,
        "reserved": list(userdata.reserved),
        "offset": userdata.offset,
    }


def read_userdata(data: JsonObject) -> Userdata:
    kind = data.text("kind")
    if kind not in ("pointer", "fd"):
        raise BadPlan("neither pointer nor fd", key=data.key("kind"))
    reserved = data.items("reserved")
    return Userdata(
        kind=kind,
        mask=data.number("mask", 0, U64),
        reserved=tuple(integer(n, data.key("reserved"), 0, U64) for n in reserved),
        offset=data.number("offset", 0, _MOST) if data.has("offset") else 0,
    )


def slot_to_json(slot: SlotLayout) -> dict[str, Any]:
    return {
        "type_name": slot.type_name,
        "size": slot.size,
        "freelist_offset": slot.freelist_offset,
        "object_offset": slot.object_offset,
        "object_field": slot.object_field,
        "object_type": slot.object_type,
        "object_is_slot": slot.object_is_slot,
        "object_delta": slot.object_delta,
        "embedded": list(slot.embedded),
        "count_field": slot.count_field,
        "count_offset": slot.count_offset,
        "count_size": slot.count_size,
        "frees_at": slot.frees_at,
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
            for f in slot.fields
        ],
    }


def read_slot(data: JsonObject) -> SlotLayout:
    counted = data.has("count_offset")
    count_offset = data.number_or_none("count_offset", 0, _MOST) if counted else None
    count_size = data.number("count_size", 0, 8) if counted else 0
    if (count_size not in (1, 2, 4, 8)) if count_offset is not None else count_size:
        raise BadPlan("does not go with count_offset", key=data.key("count_size"))
    embedded = data.items("embedded") if data.has("embedded") else ()
    if len(embedded) > MAX_EMBEDDED:
        raise BadPlan(f"more than {MAX_EMBEDDED}", key=data.key("embedded"))
    object_offset = data.number_or_none("object_offset", 0, _MOST)
    object_is_slot = data.flag("object_is_slot") if data.has("object_is_slot") else False
    if object_is_slot and object_offset is not None:
        raise BadPlan("the object is the slot, and is pointed to by it", key=data.key("object_is_slot"))
    return SlotLayout(
        type_name=data.text("type_name"),
        size=data.number("size", 0, _MOST),
        freelist_offset=data.number_or_none("freelist_offset", 0, _MOST),
        object_offset=object_offset,
        object_field=data.text_or_none("object_field"),
        object_type=data.text_or_none("object_type"),
        fields=tuple(_read_field(f) for f in data.readers("fields")),
        object_is_slot=object_is_slot,
        object_delta=data.number("object_delta", -_MOST, _MOST) if data.has("object_delta") else 0,
        embedded=tuple(integer(n, data.key("embedded"), 1, _MOST) for n in embedded),
        count_field=data.text_or_none("count_field") if data.has("count_field") else None,
        count_offset=count_offset,
        count_size=count_size,
        frees_at=data.number("frees_at", 0, U64) if data.has("frees_at") else 1,
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
        offset=data.number("offset", 0, _MOST),
        size=data.number("size", 0, _MOST),
        type=data.text("type"),
        kind=data.text("kind"),
        tag_offset=data.number_or_none("tag_offset", 0, _MOST),
        tag_size=data.number("tag_size", 0, 8),
        tag_mask=data.number("tag_mask", 0, U64),
        variants=tuple(variants),
    )
