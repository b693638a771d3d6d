# Owns the overlay question of the crash report: what do these bytes look like as the slot's type?
# Works from the plan alone, so that a replay answers as the live run did.
from __future__ import annotations

from symbols.plan import SlotField, SlotLayout
from symbols.types import render

_MAX_LINES = 12
_FILL = 0xAA


def describe_bytes(layout: SlotLayout, data: bytes, *, limit: int = _MAX_LINES) -> tuple[str, ...]:
    """Lines such as `protocol = .http(*worker.HTTPConn) 0x0  ← free-list link (null)`.

    data: the slot's first bytes, possibly fewer than its size. Without known fields: 8-byte words.
    """
    fields = layout.fields or _words(layout, data)
    lines = [_line(layout, field, data) for field in fields if field.offset < len(data)]
    if len(lines) > limit:
        hidden = len(lines) - (limit - 1)
        lines = [*lines[: limit - 1], f"… {hidden} more fields"]
    return tuple(lines)


def _line(layout: SlotLayout, field: SlotField, data: bytes) -> str:
    raw = data[field.offset : field.offset + field.size]
    text = _union(field, data) if field.kind == "union" else _leaf(field, raw)
    mark = _mark(layout, field, raw)
    return f"{field.path or '(slot)'} = {text}{'  ← ' + mark if mark else ''}"


def _leaf(field: SlotField, raw: bytes) -> str:
    return render(field.kind, field.size, raw, [(v.tag, v.name) for v in field.variants])


def _union(field: SlotField, data: bytes) -> str:
    """The alternative that the tag byte selects, with the payload's first word."""
    start = field.tag_offset if field.tag_offset is not None else field.offset
    raw = data[start : start + field.tag_size]
    word = data[field.offset : field.offset + 8]
    payload = f"{int.from_bytes(word, 'little'):#x}" if len(word) == 8 else "?"
    if not raw or len(raw) != field.tag_size:
        return f"(tag unreadable) {payload}"
    tag = int.from_bytes(raw, "little")
    known = {variant.tag: variant for variant in field.variants}
    chosen, note = known.get(tag), ""
    if chosen is None and field.tag_mask:
        # 0xaa read as a one-bit tag is 0: that is how the program takes it.
        chosen, note = known.get(tag & field.tag_mask), f" (tag byte {tag:#x})"
    if chosen is None:
        return f"(tag {tag:#x}: no such alternative) {payload}"
    return f".{chosen.name}({chosen.type}) {payload}{note}"


def _mark(layout: SlotLayout, field: SlotField, raw: bytes) -> str:
    link = layout.freelist_offset
    if link is not None and field.offset <= link < field.offset + field.size:
        word = raw[link - field.offset : link - field.offset + 8]
        if len(word) == 8:
            value = int.from_bytes(word, "little")
            if value == 0:
                return "free-list link (null)"
            if word != bytes((_FILL,)) * 8:
                return "free-list link, if freed"
    if raw and all(byte == _FILL for byte in raw):
        return "undefined fill"
    return ""


def _words(layout: SlotLayout, data: bytes) -> tuple[SlotField, ...]:
    count = min(layout.size or len(data), len(data), 64) // 8
    return tuple(
        SlotField(path=f"+{i * 8:#04x}", offset=i * 8, size=8, type="u64", kind="pointer")
        for i in range(count)
    )
