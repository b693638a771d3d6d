# Owns DWARF location expressions: turns one into an ArgSource that a probe can evaluate, or refuses
# by the name of the operation. Must not read memory or choose addresses.
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from symbols import dwarf_const as dw
from symbols.dwarf_ops import operation_name
from symbols.leb import Truncated, sleb, uleb
from symbols.plan import LOAD_BIAS, Add, ArgSource, Deref, Extend
from symbols.registers import X86_64, Machine
from symbols.values import Unsupported, Value, constant, register

if TYPE_CHECKING:
    from symbols.dwarf import Dwarf, Unit

__all__ = ["Place", "Unsupported", "home_of", "to_source"]

_SIGNED, _INTEGERS = (0x05, 0x06), (0x02, 0x05, 0x06, 0x07, 0x08, 0x10)  # DW_ATE_*
_GNU = {0xF4: 0xA4, 0xF5: 0xA5, 0xF6: 0xA6, 0xF7: 0xA8, 0xF9: 0xA9, 0xFB: 0xA1, 0xFC: 0xA2, 0xF3: 0xA3}
"""GNU's codes for what DWARF 5 has taken over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a location expression may refer to at one address of a function."""

    machine: Machine = X86_64
    base: ArgSource | None = None  # DW_OP_fbreg's
    base_reason: str = "the function has no frame base"
    base_is_cfa: bool = False
    cfa: ArgSource | None = None
    at_entry: bool = False  # the function's first instruction
    entry: Place | None = None  # the function's first instruction, for entry values
    dwarf: Dwarf | None = field(default=None, repr=False)  # for types and address tables


def to_source(expr: bytes, unit: Unit, place: Place, size: int = 8) -> ArgSource:
    """Where the variable's value of `size` bytes is. Raises Unsupported with the reason."""
    return _guarded(_Evaluator(expr, unit, place, size))


def value_of(expr: bytes, unit: Unit | None, place: Place) -> ArgSource:
    """What an expression that is no location gives: a frame base, a CFA, the inside of an entry value."""
    return _guarded(_Evaluator(expr, unit, place, 8, location=False))


def _guarded(evaluator: _Evaluator) -> ArgSource:
    try:
        return evaluator.run()
    except (Truncated, IndexError):
        raise Unsupported("its location expression is malformed") from None


def home_of(expr: bytes, unit: Unit, place: Place) -> tuple[str, int] | None:
    """(register, offset) of a variable that lives in memory at register + offset; else None."""
    try:
        source = to_source(expr, unit, place)
    except Unsupported:
        return None
    match source:
        case ArgSource(register=str(name), steps=(Deref(),)) if name != LOAD_BIAS:
            return name, 0
        case ArgSource(register=str(name), steps=(Add(amount), Deref())) if name != LOAD_BIAS:
            return name, amount
    return None


class _Evaluator:
    """DWARF 5, section 2.5: the stack machine, on symbolic values."""

    def __init__(
        self, expr: bytes, unit: Unit | None, place: Place, size: int, *, location: bool = True
    ) -> None:
        self._expr = expr
        self._unit = unit
        self._place = place
        self._size = size
        self._location = location
        self._pos = 0
        self._stack: list[Value] = []

    def run(self) -> ArgSource:
        if not self._expr:
            raise Unsupported("optimized out")
        while self._pos < len(self._expr):
            code = self._expr[self._pos]
            self._pos += 1
            op = _GNU.get(code, code)
            done = self._register_operation(op) or self._final(op)
            if done is not None:
                return done
            if not (self._address(op) or self._constant(op) or self._arrange(op) or self._typed(op, code)):
                raise Unsupported(f"its location needs {operation_name(code)}")
        top = self._stack[-1]
        return top.deref(self._size).source if self._location else top.source

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

    def _register(self, number: int) -> Value:
        names = self._place.machine.registers
        if number >= len(names):
            raise Unsupported(f"its location is DWARF register {number}, not a general register")
        return register(names[number])

    # -- what ends an expression -----------------------------------------------------------------

    def _at_end(self) -> None:
        """What follows a complete location may only be a piece that covers the value."""
        if self._pos == len(self._expr):
            return
        op = self._expr[self._pos]
        self._pos += 1
        if not self._location or op != 0x93:
            raise Unsupported(f"its location needs {operation_name(op)} behind a complete location")
        if self._uleb() < self._size:
            raise Unsupported("its value is split into pieces (DW_OP_piece)")

    def _register_operation(self, op: int) -> ArgSource | None:
        if not (0x50 <= op <= 0x6F or op == 0x90):  # reg0..31, regx: the value itself, must stand alone
            return None
        value = self._register(self._uleb() if op == 0x90 else op - 0x50)
        self._at_end()
        if self._stack:
            raise Truncated
        return value.source

    def _final(self, op: int) -> ArgSource | None:
        if op == 0x9F:  # stack_value
            self._at_end()
            return self._stack[-1].source
        if op == 0x9E:  # implicit_value
            raw = self._bytes(self._uleb())
            self._at_end()
            return constant(int.from_bytes(raw[:8], "little")).source
        if op == 0x93:  # piece: of a memory location
            if not self._stack:
                raise Unsupported("optimized out")  # 2.6.1.2: a piece without a location
            self._pos -= 1
            self._at_end()
            return self._stack[-1].deref(self._size).source
        return None

    # -- what pushes -----------------------------------------------------------------------------

    def _address(self, op: int) -> bool:
        place, stack = self._place, self._stack
        if 0x70 <= op <= 0x8F or op == 0x92:  # breg0..31, bregx
            number = self._uleb() if op == 0x92 else op - 0x70
            stack.append(self._register(number).add(self._sleb()))
        elif op == 0x91:  # fbreg
            offset = self._sleb()
            if place.base is None:
                raise Unsupported(f"it is relative to the frame base, and {place.base_reason}")
            stack.append(Value(place.base).add(offset))
        elif op == 0x9C:  # call_frame_cfa
            if place.cfa is None:
                raise Unsupported(
                    "it is relative to the CFA, and no call frame information says where that is"
                )
            stack.append(Value(place.cfa))
        elif op == 0x03:  # addr
            stack.append(register(LOAD_BIAS).add(int.from_bytes(self._bytes(8), "little")))
        elif op == 0xA1:  # addrx
            stack.append(register(LOAD_BIAS).add(self._indexed()))
        elif op == 0xA3:  # entry_value
            stack.append(self._entry_value(self._bytes(self._uleb())))
        else:
            return False
        return True

    def _indexed(self) -> int:
        """An entry of the unit's share of .debug_addr."""
        index = self._uleb()
        if self._place.dwarf is None or self._unit is None:
            raise Unsupported("its location needs an address table")
        return self._place.dwarf.indexed_address(self._unit, index)

    def _entry_value(self, inner: bytes) -> Value:
        """DWARF 5, 2.5.1.7: the value that an expression had when the function was entered."""
        if self._place.at_entry:
            return Value(value_of(inner, self._unit, self._place))
        if self._place.entry is None:
            raise Unsupported("its location needs DW_OP_entry_value, and the function's entry is not known")
        return Value(ArgSource(entry=value_of(inner, self._unit, self._place.entry)))

    def _constant(self, op: int) -> bool:
        if 0x30 <= op <= 0x4F:  # lit0..31
            self._stack.append(constant(op - 0x30))
        elif 0x08 <= op <= 0x0F:  # const1u .. const8s
            raw = self._bytes((1, 1, 2, 2, 4, 4, 8, 8)[op - 0x08])
            self._stack.append(constant(int.from_bytes(raw, "little", signed=bool(op & 1))))
        elif op in (0x10, 0x11):  # constu, consts
            self._stack.append(constant(self._uleb() if op == 0x10 else self._sleb()))
        elif op == 0xA2:  # constx
            self._stack.append(constant(self._indexed()))
        else:
            return False
        return True

    # -- what works on the stack -----------------------------------------------------------------

    def _arrange(self, op: int) -> bool:
        stack = self._stack
        if 0x1A <= op <= 0x2E and op not in (0x1F, 0x20, 0x23, 0x28):  # binary
            top, below = stack.pop(), stack.pop()
            stack.append(below.apply(op, top))
        elif op == 0x12:  # dup
            stack.append(stack[-1])
        elif op == 0x13:  # drop
            stack.pop()
        elif op == 0x14:  # over
            stack.append(stack[-2])
        elif op == 0x15:  # pick
            stack.append(stack[-1 - self._bytes(1)[0]])
        elif op == 0x16:  # swap
            stack[-1], stack[-2] = stack[-2], stack[-1]
        elif op == 0x17:  # rot
            stack[-1], stack[-2], stack[-3] = stack[-2], stack[-3], stack[-1]
        elif op == 0x1F:  # neg
            value = stack.pop()
            stack.append(constant(0, value.type).apply(0x1C, value))
        elif op == 0x20:  # not
            value = stack.pop()
            stack.append(value.apply(0x27, constant(-1, value.type)))
        elif op == 0x23:  # plus_uconst
            value = stack.pop()
            stack.append(value.apply(0x22, constant(self._uleb(), value.type)))
        elif op == 0x06:  # deref
            stack.append(stack.pop().deref(self._unit.addr_size if self._unit is not None else 8))
        elif op == 0x94:  # deref_size
            stack.append(stack.pop().deref(self._bytes(1)[0]))
        else:
            return op in (0x96, 0xF0)  # nop, GNU_uninit
        if len(stack) > 64:
            raise Unsupported("its location expression is too deep")
        return True

    def _typed(self, op: int, code: int) -> bool:
        """DWARF 5, 2.5.1.6; integers of up to 64 bits."""
        stack = self._stack
        if op == 0xA4:  # const_type
            kind = self._type(code)
            value = int.from_bytes(self._bytes(self._bytes(1)[0]), "little")
            stack.append(constant(value, kind))
        elif op == 0xA5:  # regval_type
            value_of_register = self._register(self._uleb())
            stack.append(value_of_register.convert(self._type(code)))
        elif op == 0xA6:  # deref_type
            size = self._bytes(1)[0]
            stack.append(stack.pop().deref(size).convert(self._type(code)))
        elif op == 0xA8:  # convert
            stack.append(stack.pop().convert(self._type(code)))
        elif op == 0xA9:  # reinterpret: between types of one size, of which the bits stay
            kind = self._type(code)
            value_now = stack.pop()
            if (value_now.type.size if value_now.type else 8) != (kind.size if kind else 8):
                raise Unsupported(f"its location needs {operation_name(code)} between sizes")
            stack.append(value_now.convert(kind))
        else:
            return False
        return True

    def _type(self, code: int) -> Extend | None:
        """The base type that an operand names; 0: the generic one."""
        offset = self._uleb()
        if offset == 0:
            return None
        if self._place.dwarf is None or self._unit is None:
            raise Unsupported(f"its location needs {operation_name(code)}")
        number = self._unit.offset + offset
        die = self._place.dwarf.die(number, self._unit) if number < self._unit.end else None
        if die is None or die.tag != dw.TAG_base_type:
            raise Truncated
        size, encoding = die.number(dw.AT_byte_size), die.number(dw.AT_encoding)
        if size not in (1, 2, 4, 8) or encoding not in _INTEGERS:
            name = self._place.dwarf.name(die)
            raise Unsupported(f"its location needs {operation_name(code)} to {name!r}, not an integer")
        return Extend(size, encoding in _SIGNED)
