# Owns one ELF file: sections, segments, symbols, identity. Every offset and count of the file is
# checked before use; the file is untrusted. Must not know DWARF beyond section names.
from __future__ import annotations

import mmap
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from symbols.data import WINDOW, Data
from symbols.errors import MalformedImage, NotAFile, NotElf, NotReadable, WrongMachine
from symbols.files import files
from symbols.plan import Segment
from symbols.registers import MACHINES

if TYPE_CHECKING:
    from symbols.symtab import FunctionSymbol, FunctionTable

_MAX_FILE = 64 << 30
_MAX_SECTIONS = 65_536
_MAX_SEGMENTS = 4_096
_MAX_INFLATED = 8 << 30

_MACHINES = {
    3: "i386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390", 40: "arm", 62: "x86_64", 183: "aarch64",
    243: "riscv", 258: "loongarch",
}  # fmt: skip

_SHT_SYMTAB, _SHT_NOTE, _SHT_NOBITS, _SHT_DYNSYM = 2, 7, 8, 11
_SHF_COMPRESSED = 0x800
_PT_LOAD, _PT_NOTE, _PT_INTERP = 1, 4, 3
_ET_REL, _ET_EXEC, _ET_DYN = 1, 2, 3


@dataclass(frozen=True, slots=True)
class SectionHeader:
    name: str
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    entsize: int


class Image:
    """An ELF file, mapped read-only. Close it (or use `with`).

    Raises NotReadable, NotElf, WrongMachine (machines other than x86-64 and aarch64, unless any_machine)
    and MalformedImage. relocatable: files that only carry debug information (.dwo, .dwp) pass too.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, any_machine: bool = False, relocatable: bool = False
    ) -> None:
        self.path = os.fspath(path)
        self._map = map_file(self.path)
        try:
            self._parse(any_machine, relocatable)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._map.close()

    def __enter__(self) -> Image:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- headers ---------------------------------------------------------------------------------

    def _bad(self, detail: str, where: str) -> MalformedImage:
        return MalformedImage(detail, path=self.path, where=where)

    def _parse(self, any_machine: bool, relocatable: bool) -> None:
        head = self._map[:64]
        if head[:4] != b"\x7fELF":
            raise NotElf("not an ELF file", path=self.path)
        if len(head) >= 20:
            code = int.from_bytes(head[18:20], "big" if head[5] == 2 else "little")
            self.machine = _MACHINES.get(code, f"machine {code}")
        if len(head) < 64:
            raise self._bad("shorter than its header", "ELF header")
        if head[4] != 2 or head[5] != 1:
            kind = f"{32 if head[4] == 1 else 64}-bit {'big' if head[5] == 2 else 'little'}-endian"
            raise WrongMachine(f"a {kind} ELF file for {self.machine}", path=self.path, machine=self.machine)
        if self.machine not in MACHINES and not any_machine:
            raise WrongMachine(f"built for {self.machine}", path=self.path, machine=self.machine)
        (
            self.type,
            _m,
            _v,
            self.entry,
            phoff,
            shoff,
            _f,
            _eh,
            phentsize,
            phnum,
            shentsize,
            shnum,
            shstrndx,
        ) = struct.unpack_from("<HHIQQQIHHHHHH", head, 16)
        if self.type not in (_ET_EXEC, _ET_DYN) and not (relocatable and self.type == _ET_REL):
            raise self._bad(f"type {self.type} is neither an executable nor a shared object", "ELF header")
        self.segments, self._notes, self.interpreted = self._read_segments(phoff, phentsize, phnum)
        self.pie = self.type == _ET_DYN
        self.sections = self._read_sections(shoff, shentsize, shnum, shstrndx)
        self._by_name = {header.name: header for header in reversed(self.sections)}
        self._inflated: dict[str, bytes | mmap.mmap] = {}
        self._crc32: int | None = None
        self._table: FunctionTable | None = None
        self._identity: str | None = None

    def _read_segments(
        self, offset: int, entsize: int, count: int
    ) -> tuple[tuple[Segment, ...], list[tuple[int, int]], bool]:
        size = len(self._map)
        if count and (entsize < 56 or count > _MAX_SEGMENTS or offset + count * entsize > size):
            raise self._bad("lies beyond the end of the file", "program header table")
        loads, notes, interpreted = [], [], False
        for index in range(count):
            ptype, flags, off, vaddr, _pa, filesz, memsz, _align = struct.unpack_from(
                "<IIQQQQQQ", self._map, offset + index * entsize
            )
            if ptype not in (_PT_LOAD, _PT_NOTE, _PT_INTERP):
                continue
            if off + filesz > size:
                raise self._bad(f"segment {index} lies beyond the end of the file", "program header table")
            if ptype == _PT_LOAD:
                loads.append(
                    Segment(vaddr=vaddr, offset=off, filesz=filesz, memsz=memsz, executable=bool(flags & 1))
                )
            elif ptype == _PT_NOTE:
                notes.append((off, filesz))
            else:
                interpreted = True
        return tuple(loads), notes, interpreted

    def _read_sections(self, offset: int, entsize: int, count: int, names: int) -> list[SectionHeader]:
        size = len(self._map)
        if not offset:
            return []
        if entsize < 64 or offset + entsize > size:
            raise self._bad("lies beyond the end of the file", "section header table")
        first = struct.unpack_from("<IIQQQQIIQQ", self._map, offset)
        count = count or first[5]  # more than 0xff00 sections: gABI, sh_size of entry 0
        names = first[6] if names == 0xFFFF else names
        if count > _MAX_SECTIONS or offset + count * entsize > size or names >= max(count, 1):
            raise self._bad(f"{count} entries do not fit", "section header table")
        raw = [struct.unpack_from("<IIQQQQIIQQ", self._map, offset + i * entsize) for i in range(count)]
        if not raw:
            return []
        strings = self._window(raw[names][4], raw[names][5], ".shstrtab")
        headers = []
        for name, stype, flags, addr, off, length, link, _info, _align, ent in raw:
            text = strings.cstr(name).decode("utf-8", "replace") if strings.size else ""
            headers.append(SectionHeader(text, stype, flags, addr, off, length, link, ent))
        return headers

    def _window(self, offset: int, size: int, name: str) -> Data:
        if offset + size > len(self._map):
            raise self._bad("lies beyond the end of the file", name)
        return Data(self._map, offset, size, name, self.path)

    # -- sections --------------------------------------------------------------------------------

    def _header_of(self, name: str) -> SectionHeader | None:
        """The section, or the .zdebug_ one that older GNU tools write for a compressed .debug_ one."""
        header = self._by_name.get(name)
        if header is None and name.startswith(".debug_"):
            header = self._by_name.get(f".z{name[1:]}")
        return header

    def has(self, name: str) -> bool:
        header = self._header_of(name)
        return header is not None and header.type != _SHT_NOBITS and header.size > 0

    @property
    def has_debug_info(self) -> bool:
        return self.has(".debug_info")

    def sections_named(self, name: str) -> list[Data]:
        """All sections of a name: relocatable files have one for each COMDAT group."""
        headers = [h for h in self.sections if h.name == name and h.type != _SHT_NOBITS and h.size]
        return [
            self._bytes_of(header, name if len(headers) == 1 else str(header.offset)) for header in headers
        ]

    def section(self, name: str) -> Data:
        """The section's bytes, inflated where compressed; an empty window when there is none."""
        header = self._header_of(name)
        if header is None or header.type == _SHT_NOBITS:
            return Data(b"", 0, 0, name, self.path)
        return self._bytes_of(header, name)

    def _bytes_of(self, header: SectionHeader, name: str) -> Data:
        if not header.flags & _SHF_COMPRESSED and not header.name.startswith(".zdebug_"):
            return self._window(header.offset, header.size, name)
        if name not in self._inflated:
            self._inflated[name] = self._inflate(header)
        data = self._inflated[name]
        return Data(data, 0, len(data), name, self.path)

    def _inflate(self, header: SectionHeader) -> bytes | mmap.mmap:
        raw = self._window(header.offset, header.size, header.name)
        if header.name.startswith(".zdebug_"):  # "ZLIB", then the size as a big-endian u64
            if raw.size < 12 or raw.read(0, 4) != b"ZLIB":
                raise raw.bad("does not start with its compression header")
            kind, size, start = 1, int.from_bytes(raw.read(4, 8), "big"), 12
        else:
            if raw.size < 24:
                raise raw.bad("too short for its compression header")
            kind, size, start = raw.uint(0, 4), raw.uint(8, 8), 24
        if size > _MAX_INFLATED:
            raise raw.bad(f"claims {size} bytes uncompressed")
        if not size:
            return b""
        from symbols.inflate import inflate  # lazily: few files need it

        return inflate(raw, start, size, kind)

    def _pieces(self) -> Iterator[memoryview]:
        """The whole file, without a copy and without keeping it in memory."""
        with memoryview(self._map) as whole:
            for start in range(0, len(whole), WINDOW):
                with whole[start : start + WINDOW] as piece:
                    yield piece
                    self._map.madvise(mmap.MADV_DONTNEED, start, len(piece))

    def crc32(self) -> int:
        """Of the whole file, as .gnu_debuglink has it."""
        if self._crc32 is None:
            self._crc32 = 0
            for piece in self._pieces():
                self._crc32 = zlib.crc32(piece, self._crc32)
        return self._crc32

    # -- identity and addresses ------------------------------------------------------------------

    @property
    def build_id(self) -> str | None:
        """Lower-case hex of NT_GNU_BUILD_ID, from PT_NOTE or SHT_NOTE."""
        places = list(self._notes)
        places += [(s.offset, s.size) for s in self.sections if s.type == _SHT_NOTE]
        for start, size in places:
            offset, end = start, min(start + size, len(self._map))
            while offset + 12 <= end:
                namesz, descsz, ntype = struct.unpack_from("<III", self._map, offset)
                desc = offset + 12 + (namesz + 3 & ~3)
                if desc + descsz > end:
                    break
                if ntype == 3 and 0 < descsz <= 64 and self._map[offset + 12 : offset + 16] == b"GNU\0":
                    return self._map[desc : desc + descsz].hex()
                offset = desc + (descsz + 3 & ~3)
        return None

    @property
    def identity(self) -> str:
        """`build-id:<hex>`, or `sha256:<hex>` of the file's content where it carries none."""
        if self._identity is None:
            note = self.build_id
            if note:
                self._identity = f"build-id:{note}"
            else:
                import hashlib  # OpenSSL: several MB

                digest = hashlib.sha256()
                for piece in self._pieces():
                    digest.update(piece)
                self._identity = f"sha256:{digest.hexdigest()}"
        return self._identity

    def file_offset(self, address: int) -> int | None:
        """Where the byte at a virtual address lies in the file; None when no PT_LOAD brings it."""
        for segment in self.segments:
            if segment.vaddr <= address < segment.vaddr + segment.filesz:
                return address - segment.vaddr + segment.offset
        return None

    def executable(self, address: int) -> bool:
        return any(s.executable and s.vaddr <= address < s.vaddr + s.filesz for s in self.segments)

    def code(self, address: int, count: int) -> bytes:
        """Up to count bytes at a virtual address; fewer at the end of its segment, none outside."""
        for segment in self.segments:
            if segment.vaddr <= address < segment.vaddr + segment.filesz:
                count = max(0, min(count, segment.vaddr + segment.filesz - address))
                start = address - segment.vaddr + segment.offset
                found = self._map[start : start + count]
                if count > WINDOW // 2:  # who reads so much goes through all of it
                    page = start & -mmap.PAGESIZE
                    self._map.madvise(mmap.MADV_DONTNEED, page, start + count - page)
                return found
        return b""

    # -- symbols ---------------------------------------------------------------------------------

    @property
    def functions(self) -> list[FunctionSymbol]:
        """FUNC symbols with an address, by address (.symtab, else .dynsym)."""
        return self._functions().all()

    @property
    def has_functions(self) -> bool:
        return bool(self._functions())

    def function_at(self, address: int) -> FunctionSymbol | None:
        """The function symbol whose [address, address + size) holds the address."""
        return self._functions().at(address)

    def _functions(self) -> FunctionTable:
        if self._table is None:
            from symbols.symtab import FunctionTable  # lazily: what only wants an identity needs none

            table = next((s for s in self.sections if s.type == _SHT_SYMTAB), None)
            table = table or next((s for s in self.sections if s.type == _SHT_DYNSYM), None)
            if table is None or table.link >= len(self.sections):
                self._table = FunctionTable()
            else:
                link = self.sections[table.link]
                strings = self._window(link.offset, link.size, link.name)
                self._table = FunctionTable(self._window(table.offset, table.size, table.name), strings)
        return self._table


def map_file(path: str, fd: int | None = None) -> mmap.mmap:
    """A file's content, read-only; fd: an open one, which stays open. Raises NotReadable, NotElf."""
    try:
        fd = files().open(path) if fd is None else os.dup(fd)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise NotAFile("not a regular file", path=path)
            if status.st_size == 0:
                raise NotElf("the file is empty", path=path)
            if status.st_size > _MAX_FILE:
                raise NotElf(f"{status.st_size} bytes are more than an executable has", path=path)
            return mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise NotReadable(f"cannot be read ({text})", path=path) from error
