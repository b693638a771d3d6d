# Owns the probe plan: the data symbols/ hands to probes/ and to the user.
# Plain immutable values; must not open files, parse DWARF or know BPF.
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NewType

Addr = NewType("Addr", int)
"""A virtual address as the image's own ELF headers give it (before any load bias)."""


class Role(Enum):
    """What a probed function does to a slot (profile keys of the same name)."""

    CREATE = "create"
    DESTROY = "destroy"
    DISOWN = "disown"
    DISPATCH = "dispatch"


class InstanceKind(Enum):
    OUT_OF_LINE = "out-of-line"
    INLINED = "inlined"


class Price(Enum):
    """What the kernel does with the probed instruction (arch/*/kernel/{,probes/}uprobes.c).

    aarch64 calls the first kind simulated; nothing was measured there.
    """

    EMULATED = "emulated"  # x86-64: push, nop, jmp, call: about 1 µs
    SINGLE_STEP = "single-step"  # anything else: 5 to 8 µs


MAX_RANGES = 8
"""Ranges of one Site."""

MAX_EMBEDDED = 16
"""Offsets in SlotLayout.embedded."""

MAX_STEPS = 32
"""Steps of one ArgSource, those of its operands counted: the most a generated reader evaluates."""

LOAD_BIAS = "bias"
"""A register of ours: run-time address minus the image's own; 0 in a fixed-address executable."""


class Op(Enum):
    """What Apply does with the value (left) and its operand (right), on 64 bits (DWARF 5, 2.5.1.4)."""

    PLUS = "+"
    MINUS = "-"
    TIMES = "*"
    DIVIDE = "/"  # signed, towards zero
    MODULO = "%"  # unsigned
    AND = "&"
    OR = "|"
    XOR = "^"
    SHIFT_LEFT = "<<"
    SHIFT_RIGHT = ">>"
    SHIFT_RIGHT_SIGNED = "s>>"
    EQUAL = "=="  # comparisons: signed, giving 0 or 1
    UNEQUAL = "!="
    LESS = "<"
    LESS_OR_EQUAL = "<="
    GREATER = ">"
    GREATER_OR_EQUAL = ">="


@dataclass(frozen=True, slots=True)
class Add:
    """value += amount (bytes; may be negative)."""

    amount: int


@dataclass(frozen=True, slots=True)
class Deref:
    """value = *(unsigned integer of `size` bytes at value), zero-extended."""

    size: int


@dataclass(frozen=True, slots=True)
class Extend:
    """value = its low `size` bytes (1, 2, 4 or 8), sign- or zero-extended."""

    size: int
    signed: bool


@dataclass(frozen=True, slots=True)
class Apply:
    """value = value op operand."""

    op: Op
    operand: ArgSource


Step = Add | Deref | Extend | Apply


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgSource:
    """Where an argument is at one pc: a start, then steps left to right.

    The start is `register` (DWARF/psABI name: "rbx", "rsp", "x19"; or LOAD_BIAS), else `entry`: what that
    source gave when the enclosing out-of-line function was entered, else `constant`.
    """

    register: str | None = None
    constant: int = 0
    steps: tuple[Step, ...] = ()
    entry: ArgSource | None = None

    @property
    def is_constant(self) -> bool:
        return self.register is None and self.entry is None and not self.steps

    @property
    def is_register(self) -> bool:
        return self.register is not None and not self.steps

    def weight(self) -> int:
        """Steps in all, operands and the entry's own included."""
        inner = sum(1 + s.operand.weight() for s in self.steps if isinstance(s, Apply))
        return len(self.steps) + inner + (1 + self.entry.weight() if self.entry is not None else 0)

    def parts(self) -> Iterator[ArgSource]:
        """Itself and every operand, at whatever depth; not what is taken at the function's entry."""
        yield self
        for step in self.steps:
            if isinstance(step, Apply):
                yield from step.operand.parts()

    def at_entry(self) -> tuple[ArgSource, ...]:
        """The different values it takes from the function's entry."""
        return tuple(dict.fromkeys(part.entry for part in self.parts() if part.entry is not None))

    def registers(self) -> frozenset[str]:
        """Registers it reads at its own pc."""
        return frozenset(part.register for part in self.parts() if part.register is not None)

    def reads_memory(self) -> bool:
        """Whether it reads memory at its own pc."""
        return any(isinstance(step, Deref) for part in self.parts() for step in part.steps)

    def __str__(self) -> str:
        if self.entry is not None:
            text = f"entry({self.entry})"
        else:
            text = self.register if self.register is not None else f"{self.constant:#x}"
        for step in self.steps:
            match step:
                case Add():
                    text = f"{text}{step.amount:+#x}"
                case Deref():
                    text = f"*({text})" if step.size == 8 else f"*(u{step.size * 8})({text})"
                case Extend():
                    text = f"({'i' if step.signed else 'u'}{step.size * 8})({text})"
                case Apply():
                    text = f"({text} {step.op.value} {step.operand})"
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLine:
    file: str  # as DWARF names it, directory joined when relative
    line: int  # 1-based; 0 when the compiler gave none
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One source-level frame of a pc; inlined frames come innermost first."""

    function: str
    location: SourceLine | None
    inlined: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One address to probe."""

    index: int  # position in ProbePlan.sites
    role: Role
    function: str  # qualified or linkage name of the function the profile wanted
    kind: InstanceKind
    address: Addr
    file_offset: int  # bytes from the start of the image file; what perf_event_open wants
    enclosing: str  # the out-of-line function that holds the address
    call_site: SourceLine | None  # where an inlined instance was called from
    declared_at: SourceLine | None
    instruction: str  # disassembly of the probed instruction
    price: Price
    argument: str  # name of the variable or parameter the value comes from
    source: ArgSource
    note: str = ""  # e.g. "address moved +0x5 from the entry: cheaper"
    # Where the probe sits on a branch that leads to the place: the place itself, which hits are told as.
    stands_for: Addr | None = None
    when: str = ""  # only with these flags, a condition of x86's jcc: "e", "nae"; "": always
    entry: int | None = None  # position in ProbePlan.entries of where source.entry is taken
    frame: ArgSource | None = None  # with entry: the CFA here, which tells the calls of a function apart
    at_entry: bool = False  # of a call: the stack pointer has not moved yet, the return address is at [sp]
    ranges: tuple[tuple[int, int], ...] = ()  # image addresses [low, high) of the instance's code, at most 8
    counts: bool = False  # destroy: it seems to count references down, and only the last call to free
    counts_at: int | None = None  # with counts: where, in bytes from the slot's start


@dataclass(frozen=True, slots=True, kw_only=True)
class EntrySite:
    """One address to probe at a function's entry, for values that are nowhere else later on.

    Kept by the call's CFA: each call that is under way has its own, on whatever thread (DWARF 5, 6.4).
    """

    index: int  # position in ProbePlan.entries
    function: str  # linkage name of the out-of-line function
    address: Addr
    file_offset: int
    instruction: str
    price: Price
    value: ArgSource  # what to keep
    frame: ArgSource  # the CFA at this address


@dataclass(frozen=True, slots=True, kw_only=True)
class Unprobed:
    """An instance that exists and cannot be probed; findings it touches become uncertain."""

    role: Role
    function: str
    kind: InstanceKind
    address: Addr | None
    enclosing: str
    call_site: SourceLine | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One PT_LOAD, for turning run-time addresses into image addresses and back."""

    vaddr: int
    offset: int
    filesz: int
    memsz: int
    executable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotVariant:
    """One alternative of a tagged union: which tag value selects it, and what it then is."""

    tag: int
    name: str
    type: str
    kind: str  # as SlotField.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotField:
    """One leaf of the slot's type, enough to say what its bytes mean without debug information."""

    path: str  # "protocol", "next", "peer.port"
    offset: int  # bytes from the slot's start
    size: int
    type: str  # as DWARF names it: "*worker.HTTPConn"
    kind: str  # "pointer", "unsigned", "signed", "bool", "float", "enum", "union" (tagged) or "bytes"
    tag_offset: int | None = None  # of a tagged union's tag, from the slot's start
    tag_size: int = 0
    tag_mask: int = 0  # bits of the tag that the program looks at; 0: all of them
    variants: tuple[SlotVariant, ...] = ()  # alternatives of a tagged union; names of an enum's values


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotLayout:
    """What the kernel side and the reports need to know of the slot's type."""

    type_name: str
    size: int  # bytes; 0 unknown
    freelist_offset: int | None
    object_offset: int | None  # where the slot keeps the pointer that dispatch probes see
    object_field: str | None  # e.g. "protocol.http"
    object_type: str | None
    fields: tuple[SlotField, ...] = ()  # leaves by offset; empty when the type is not described
    object_is_slot: bool = False  # dispatch probes see the slot itself: object_offset is None then
    object_delta: int = 0  # with object_is_slot: the object's address minus the slot's (a base class)
    embedded: tuple[int, ...] = ()  # where other structs lie in it: userdata may point there; at most 16
    count_field: str | None = None  # of the reference count, where the profile names one
    count_offset: int | None = None  # bytes from the slot's start
    count_size: int = 0  # 1, 2, 4 or 8
    frees_at: int = 1  # the count that destroy finds when it frees


@dataclass(frozen=True, slots=True, kw_only=True)
class Userdata:
    """How epoll_data maps to a slot (profile [userdata]): its address is (data & mask) - offset."""

    kind: str = "pointer"  # "pointer" or "fd"
    mask: int = 0xFFFF_FFFF_FFFF_FFFF
    reserved: tuple[int, ...] = ()
    offset: int = 0  # bytes from the slot's start to what userdata points to


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePlan:
    image: str  # path it was resolved from
    identity: str  # "build-id:<hex>" or "sha256:<hex>"
    machine: str  # "x86_64" or "aarch64"
    pie: bool
    profile: str
    guard: str | None
    userdata: Userdata
    slot: SlotLayout
    segments: tuple[Segment, ...]
    sites: tuple[Site, ...]
    unprobed: tuple[Unprobed, ...]
    warnings: tuple[str, ...] = field(default=())
    entries: tuple[EntrySite, ...] = field(default=())

    @property
    def moved(self) -> dict[int, int]:
        """Where probes sit that stand for other places -> those places."""
        return {site.address: site.stands_for for site in self.sites if site.stands_for is not None}

    def by_role(self, role: Role) -> Iterator[Site]:
        return (site for site in self.sites if site.role is role)

    def complete(self, role: Role) -> bool:
        """True when the role has at least one site and none of its instances is unprobed."""
        return any(self.by_role(role)) and not any(u.role is role for u in self.unprobed)

    @property
    def destroy_counts(self) -> bool:
        """Whether a destroy seems to count references, and the profile does not say where."""
        return self.slot.count_offset is None and any(site.counts for site in self.by_role(Role.DESTROY))

    @property
    def tied(self) -> bool:
        """Whether the object that dispatch probes see leads to its slot."""
        return self.slot.object_is_slot or self.slot.object_offset is not None
