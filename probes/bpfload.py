# Owns making BPF maps and loading programs by bpf(2) alone. bcc can do both, but importing it maps LLVM
# which takes longer than all else that is left to do where the programs were compiled before.
from __future__ import annotations

import ctypes
import os
import struct

from probes.compiled import INSTRUCTION, MapShape
from probes.sysbpf import NR_BPF, libc

_MAP_CREATE, _PROG_LOAD, _BTF_LOAD = 0, 5, 18  # enum bpf_cmd (linux/bpf.h)
_FUNC_INFO = 8  # bytes of struct bpf_func_info
_NAME = 15  # BPF_OBJ_NAME_LEN without its end
_LICENSE = b"Dual MIT/GPL"


def create_map(name: str, shape: MapShape) -> int:
    """Its descriptor. Raises OSError."""
    # map_type, key_size, value_size, max_entries, map_flags, inner_map_fd, numa_node, map_name
    attr = struct.pack(
        "<IIIIIII16s", shape.kind, shape.key, shape.value, shape.entries, shape.flags, 0, 0, _named(name)
    )
    return _bpf(_MAP_CREATE, attr)


def load_program(
    name: str,
    kind: int,
    code: bytes,
    types: tuple[bytes, bytes] | None = None,
    log: ctypes.Array[ctypes.c_char] | None = None,
) -> int:
    """Its descriptor. types: BTF and struct bpf_func_info of its functions. log: takes the verifier's words.
    Raises OSError."""
    btf, infos = types or (b"", b"")
    btf_fd = _load_btf(btf) if btf else 0
    try:
        license_text = ctypes.create_string_buffer(_LICENSE)
        instructions = ctypes.create_string_buffer(code, len(code))
        functions = ctypes.create_string_buffer(infos, len(infos) + 1)
        # prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version (since 5.0 nobody
        # asks), prog_flags, prog_name, prog_ifindex, expected_attach_type, prog_btf_fd, func_info_rec_size,
        # func_info, func_info_cnt
        attr = struct.pack(
            "<IIQQIIQII16sIIIIQI4x",
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
            0,
            0,
            btf_fd,
            _FUNC_INFO if infos else 0,
            ctypes.addressof(functions) if infos else 0,
            len(infos) // _FUNC_INFO,
        )
        return _bpf(_PROG_LOAD, attr)
    finally:
        if btf_fd:
            os.close(btf_fd)


def _load_btf(btf: bytes) -> int:
    data = ctypes.create_string_buffer(btf, len(btf))
    # btf, btf_log_buf, btf_size, btf_log_size, btf_log_level
    return _bpf(_BTF_LOAD, struct.pack("<QQIII", ctypes.addressof(data), 0, len(btf), 0, 0))


def _named(name: str) -> bytes:
    return name[:_NAME].encode()


def _bpf(command: int, attr: bytes) -> int:
    buffer = ctypes.create_string_buffer(attr, len(attr))
    fd = int(libc.syscall(NR_BPF, command, ctypes.byref(buffer), ctypes.c_uint(len(attr))))
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return fd
