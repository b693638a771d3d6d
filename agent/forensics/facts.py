# Owns what an examination of the evidence found, before it is put into words: the fault, the pointer's
# origin, the slot, the pool's free list, batches in memory. Values that JSON can hold; must not judge.
from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agent.libraries import own_code


@dataclass(frozen=True, slots=True, kw_only=True)
class CodePlace:
    """One source-level frame. Names are untrusted text."""

    function: str
    file: str = ""
    line: int = 0  # 0 unknown
    column: int = 0
    inlined: bool = False

    @property
    def own(self) -> bool:
        """Code of the program itself, not of a library that it was called through."""
        return own_code(self.function, self.file)


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A variable of the source that holds a pointer."""

    name: str
    type: str  # of the variable, "*const worker.HTTPConn"
    function: str  # that declares it
    inlined: bool
    exact: bool  # DWARF puts it into the very register; otherwise only its value is the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The instruction that faulted, from machine code to source. Addresses are run-time addresses."""

    tid: int
    pc: int
    module: str  # path of the file that pc lies in; "" outside of every one
    frames: tuple[CodePlace, ...]  # innermost first; inlined ones before the function that holds them
    callers: tuple[CodePlace, ...] = ()  # of the next physical frames
    instruction: str = ""
    address: int | None = None  # that was accessed
    writes: bool = False
    base: str = ""  # the register that held the pointer
    base_value: int | None = None
    offset: int = 0  # what the instruction added to it
    indexed: bool = False
    variable: Named | None = None
    type: str = ""  # what the pointer points to
    field: str = ""  # dotted path of the field at offset
    in_handler: bool = False  # found below a signal frame: the program handled the signal itself
    aborted: bool = False  # no access faulted: the program ended itself (a panic, an assertion)
    panic: tuple[str, ...] = ()  # functions through which it did, innermost first


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Where the faulting pointer had been loaded from."""

    instruction: str  # "" where only variables and types say it
    address: int | None  # run-time address it was loaded from
    base: str  # register that pointed there
    base_value: int | None
    agrees: bool | None  # the memory still holds the value; None: not readable
    how: str  # symbols.dataflow.How
    plus: int = 0  # constants that the code added to the value before it used it
    function: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSeen:
    """The slot that the crash is about. by: how it was found, the strongest first."""

    address: int
    field: str  # in the slot, from which the pointer came; "" when the slot itself was dereferenced
    # "code": all ways of the code lead to it; "one way": not all; "variable", "batch", "register": its
    # address or its object was there; "finding": it was gone when the open batch brought its event
    by: tuple[str, ...]
    data: bytes = b""  # its bytes; empty when not captured
    lines: tuple[str, ...] = ()  # the bytes as the slot's type
    link: int | None = None  # the word at the free-list link's place
    filled: bool = False  # most bytes besides the link are Zig's undefined fill, 0xaa
    link_aliases: str = ""  # the field that the link's bytes alias

    @property
    def tied(self) -> bool:
        """Whether anything but the time ties the faulting pointer to it."""
        return bool(self.field) or bool(set(self.by) & {"code", "one way", "variable", "batch", "register"})


class ListEnd(StrEnum):
    """How a walk of the free list ended."""

    NULL = "null"
    CYCLE = "cycle"
    UNREADABLE = "unreadable"
    MISPLACED = "misplaced"  # a link that no slot can have: misaligned, or outside of writable memory
    LIMIT = "limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeList:
    """The pool's free list as the captured memory holds it."""

    head: int  # run-time address of the head pointer
    path: str  # "poolserver.the_worker.conn_mem_pool.free_list.first"
    nodes: tuple[int, ...]  # slots in order, at most the first 65,536
    length: int  # walked nodes
    end: ListEnd
    last: int  # the value that ended the walk; with CYCLE the node that came a second time
    position: int | None = None  # 0-based place of the crash's slot; None: not on it
    partial: bool = False  # the head was not captured: followed from the crash's slot on, without that slot


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSeen:
    """An epoll_event array found in memory."""

    tid: int  # of the thread whose variables lead to it; 0: a global
    path: str
    address: int
    count: int | None  # deliveries of the batch where a slice says so; None: not known
    entries: tuple[tuple[int, int], ...]  # (userdata, EPOLL* mask), in array order


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """Everything that debug information and memory say about a crash."""

    fault: Fault | None = None
    loads: tuple[Load, ...] = ()
    slot: SlotSeen | None = None
    slot_type: str = ""
    slot_size: int = 0
    object_field: str = ""  # field of the slot with the pointer that dispatch uses, "protocol.http"
    free_list: FreeList | None = None
    free_list_reason: str = ""  # why there is none
    batches: tuple[BatchSeen, ...] = ()
    live: tuple[int, ...] = ()  # slots reachable from the program's own lists and not on the free list
    # (ip, stack id, own frames) of the moments in the history
    calls: tuple[tuple[int, int, tuple[CodePlace, ...]], ...] = ()
    holders: tuple[str, ...] = ()  # paths of pointers that still point to the crash's slot
    notes: tuple[str, ...] = ()  # what could not be examined, and why
