# Owns the question where a register's value came from: backward data flow in one function (capstone).
# Registers and memory come from the caller, as do the function's bytes. Walks are bounded; an unknown is an
# answer. Must not know DWARF.
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import capstone
from capstone import x86_const as x86

from symbols.code import FunctionCode, full_register
from symbols.moves import (
    SCRATCH,
    added_constant,
    copy_of,
    is_vector,
    is_vector_copy,
    registers_written,
    same_register,
    stack_moved,
    vector_register,
)

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_MAX_STATES = 600  # instructions looked at for one value
_MAX_DEPTH = 4  # loads through loads
_MAX_ORIGINS = 8
_LOWEST, _HIGHEST = 0x1000, 0x0000_7FFF_FFFF_FFFF  # no load from elsewhere succeeds: vm.mmap_min_addr, x86-64

Read = Callable[[int, int], bytes | None]


class How(StrEnum):
    """What gave a register its value."""

    LOAD = "loaded from memory"
    ENTRY = "held at the function's entry"
    CONSTANT = "a constant"
    COMPUTED = "computed"
    CALL = "returned by a call"
    KEPT = "kept in another register"
    UNKNOWN = "not found"


class Place(NamedTuple):
    """A register, 8 bytes of a vector register from `part` on, or a home in the frame: [register + disp]."""

    register: str
    disp: int | None = None
    part: int = 0
    plus: int = 0  # what the code added on the way: the wanted value is this much more than the place holds

    def __str__(self) -> str:
        return self.register if self.disp is None else f"[{self.register} {self.disp:+#x}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """One way in which the value can have come about, innermost function only."""

    how: How
    at: int  # image address of the instruction; 0 where there is none
    text: str
    base: str = ""  # LOAD: [base + disp]
    base_value: int | None = None
    disp: int = 0
    address: int | None = None  # LOAD: run-time address it was loaded from
    agrees: bool | None = None  # the memory there still holds the value; None: not readable
    value: int | None = None  # what came of it, constants that were added included
    plus: int = 0  # constants that the code added to what it loaded
    place: Place | None = None  # ENTRY: what held it
    via: tuple[int, ...] = ()  # instructions that only moved it


class _State(NamedTuple):
    at: int
    place: Place
    written: frozenset[str]
    via: tuple[int, ...]
    shift: tuple[tuple[str, int], ...] = ()  # constants added to a register since, which can be taken back

    def over(self, insn: Any) -> _State:
        """The state before an instruction that has nothing to do with the place."""
        added = added_constant(insn)
        if added is not None and insn.mnemonic != "lea":
            if added[0] in self.written:
                return self
            shifts = dict(self.shift)
            shifts[added[0]] = shifts.get(added[0], 0) + added[1]
            return self._replace(shift=tuple(sorted(shifts.items())))
        return self._replace(written=self.written | registers_written(insn))

    def joined(self, other: _State) -> _State:
        """What holds on both ways to one instruction: a register that either wrote is not known any more."""
        mine, theirs = dict(self.shift), dict(other.shift)
        written = self.written | other.written
        written |= {name for name in mine.keys() | theirs.keys() if mine.get(name, 0) != theirs.get(name, 0)}
        shift = tuple(pair for pair in self.shift if pair[0] not in written)
        return self._replace(written=written, shift=shift)


class Tracer:
    """Backward data flow in one function, from one point of it."""

    def __init__(
        self, code: FunctionCode, entry: int, registers: Mapping[str, int], read: Read, bias: int
    ) -> None:
        """registers: at the point the walk starts from. entry: the function's, as an image address."""
        self._code = code
        self._entry = entry
        self._registers = registers
        self._read = read
        self._bias = bias

    def origins(self, at: int, place: Place, value: int | None) -> list[Origin]:
        """Where the value came from that `place` holds just before the instruction at `at` runs.

        value: what it held there. The likeliest first: loads whose memory still holds the value.
        """
        found = self._walk(_State(at, place, frozenset(), ()), value, 0)
        return sorted(found, key=lambda o: (o.how is not How.LOAD, o.agrees is not True))

    def _walk(self, start: _State, value: int | None, depth: int) -> list[Origin]:
        seen: dict[tuple[int, Place], _State] = {}
        queue: deque[_State] = deque()
        found: dict[tuple[int, How, Place], Origin] = {}
        self._before(start, queue, found)
        steps = 0
        while queue:
            if steps >= _MAX_STATES or len(found) > _MAX_ORIGINS:
                unseen = Origin(how=How.UNKNOWN, at=0, text="there are more ways than are followed")
                found[0, How.UNKNOWN, start.place] = unseen
                break
            state = queue.popleft()
            key = (state.at, state.place)
            before = seen.get(key)
            if before is not None:
                state = before.joined(state)
                if (state.written, state.shift) == (before.written, before.shift):
                    continue
            seen[key] = state
            steps += 1
            stepped = self._step(state, value, depth)
            held = self._held(stepped) if isinstance(stepped, _State) else None
            if isinstance(stepped, Origin):
                found[stepped.at, stepped.how, state.place] = stepped
            elif depth and held is not None:  # only a value is asked for
                text = str(stepped.place)
                found[state.at, How.KEPT, state.place] = Origin(
                    how=How.KEPT, at=state.at, text=text, value=held
                )
            elif None not in (held, value) and held != value:
                pass  # on this way a register would still hold the value: it was not taken
            else:
                self._before(stepped, queue, found)
        if not found:
            return [Origin(how=How.UNKNOWN, at=0, text="")]
        return list(found.values())

    def _before(
        self, state: _State, queue: deque[_State], found: dict[tuple[int, How, Place], Origin]
    ) -> None:
        """Queue what can run before the instruction of a state; at the entry there is nothing."""
        if state.at == self._entry:
            text = f"{state.place} at the entry"
            origin = Origin(how=How.ENTRY, at=self._entry, text=text, place=state.place, via=state.via)
            found[self._entry, How.ENTRY, state.place] = origin
        queue.extend(state._replace(at=before) for before in self._code.preds.get(state.at, ()))

    def _step(self, state: _State, value: int | None, depth: int) -> _State | Origin:
        """One instruction backwards."""
        insn = self._code.detail(state.at)
        if insn is None:
            return Origin(how=How.UNKNOWN, at=state.at, text="not an instruction")
        text = f"{insn.mnemonic} {insn.op_str}".strip()
        writes = registers_written(insn)
        place = state.place
        if place.disp is not None:
            return self._home(state, insn, text, writes)
        kept = self._kept(state, insn) if depth else None
        if kept is not None:
            return Origin(how=How.KEPT, at=state.at, text=text, value=kept, via=state.via)
        if insn.mnemonic.startswith("call") and (place.register in SCRATCH or is_vector(place.register)):
            how = How.CALL if place.register == "rax" else How.UNKNOWN
            return Origin(how=how, at=state.at, text=text, via=state.via)
        if place.register not in writes:
            return state.over(insn)
        return self._definition(state, insn, text, value, depth)

    def _definition(
        self, state: _State, insn: Any, text: str, value: int | None, depth: int
    ) -> _State | Origin:
        name, operands, place = insn.mnemonic, insn.operands, state.place
        here = (*state.via, state.at)[-16:]
        plain = name in ("mov", "movabs", "movq") and len(operands) == 2
        if plain and operands[1].type == x86.X86_OP_REG and operands[0].size == 8:
            source = full_register(insn.reg_name(operands[1].reg))
            moved = Place(source, plus=place.plus)
            return state._replace(place=moved, written=state.written | registers_written(insn), via=here)
        added = added_constant(insn)
        if added is not None:
            moved = Place(added[0], plus=place.plus + added[1])
            return state._replace(place=moved, written=state.written | registers_written(insn), via=here)
        if plain and operands[1].type == x86.X86_OP_IMM:
            return Origin(
                how=How.CONSTANT,
                at=state.at,
                text=text,
                value=(operands[1].imm + place.plus) & _MASK,
                via=state.via,
            )
        if name == "xor" and len(operands) == 2 and same_register(insn, operands):
            nothing = place.plus & _MASK
            return Origin(how=How.CONSTANT, at=state.at, text=text, value=nothing, via=state.via)
        if plain and operands[1].type == x86.X86_OP_MEM and operands[0].size == 8:
            return self._read_back(state, insn, operands[1], 0, value, depth)
        vector = is_vector(place.register) and len(operands) == 2 and is_vector_copy(name)
        if vector and operands[1].type == x86.X86_OP_MEM and place.part + 8 <= operands[1].size:
            return self._read_back(state, insn, operands[1], place.part, value, depth)
        if vector and operands[1].type == x86.X86_OP_REG:
            source = vector_register(insn.reg_name(operands[1].reg))
            moved = Place(source, None, place.part, place.plus)
            return state._replace(place=moved, written=state.written | registers_written(insn), via=here)
        how = How.LOAD if name == "pop" else How.COMPUTED
        return Origin(how=how, at=state.at, text=text, via=state.via)

    def _read_back(
        self, state: _State, insn: Any, operand: Any, part: int, value: int | None, depth: int
    ) -> _State | Origin:
        """A load: of a value that was only parked in the frame (who stored it there?), or from elsewhere."""
        mem = operand.mem
        base = full_register(insn.reg_name(mem.base)) if mem.base else ""
        if base in ("rsp", "rbp") and not mem.index and not mem.segment and depth == 0:
            found = self._through_home(state, insn, base, mem.disp + part)
            if found is not None:
                return found
        return self._load(state, insn, operand, part, value, depth)

    def _through_home(self, state: _State, insn: Any, base: str, disp: int) -> _State | None:
        if base == "rbp" and not self._is_framed():
            return None
        via = (*state.via, state.at)[-16:]
        written = state.written | registers_written(insn)
        return state._replace(place=Place(base, disp, 0, state.place.plus), written=written, via=via)

    def _is_framed(self) -> bool:
        return any(i.mnemonic == "mov" and i.operands == "rbp, rsp" for i in self._code.insns.values())

    def _load(
        self, state: _State, insn: Any, operand: Any, part: int, value: int | None, depth: int
    ) -> Origin:
        mem = operand.mem
        text = f"{insn.mnemonic} {insn.op_str}".strip()
        base = full_register(insn.reg_name(mem.base)) if mem.base else ""
        index = full_register(insn.reg_name(mem.index)) if mem.index else ""
        index_value = self._value_of(index, state, depth) if index else 0
        offset = None if index_value is None else index_value * mem.scale + mem.disp + part
        base_value = self._value_of(base, state, depth, offset) if base else 0
        if base == "rip":
            base_value = (insn.address + insn.size + self._bias) & _MASK
        address = agrees = None
        if base_value is not None and offset is not None and not mem.segment:
            address = (base_value + offset) & _MASK
        if address is not None and not _LOWEST <= address <= _HIGHEST:
            base_value = address = None  # it was loaded, so this is not where from
        if address is not None:
            raw = self._read(address, 8)
            if raw is not None and value is not None:
                agrees = (int.from_bytes(raw, "little") + state.place.plus) & _MASK == value
        return Origin(
            how=How.LOAD, at=state.at, text=text, base=base, base_value=base_value, disp=mem.disp + part,
            address=address, agrees=agrees, value=value, plus=state.place.plus, via=state.via,
        )  # fmt: skip

    def _value_of(self, register: str, state: _State, depth: int, offset: int | None = None) -> int | None:
        """A register's value just before the instruction of the state.

        offset: to where the instruction loaded from; values that no load succeeds with are of other ways.
        """
        insn = self._code.detail(state.at)
        written = state.written | (registers_written(insn) if insn is not None else frozenset())
        if register not in written:
            known = self._registers.get(register)
            return None if known is None else (known - dict(state.shift).get(register, 0)) & _MASK
        if depth >= _MAX_DEPTH:
            return None
        # It was overwritten since: find where it had come from. Which of several ways the program came is not
        # known: a value counts only if it is the same on all of them.
        start = state._replace(place=Place(register), written=written, via=())
        values = {self._result(origin) for origin in self._walk(start, None, depth + 1)}
        if offset is not None:
            values = {v for v in values if v is None or _LOWEST <= (v + offset) & _MASK <= _HIGHEST}
        return values.pop() if len(values) == 1 else None

    def _result(self, origin: Origin) -> int | None:
        """The value that an origin gives, as far as registers and memory still tell."""
        if origin.how in (How.CONSTANT, How.KEPT):
            return origin.value
        if origin.how is How.LOAD and origin.address is not None:
            raw = self._read(origin.address, 8)
            if raw is not None:
                return (int.from_bytes(raw, "little") + origin.plus) & _MASK
        return None

    def _held(self, state: _State) -> int | None:
        """The wanted value, where a register holds it that was not written since."""
        place = state.place
        known = self._registers.get(place.register)
        if place.disp is not None or known is None or place.register in state.written:
            return None
        return (known - dict(state.shift).get(place.register, 0) + place.plus) & _MASK

    def _kept(self, state: _State, insn: Any) -> int | None:
        """The wanted value, where the instruction copies it into a register that still holds the copy."""
        copied = copy_of(insn, state.place.register)
        known = self._registers.get(copied[0]) if copied is not None else None
        if copied is None or known is None or copied[0] in state.written:
            return None
        since = dict(state.shift).get(copied[0], 0)
        return (known - since - copied[1] + state.place.plus) & _MASK

    # -- homes in the frame ----------------------------------------------------------------------

    def _home(self, state: _State, insn: Any, text: str, writes: frozenset[str]) -> _State | Origin:
        place = state.place
        disp = place.disp if place.disp is not None else 0
        onward = state._replace(written=state.written | writes)
        stored = next(
            (o for o in insn.operands if o.type == x86.X86_OP_MEM and o.access & capstone.CS_AC_WRITE), None
        )
        if stored is not None and not insn.mnemonic.startswith(("lea", "nop")):
            base = full_register(insn.reg_name(stored.mem.base)) if stored.mem.base else ""
            same = base == place.register and not stored.mem.index
            if same and stored.mem.disp <= disp < stored.mem.disp + stored.size:
                return self._stored(onward, insn, text, disp - stored.mem.disp, stored.size)
        if place.register not in writes:
            return onward
        moved = stack_moved(insn, place.register)
        if moved is not None:
            return onward._replace(place=place._replace(disp=disp + moved))
        if insn.mnemonic.startswith("call") or insn.mnemonic == "ret":
            return onward
        return Origin(how=How.UNKNOWN, at=state.at, text=text, via=state.via)

    def _stored(self, state: _State, insn: Any, text: str, part: int, size: int) -> _State | Origin:
        """The instruction stored `size` bytes; the wanted word begins `part` bytes into them."""
        source = insn.operands[1] if len(insn.operands) == 2 else None
        via = (*state.via, state.at)[-16:]
        whole = source is not None and source.type == x86.X86_OP_REG and part + 8 <= size
        if whole and source is not None and is_vector_copy(insn.mnemonic) and size > 8:
            vector = vector_register(insn.reg_name(source.reg))
            return state._replace(place=Place(vector, None, part, state.place.plus), via=via)
        if part == 0 and size == 8 and insn.mnemonic == "mov" and source is not None:
            if source.type == x86.X86_OP_REG:
                register = full_register(insn.reg_name(source.reg))
                return state._replace(place=Place(register, plus=state.place.plus), via=via)
            if source.type == x86.X86_OP_IMM:
                value = (source.imm + state.place.plus) & _MASK
                return Origin(how=How.CONSTANT, at=state.at, text=text, value=value, via=state.via)
        return Origin(how=How.COMPUTED, at=state.at, text=text, via=state.via)
