"""A process without rights: what it has left, what it cannot do, and what is opened for it."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from probes import confined, seccomp
from probes.confined import Asked, Failed, Opener, answered, enter, preload
from symbols.cachefolder import CacheFolder
from symbols.errors import NotElf
from symbols.files import files
from symbols.image import Image

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")


def status() -> dict[str, str]:
    with open("/proc/thread-self/status", encoding="ascii") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def inside(work: Callable[[], Any]) -> Any:
    def run(asked: Asked) -> Any:
        preload()  # the checkout may be root's alone
        lacks = enter(asked)
        return [lacks, work()]

    lacks, value = answered(run)
    assert lacks == []
    return value


def refused(work: Callable[[], object]) -> str:
    try:
        work()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


@root
def test_nothing_is_left() -> None:
    left = inside(status)
    assert set(left["Uid"].split()) == set(left["Gid"].split()) == {"65534"}
    assert left["Groups"].split() == []
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(left[name], 16) == 0, name
    assert (left["NoNewPrivs"], left["Seccomp"]) == ("1", "2")


@root
def test_what_it_cannot_do(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *args: object) -> None:
        if getattr(libc, name)(*args) == -1:
            raise OSError(ctypes.get_errno(), name)

    def tries() -> dict[str, str]:
        return {
            "shadow": refused(lambda: open("/etc/shadow")),
            "write": refused(lambda: open("/tmp/confined", "w")),
            "unnamed": refused(lambda: os.open("/tmp", os.O_TMPFILE | os.O_RDWR)),
            "socket": refused(socket.socket),
            "unix": refused(lambda: socket.socket(socket.AF_UNIX)),
            "netlink": refused(lambda: socket.socket(socket.AF_NETLINK)),
            "fork": refused(os.fork),
            "exec": refused(lambda: os.execv("/bin/true", ["true"])),
            "kill": refused(lambda: os.kill(1, 0)),
            "ptrace": refused(lambda: call("ptrace", 16, os.getppid(), 0, 0)),
            "memory": refused(lambda: call("process_vm_readv", os.getppid(), None, 0, None, 0, 0)),
            "mount": refused(lambda: call("mount", b"none", b"/mnt", b"tmpfs", 0, None)),
            "bpf": refused(lambda: call("syscall", 321, 0, 0, 0)),
            "io_uring": refused(lambda: call("syscall", 425, 1, 0)),
            "users": refused(lambda: call("unshare", 0x10000000)),
            "setuid": refused(lambda: os.setuid(0)),
            "rename": refused(lambda: os.rename("/tmp/a", "/tmp/b")),
            "remove": refused(lambda: os.unlink("/tmp/a")),
        }

    found = inside(tries)
    assert found["shadow"] == "EACCES"
    assert found["write"] == found["unnamed"] == "EACCES"
    assert {name for name, outcome in found.items() if outcome not in ("ENOSYS", "EACCES")} == set()


@root
def test_an_executable_that_only_root_can_read_is_read(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "program").write_bytes(Path(sys.executable).read_bytes())
    (closed / "program").chmod(0o700)

    def look() -> tuple[bool, str, str]:
        with Image(closed / "program") as image:
            named = image.has_functions
        return (
            named,
            files().real(str(closed / ".." / "closed" / "program")),
            refused(lambda: open(closed / "program")),
        )

    assert inside(look) == [True, str(closed / "program"), "EACCES"]


def _core(folder: Path) -> Path:
    path = folder / "core"
    path.write_bytes(b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 4, 62) + bytes(200))
    return path


NO_ELF: dict[str, Callable[[Path], Path]] = {
    "not an ELF file": lambda _: Path("/etc/shadow"),
    "not an ELF file of a core": _core,
    "not a regular file": lambda folder: (os.mkfifo(folder / "fifo"), folder / "fifo")[1],
    "the file is empty": lambda folder: (Path(folder / "empty").touch(), folder / "empty")[1],
}


@pytest.mark.parametrize("why", NO_ELF)
@pytest.mark.timeout(30)
def test_nothing_but_executables_is_opened_for_it(tmp_path: Path, why: str) -> None:
    path = str(NO_ELF[why](tmp_path))

    def look() -> str:
        try:
            files().open(path)
        except NotElf as error:
            return error.detail
        return "opened"

    assert why.startswith(inside(look))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    assert inside(lambda: refused(lambda: files().open(str(tmp_path / "none")))) == "ENOENT"
    assert inside(lambda: files().exists(str(tmp_path / "none"))) is False


def test_large_sections_go_to_a_file_without_a_name() -> None:
    def work() -> int:
        fd = files().scratch()
        with os.fdopen(fd, "w+b") as file:
            file.write(b"x" * 100_000)
            file.flush()
            return os.fstat(file.fileno()).st_size

    assert inside(work) == 100_000


def test_one_that_dies_is_told() -> None:
    def die() -> None:
        ctypes.string_at(0)

    with pytest.raises(Failed, match="signal 11"):
        inside(die)
    with pytest.raises(Failed, match="exit status 1"):
        inside(lambda: 1 // 0)


def test_what_the_kernel_refuses_is_said_and_the_rest_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def without() -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(seccomp, "install", without)

    def run(asked: Asked) -> Any:
        return [enter(asked), status()["NoNewPrivs"]]

    assert answered(run) == [["its system calls are not filtered (Invalid argument)"], "1"]


HOSTILE = (
    b"x",
    b"[]",
    b"[" * 50_000,
    b'{"do": "open"}',
    b'{"do": "open", "args": []}',
    b'{"do": "open", "args": ["/etc/\\u0000x"]}',
    b'{"do": "put", "args": ["x"]}',
    b'{"do": 1, "args": ["x"]}',
)


def test_a_hostile_request_is_an_error_and_not_the_end() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        opener = Opener(theirs)
        for raw in (
            b"x",
            b"[]",
            b"[" * 50_000,
            b'{"do": "open"}',
            b'{"do": "put", "args": ["x"]}',
            b'{"do":1,"args":[]}',
        ):
            ours.send(raw)
            assert opener.serve()
            assert b"errno" in ours.recv(1000), raw[:40]
        ours.shutdown(socket.SHUT_RDWR)
        assert not opener.serve()


def test_a_plan_is_kept_for_the_very_file_that_was_asked_for(tmp_path: Path) -> None:
    """A process that one executable has taken over cannot write the plan of another."""
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    plans = CacheFolder(magic=b"m\n", suffix=".plan", folder=str(tmp_path / "cache"))

    def run(asked: Asked) -> Any:
        enter(asked)
        before = asked.get("x")
        asked.put("x", b"the plan")
        asked.used("x")
        after = asked.get("x")
        return [before is None, after == b"the plan"]

    def there(image: str) -> list[bool]:
        return list(answered(run, image=str(tmp_path / image), plans=plans))

    assert there("a") == [True, True]
    assert there("b") == [True, True]
    assert there("a") == [False, True]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_decides_as_it_says(machine: str) -> None:
    """The program is run here, for every call and the arguments that matter."""
    arch, column = seccomp._ARCHES[machine]
    allowed = {row[column] for row in seccomp._ALLOWED.values()}
    code = list(struct.iter_unpack("<HBBI", seccomp.program(machine, 77)))

    def verdict(number: int, *args: int, audit: int = arch) -> int:
        data = struct.pack("<iIQ6Q", number, audit, 0, *(*args, *[0] * 6)[:6])
        value, at = 0, 0
        while True:
            op, yes, no, constant = code[at]
            at += 1
            if op == 0x20:
                (value,) = struct.unpack_from("<I", data, constant)
            elif op == 0x06:
                return constant
            elif op == 0x15:
                at += yes if value == constant else no
            else:
                assert op == 0x45
                at += yes if value & constant else no

    allow, nosys, acces = 0x7FFF0000, 0x50000 | errno.ENOSYS, 0x50000 | errno.EACCES
    openat = seccomp._OPENAT[column]
    special = {
        one[column]
        for one in (seccomp._OPEN, seccomp._OPENAT, seccomp._IOCTL, seccomp._TGKILL, seccomp._PRLIMIT)
    }
    for number in range(600):
        if number not in special:
            assert verdict(number, 5, 5, 5) == (allow if number in allowed else nosys), number
    assert verdict(openat, 0, 0, os.O_RDONLY | os.O_CLOEXEC) == allow
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_RDWR | os.O_TMPFILE, os.O_TRUNC):
        assert verdict(openat, 0, 0, flags) == acces
    tgkill = seccomp._TGKILL[column]
    assert (verdict(tgkill, 77, 78), verdict(tgkill, 1, 1)) == (allow, nosys)
    assert verdict(seccomp._PRLIMIT[column], 0) == allow
    assert verdict(seccomp._PRLIMIT[column], 1) == nosys
    assert verdict(seccomp._IOCTL[column], 0, 0x5401) == allow
    assert verdict(seccomp._IOCTL[column], 0, 0x5412) == nosys, "TIOCSTI"
    assert verdict(0, audit=0x40000003) == 0x80000000, "another architecture's calls"
    if machine == "x86_64":
        assert verdict(0x40000000) == 0x80000000


def test_a_module_that_only_root_can_read_is_known(tmp_path: Path) -> None:
    (tmp_path / "x.py").touch()
    tmp_path.chmod(0o700)
    assert confined.readable([sys.executable])
    assert confined.readable([str(tmp_path / "x.py")]) is bool(os.geteuid())
