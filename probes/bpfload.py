# Owns making BPF maps and loading programs by bpf(2) alone. bcc can do both, but importing it maps LLVM
# which takes longer than all else that is left to do where the programs were compiled before.
from __future__ import annotations

import ctypes
import os
import struct

from probes.compiled import INSTRUCTION, MapShape
from probes.sysbpf import NR_BPF, libc

_MAP_CREATE, _PROG_LOAD = 0, 5  # enum bpf_cmd (linux/bpf.h)
_NAME = 15  # BPF_OBJ_NAME_LEN without its end
_LICENSE = b"Dual MIT/GPL"


def create_map(name: str, shape: MapShape) -> int:
    """Its descriptor. Raises OSError."""
    # map_type, key_size, value_size, max_entries, map_flags, inner_map_fd, numa_node, map_name
    attr = struct.pack(
        "<IIIIIII16s", shape.kind, shape.key, shape.value, shape.entries, shape.flags, 0, 0, _named(name)
    )
    return _bpf(_MAP_CREATE, attr)


def load_program(name: str, kind: int, code: bytes, log: ctypes.Array[ctypes.c_char] | None = None) -> int:
    """Its descriptor. log: takes what the verifier says. Raises OSError."""
    license_text = ctypes.create_string_buffer(_LICENSE)
    instructions = ctypes.create_string_buffer(code, len(code))
    # prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version (since 5.0 nobody asks),
    # prog_flags, prog_name
    attr = struct.pack(
        "<IIQQIIQII16s",
        kind,
        len(code) // INSTRUCTION,
        ctypes.addressof(instructions),
        ctypes.addressof(license_text),
        0 if log is None else 1,
        0 if log is None else len(log),
        0 if log is None else ctypes.addressof(log),
        0,
        0,
        _named(name),
    )
    return _bpf(_PROG_LOAD, attr)


def _named(name: str) -> bytes:
    return name[:_NAME].encode()


def _bpf(command: int, attr: bytes) -> int:
    buffer = ctypes.create_string_buffer(attr, len(attr))
    fd = int(libc.syscall(NR_BPF, command, ctypes.byref(buffer), ctypes.c_uint(len(attr))))
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return fd
