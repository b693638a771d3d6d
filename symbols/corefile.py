# Owns reading ELF core files: threads' registers and signals, memory, mapped files (elf(5), NT_FILE of
# fs/binfmt_elf.c). The file is untrusted; it is mapped, never read whole.
from __future__ import annotations

import bisect
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from symbols.errors import MalformedImage, NotElf, NotReadable
from symbols.image import map_file
from symbols.modules import Mapping
from symbols.registers import USER_REGS

_ET_CORE = 4
_PT_LOAD, _PT_NOTE = 1, 4
_NT_PRSTATUS, _NT_PRPSINFO, _NT_AUXV, _NT_FILE, _NT_SIGINFO = 1, 3, 6, 0x46494C45, 0x53494749
_AT_ENTRY = 9
_MAX_SEGMENTS = 1 << 20
_MAX_NOTES = 1 << 20
_MAX_FILES = 1 << 18

# how files that systemd-coredump and others pack begin, and what unpacks them
_PACKED = (
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -d -o core"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -d"),
    (b"\x1f\x8b", "gzip", "gzip -dc"),
    (b"\xfd7zXZ\0", "xz", "xz -dc"),
    (b"BZh", "bzip2", "bzip2 -dc"),
)

# struct user_regs_struct: elf_prstatus.pr_reg begins at 112 on x86-64
_REGS_AT = 112


class NotACore(NotElf):
    """Another file where a core was expected."""

    default_remedy = "name a core file: the kernel's, or one of gcore or `coredumpctl dump PID -o core`"


class DamagedCore(MalformedImage):
    """A core that contradicts itself or lacks what it must have."""

    default_remedy = "the core is damaged or was cut off: copy it again, or raise `ulimit -c`"


class UnreadableCore(NotReadable):
    """It cannot be opened or mapped."""


class PackedCore(NotElf):
    """A compressed file where a core was expected."""


@dataclass(frozen=True, slots=True)
class SignalInfo:
    """NT_SIGINFO: struct siginfo's first words. address: si_addr, meaningful for faults only."""

    signal: int
    code: int
    address: int


@dataclass(frozen=True, slots=True)
class CoreThread:
    tid: int
    signal: int
    registers: dict[str, int]
    info: SignalInfo | None = None


@dataclass(frozen=True, slots=True)
class CoreSegment:
    """A mapping as the core describes it; captured: bytes of it that the core holds, from its start."""

    start: int
    end: int
    flags: str  # "rw-"
    captured: int


class CoreFile:
    """A core of an x86-64 process. Raises UnreadableCore, NotACore, PackedCore and DamagedCore."""

    def __init__(self, path: str | os.PathLike[str] | int) -> None:
        """path: or a descriptor, which stays open."""
        self.path = "core" if isinstance(path, int) else os.fspath(path)
        try:
            self._map = map_file(self.path, path if isinstance(path, int) else None)
        except NotElf as error:
            raise NotACore(error.detail, path=self.path) from error
        except NotReadable as error:
            raise UnreadableCore(error.detail, path=self.path) from error
        self.threads: tuple[CoreThread, ...] = ()
        self.files: tuple[Mapping, ...] = ()
        self.segments: tuple[CoreSegment, ...] = ()
        self.pid = 0
        self.comm = ""  # untrusted text
        self.size = len(self._map)  # bytes
        self.whole = 0  # bytes that it had before it was cut off; `size` where it was not
        self.entry = 0  # run-time address of the program's entry point (AT_ENTRY); 0 not known
        try:
            self._parse()
        except struct.error as error:
            self.close()
            raise self._bad(str(error)) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._map.close()

    def memory(self, address: int, count: int) -> bytes | None:
        """Bytes at a run-time address, across segments; None where the core leaves any of them out."""
        parts = []
        while count > 0:
            index = bisect.bisect_right(self._starts, address) - 1
            if index < 0:
                return None
            start, size, offset = self._loads[index]
            inside = min(count, start + size - address)
            if inside <= 0:
                return None
            at = offset + address - start
            parts.append(self._map[at : at + inside])
            address += inside
            count -= inside
        return b"".join(parts)

    # -- parsing ---------------------------------------------------------------------------------

    def _bad(self, detail: str) -> DamagedCore:
        return DamagedCore(detail, path=self.path, where="core file")

    def _parse(self) -> None:
        head = self._map[:64]
        for magic, name, how in _PACKED:
            if head.startswith(magic):
                unpacked = f"{how} {self.path}" + ("" if "-o" in how else " > core")
                raise PackedCore(
                    f"it is compressed with {name}",
                    path=self.path,
                    remedy=f"unpack it first: {unpacked} (of systemd: coredumpctl dump PID -o core)",
                )
        if head[:4] != b"\x7fELF" or len(head) < 64 or head[4:6] != b"\x02\x01":
            raise NotACore("not a 64-bit ELF file", path=self.path)
        kind, machine = struct.unpack_from("<HH", head, 16)
        if kind != _ET_CORE or machine != 62:
            raise NotACore("an ELF file, but no core of an x86-64 process", path=self.path)
        phoff, shoff = struct.unpack_from("<QQ", head, 32)
        entsize, count = struct.unpack_from("<HH", head, 54)
        if count == 0xFFFF and shoff + 64 <= len(self._map):  # PN_XNUM: the number is in section 0's sh_info
            count = struct.unpack_from("<I", self._map, shoff + 44)[0]
        if entsize < 56 or count > _MAX_SEGMENTS or phoff + count * entsize > len(self._map):
            raise self._bad("its headers are damaged, or it was cut off within them")
        self.whole = self.size
        loads: list[tuple[int, int, int]] = []
        threads: list[CoreThread] = []
        segments: list[CoreSegment] = []
        for index in range(count):
            ptype, flags, offset, vaddr, _pa, size, memsz, _align = struct.unpack_from(
                "<IIQQQQQQ", self._map, phoff + index * entsize
            )
            if ptype in (_PT_LOAD, _PT_NOTE):
                self.whole = max(self.whole, offset + size)
            size = max(0, min(size, len(self._map) - offset))  # a truncated core still has its beginning
            if ptype == _PT_LOAD:
                letters = "".join(c if flags & bit else "-" for c, bit in (("r", 4), ("w", 2), ("x", 1)))
                segments.append(CoreSegment(vaddr, vaddr + max(memsz, size), letters, size))
                if size:
                    loads.append((vaddr, size, offset))
            elif ptype == _PT_NOTE:
                for ntype, desc in self._notes(offset, offset + size):
                    self._note(ntype, desc, threads)
        self._loads = sorted(loads)
        self._starts = [start for start, _size, _offset in self._loads]
        self.segments = tuple(segments)
        self.threads = tuple(threads)

    def _note(self, ntype: int, desc: bytes, threads: list[CoreThread]) -> None:
        if ntype == _NT_PRSTATUS and len(desc) >= _REGS_AT + 8 * len(USER_REGS):
            threads.append(_thread(desc))
        elif ntype == _NT_FILE:
            self.files = self._mapped(desc)
        elif ntype == _NT_SIGINFO and threads and len(desc) >= 24:  # belongs to the thread before it
            signal, _errno, code = struct.unpack_from("<iii", desc)
            info = SignalInfo(signal, code, struct.unpack_from("<Q", desc, 16)[0])
            threads[-1] = replace(threads[-1], info=info)
        elif ntype == _NT_PRPSINFO and len(desc) >= 56:  # struct elf_prpsinfo
            self.pid = struct.unpack_from("<i", desc, 24)[0]
            self.comm = desc[40:56].split(b"\0")[0].decode("utf-8", "replace")
        elif ntype == _NT_AUXV:
            pairs = struct.iter_unpack("<QQ", desc[: len(desc) // 16 * 16])
            self.entry = next((value for key, value in pairs if key == _AT_ENTRY), 0)

    def _notes(self, at: int, end: int) -> Iterator[tuple[int, bytes]]:
        for _ in range(_MAX_NOTES):
            if at + 12 > end:
                return
            namesz, descsz, ntype = struct.unpack_from("<III", self._map, at)
            desc = at + 12 + (namesz + 3 & ~3)
            if desc + descsz > end:
                return
            yield ntype, self._map[desc : desc + descsz]
            at = desc + (descsz + 3 & ~3)

    def _mapped(self, desc: bytes) -> tuple[Mapping, ...]:
        count, page = struct.unpack_from("<QQ", desc)
        names_at = 16 + 24 * count
        if count > _MAX_FILES or names_at > len(desc):
            raise self._bad("NT_FILE does not fit")
        names = desc[names_at:].split(b"\0")
        found = []
        for index in range(min(count, len(names))):
            start, end, offset = struct.unpack_from("<QQQ", desc, 16 + 24 * index)
            found.append(Mapping(start, end, offset * page, os.fsdecode(names[index])))
        return tuple(found)


def _thread(desc: bytes) -> CoreThread:
    signal, tid = struct.unpack_from("<H", desc, 12)[0], struct.unpack_from("<i", desc, 32)[0]
    values = struct.unpack_from(f"<{len(USER_REGS)}Q", desc, _REGS_AT)
    return CoreThread(tid, signal, dict(zip(USER_REGS, values, strict=True)))
