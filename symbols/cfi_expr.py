# Owns the evaluation of DWARF expressions as call frame information uses them (DWARF 5, 2.5.1 and 6.4.2).
# Bounded; anything it does not know, or memory that cannot be read, gives None.
from __future__ import annotations

from collections.abc import Callable, Mapping

from symbols.leb import Truncated, sleb, uleb

Memory = Callable[[int, int], bytes | None]
"""(address, count) -> exactly count bytes, or None."""

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_MAX_STEPS = 1000
_MAX_STACK = 64


def evaluate(
    expression: bytes, registers: Mapping[int, int], memory: Memory, start: tuple[int, ...] = ()
) -> int | None:
    """The value on top of the stack at the end. registers: by DWARF number. start: what lies on the stack."""
    stack = list(start)
    try:
        _run(expression, registers, memory, stack)
        return stack[-1] & _MASK
    except (Truncated, LookupError, ZeroDivisionError, ValueError):
        return None


def _run(expression: bytes, registers: Mapping[int, int], memory: Memory, stack: list[int]) -> None:
    pos, end = 0, len(expression)
    for _ in range(_MAX_STEPS):
        if pos >= end:
            return
        op = expression[pos]
        pos += 1
        if op in (0x28, 0x2F):  # bra, skip
            jump = int.from_bytes(expression[pos : pos + 2], "little", signed=True)
            pos += 2
            if op == 0x2F or stack.pop():
                pos += jump
            if not 0 <= pos <= end:
                raise Truncated
        elif 0x08 <= op <= 0x11 or op == 0x03 or op == 0x23 or 0x70 <= op <= 0x8F or op == 0x92:
            pos = _operand(expression, op, pos, end, registers, stack)
        elif 0x30 <= op <= 0x4F:
            stack.append(op - 0x30)
        elif op in (0x06, 0x94):
            size = 8
            if op == 0x94:
                size, pos = expression[pos], pos + 1
            raw = memory(stack.pop() & _MASK, size) if 1 <= size <= 8 else None
            if raw is None:
                raise Truncated
            stack.append(int.from_bytes(raw, "little"))
        elif op == 0x15:
            index, pos = expression[pos], pos + 1
            stack.append(stack[-1 - index])
        elif op != 0x96:  # nop
            _arrange(op, stack)
        if len(stack) > _MAX_STACK:
            raise Truncated
    raise Truncated


def _operand(
    expression: bytes, op: int, pos: int, end: int, registers: Mapping[int, int], stack: list[int]
) -> int:
    """Operations with an operand that push: const*, addr, plus_uconst, breg*, bregx."""
    if op == 0x23:
        amount, pos = uleb(expression, pos, end)
        stack.append((stack.pop() + amount) & _MASK)
    elif op == 0x10:
        value, pos = uleb(expression, pos, end)
        stack.append(value & _MASK)
    elif op == 0x11:
        value, pos = sleb(expression, pos, end)
        stack.append(value & _MASK)
    elif op < 0x10:
        width = 8 if op == 0x03 else 1 << ((op - 0x08) // 2)
        value = int.from_bytes(expression[pos : pos + width], "little", signed=bool(op & 1) and op != 0x03)
        stack.append(value & _MASK)
        pos += width
    else:
        register = op - 0x70
        if op == 0x92:
            register, pos = uleb(expression, pos, end)
        offset, pos = sleb(expression, pos, end)
        stack.append((registers[register] + offset) & _MASK)
    return pos


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _divided(a: int, b: int) -> int:
    """Towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


BINARY: dict[int, Callable[[int, int], int]] = {  # by operation; results are to be cut to 64 bits
    0x1A: lambda a, b: a & b,
    0x1B: lambda a, b: _divided(_signed(a), _signed(b)),
    0x1C: lambda a, b: a - b,
    0x1D: lambda a, b: a % b,
    0x1E: lambda a, b: a * b,
    0x21: lambda a, b: a | b,
    0x22: lambda a, b: a + b,
    0x24: lambda a, b: a << b if b < 64 else 0,
    0x25: lambda a, b: a >> b if b < 64 else 0,
    0x26: lambda a, b: _signed(a) >> min(b, 63),
    0x27: lambda a, b: a ^ b,
    0x29: lambda a, b: int(a == b),
    0x2A: lambda a, b: int(_signed(a) >= _signed(b)),
    0x2B: lambda a, b: int(_signed(a) > _signed(b)),
    0x2C: lambda a, b: int(_signed(a) <= _signed(b)),
    0x2D: lambda a, b: int(_signed(a) < _signed(b)),
    0x2E: lambda a, b: int(a != b),
}


def _arrange(op: int, stack: list[int]) -> None:
    if op in BINARY:
        second, first = stack.pop(), stack.pop()
        stack.append(BINARY[op](first, second) & _MASK)
    elif op == 0x12:
        stack.append(stack[-1])
    elif op == 0x13:
        stack.pop()
    elif op == 0x14:
        stack.append(stack[-2])
    elif op == 0x16:
        stack[-1], stack[-2] = stack[-2], stack[-1]
    elif op == 0x17:
        stack[-1], stack[-2], stack[-3] = stack[-2], stack[-3], stack[-1]
    elif op == 0x19:
        stack[-1] = abs(_signed(stack[-1]))
    elif op == 0x1F:
        stack[-1] = -stack[-1] & _MASK
    elif op == 0x20:
        stack[-1] = ~stack[-1] & _MASK
    else:
        raise Truncated
