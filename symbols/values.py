# Owns symbolic 64-bit values: ArgSources put together from others, constants folded, size bounded. What the
# operations of DWARF expressions mean on such values; must not know how expressions are encoded.
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from symbols.cfi_expr import BINARY
from symbols.dwarf_ops import operation_name
from symbols.plan import MAX_STEPS, Add, Apply, ArgSource, Deref, Extend, Op, Step

MASK: Final = 0xFFFF_FFFF_FFFF_FFFF

_OPS: Final = {
    0x1A: Op.AND, 0x1B: Op.DIVIDE, 0x1C: Op.MINUS, 0x1D: Op.MODULO, 0x1E: Op.TIMES, 0x21: Op.OR,
    0x22: Op.PLUS, 0x24: Op.SHIFT_LEFT, 0x25: Op.SHIFT_RIGHT, 0x26: Op.SHIFT_RIGHT_SIGNED, 0x27: Op.XOR,
    0x29: Op.EQUAL, 0x2A: Op.GREATER_OR_EQUAL, 0x2B: Op.GREATER, 0x2C: Op.LESS_OR_EQUAL, 0x2D: Op.LESS,
    0x2E: Op.UNEQUAL,
}  # fmt: skip


_CODES: Final = {op: code for code, op in _OPS.items()}


class Unsupported(Exception):
    """What a probe cannot evaluate; str() is the reason, for the plan's `unprobed`."""


@dataclass(frozen=True, slots=True)
class Value:
    """One entry of the expression stack. type: None is the generic type (64 bits, no sign).

    A typed value is kept extended to 64 bits the way its type says.
    """

    source: ArgSource
    type: Extend | None = None

    def add(self, amount: int) -> Value:
        source = self.source
        if source.is_constant:
            return constant(source.constant + amount, self.type)
        if source.steps and isinstance(source.steps[-1], Add):
            amount += source.steps[-1].amount
            source = replace(source, steps=source.steps[:-1])
        amount = (amount + (1 << 63) & MASK) - (1 << 63)
        return Value(_step(source, Add(amount)) if amount else source, self.type)

    def deref(self, size: int) -> Value:
        if size not in (1, 2, 4, 8):
            raise Unsupported(f"DW_OP_deref_size of {size} bytes")
        return Value(_step(self.source, Deref(size)))

    def convert(self, kind: Extend | None) -> Value:
        """DW_OP_convert between integers: cut to the type's size, then extended by its sign."""
        if kind is None or kind.size == 8:
            return Value(self.source, kind)
        if self.source.is_constant:
            return constant(self.source.constant, kind)
        return Value(_step(self.source, kind), kind)

    def apply(self, op: int, other: Value) -> Value:
        """self op other, for the binary operations. op: the DWARF code."""
        if self.type != other.type:
            raise Unsupported(f"{operation_name(op)} of values of different types")
        kind, left = self.type, self
        if kind is not None and (
            (op in (0x1B, 0x1D) and kind.signed == (op == 0x1D))
            or (0x29 <= op <= 0x2E and kind == Extend(8, False))
        ):
            raise Unsupported(f"{operation_name(op)} of {'' if kind.signed else 'un'}signed values")
        if kind is not None and op == 0x25:
            left = left.convert(Extend(kind.size, False))
        made = Value(_combined(op, left.source, other.source))
        return made if kind is None or 0x29 <= op <= 0x2E else made.convert(kind)


def _step(source: ArgSource, step: Step) -> ArgSource:
    made = replace(source, steps=(*source.steps, step))
    if made.weight() > MAX_STEPS:
        raise Unsupported(f"its location takes more than {MAX_STEPS} steps")
    return made


def _combined(op: int, left: ArgSource, right: ArgSource) -> ArgSource:
    if left.is_constant and right.is_constant:
        try:
            return constant(BINARY[op](left.constant, right.constant)).source
        except ZeroDivisionError:
            raise Unsupported("its location divides by zero") from None
    if op == 0x22 and left.is_constant:
        left, right = right, left
    if op in (0x22, 0x1C) and right.is_constant:
        return Value(left).add(right.constant if op == 0x22 else -right.constant).source
    return _step(left, Apply(_OPS[op], right))


def constant(value: int, kind: Extend | None = None) -> Value:
    if kind is not None and kind.size < 8:
        bits = 8 * kind.size
        value &= (1 << bits) - 1
        if kind.signed and value >> (bits - 1):
            value -= 1 << bits
    return Value(ArgSource(constant=value & MASK), kind)


def register(name: str) -> Value:
    return Value(ArgSource(register=name))


def compute(op: Op, left: int, right: int) -> int | None:
    """left op right, on 64 bits; None for a division by zero."""
    try:
        return BINARY[_CODES[op]](left, right) & MASK
    except ZeroDivisionError:
        return None


def extended(value: int, kind: Extend) -> int:
    """value after an Extend step, as 64 bits."""
    return constant(value, kind).source.constant
