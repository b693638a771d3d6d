# Owns where the running kernel keeps what the BPF programs read: offsets of members from BTF
# (Documentation/bpf/btf.rst), and of tracepoint fields from tracefs. Read once per kernel, then from a cache.
from __future__ import annotations

import contextlib
import json
import platform
import re
import struct
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path

from probes.errors import LoaderFailed
from probes.tracefs import ROOTS
from symbols.cachefolder import CacheFolder

VMLINUX = Path("/sys/kernel/btf/vmlinux")
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MAGIC = 0xEB9F
_STRUCT, _UNION = 4, 5
# bytes after struct btf_type: for each of vlen entries, and once
_EACH = {_STRUCT: 12, _UNION: 12, 6: 8, 13: 8, 15: 12, 19: 12}
_ONCE = {1: 4, 3: 12, 14: 4, 17: 4}
_DEEPEST = 8  # anonymous members within anonymous members
_LARGEST = 64 << 20  # bytes of BTF

MEMBERS: Mapping[str, tuple[str, str]] = {
    "AF_TASK_THREAD": ("task_struct", "thread"),
    "AF_THREAD_CR2": ("thread_struct", "cr2"),
    "AF_THREAD_TRAP": ("thread_struct", "trap_nr"),
    "AF_TASK_MM": ("task_struct", "mm"),
    "AF_MM_START_CODE": ("mm_struct", "start_code"),
    "AF_MM_END_CODE": ("mm_struct", "end_code"),
    "AF_MM_EXE": ("mm_struct", "exe_file"),
    "AF_TASK_FILES": ("task_struct", "files"),
    "AF_TASK_SIGNAL": ("task_struct", "signal"),
    "AF_TASK_LEADER": ("task_struct", "group_leader"),
    "AF_TASK_EXIT": ("task_struct", "exit_code"),
    "AF_SIGNAL_LIVE": ("signal_struct", "live"),
    "AF_SIGNAL_FLAGS": ("signal_struct", "flags"),
    "AF_SIGNAL_EXIT": ("signal_struct", "group_exit_code"),
    "AF_FILES_FDT": ("files_struct", "fdt"),
    "AF_FDT_FD": ("fdtable", "fd"),
    "AF_FDT_MAX": ("fdtable", "max_fds"),
    "AF_FILE_PRIVATE": ("file", "private_data"),
    "AF_FILE_EP": ("file", "f_ep"),
    "AF_FILE_INODE": ("file", "f_inode"),
    "AF_INODE_INO": ("inode", "i_ino"),
    "AF_INODE_MODE": ("inode", "i_mode"),
    "AF_INODE_SB": ("inode", "i_sb"),
    "AF_SB_DEV": ("super_block", "s_dev"),
    "AF_SOCKET_TYPE": ("socket", "type"),
    "AF_SOCKET_SK": ("socket", "sk"),
    "AF_SOCK_PROTOCOL": ("sock", "sk_protocol"),
    "AF_TCP_TAKEN": ("tcp_sock", "copied_seq"),
    "AF_TCP_ARRIVED": ("tcp_sock", "data_segs_in"),
    "AF_ITEM_LINK": ("epitem", "fllink"),
    "AF_ITEM_FFD": ("epitem", "ffd"),
    "AF_ITEM_EP": ("epitem", "ep"),
    "AF_ITEM_EVENT": ("epitem", "event"),
}
"""Definition of probes/bpf/15-ask.c and 60-process.c -> (structure, member)."""

COUNT = ("AF_FILE_COUNT", "AF_FILE_REF")
"""Definitions of the one member whose name and form differ: its offset or -1, and 1 for a file_ref_t."""

FIELDS: Mapping[str, tuple[str, str, int]] = {
    "AF_TP_NEWTASK_PID": ("task/task_newtask", "pid", 4),
    "AF_TP_NEWTASK_FLAGS": ("task/task_newtask", "clone_flags", 8),
    "AF_TP_EXEC_FILENAME": ("sched/sched_process_exec", "filename", 4),
    "AF_TP_SIGNAL_SIG": ("signal/signal_generate", "sig", 4),
    "AF_TP_SIGNAL_CODE": ("signal/signal_generate", "code", 4),
    "AF_TP_SIGNAL_PID": ("signal/signal_generate", "pid", 4),
    "AF_TP_FAULT_ADDRESS": ("exceptions/page_fault_user", "address", 8),
    "AF_TP_FAULT_IP": ("exceptions/page_fault_user", "ip", 8),
}
"""Definition -> (tracepoint, field, bytes)."""

_FIXED = {
    ("syscalls/sys_enter_close", "fd"): 16,
    ("syscalls/sys_enter_epoll_ctl", "event"): 40,
    ("syscalls/sys_exit_close", "ret"): 16,
}
"""What struct af_sys_enter and af_sys_exit of 10-maps.c take for granted."""


class BadBtf(ValueError):
    """The bytes are not BTF of version 1, or a structure that is needed is not in it."""


class Btf:
    """Member offsets by name. `data`: a whole BTF blob. Raises BadBtf."""

    def __init__(self, data: bytes, structures: Iterable[str]) -> None:
        try:
            magic, _, _, head, type_at, type_size, text_at, text_size = _HEADER.unpack_from(data)
        except struct.error as error:
            raise BadBtf("no header") from error
        if magic != _MAGIC:
            raise BadBtf("no BTF, or of another byte order")
        self._data = data
        self._text = data[head + text_at : head + text_at + text_size]
        wanted = {at: name for name in structures for at in self._places(name)}
        self._types = array("I", [0])
        self._structures: dict[str, int] = {}
        at, end = head + type_at, head + type_at + type_size
        unpack = _TYPE.unpack_from
        try:
            while at < end:
                name, info, _ = unpack(data, at)
                kind = info >> 24 & 31
                self._types.append(at)
                if kind == _STRUCT and name in wanted:
                    self._structures.setdefault(wanted[name], at)
                at += 12 + _EACH.get(kind, 0) * (info & 0xFFFF) + _ONCE.get(kind, 0)
        except struct.error as error:
            raise BadBtf("it ends in the middle of a type") from error

    def _places(self, name: str) -> list[int]:
        """Offsets of a string that is whole."""
        wanted, places, at = b"\0" + name.encode() + b"\0", [], self._text.find(b"\0" + name.encode() + b"\0")
        while at >= 0:
            places.append(at + 1)
            at = self._text.find(wanted, at + 1)
        return places

    def offset(self, structure: str, member: str) -> int:
        """Bytes from the beginning of a structure to its member. Raises BadBtf."""
        at = self._structures.get(structure)
        found = None if at is None else self._member(at, 0, frozenset(self._places(member)), _DEEPEST)
        if found is None:
            raise BadBtf(f"no {structure}.{member}")
        return found

    def _member(self, at: int, base: int, names: frozenset[int], depth: int) -> int | None:
        _, info, _ = _TYPE.unpack_from(self._data, at)
        for index in range(info & 0xFFFF):
            name, kind, bits = _TYPE.unpack_from(self._data, at + 12 + 12 * index)
            where = base + int(bits & 0xFFFFFF) // 8
            if name in names:
                return int(where)
            if name or not depth or kind >= len(self._types):
                continue
            inner = self._types[kind]
            if _TYPE.unpack_from(self._data, inner)[1] >> 24 & 31 in (_STRUCT, _UNION):
                found = self._member(inner, where, names, depth - 1)
                if found is not None:
                    return found
        return None


def _count(btf: Btf) -> dict[str, int]:
    """Where a file counts its references, and how: file_ref_t since 6.13, atomic_long_t before."""
    for kind, member in enumerate(("f_count", "f_ref")):
        with contextlib.suppress(BadBtf):
            return dict(zip(COUNT, (btf.offset("file", member), kind), strict=True))
    return dict(zip(COUNT, (-1, 0), strict=True))


def member_offsets(data: bytes) -> dict[str, int]:
    """Every definition of MEMBERS and of COUNT. Raises BadBtf."""
    try:
        btf = Btf(data, {structure for structure, _ in MEMBERS.values()})
        return {name: btf.offset(*which) for name, which in MEMBERS.items()} | _count(btf)
    except (struct.error, IndexError, RecursionError) as error:
        raise BadBtf(str(error)) from error


def kernel_offsets(cache: CacheFolder | None = None) -> dict[str, int] | None:
    """Those of the running kernel; None where it has no BTF, or too old a one (f_ep came with 5.11)."""
    cache = cache or CacheFolder(
        magic=b"afterfree-btf/3\n", suffix=".btf", most_entries=16, most_bytes=1 << 20
    )
    try:
        size = VMLINUX.stat().st_size
    except OSError:
        return None
    key = re.sub(r"[^A-Za-z0-9.]+", "-", f"{platform.release()}-{platform.version()}-{size}")[:160]
    known = cache.get(key)
    if known is not None:
        try:
            found = {name: int(value) for name, value in json.loads(known).items()}
            if found.keys() == {*MEMBERS, *COUNT}:
                return found
        except (ValueError, TypeError, AttributeError):
            pass
    try:
        with VMLINUX.open("rb") as file:
            found = member_offsets(file.read(_LARGEST))
    except (OSError, BadBtf):
        return None
    cache.put(key, json.dumps(found).encode())
    return found


def fields(text: str) -> dict[str, tuple[int, int]]:
    """Field -> (offset, bytes) of a tracepoint's `format` file."""
    found = re.finditer(r"field:[^;]*?\b(\w+)(?:\[[^\];]*\])?;\s*offset:(\d{1,9});\s*size:(\d{1,9});", text)
    return {match[1]: (int(match[2]), int(match[3])) for match in found}


def _format(tracepoint: str) -> dict[str, tuple[int, int]]:
    for root in ROOTS:
        try:
            return fields(
                (root / "events" / tracepoint / "format").read_text(encoding="ascii", errors="replace")
            )
        except OSError:
            continue
    return {}


def tracepoint_offsets() -> dict[str, int]:
    """Every definition of FIELDS; 0 for one of a tracepoint that this kernel does not have.

    Raises LoaderFailed where a tracepoint does not look as the programs take for granted.
    """
    for (tracepoint, field), expected in _FIXED.items():
        found = _format(tracepoint).get(field)
        if found is not None and found[0] != expected:
            raise LoaderFailed(
                f"this kernel's tracepoint {tracepoint} has {field} at {found[0]}, not at {expected}",
                remedy="report the kernel's version: uname -a",
            )
    offsets = {}
    for name, (tracepoint, field, size) in FIELDS.items():
        known = _format(tracepoint)
        found = known.get(field)
        if known and (found is None or found[1] != size):
            raise LoaderFailed(
                f"this kernel's tracepoint {tracepoint} has no field {field} of {size} bytes",
                remedy="report the kernel's version: uname -a",
            )
        offsets[name] = found[0] if found is not None else 0
    return offsets


def definitions(*, ask: bool = True) -> tuple[str, ...]:
    """For the compiler: whether and where the kernel can be asked, and the tracepoints' fields."""
    members = kernel_offsets() if ask else None
    asked = {"AF_ASK": int(members is not None), **(members or {}), **tracepoint_offsets()}
    return tuple(f"-D{name}={value}" for name, value in asked.items())
