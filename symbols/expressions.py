# Owns DWARF location expressions: turns one into an ArgSource that a probe can evaluate, or refuses
# by the name of the operation. Must not read memory or choose addresses.
from __future__ import annotations

from dataclasses import dataclass

from symbols.dwarf import Unit
from symbols.leb import Truncated, sleb, uleb
from symbols.plan import Add, ArgSource, Deref
from symbols.registers import REGISTERS

_NAMES = {
    0x06: "DW_OP_deref", 0x12: "DW_OP_dup", 0x13: "DW_OP_drop", 0x1C: "DW_OP_minus", 0x22: "DW_OP_plus",
    0x1A: "DW_OP_and", 0x24: "DW_OP_shl", 0x25: "DW_OP_shr", 0x93: "DW_OP_piece",
    0x97: "DW_OP_push_object_address",
    0x98: "DW_OP_call2", 0x99: "DW_OP_call4", 0x9A: "DW_OP_call_ref", 0x9B: "DW_OP_form_tls_address",
    0x9D: "DW_OP_bit_piece", 0xA0: "DW_OP_implicit_pointer", 0xA1: "DW_OP_addrx", 0xA2: "DW_OP_constx",
    0xA3: "DW_OP_entry_value", 0xA4: "DW_OP_const_type", 0xA5: "DW_OP_regval_type", 0xA6: "DW_OP_deref_type",
    0xA8: "DW_OP_convert", 0xA9: "DW_OP_reinterpret", 0xE0: "DW_OP_GNU_push_tls_address",
    0xF2: "DW_OP_GNU_implicit_pointer", 0xF3: "DW_OP_GNU_entry_value", 0xF4: "DW_OP_GNU_const_type",
    0xF5: "DW_OP_GNU_regval_type", 0xF7: "DW_OP_GNU_convert", 0xFA: "DW_OP_GNU_parameter_ref",
    0xFD: "DW_OP_GNU_variable_value",
}  # fmt: skip


class Unsupported(Exception):
    """An expression a probe cannot evaluate; str() is the reason, for the plan's `unprobed`."""


@dataclass(frozen=True, slots=True)
class FrameBase:
    """What DW_OP_fbreg adds to, at the pc in question: a register plus an offset, or the reason why not."""

    register: str | None = None
    offset: int = 0
    reason: str = "the function has no frame base"


@dataclass(slots=True)
class _Value:
    register: str | None
    constant: int
    steps: tuple[Add | Deref, ...]

    def add(self, amount: int) -> _Value:
        if self.register is None and not self.steps:
            return _Value(None, self.constant + amount & 0xFFFF_FFFF_FFFF_FFFF, ())
        if self.steps and isinstance(self.steps[-1], Add):
            amount += self.steps[-1].amount
            return _Value(self.register, self.constant, self.steps[:-1] + ((Add(amount),) if amount else ()))
        return _Value(self.register, self.constant, self.steps + ((Add(amount),) if amount else ()))

    def deref(self, size: int) -> _Value:
        return _Value(self.register, self.constant, (*self.steps, Deref(size)))

    def is_constant(self) -> bool:
        return self.register is None and not self.steps

    def source(self) -> ArgSource:
        return ArgSource(register=self.register, constant=self.constant, steps=self.steps)


def operation_name(op: int) -> str:
    return _NAMES.get(op, f"operation {op:#x}")


def to_source(expr: bytes, unit: Unit, frame: FrameBase, size: int = 8) -> ArgSource:
    """Where the variable's value of `size` bytes is. Raises Unsupported with the reason."""
    try:
        return _Evaluator(expr, unit, frame, size).run()
    except (Truncated, IndexError):
        raise Unsupported("its location expression is malformed") from None


def home_of(expr: bytes, unit: Unit, frame: FrameBase) -> tuple[str, int] | None:
    """(register, offset) of a variable that lives in memory at register + offset; else None."""
    try:
        source = to_source(expr, unit, frame)
    except Unsupported:
        return None
    steps = source.steps
    if source.register is None or not steps or not isinstance(steps[-1], Deref) or len(steps) > 2:
        return None
    if len(steps) == 1:
        return source.register, 0
    return (source.register, steps[0].amount) if isinstance(steps[0], Add) else None


def frame_base_register(expr: bytes) -> FrameBase | None:
    """A frame base that is one register (DW_OP_reg, DW_OP_breg); None for anything else."""
    if len(expr) == 1 and 0x50 <= expr[0] <= 0x5F:
        return FrameBase(REGISTERS[expr[0] - 0x50])
    if len(expr) > 1 and 0x70 <= expr[0] <= 0x7F:
        try:
            offset, pos = sleb(expr, 1, len(expr))
        except Truncated:
            return None
        if pos == len(expr):
            return FrameBase(REGISTERS[expr[0] - 0x70], offset)
    return None


def _register(number: int) -> str:
    if number >= len(REGISTERS):
        raise Unsupported(f"its location is DWARF register {number}, not a general register")
    return REGISTERS[number]


class _Evaluator:
    """DWARF 5, section 2.5: the stack machine, on symbolic values."""

    def __init__(self, expr: bytes, unit: Unit, frame: FrameBase, size: int) -> None:
        self._expr = expr
        self._unit = unit
        self._frame = frame
        self._size = size
        self._pos = 0
        self._stack: list[_Value] = []

    def run(self) -> ArgSource:
        if not self._expr:
            raise Unsupported("optimized out")
        while self._pos < len(self._expr):
            op = self._expr[self._pos]
            self._pos += 1
            done = self._register_operation(op) or self._final(op)
            if done is not None:
                return done
            if not (self._address(op) or self._constant(op) or self._arithmetic(op)):
                raise Unsupported(f"its location needs {operation_name(op)}")
        return self._stack[-1].deref(self._size).source()

    def _uleb(self) -> int:
        value, self._pos = uleb(self._expr, self._pos, len(self._expr))
        return value

    def _sleb(self) -> int:
        value, self._pos = sleb(self._expr, self._pos, len(self._expr))
        return value

    def _bytes(self, count: int) -> bytes:
        raw = self._expr[self._pos : self._pos + count]
        if len(raw) != count:
            raise Truncated
        self._pos += count
        return raw

    def _at_end(self) -> None:
        """What follows a complete location may only be one piece that covers it."""
        if self._pos < len(self._expr) and not _is_whole_piece(self._expr, self._pos, self._size):
            raise Unsupported("its value is split into pieces (DW_OP_piece)")

    def _register_operation(self, op: int) -> ArgSource | None:
        if not (0x50 <= op <= 0x6F or op == 0x90):  # reg0..31, regx: the value itself, must stand alone
            return None
        number = self._uleb() if op == 0x90 else op - 0x50
        self._at_end()
        if self._stack:
            raise Unsupported("its location expression is malformed")
        return _Value(_register(number), 0, ()).source()

    def _final(self, op: int) -> ArgSource | None:
        if op == 0x9F:  # stack_value
            self._at_end()
            return self._stack[-1].source()
        if op == 0x9E:  # implicit_value
            return _constant(int.from_bytes(self._bytes(self._uleb())[:8], "little")).source()
        if op == 0x93:  # piece: of a memory location
            self._pos -= 1
            self._at_end()
            return self._stack[-1].deref(self._size).source()
        return None

    def _address(self, op: int) -> bool:
        if 0x70 <= op <= 0x8F or op == 0x92:  # breg0..31, bregx
            number = self._uleb() if op == 0x92 else op - 0x70
            self._stack.append(_Value(_register(number), 0, ()).add(self._sleb()))
        elif op in (0x91, 0x9C):  # fbreg, call_frame_cfa
            offset = self._sleb() if op == 0x91 else 0
            if self._frame.register is None:
                base = "the frame base" if op == 0x91 else "the CFA"
                raise Unsupported(f"it is relative to {base}, and {self._frame.reason}")
            self._stack.append(_Value(self._frame.register, 0, ()).add(self._frame.offset + offset))
        elif op == 0x03:
            raise Unsupported("it lives at a link-time address (DW_OP_addr)")
        else:
            return False
        return True

    def _constant(self, op: int) -> bool:
        if 0x30 <= op <= 0x4F:  # lit0..31
            self._stack.append(_constant(op - 0x30))
        elif 0x08 <= op <= 0x0F:  # const1u .. const8s
            raw = self._bytes((1, 1, 2, 2, 4, 4, 8, 8)[op - 0x08])
            self._stack.append(_constant(int.from_bytes(raw, "little", signed=bool(op & 1))))
        elif op in (0x10, 0x11):  # constu, consts
            self._stack.append(_constant(self._uleb() if op == 0x10 else self._sleb()))
        else:
            return False
        return True

    def _arithmetic(self, op: int) -> bool:
        stack = self._stack
        if op == 0x12:
            stack.append(stack[-1])
        elif op == 0x13:
            stack.pop()
        elif op == 0x23:  # plus_uconst
            stack.append(stack.pop().add(self._uleb()))
        elif op in (0x22, 0x1C):  # plus, minus: with a constant on top
            top, below = stack.pop(), stack.pop()
            if op == 0x22 and below.is_constant():
                top, below = below, top
            if not top.is_constant():
                raise Unsupported(f"{operation_name(op)} of two variable values")
            signed = top.constant - (1 << 64) if top.constant >> 63 else top.constant
            stack.append(below.add(signed if op == 0x22 else -signed))
        elif op == 0x06:
            stack.append(stack.pop().deref(self._unit.addr_size))
        elif op == 0x94:  # deref_size
            width = self._bytes(1)[0]
            if width not in (1, 2, 4, 8):
                raise Unsupported(f"DW_OP_deref_size of {width} bytes")
            stack.append(stack.pop().deref(width))
        elif op != 0x96:  # nop
            return False
        return True


def _constant(value: int) -> _Value:
    return _Value(None, value & 0xFFFF_FFFF_FFFF_FFFF, ())


def _is_whole_piece(expr: bytes, pos: int, size: int) -> bool:
    if expr[pos] != 0x93:
        return False
    width, after = uleb(expr, pos + 1, len(expr))
    return width >= size and after == len(expr)
