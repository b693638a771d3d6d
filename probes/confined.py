# Owns reading hostile files without rights: a process that has given up everything (nobody, no capabilities,
# a seccomp filter), and the one beside it that has kept its rights and opens files for it, and only such as
# a reader of debug information may have. Must not read what is in them.
from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import symbols
from probes import seccomp
from symbols.cache import Entries, PlanCache
from symbols.cachefolder import our_version
from symbols.errors import NotAFile, NotElf
from symbols.fetch import Debuginfod
from symbols.files import Direct, shipped, use
from symbols.hashes import sha256

_NOBODY = 65534  # the kernel's overflow uid and gid: no user database is asked
_MOST_MESSAGE = 1 << 16
_MOST_ENTRY = 16 << 20  # bytes of a plan
_MOST_ANSWER = 16 << 20
_ET_CORE = 4
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
_LIMITS = {
    "RLIMIT_CORE": 0,  # what it has read belongs on no disk
    "RLIMIT_NPROC": 0,
    "RLIMIT_MEMLOCK": 0,
    "RLIMIT_MSGQUEUE": 0,
    "RLIMIT_NOFILE": 1024,
    "RLIMIT_DATA": 8 << 30,  # executables are mapped, and do not count
    "RLIMIT_FSIZE": 16 << 30,  # of a bundle, and of a section that is inflated into a file without a name
}


class Failed(OSError):
    """The process without rights ended without an answer; strerror says how."""


# -- giving up ---------------------------------------------------------------------------------------


def confine() -> tuple[str, ...]:
    """Give up all rights of this process. What the kernel refuses is returned in words; the rest is done."""
    lacks: list[str] = []
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")  # where memory ends, this process is in the way, not the watched one
    for name, most in _LIMITS.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(number, (limit, limit))
    if os.geteuid() == 0:
        for capability in range(64):
            if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
                break  # EINVAL: the kernel has no more of them
        try:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        except OSError as error:  # a user namespace that maps root only
            lacks.append(f"it stays root ({error.strerror})")
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header, data = array.array("I", [_CAPABILITY_VERSION_3, 0]), array.array("I", [0] * 6)
    libc.capset(ctypes.c_void_p(header.buffer_info()[0]), ctypes.c_void_p(data.buffer_info()[0]))
    # after the change of user, which takes the first two back (prctl(2))
    for option, value in (
        (_PR_SET_PDEATHSIG, signal.SIGKILL),
        (_PR_SET_DUMPABLE, 0),
        (_PR_SET_NO_NEW_PRIVS, 1),
    ):
        if libc.prctl(option, int(value), 0, 0, 0):
            lacks.append(f"prctl({option}) is refused")
    if os.getppid() != parent:
        os._exit(1)  # it ended before it could end us
    try:
        seccomp.install()
    except OSError as error:
        lacks.append(f"its system calls are not filtered ({error.strerror})")
    return tuple(lacks)


def readable(paths: list[str]) -> bool:
    """Whether the confined process will be able to read these: ours may lie in root's home."""
    if os.geteuid():
        return True
    groups = os.getgroups()
    try:
        os.setgroups([])
        os.setegid(_NOBODY)
        os.seteuid(_NOBODY)
        for path in paths:
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
    return True


def preload(packages: Iterable[str] = ()) -> None:
    """Load everything that a reader of debug information may come to need, while it can still be read."""
    import pkgutil

    for found in pkgutil.iter_modules(symbols.__path__):
        import_module(f"symbols.{found.name}")
    for name in ("hashlib", "tempfile", *packages):
        import_module(name)


# -- the one that opens ------------------------------------------------------------------------------


class Opener:
    """Serves one confined process. What that one may have: ELF files that are no cores, and nothing else.

    image: the executable that it was last asked for. Plans are kept for that very file: a process that
    was taken over by one executable has no hand in the plans of others.
    """

    def __init__(self, channel: socket.socket, plans: Entries | None = None) -> None:
        self.channel = channel
        self.image = ""
        self._direct = Direct()
        self._plans = plans or PlanCache().entries()

    def serve(self) -> bool:
        """Answer one request; False: the other side has ended."""
        try:
            raw, fds, _, _ = socket.recv_fds(self.channel, _MOST_MESSAGE, 1)
        except ConnectionError:
            return False
        if not raw:
            return False
        given: list[int] = []
        try:
            answer, given = self._answer(raw, fds)
        except OSError as error:
            answer = {"errno": error.errno or errno.EIO}
        except (ValueError, LookupError, TypeError, RecursionError):
            answer = {"errno": errno.EINVAL}
        finally:
            for fd in fds:
                os.close(fd)
        try:
            with contextlib.suppress(ConnectionError):
                socket.send_fds(self.channel, [json.dumps(answer).encode()], given)
        finally:
            for fd in given:
                os.close(fd)
        return True

    def _answer(self, raw: bytes, fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        request = json.loads(raw)
        kind, args = request["do"], [str(arg) for arg in request["args"]]
        if kind == "open":
            fd, refusal = _readable_elf(self._direct.open(args[0]))
            return {"refused": refusal}, [fd] if not refusal else []
        if kind in ("exists", "real", "link", "same"):
            return {"value": getattr(self._direct, kind)(*args)}, []
        if kind == "scratch":
            return {}, [self._direct.scratch()]
        if kind == "fetch":
            server = Debuginfod() if args[1] == "ask" else Debuginfod(urls=())
            return {"value": [server.find(args[0]), server.tried]}, []
        name = self._plan(args[0])
        if kind == "get":
            content = self._plans.get(name)
            return {"there": content is not None}, [_held(content)] if content is not None else []
        if kind == "used":
            self._plans.used(name)
        elif kind == "put":
            self._plans.put(name, os.pread(fds[0], _MOST_ENTRY, 0))
        else:
            raise ValueError(kind)
        return {}, []

    def _plan(self, name: str) -> str:
        status = os.stat(self.image)
        key = (name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        return str(sha256(repr(key).encode()).hexdigest()[:40])


_NO_FILE = "not a regular file"


def _readable_elf(fd: int) -> tuple[int, str]:
    """(descriptor, ""), or (-1, why not): root's other files are nothing for who reads hostile ones."""
    refusal = ""
    try:
        status = os.fstat(fd)
        head = os.pread(fd, 18, 0) if stat.S_ISREG(status.st_mode) else b""
        if not stat.S_ISREG(status.st_mode):
            refusal = _NO_FILE
        elif not head:
            refusal = "the file is empty"
        elif head[:4] != b"\x7fELF" or _ET_CORE in head[16:18]:  # in either byte order
            refusal = "not an ELF file"
    except BaseException:
        os.close(fd)
        raise
    if refusal:
        os.close(fd)
        return -1, refusal
    return fd, ""


def _held(content: bytes) -> int:
    fd = os.memfd_create("af-content", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(content)
    return fd


# -- the one that asks -------------------------------------------------------------------------------


class Asked:
    """symbols.files.Files through an Opener."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self.given: dict[str, bytes] = {}  # files that came with a request, by their paths

    def _ask(self, kind: str, *args: str, give: list[int] | None = None) -> tuple[dict[str, Any], list[int]]:
        request = json.dumps({"do": kind, "args": args}).encode()
        socket.send_fds(self._channel, [request], give or [])
        raw, fds, _, _ = socket.recv_fds(self._channel, _MOST_MESSAGE, 1)
        answer = json.loads(raw or b'{"errno": 32}')
        if "errno" in answer:
            for fd in fds:
                os.close(fd)
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        return answer, fds

    def open(self, path: str) -> int:
        answer, fds = self._ask("open", path)
        if answer["refused"]:
            kind = NotAFile if answer["refused"] == _NO_FILE else NotElf
            raise kind(answer["refused"], path=path)
        return fds[0]

    def read(self, path: str, most: int) -> bytes:
        content = self.given.get(path)
        return Direct().read(path, most) if content is None else content[:most]

    def exists(self, path: str) -> bool:
        return bool(self._ask("exists", path)[0]["value"])

    def real(self, path: str) -> str:
        return str(self._ask("real", path)[0]["value"])

    def link(self, path: str) -> str:
        return str(self._ask("link", path)[0]["value"])

    def same(self, one: str, other: str) -> bool:
        return bool(self._ask("same", one, other)[0]["value"])

    def scratch(self) -> int:
        return self._ask("scratch")[1][0]

    def fetch(self, build_id: str, ask: bool) -> tuple[str | None, list[str]]:
        path, tried = self._ask("fetch", build_id, "ask" if ask else "")[0]["value"]
        return path, tried

    # symbols.cache.Entries, as far as a PlanCache needs them

    def get(self, name: str) -> bytes | None:
        try:
            answer, fds = self._ask("get", name)
        except OSError:
            return None
        if not answer["there"]:
            return None
        with os.fdopen(fds[0], "rb") as file:
            file.seek(0)
            return file.read()

    def put(self, name: str, content: bytes) -> None:
        fd = _held(content)
        with contextlib.suppress(OSError):
            self._ask("put", name, give=[fd])
        os.close(fd)

    def used(self, name: str) -> None:
        with contextlib.suppress(OSError):
            self._ask("used", name)

    def path(self, name: str) -> str:
        return name


# -- both --------------------------------------------------------------------------------------------


def fork(work: Callable[[Asked], None]) -> tuple[int, socket.socket]:
    """(pid, the Opener's channel) of a process that runs `work` and ends. It is not confined yet: `work`
    calls `enter` when it has loaded what it needs. Its standard error is ours."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    status = 1
    try:
        ours.close()
        if os.getppid() == parent:
            work(Asked(theirs))
            status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on in our place
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(status)


def enter(asked: Asked) -> tuple[str, ...]:
    """In the process that `fork` made: give up all rights; files come from the Opener from now on."""
    shipped()  # what lies beside our code may be out of reach afterwards
    our_version()
    lacks = confine()
    use(asked)
    return lacks


def answered(work: Callable[[Asked], Any], *, image: str = "", plans: Entries | None = None) -> Any:
    """What `work` returns (as JSON) from a process of its own. image, plans: of its Opener. Raises Failed."""
    memory = os.memfd_create("af-answer", os.MFD_CLOEXEC)

    def run(asked: Asked) -> None:
        with os.fdopen(os.dup(memory), "wb") as file:
            file.write(json.dumps(work(asked)).encode())

    try:
        pid, channel = fork(run)
        with channel:
            opener = Opener(channel, plans)
            opener.image = image
            while opener.serve():
                pass
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            raise Failed(errno.ECHILD, f"the process that reads the files ended with {how}")
        if os.fstat(memory).st_size > _MOST_ANSWER:
            raise Failed(errno.EMSGSIZE, "the process that reads the files says too much")
        return json.loads(os.pread(memory, _MOST_ANSWER, 0))
    finally:
        os.close(memory)
