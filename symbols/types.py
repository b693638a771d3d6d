# Owns the byte layout of types as DWARF gives it: structs, unions, tagged unions (Zig's two backends,
# DW_TAG_variant_part), enums, pointers, optionals, arrays; and decoding of bytes into a tree.
# Must not read processes.
from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from symbols import dwarf_const as dw
from symbols.dwarf import Die, Dwarf
from symbols.globs import matches
from symbols.image import Image
from symbols.plan import SlotField, SlotVariant
from symbols.search import Search

_MAX_FIELDS = 4096
_MAX_DEPTH = 12
_MAX_LEAVES = 256
_WRAPPERS = frozenset(
    (dw.TAG_const_type, dw.TAG_volatile_type, dw.TAG_typedef, dw.TAG_restrict_type, dw.TAG_atomic_type)
)
_POINTERS = frozenset((dw.TAG_pointer_type, dw.TAG_reference_type, dw.TAG_rvalue_reference_type))
_STRUCTS = frozenset((dw.TAG_structure_type, dw.TAG_class_type, dw.TAG_union_type))
_ENCODINGS = {0x02: "bool", 0x04: "float", 0x05: "signed", 0x06: "signed", 0x07: "unsigned", 0x08: "unsigned"}


@dataclass(frozen=True, slots=True)
class Type:
    """A type, lazily described: `die` is its entry without qualifiers, `name` as the source would say."""

    name: str
    kind: str  # "struct", "union", "tagged", "enum", "pointer", "array", "void", or a SlotField kind
    size: int  # bytes; 0 unknown
    die: Die | None


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    offset: int  # bytes from the start of the type that has it
    type: Type
    tag: int | None = None  # the tag value that selects it, in a tagged union
    bits: int = 0  # width of a bit-field; 0: whole bytes
    bit: int = 0  # its first bit, from the least significant one of the byte at offset
    base: bool = False  # a base class

    @property
    def span(self) -> int:
        """Bytes that it touches."""
        return (self.bit + self.bits + 7) // 8 if self.bits else self.type.size


@dataclass(frozen=True, slots=True)
class Value:
    """One node of a decoded tree. text: the value as one would write it, "" for nodes with children."""

    name: str
    offset: int
    type: Type
    text: str
    children: tuple[Value, ...] = ()


class Types:
    """Types of one image. Raises SymbolError for damaged debug information."""

    def __init__(self, source: Image | Dwarf) -> None:
        self._dwarf = source if isinstance(source, Dwarf) else Dwarf(source)
        self._search = Search(self._dwarf)

    def find(self, pattern: str) -> Type | None:
        """The first complete type whose name matches the glob."""
        for die in self._search.named(pattern, _STRUCTS | {dw.TAG_enumeration_type, dw.TAG_base_type}):
            if not die.has(dw.AT_declaration) and matches(pattern, self._dwarf.name(die)):
                return self.of(die)
        return None

    def of(self, die: Die | None, *, depth: int = 0) -> Type:
        """The type an entry describes; typedefs give their name, the rest comes from what they name."""
        if depth > _MAX_DEPTH:
            return Type("?", "void", 0, None)
        dwarf, label = self._dwarf, ""
        for _ in range(32):
            if die is None:
                return Type(label or "void", "void", 0, None)
            label = label or (
                dwarf.name(die) if die.tag not in (dw.TAG_const_type, dw.TAG_volatile_type) else ""
            )
            if die.tag not in _WRAPPERS:
                break
            die = dwarf.target(die, dw.AT_type)
        else:
            return Type(label or "?", "void", 0, None)
        size = die.number(dw.AT_byte_size) or 0
        if die.tag in _POINTERS:
            if not label:
                label = "*" + self.of(dwarf.target(die, dw.AT_type), depth=depth + 1).name
            return Type(label, "pointer", size or die.unit.addr_size, die)
        if die.tag in _STRUCTS:
            return Type(label or "(anonymous)", self._shape(die), size, die)
        if die.tag == dw.TAG_enumeration_type:
            if not size:  # Zig's own backend gives only the underlying type
                size = self.of(dwarf.target(die, dw.AT_type), depth=depth + 1).size
            return Type(label or "(anonymous)", "enum", size, die)
        if die.tag == dw.TAG_array_type:
            element = self.of(dwarf.target(die, dw.AT_type), depth=depth + 1)
            count = self._count(die)
            return Type(label or f"[{count}]{element.name}", "array", size or count * element.size, die)
        if die.tag == dw.TAG_base_type:
            return Type(label, _ENCODINGS.get(die.number(dw.AT_encoding) or 0, "bytes"), size, die)
        return Type(label or "?", "bytes", size, die)

    def _shape(self, die: Die) -> str:
        names, variants = set(), False
        for child in self._dwarf.children(die):
            if child.tag == dw.TAG_variant_part:
                variants = True
            elif child.tag == dw.TAG_member:
                names.add(self._dwarf.name(child))
        if variants or (die.tag == dw.TAG_structure_type and names == {"payload", "tag"}):
            return "tagged"
        return "union" if die.tag == dw.TAG_union_type else "struct"

    def _count(self, die: Die) -> int:
        total = 1
        for child in self._dwarf.children(die):
            if child.tag == dw.TAG_subrange_type:
                count, upper = child.number(dw.AT_count), child.number(dw.AT_upper_bound)
                total *= count if count is not None else upper + 1 if upper is not None else 0
        return min(total, 1 << 32)

    # -- members ---------------------------------------------------------------------------------

    def members(self, kind: Type) -> list[Member]:
        """Fields of a struct, alternatives of a union. A tagged union's carry their tag value."""
        if kind.die is None or kind.die.tag not in _STRUCTS:
            return []
        if kind.kind == "tagged":
            return self._alternatives(kind.die)
        return list(self._direct(kind.die))

    def tag_of(self, kind: Type) -> Member | None:
        """Where a tagged union keeps its tag."""
        if kind.die is None or kind.kind != "tagged":
            return None
        for child in self._dwarf.children(kind.die):
            if child.tag == dw.TAG_variant_part:
                discriminant = self._dwarf.target(child, dw.AT_discr)
                if discriminant is not None and discriminant.tag == dw.TAG_member:
                    return self._member(discriminant)
        return next((m for m in self._direct(kind.die) if m.name == "tag"), None)

    def _direct(self, die: Die) -> Iterator[Member]:
        for count, child in enumerate(self._dwarf.children(die)):
            if count > _MAX_FIELDS:
                return
            if child.tag in (dw.TAG_member, dw.TAG_inheritance) and not child.has(dw.AT_declaration):
                if child.has(dw.AT_external):
                    continue  # DWARF 4: a static data member
                member = self._member(child)
                if member is not None:
                    yield member

    def _member(self, die: Die, tag: int | None = None) -> Member | None:
        offset = member_offset(die)
        if offset is None:
            return None
        kind = self.of(self._dwarf.target(die, dw.AT_type))
        if die.tag == dw.TAG_inheritance:
            return Member(kind.name, offset, kind, base=True)
        bits, first = die.number(dw.AT_bit_size) or 0, die.number(dw.AT_data_bit_offset)
        if first is not None and not bits:  # Zig's own backend gives a packed field's width by its type only
            bits = 1 if kind.kind == "bool" else _width(kind.name) or 8 * kind.size
        if not 0 < bits <= 8 * _MAX_FIELDS:
            return Member(self._dwarf.name(die), offset, kind, tag)
        if first is None:  # DWARF 2 and 3, gcc's DWARF 4: from the most significant bit of a storage unit
            unit = die.number(dw.AT_byte_size) or kind.size
            first = 8 * (offset + unit) - (die.number(dw.AT_bit_offset) or 0) - bits
        return Member(self._dwarf.name(die), first // 8, kind, tag, bits, first % 8)

    def _alternatives(self, die: Die) -> list[Member]:
        found: list[Member] = []
        for child in self._dwarf.children(die):
            if child.tag == dw.TAG_variant_part:
                for variant in self._dwarf.children(child):
                    if variant.tag == dw.TAG_variant:
                        value = variant.number(dw.AT_discr_value)
                        for inner in self._dwarf.children(variant):
                            member = self._member(inner, value) if inner.tag == dw.TAG_member else None
                            if member is not None:
                                found.append(member)
        if found:
            return found
        payload = next((m for m in self._direct(die) if m.name == "payload"), None)
        tag = next((m for m in self._direct(die) if m.name == "tag"), None)
        if payload is None or tag is None:
            return []
        values = {name: value for value, name in self.enumerators(tag.type)}
        return [
            Member(m.name, payload.offset + m.offset, m.type, values.get(m.name))
            for m in self.members(payload.type)
        ]

    def enumerators(self, kind: Type) -> list[tuple[int, str]]:
        """(value, name) of an enum."""
        if kind.die is None or kind.kind != "enum":
            return []
        pairs = []
        for child in self._dwarf.children(kind.die):
            value = child.number(dw.AT_const_value) if child.tag == dw.TAG_enumerator else None
            if value is not None:
                pairs.append((value, self._dwarf.name(child)))
        return pairs

    def element(self, kind: Type) -> tuple[Type, int]:
        """(element type, count) of an array."""
        if kind.die is None or kind.kind != "array":
            return Type("void", "void", 0, None), 0
        return self.of(self._dwarf.target(kind.die, dw.AT_type)), self._count(kind.die)

    def _mask(self, kind: Type) -> int:
        """The value bits of an enum on a type such as Zig's u1; 0 for all. Programs ignore the others."""
        if kind.die is None or kind.kind != "enum":
            return 0
        under = self._dwarf.target(kind.die, dw.AT_type)
        if under is None:
            return 0
        bits = under.number(dw.AT_bit_size)
        if bits is None:
            bits = _width(self._dwarf.name(under))
        return (1 << bits) - 1 if 0 < bits < 8 * kind.size else 0

    # -- questions -------------------------------------------------------------------------------

    def field_at(self, kind: Type, offset: int) -> str | None:
        """The dotted path of the innermost field that holds the byte at offset, `_state` or `a[3].b`.

        In a union the first alternative that reaches so far; None for padding and beyond the end.
        """
        return self._path_at(kind, offset, 0)

    def _path_at(self, kind: Type, offset: int, depth: int) -> str | None:
        if depth > _MAX_DEPTH:
            return None
        if kind.kind == "array":
            element, count = self.element(kind)
            if not element.size or not 0 <= offset < element.size * count:
                return None
            inner = self._path_at(element, offset % element.size, depth + 1)
            return f"[{offset // element.size}]" + (f".{inner}" if inner else "")
        members = self.members(kind)
        tag = self.tag_of(kind)
        for member in [*members, *([tag] if tag else [])]:
            if member.offset <= offset < member.offset + max(member.span, 1):
                inner = self._path_at(member.type, offset - member.offset, depth + 1)
                if not inner:
                    return member.name
                return member.name + inner if inner.startswith("[") else f"{member.name}.{inner}"
        return None

    def decode(self, kind: Type, data: bytes, *, name: str = "", offset: int = 0) -> Value:
        """Bytes as a tree. Bytes that are missing show as "?"."""
        return self._decode(kind, data, name, offset, 0)

    def _decode(self, kind: Type, data: bytes, name: str, offset: int, depth: int) -> Value:
        raw = data[offset : offset + kind.size]
        if kind.name.startswith("?") and self._is_null(kind, raw):
            return Value(name, offset, kind, "null")
        if depth < _MAX_DEPTH and kind.kind in ("struct", "union", "tagged", "array"):
            children = tuple(
                self._bit_field(member, data, offset + member.offset)
                if member.bits
                else self._decode(member.type, data, member.name, offset + member.offset, depth + 1)
                for member in self._parts(kind, data, offset)[:_MAX_LEAVES]
            )
            if children:
                return Value(name, offset, kind, "", children)
        return Value(name, offset, kind, render(kind.kind, kind.size, raw, self.enumerators(kind)))

    def _is_null(self, kind: Type, raw: bytes) -> bool:
        """Whether bytes are a Zig optional without a value: a null pointer, or `some` is 0."""
        if len(raw) != kind.size or not raw:
            return False
        if kind.kind == "pointer":
            return not any(raw)
        some = next((m for m in self.members(kind) if m.name == "some"), None)
        return some is not None and not any(raw[some.offset : some.offset + some.span])

    def _bit_field(self, member: Member, data: bytes, offset: int) -> Value:
        raw = data[offset : offset + member.span]
        if len(raw) != member.span:
            return Value(member.name, offset, member.type, "?")
        number = int.from_bytes(raw, "little") >> member.bit & (1 << member.bits) - 1
        if member.type.kind == "signed" and number >> member.bits - 1:
            number -= 1 << member.bits
        size = max(member.type.size, 1)
        whole = (number & (1 << 8 * size) - 1).to_bytes(size, "little")
        text = render(member.type.kind, size, whole, self.enumerators(member.type))
        return Value(member.name, offset, member.type, text)

    def _parts(self, kind: Type, data: bytes, offset: int) -> list[Member]:
        """The members to show: of a tagged union only its tag and the alternative that it selects."""
        if kind.kind == "array":
            element, count = self.element(kind)
            return [Member(f"[{i}]", i * element.size, element) for i in range(min(count, _MAX_LEAVES))]
        members, tag = self.members(kind), self.tag_of(kind)
        if kind.kind != "tagged" or tag is None:
            return members
        raw = data[offset + tag.offset : offset + tag.offset + tag.type.size]
        chosen: list[Member] = []
        if len(raw) == tag.type.size:
            value = int.from_bytes(raw, "little")
            seen = (value, value & self._mask(tag.type)) if self._mask(tag.type) else (value,)
            chosen = next(([m] for v in seen for m in members if m.tag == v), [])
        chosen = chosen or [m for m in members if m.tag is None]
        return [tag, *chosen]

    # -- leaves ----------------------------------------------------------------------------------

    def leaves(self, kind: Type) -> tuple[SlotField, ...]:
        """The type flattened for SlotLayout.fields, by offset, at most 256."""
        found: list[SlotField] = []
        self._leaves(kind, "", 0, 0, found)
        found.sort(key=lambda field: (field.offset, field.path))
        return tuple(found[:_MAX_LEAVES])

    def _leaves(self, kind: Type, path: str, base: int, depth: int, found: list[SlotField]) -> None:
        if len(found) >= _MAX_LEAVES or depth > _MAX_DEPTH:
            return
        members = self.members(kind)
        tag = self.tag_of(kind)
        optional = kind.name.startswith("?") and kind.size == 8
        if kind.kind == "tagged" and tag is not None and not optional:
            variants = tuple(
                SlotVariant(
                    tag=m.tag if m.tag is not None else -1, name=m.name, type=m.type.name, kind=m.type.kind
                )
                for m in members
            )
            found.append(
                SlotField(
                    path=path, offset=base, size=kind.size, type=kind.name, kind="union",
                    tag_offset=base + tag.offset, tag_size=min(tag.type.size, 8),
                    tag_mask=self._mask(tag.type), variants=variants,
                )
            )  # fmt: skip
        elif members and kind.kind == "struct":
            for m in members:
                dotted = f"{path}.{m.name}" if path else m.name
                if m.bits:
                    label, at = f"{m.type.name}:{m.bits}", base + m.offset
                    found.append(SlotField(path=dotted, offset=at, size=m.span, type=label, kind="bytes"))
                else:
                    self._leaves(m.type, dotted, base + m.offset, depth + 1, found)
        elif kind.size:
            names = tuple(
                SlotVariant(tag=value, name=name, type="", kind="")
                for value, name in self.enumerators(kind)[:256]
            )
            leaf = "pointer" if optional else kind.kind
            leaf = leaf if leaf in _LEAF_KINDS else "bytes"
            found.append(
                SlotField(path=path, offset=base, size=kind.size, type=kind.name, kind=leaf, variants=names)
            )


_LEAF_KINDS = frozenset(("pointer", "unsigned", "signed", "bool", "float", "enum"))


def _width(name: str) -> int:
    """Bits of one of Zig's integer types by its name, u3 or i5; 0 for other types."""
    found = re.fullmatch(r"[ui](\d{1,3})", name)
    return int(found.group(1)) if found else 0


def member_offset(die: Die) -> int | None:
    """DW_AT_data_member_location as a number of bytes; 0 where a union leaves it out."""
    entry = die.values.get(dw.AT_data_member_location)
    if entry is None:
        return 0
    if isinstance(entry[1], int):
        return entry[1]
    raw = entry[1]  # DWARF 2: DW_OP_plus_uconst N
    if len(raw) >= 2 and raw[0] == 0x23 and raw[1] < 0x80:
        return raw[1]
    return None


def render(kind: str, size: int, raw: bytes, names: list[tuple[int, str]]) -> str:
    """A leaf's bytes as text."""
    if not size or len(raw) != size:
        return "?"
    number = int.from_bytes(raw, "little")
    if kind == "bool":
        return {0: "false", 1: "true"}.get(number, f"{number:#x} (not a bool)")
    if kind == "enum":
        known = dict(names).get(number)
        return f".{known}" if known is not None else f"{number:#x} (no such value)"
    if kind == "signed" and size <= 8:
        return str(int.from_bytes(raw, "little", signed=True))
    if kind == "unsigned" and size <= 8:
        return str(number) if number < 1 << 20 else f"{number:#x}"
    if size <= 8:
        return f"{number:#x}"
    return raw[:16].hex() + ("…" if size > 16 else "")
