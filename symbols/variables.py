# Owns variables at a pc: which parameters and variables are in scope there, in which function or inlined
# instance, of which type, and where their values are. Also variables with a fixed address. Reads DWARF
# only; registers and memory are brought by the caller, and bytes in them are untrusted.
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from symbols import dwarf_const as dw
from symbols.dwarf import Die, Dwarf
from symbols.expressions import Unsupported, to_source
from symbols.leb import Truncated, uleb
from symbols.lists import locations_of
from symbols.plan import LOAD_BIAS, Add, Apply, ArgSource, Deref, Extend
from symbols.pointers import strip
from symbols.resolve import Session
from symbols.scopes import Function
from symbols.types import Type, Types
from symbols.values import compute, extended

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_MAX_VARIABLES = 2048  # of one pc
_MAX_GLOBALS = 200_000
_SCAN_LIMIT = 256 << 20  # bytes of .debug_info that are scanned for variables with an address

Read = Callable[[int, int], bytes | None]
"""(run-time address, count) -> exactly count bytes, or None."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A parameter or variable that is in scope at a pc; source is None where its place is not known."""

    name: str
    function: str  # linkage name of the function, or of the inlined instance, that declares it
    inlined: bool
    depth: int  # 0: of the innermost scope
    type: Type
    source: ArgSource | None
    reason: str = ""  # why there is no source

    def value(self, registers: Mapping[str, int], read: Read) -> int | None:
        """Its first 8 bytes (fewer for smaller types) as a number."""
        return evaluate(self.source, registers, read) if self.source is not None else None

    def address(self, registers: Mapping[str, int], read: Read) -> int | None:
        """Where in memory it lives; None when it lives in a register."""
        source = self.source
        if source is None or not source.steps or not isinstance(source.steps[-1], Deref):
            return None
        return evaluate(replace(source, steps=source.steps[:-1]), registers, read)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A variable at a fixed image address."""

    name: str
    type: Type
    address: int


def evaluate(source: ArgSource, registers: Mapping[str, int], read: Read) -> int | None:
    """The value of an ArgSource; None where a register or a byte of memory is not known."""
    value: int | None = source.constant
    if source.entry is not None:
        return None  # it was known at the function's entry only
    if source.register is not None:
        value = registers.get(source.register)
    for step in source.steps:
        if value is None:
            return None
        match step:
            case Add():
                value = (value + step.amount) & _MASK
            case Deref():
                raw = read(value & _MASK, step.size)
                value = int.from_bytes(raw, "little") if raw is not None and len(raw) == step.size else None
            case Extend():
                value = extended(value, step)
            case Apply():
                operand = evaluate(step.operand, registers, read)
                value = compute(step.op, value, operand) if operand is not None else None
    return value


class Variables:
    """Variables of one image. Raises SymbolError for damaged debug information."""

    def __init__(self, session: Session, types: Types | None = None) -> None:
        self._session = session
        self._dwarf: Dwarf = session.dwarf
        self.types = types or Types(session.dwarf)

    def function_at(self, pc: int) -> Function | None:
        return self._session.scopes.function_of(pc)

    def at(self, pc: int) -> list[Variable]:
        """What is in scope at an image address, innermost scope first."""
        scopes = self._session.scopes
        self._dwarf.refill()
        function = scopes.function_of(pc)
        if function is None:
            return []
        found: list[Variable] = []
        chain = scopes.chain_at(function, pc)
        for depth, scope in enumerate(reversed(chain)):
            owner = next(
                die
                for die in reversed(chain[: len(chain) - depth])
                if die.tag in (dw.TAG_inlined_subroutine, dw.TAG_subprogram)
            )
            name = self._dwarf.linkage_name(owner) or function.name
            inlined = owner.tag == dw.TAG_inlined_subroutine
            for die in scopes.variables(scope):
                if len(found) >= _MAX_VARIABLES:
                    return found
                kind = self.type_of(die)
                source, reason = self._source(die, function, pc, kind.size)
                label = self._dwarf.name(die)
                if label:
                    found.append(Variable(label, name, inlined, depth, kind, source, reason))
        return found

    def type_of(self, die: Die) -> Type:
        """The type of a variable, its own or inherited."""
        for entry in self._dwarf.origin_chain(die):
            if entry.has(dw.AT_type):
                return self.types.of(self._dwarf.target(entry, dw.AT_type))
        return Type("void", "void", 0, None)

    def pointee(self, kind: Type) -> Type | None:
        """What a pointer (or one of Zig's optional pointers) points to; None for other types."""
        if kind.kind == "tagged" and kind.size == 8 and kind.name.startswith("?"):
            inner = [member.type for member in self.types.members(kind) if member.type.kind == "pointer"]
            return self.pointee(inner[0]) if len(inner) == 1 else None
        if kind.kind != "pointer" or kind.die is None:
            return None
        target = strip(self._dwarf, self._dwarf.target(kind.die, dw.AT_type))
        return self.types.of(target) if target is not None else None

    def fixed(self) -> Iterator[Fixed]:
        """Variables with an address of their own, of any unit: a scan, linear in the debug information."""
        tags = (dw.TAG_variable,)
        scanned = 0
        for unit in self._dwarf.units:
            scanned += unit.end - unit.first
            if scanned > _SCAN_LIMIT:
                return
            for count, (offset, abbrev) in enumerate(self._session.search.scan(unit, tags)):
                if count > _MAX_GLOBALS:
                    break
                if not abbrev.has(dw.AT_location):
                    continue
                self._dwarf.refill()
                die = self._dwarf.die(offset, unit)
                address = self._fixed_address(die) if die is not None else None
                if die is not None and address is not None:
                    yield Fixed(self._dwarf.linkage_name(die), self.type_of(die), address)

    def _fixed_address(self, die: Die) -> int | None:
        entry = die.values.get(dw.AT_location)
        expr = entry[1] if entry is not None else None
        if not isinstance(expr, bytes) or not expr:
            return None
        if expr[0] == 0x03 and len(expr) == 1 + die.unit.addr_size:  # DW_OP_addr
            return int.from_bytes(expr[1:], "little")
        if expr[0] in (0xA1, 0xFB):  # DW_OP_addrx, DW_OP_GNU_addr_index
            try:
                index, end = uleb(expr, 1, len(expr))
            except Truncated:
                return None
            return self._dwarf.indexed_address(die.unit, index) if end == len(expr) else None
        return None

    def _source(self, die: Die, function: Function, pc: int, size: int) -> tuple[ArgSource | None, str]:
        located = locations_of(self._dwarf, die)
        if not located:
            constant = die.number(dw.AT_const_value)
            if constant is not None:
                return ArgSource(constant=constant & _MASK), ""
            fixed = self._fixed_address(die)
            return (None, "at a fixed address") if fixed is not None else (None, "optimized out")
        for low, high, expr in located:
            if low <= pc < high:
                width = size if size in (1, 2, 4, 8) else 8
                try:
                    source = to_source(expr, die.unit, self._session.scopes.place(function, pc), width)
                except Unsupported as error:
                    return None, str(error)
                if LOAD_BIAS in source.registers():
                    return None, "it is found from a link-time address"
                if source.at_entry():
                    return None, "it was known at the function's entry only"
                return source, ""
        return None, "it has no place at this address"
