# Owns which memory of a stopped process goes into a mini core, the most useful first. Must not copy by
# itself: it names places to what takes them, and looks at memory through it.
from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from probes.capture import linkage
from probes.capture.facts import CaptureOptions, MemoryRange
from probes.capture.process import PAGE, Mappings, Vma

_RED_ZONE = 128  # below the stack pointer (psABI x86-64, 3.2.2)
_FIRST = 64 << 10  # of each other stack, before anything else of it
_GUARD = 1 << 20  # a stack pointer may have run this far below its stack
_POINTED = 4096  # bytes of the crashed thread's stack whose words are followed
_SCANNED = 64 << 10  # bytes of a signal stack searched for the frame below
_MOST_STACKS_SCANNED = 64
_GENERAL = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    16,
    19,
)  # of user_regs_struct: not flags, segments
_RSP, _RIP, _FS_BASE = 19, 16, 21
# mov $15, %rax (or %eax); syscall: rt_sigreturn, what a signal handler returns to
_SIGRETURNS = (bytes.fromhex("48c7c00f0000000f05"), bytes.fromhex("b80f0000000f05"))
_UCONTEXT_RSP = 40 + 8 * 15  # struct ucontext, struct sigcontext_64 (arch/x86/include/uapi/asm)


class Taker(Protocol):
    """What copies: memory.Copier, or a test."""

    def read(self, address: int, count: int) -> bytes: ...
    def words(self, address: int, count: int) -> tuple[int, ...]: ...
    def take(self, what: str, start: int, end: int, *, asked: bool = False) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadState:
    """registers: struct user_regs_struct as 27 words."""

    tid: int
    crashed: bool
    registers: tuple[int, ...]

    @classmethod
    def of(cls, tid: int, crashed: bool, raw: bytes) -> ThreadState:
        return cls(tid=tid, crashed=crashed, registers=struct.unpack("<27Q", raw))


class Selection:
    """One stop of one process. essentials() first, then everything()."""

    def __init__(
        self,
        mappings: Mappings,
        threads: Sequence[ThreadState],
        ranges: Iterable[MemoryRange],
        auxv: bytes,
        options: CaptureOptions,
    ) -> None:
        self._mappings, self._threads, self._auxv, self._options = mappings, threads, auxv, options
        self._ranges = sorted(ranges, key=lambda one: one.priority)
        self._scans = _MOST_STACKS_SCANNED

    def essentials(self, taker: Taker) -> None:
        """What a debugger needs for backtraces, and the slots. Raises what the taker raises."""
        crashed = [thread for thread in self._threads if thread.crashed]
        others = [thread for thread in self._threads if not thread.crashed]
        for thread in crashed:
            self._stack(taker, thread, "crasher stack", self._options.crasher_stack_bytes)
        for one in self._ranges:
            taker.take("slot", one.address, one.address + one.size, asked=True)
        self._linkage(taker)
        for thread in others:
            self._stack(taker, thread, "stack", min(_FIRST, self._options.stack_bytes))
        for thread in crashed:
            self._targets(taker, "register", (thread.registers[index] for index in _GENERAL))
        for one in self._ranges:
            taker.take("around slot", one.address - PAGE, one.address + one.size + PAGE)
        for thread in crashed:
            self._targets(taker, "stack word", taker.words(thread.registers[_RSP] & ~7, _POINTED // 8))
        for thread in others:
            self._targets(taker, "register", (thread.registers[index] for index in _GENERAL))

    def everything(self, taker: Taker, present: Present) -> None:
        """Writable globals, the rest of the stacks, then what the limit allows of anonymous memory."""
        for first, last in self._globals():
            taker.take("globals", first, last)
        for thread in self._threads:
            if not thread.crashed:
                self._stack(taker, thread, "stack", self._options.stack_bytes)
        if not self._options.fill:
            return
        for vma in self._fillers():
            for first, last in present(vma):
                taker.take("memory", first, last)

    # -- stacks ----------------------------------------------------------------------------------

    def _stack(self, taker: Taker, thread: ThreadState, what: str, most: int) -> None:
        pointer = thread.registers[_RSP]
        vma = self._take_stack(taker, what, pointer, most)
        if vma is None or self._is_own(vma, thread) or self._scans <= 0:
            return
        self._scans -= 1
        for saved in _interrupted(taker, self._mappings, pointer, min(vma.end, pointer + _SCANNED)):
            self._take_stack(taker, what, saved, most)

    def _take_stack(self, taker: Taker, what: str, pointer: int, most: int) -> Vma | None:
        start = max(0, pointer - _RED_ZONE)
        vma = self._mappings.find(start)
        if vma is None or not vma.readable:  # the stack has overflown into its guard, or the pointer is wild
            at = start
            vma = self._mappings.at_or_above(start)
            while vma is not None and not vma.readable and vma.end < start + _GUARD:
                at = vma.end
                vma = self._mappings.at_or_above(at)
            if vma is None or not vma.readable or vma.start > start + _GUARD:
                return None
            start = max(vma.start, at)
        taker.take(what, start, min(vma.end, start + most))
        return vma

    @staticmethod
    def _is_own(vma: Vma, thread: ThreadState) -> bool:
        """Not a signal stack (sigaltstack(2)): the main stack, or that with the thread's control block."""
        return vma.path == "[stack]" or vma.start <= thread.registers[_FS_BASE] < vma.end

    # -- what is pointed at ----------------------------------------------------------------------

    def _linkage(self, taker: Taker) -> None:
        for vma in self._mappings.vmas:
            if vma.path == "[vdso]":
                taker.take("vdso", vma.start, vma.end)
            elif vma.of_file and vma.offset == 0 and vma.readable:
                taker.take("image header", vma.start, vma.start + PAGE)
        for address, size in linkage.places(self._auxv, taker.read):
            taker.take("linkage", address, address + size)

    def _targets(self, taker: Taker, what: str, values: Iterable[int]) -> None:
        seen: set[int] = set()
        for value in values:
            page = value & ~(PAGE - 1)
            if page in seen:
                continue
            seen.add(page)
            vma = self._mappings.find(value)
            if vma is None or not vma.readable or (vma.of_file and not vma.flags & 2):
                continue
            taker.take(what, page, min(vma.end, page + 2 * PAGE))

    def _globals(self) -> Iterator[tuple[int, int]]:
        """Writable private mappings of files, with the anonymous memory right behind: .data and .bss."""
        end, last = 0, False
        for vma in self._mappings.vmas:
            data = vma.of_file and vma.flags & 2 and vma.flags & 4 and not vma.shared
            bss = last and not vma.inode and not vma.path and vma.start == end and vma.flags & 2
            if data or bss:
                yield vma.start, vma.end
            last, end = bool(data), vma.end

    def _fillers(self) -> list[Vma]:
        """Anonymous memory: what slots lie in, the heap, then the small before the large."""

        of_slots = {vma.start for one in self._ranges if (vma := self._mappings.find(one.address))}

        def rank(vma: Vma) -> tuple[int, int]:
            if vma.start in of_slots:
                return 0, vma.start
            return (1, vma.start) if vma.path == "[heap]" else (2, vma.end - vma.start)

        wanted = (
            v for v in self._mappings.vmas if v.flags & 2 and v.readable and not v.shared and not v.of_file
        )
        return sorted(wanted, key=rank)


class Present(Protocol):
    def __call__(self, vma: Vma) -> Iterable[tuple[int, int]]: ...


def _interrupted(taker: Taker, mappings: Mappings, start: int, end: int) -> list[int]:
    """Stack pointers that signal frames between two addresses have saved."""
    words = taker.words(start & ~7, (end - (start & ~7)) // 8)
    code: dict[int, bool] = {}
    found = []
    for index, word in enumerate(words):
        if word not in code:
            vma = mappings.find(word)
            code[word] = (
                vma is not None
                and bool(vma.flags & 1)
                and any(taker.read(word, len(text)) == text for text in _SIGRETURNS)
            )
        at = index + 1 + _UCONTEXT_RSP // 8
        if code[word] and at < len(words):
            found.append(words[at])
    return found


def populated(pid: int, vma: Vma, chunk: int = 4096) -> Iterator[tuple[int, int]]:
    """The parts of a mapping that have memory: present or swapped (Documentation/admin-guide/mm/pagemap.rst).

    Reading what was never touched would add page tables to the target, and zeros to the file.
    """
    try:
        with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as f:
            first = None
            for page in range(vma.start // PAGE, vma.end // PAGE, chunk):
                f.seek(8 * page)
                raw = f.read(8 * min(chunk, vma.end // PAGE - page))
                entries = array("Q")
                entries.frombytes(raw[: len(raw) // 8 * 8])
                if first is None and not any(entries):
                    continue
                for index, entry in enumerate(entries):
                    if entry >> 62:
                        if first is None:
                            first = page + index
                    elif first is not None:
                        yield first * PAGE, (page + index) * PAGE
                        first = None
                if len(entries) < min(chunk, vma.end // PAGE - page):
                    return
            if first is not None:
                yield first * PAGE, vma.end
    except OSError:
        return
