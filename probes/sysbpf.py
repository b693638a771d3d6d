# Owns the raw bpf(2) calls the daemon needs on inherited map fds. No bcc, no program loading (bpfload.py).
from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator

NR_BPF = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 321)
_LOOKUP, _UPDATE, _DELETE, _NEXT, _TEST_RUN, _INFO, _LOOKUP_BATCH = 1, 2, 3, 4, 10, 15, 24
_PROG_INFO_SIZE, _RECURSION_MISSES = 232, 208  # struct bpf_prog_info (linux/bpf.h)
BPF_ANY, BPF_NOEXIST = 0, 1

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def _bpf(command: int, attr: ctypes.Array[ctypes.c_char], size: int) -> int:
    """bpf(2); returns 0 or the positive errno."""
    if libc.syscall(NR_BPF, command, ctypes.byref(attr), ctypes.c_uint(size)) >= 0:
        return 0
    return ctypes.get_errno()


def possible_cpus() -> int:
    """Number of possible CPUs: how many values a per-CPU map has (/sys/devices/system/cpu/possible)."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as f:
        last = f.read().strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1


class Map:
    """A BPF map by fd. Keys and values are bytes of exactly key_size and value_size."""

    def __init__(self, fd: int, key_size: int, value_size: int) -> None:
        self.fd = fd
        self.key_size = key_size
        self.value_size = value_size

    def _element(
        self, command: int, key: bytes, value: ctypes.Array[ctypes.c_char] | None, flags: int = 0
    ) -> int:
        if len(key) != self.key_size:
            raise ValueError(f"key of {len(key)} bytes, the map wants {self.key_size}")
        key_buffer = ctypes.create_string_buffer(key, self.key_size)
        attr = ctypes.create_string_buffer(
            struct.pack(
                "<IIQQQ",
                self.fd,
                0,
                ctypes.addressof(key_buffer),
                ctypes.addressof(value) if value else 0,
                flags,
            ),
            32,
        )
        return _bpf(command, attr, 32)

    def get(self, key: bytes) -> bytes | None:
        value = ctypes.create_string_buffer(self.value_size)
        error = self._element(_LOOKUP, key, value)
        if error == errno.ENOENT:
            return None
        if error:
            raise OSError(error, os.strerror(error))
        return value.raw

    def put(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> bool:
        """Returns False when BPF_NOEXIST found the key there; raises OSError otherwise."""
        if len(value) != self.value_size:
            raise ValueError(f"value of {len(value)} bytes, the map wants {self.value_size}")
        buffer = ctypes.create_string_buffer(value, self.value_size)
        error = self._element(_UPDATE, key, buffer, flags)
        if error == errno.EEXIST:
            return False
        if error:
            raise OSError(error, os.strerror(error))
        return True

    def delete(self, key: bytes) -> bool:
        error = self._element(_DELETE, key, None)  # the kernel refuses a value pointer here
        if error and error != errno.ENOENT:
            raise OSError(error, os.strerror(error))
        return not error

    def entries(self, limit: int = 1 << 20, chunk: int = 512) -> Iterator[tuple[bytes, bytes]]:
        """Every entry, by BPF_MAP_LOOKUP_BATCH; entries that come or go meanwhile may be missed."""
        keys = ctypes.create_string_buffer(self.key_size * chunk)
        values = ctypes.create_string_buffer(self.value_size * chunk)
        cursor = ctypes.create_string_buffer(max(self.key_size, 8))
        follow = ctypes.create_string_buffer(max(self.key_size, 8))
        first, seen = True, 0
        while seen < limit:
            attr = ctypes.create_string_buffer(
                struct.pack(
                    "<QQQQIIQQ",
                    0 if first else ctypes.addressof(cursor),
                    ctypes.addressof(follow),
                    ctypes.addressof(keys),
                    ctypes.addressof(values),
                    chunk,
                    self.fd,
                    0,
                    0,
                ),
                56,
            )
            error = _bpf(_LOOKUP_BATCH, attr, 56)
            if error == errno.ENOSPC and chunk < 65536:  # a bucket larger than the buffer
                chunk *= 4
                keys = ctypes.create_string_buffer(self.key_size * chunk)
                values = ctypes.create_string_buffer(self.value_size * chunk)
                continue
            if error and error != errno.ENOENT:
                raise OSError(error, os.strerror(error))
            count = struct.unpack_from("<I", attr, 32)[0]
            raw_keys, raw_values = keys.raw, values.raw
            for i in range(count):
                yield (
                    raw_keys[i * self.key_size : (i + 1) * self.key_size],
                    raw_values[i * self.value_size : (i + 1) * self.value_size],
                )
            seen += count
            if error == errno.ENOENT:
                return
            cursor, follow = follow, cursor
            first = False


def run(program: int, context: bytes) -> bool:
    """Run a raw tracepoint's program once, with these bytes as its context (BPF_PROG_TEST_RUN)."""
    buffer = ctypes.create_string_buffer(context, len(context))
    # prog_fd, retval, data sizes and pointers, repeat, duration, then ctx_size_in, ctx_size_out, ctx_in
    attr = ctypes.create_string_buffer(
        struct.pack(
            "<IIIIQQIIIIQQII",
            program,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            len(context),
            0,
            ctypes.addressof(buffer),
            0,
            0,
            0,
        ),
        72,
    )
    return _bpf(_TEST_RUN, attr, 72) == 0


class PerCpuCounters:
    """A per-CPU array of u64, summed over CPUs."""

    def __init__(self, fd: int, entries: int) -> None:
        self._cpus = possible_cpus()
        self._map = Map(fd, 4, 8 * self._cpus)
        self._entries = entries

    def read(self) -> tuple[int, ...]:
        totals = []
        for index in range(self._entries):
            raw = self._map.get(struct.pack("<i", index)) or b"\0" * (8 * self._cpus)
            totals.append(sum(struct.unpack(f"<{self._cpus}Q", raw)))
        return tuple(totals)


def left_out(program: int) -> int:
    """How often the kernel did not run a program (by descriptor) since its CPU was within another one, or
    within bpf(2) on a map: bpf_prog_active of kernel/trace/bpf_trace.c. Since 6.7 it counts that for
    tracepoints. 0 where it does not say."""
    info = ctypes.create_string_buffer(_PROG_INFO_SIZE)
    attr = ctypes.create_string_buffer(
        struct.pack("<IIQ", program, _PROG_INFO_SIZE, ctypes.addressof(info)), 16
    )
    if _bpf(_INFO, attr, 16):
        return 0
    return int(struct.unpack_from("<Q", info, _RECURSION_MISSES)[0])
