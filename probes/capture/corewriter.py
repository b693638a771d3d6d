# Owns the ELF core format on x86-64: headers and notes of a mini core, as bytes. Pure: reads no process,
# opens no file. Layouts: fs/binfmt_elf.c (write_note_info, fill_files_note), include/uapi/linux/elfcore.h.
from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from probes.capture.process import PAGE, ProcessFacts, Vma

_ET_CORE, _EM_X86_64 = 4, 62
_PT_LOAD, _PT_NOTE = 1, 4
_NT_PRSTATUS, _NT_FPREGSET, _NT_PRPSINFO, _NT_AUXV = 1, 2, 3, 6
_NT_SIGINFO, _NT_FILE, _NT_X86_XSTATE = 0x53494749, 0x46494C45, 0x202
_PN_XNUM = 0xFFFF
_EHDR, _PHDR, _SHDR = 64, 56, 64
_REGISTERS = 216  # sizeof(struct user_regs_struct)
_XCR0, _XSAVE_SSE, _XSAVE_AVX = 464, 576, 832  # arch/x86/include/asm/fpu/types.h; bytes
_PRSTATUS = struct.Struct("<iii h2x QQ iiii 64x")  # pr_info, pr_cursig, masks, ids, four struct timeval
_PRPSINFO = struct.Struct("<bcbb4x Q II iiii 16s 80s")


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreThread:
    """One thread. Register sets as PTRACE_GETREGSET gives them; b"" where one is not known."""

    tid: int
    signal: int
    registers: bytes  # NT_PRSTATUS: struct user_regs_struct
    floating: bytes = b""  # NT_PRFPREG
    extended: bytes = b""  # NT_X86_XSTATE
    siginfo: bytes = b""  # of the signal it was about to get


class Segment(NamedTuple):
    """One PT_LOAD. filled: bytes in the file; size > filled: the rest is to be read from the mapped file."""

    start: int
    size: int
    filled: int  # a multiple of PAGE
    flags: int  # PF_R 4, PF_W 2, PF_X 1


def core_head(
    process: ProcessFacts, threads: Sequence[CoreThread], files: Sequence[Vma], segments: Sequence[Segment]
) -> bytes:
    """Everything before the memory: the `filled` bytes of each segment follow in order, without gaps.

    threads: the crashed one first. files: mappings of files (NT_FILE). The length is a multiple of PAGE.
    Raises ValueError when there is no thread or a register set is not that of a 64-bit process.
    """
    if not threads or any(len(thread.registers) != _REGISTERS for thread in threads):
        raise ValueError("a core needs threads with the registers of a 64-bit process")
    notes = _notes(process, threads, files)
    count = len(segments) + 1
    extended = count >= _PN_XNUM  # the number stands in section 0's sh_info then (elf(5))
    notes_at = _EHDR + _PHDR * count + (_SHDR if extended else 0)
    memory_at = -(-(notes_at + len(notes)) // PAGE) * PAGE
    head = bytearray(
        struct.pack(
            "<16sHHIQQQIHHHHHH",
            b"\x7fELF\x02\x01\x01", _ET_CORE, _EM_X86_64, 1, 0, _EHDR,
            _EHDR + _PHDR * count if extended else 0, 0, _EHDR, _PHDR, min(count, _PN_XNUM),
            _SHDR if extended else 0, 1 if extended else 0, 0,
        )
    )  # fmt: skip
    head += struct.pack("<IIQQQQQQ", _PT_NOTE, 0, notes_at, 0, 0, len(notes), 0, 4)
    at = memory_at
    for segment in segments:
        head += struct.pack(
            "<IIQQQQQQ", _PT_LOAD, segment.flags, at, segment.start, 0, segment.filled, segment.size, PAGE
        )
        at += segment.filled
    if extended:
        head += struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 1, 0, count, 0, 0)
    head += notes
    return bytes(head.ljust(memory_at, b"\0"))


def notes_size(threads: int, extended: int, files: Sequence[Vma]) -> int:
    """An upper bound of what stands before the memory, without program headers. extended: of one thread."""
    of_files = sum(24 + 1 + 4 * len(file.path) for file in files)
    return threads * (20 + 336 + 20 + 512 + 20 + extended) + of_files + 8192


def _common_xsave(extended: bytes) -> bytes:
    """The part of an xsave area that is laid out alike on every processor: x87, SSE, AVX.

    What lies behind it is where Intel has it on some and elsewhere on others; gdb before 14 refuses those,
    and then shows no SSE register either. lldb takes this note, owner LINUX, as the sign of the system.
    """
    if len(extended) < _XSAVE_SSE:
        return b""
    known = struct.unpack_from("<Q", extended, _XCR0)[0] & 7
    area = bytearray(extended[: _XSAVE_AVX if known & 4 else _XSAVE_SSE])
    present = struct.unpack_from("<Q", area, 512)[0] & known
    struct.pack_into("<Q", area, _XCR0, known)
    struct.pack_into("<Q", area, 512, present)
    return bytes(area)


def _note(owner: bytes, kind: int, content: bytes) -> bytes:
    name = owner + b"\0"
    head = struct.pack("<III", len(name), len(content), kind)
    return head + name.ljust(-(-len(name) // 4) * 4, b"\0") + content.ljust(-(-len(content) // 4) * 4, b"\0")


def _notes(process: ProcessFacts, threads: Sequence[CoreThread], files: Sequence[Vma]) -> bytes:
    parts = []
    for index, thread in enumerate(threads):
        parts.append(_note(b"CORE", _NT_PRSTATUS, _prstatus(process, threads[0], thread)))
        if index == 0:
            parts.append(_note(b"CORE", _NT_PRPSINFO, _prpsinfo(process)))
        if thread.siginfo:
            parts.append(_note(b"CORE", _NT_SIGINFO, thread.siginfo))
        if index == 0:
            parts.append(_note(b"CORE", _NT_AUXV, process.auxv))
            parts.append(_note(b"CORE", _NT_FILE, _file_table(files)))
        if thread.floating:
            parts.append(_note(b"CORE", _NT_FPREGSET, thread.floating))
        extended = _common_xsave(thread.extended)
        if extended:
            parts.append(_note(b"LINUX", _NT_X86_XSTATE, extended))
    return b"".join(parts)


def _prstatus(process: ProcessFacts, crashed: CoreThread, thread: CoreThread) -> bytes:
    """struct elf_prstatus: 336 bytes. The signal is that of the crash in every thread, as in the kernel's."""
    head = _PRSTATUS.pack(
        crashed.signal, 0, 0, crashed.signal, 0, 0, thread.tid, process.ppid, process.pgrp, process.sid
    )
    return head + thread.registers + struct.pack("<i4x", 1 if thread.floating else 0)


def _prpsinfo(process: ProcessFacts) -> bytes:
    """struct elf_prpsinfo: 136 bytes."""
    order = "RSDTZW"
    return _PRPSINFO.pack(
        max(0, order.find(process.state)), process.state.encode()[:1] or b".", process.state == "Z",
        max(-128, min(process.nice, 127)), process.flags, process.uid, process.gid, process.pid, process.ppid,
        process.pgrp, process.sid, process.comm[:15], process.arguments[:79],
    )  # fmt: skip


def _file_table(files: Sequence[Vma]) -> bytes:
    """NT_FILE: count, page size, (start, end, offset in pages) of each, then the names."""
    table = struct.pack("<QQ", len(files), PAGE)
    table += b"".join(struct.pack("<QQQ", file.start, file.end, file.offset // PAGE) for file in files)
    return table + b"".join(_name(file.path) + b"\0" for file in files)


def _name(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape").replace(b"\0", b"?")
