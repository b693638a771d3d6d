# Owns the calls of ptrace(2), waitid(2) and process_vm_readv(2) on x86-64. Knows nothing of what they are
# for. Stops are looked at with WNOWAIT: a tracer that has consumed one and dies before PTRACE_CONT takes
# the signal with it (kernel/exit.c, wait_task_stopped: *p_code = 0); left unconsumed, the kernel delivers
# it.
from __future__ import annotations

import ctypes
import os
import signal
from typing import Any, NamedTuple

PTRACE_CONT, PTRACE_DETACH = 7, 17
PTRACE_GETEVENTMSG, PTRACE_GETSIGINFO, PTRACE_GETREGSET = 0x4201, 0x4202, 0x4204
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_LISTEN = 0x4206, 0x4207, 0x4208
O_TRACECLONE, O_TRACEEXEC = 1 << 3, 1 << 4
EVENT_CLONE, EVENT_EXEC, EVENT_STOP = 3, 4, 128
NT_PRSTATUS, NT_PRFPREG, NT_X86_XSTATE = 1, 2, 0x202

_WALL = 0x4000_0000
_PR_SET_PDEATHSIG = 1
_LOOK = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT | _WALL


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Stop(NamedTuple):
    """What waitid(2) tells of one thread. exited: signal is then the one that ended it, event its status."""

    tid: int
    signal: int
    event: int  # PTRACE_EVENT_*; 0: signal-delivery-stop
    exited: bool


class Ptrace:
    """The calls; each raises OSError (ESRCH: the thread does not stand still, or is gone)."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self._libc.ptrace.restype = ctypes.c_long
        self._libc.process_vm_readv.restype = ctypes.c_ssize_t
        self._libc.process_vm_readv.argtypes = (
            ctypes.c_int, ctypes.POINTER(_Iovec), ctypes.c_ulong, ctypes.POINTER(_Iovec), ctypes.c_ulong,
            ctypes.c_ulong,
        )  # fmt: skip
        self._buffer = ctypes.create_string_buffer(16384)  # xsave area: 11008 bytes with AMX

    def _call(self, request: int, tid: int, address: int = 0, data: Any = None) -> None:
        if self._libc.ptrace(request, tid, address, data) == -1:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def seize(self, tid: int, options: int) -> None:
        self._call(PTRACE_SEIZE, tid, 0, options)

    def interrupt(self, tid: int) -> None:
        self._call(PTRACE_INTERRUPT, tid)

    def listen(self, tid: int) -> None:
        """A group-stopped thread stays so, and its end is reported."""
        self.consume(tid)  # the report stays pending otherwise
        self._call(PTRACE_LISTEN, tid)

    def resume(self, tid: int, signal_number: int = 0) -> None:
        self._call(PTRACE_CONT, tid, 0, signal_number)

    def detach(self, tid: int, signal_number: int = 0) -> None:
        self._call(PTRACE_DETACH, tid, 0, signal_number)

    def event_message(self, tid: int) -> int:
        value = ctypes.c_ulong()
        self._call(PTRACE_GETEVENTMSG, tid, 0, ctypes.addressof(value))
        return value.value

    def siginfo(self, tid: int) -> bytes:
        self._call(PTRACE_GETSIGINFO, tid, 0, ctypes.addressof(self._buffer))
        return self._buffer.raw[:128]

    def registers(self, tid: int, kind: int) -> bytes:
        """One register set, as the kernel lays it out in a core's note."""
        vector = _Iovec(ctypes.addressof(self._buffer), len(self._buffer))
        self._call(PTRACE_GETREGSET, tid, kind, ctypes.addressof(vector))
        return ctypes.string_at(self._buffer, vector.length)

    @staticmethod
    def look(tid: int | None = None) -> Stop | None:
        """A report of this thread, or of any; it stays pending. None: nothing. Raises ChildProcessError."""
        found = os.waitid(os.P_ALL if tid is None else os.P_PID, tid or 0, _LOOK)
        if found is None:
            return None
        if found.si_code == os.CLD_EXITED:
            return Stop(found.si_pid, 0, found.si_status, True)
        if found.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
            return Stop(found.si_pid, found.si_status, -1, True)
        return Stop(found.si_pid, found.si_status & 0xFF, found.si_status >> 8, False)

    @staticmethod
    def consume(tid: int) -> None:
        os.waitid(os.P_PID, tid, os.WEXITED | os.WSTOPPED | os.WNOHANG | _WALL)

    def read(self, pid: int, address: int, count: int, into: int) -> int:
        """Copies memory of a process to an address of ours; the number of bytes, less where it ends."""
        local, remote = _Iovec(into, count), _Iovec(address, count)
        got = self._libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        return max(int(got), 0)

    def die_with_parent(self) -> None:
        """SIGKILL for this process when the thread that forked it is gone (prctl(2))."""
        self._libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
