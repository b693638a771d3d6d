# Owns the one check that proves something: afterfree watches its own process use epoll, and demands the
# records of it. Nothing is built or started for it but what every watch starts.
from __future__ import annotations

import ctypes
import os
import platform
import time
from dataclasses import dataclass

from probes import abi
from probes.events import RecordsRead
from probes.procfs import identity
from probes.session import LiveSession, SessionOptions
from symbols.plan import (
    Addr,
    ArgSource,
    InstanceKind,
    Price,
    ProbePlan,
    Role,
    Site,
    SlotLayout,
    Userdata,
)

PATIENCE_S = 300.0
"""For records that come within milliseconds; on an emulated machine under load within seconds."""
WANTED = ("EPOLL_CREATED", "ADDED", "DELIVERED", "CLOSED")
"""Names of probes.abi.Kind: what the kernel side must say of epoll_create1, ctl, wait and close."""
PROBED = "DESTROYED"
"""What a uprobe must say."""
OPTIONS = SessionOptions(stream=True)
_SLOT = 0x7E57_0000_1000  # userdata that looks like a slot's address; nothing reads there
_EPOLL_CTL_ADD, _EPOLLIN = 1, 1  # epoll_ctl(2)


@dataclass(slots=True, kw_only=True)
class SelfCheck:
    """missing: names of Kind that did not come. untried: why no uprobe could be tried; "": one was."""

    missing: tuple[str, ...]
    untried: str


def watch_itself() -> SelfCheck:
    """Attach to this process, use epoll, wait for the records. Raises ProbeError, OSError."""
    offset, why = _probed_offset()
    session = LiveSession.open(_plan(offset), pids=[os.getpid()], follow=False, options=OPTIONS)
    try:
        list(session.poll(0))  # what was there before
        epfds = _act(probed=offset is not None)
        wanted = {*WANTED, *([PROBED] if offset is not None else [])}
        seen: set[str] = set()
        end = time.monotonic() + PATIENCE_S
        while not wanted <= seen and time.monotonic() < end and not session.finished:
            for event in session.poll(0.1):
                if isinstance(event, RecordsRead):
                    seen |= {name for record in event.records if (name := _named(record, epfds))}
    finally:
        session.close()
    return SelfCheck(missing=tuple(sorted(wanted - seen)), untried=why)


def _named(record: tuple[int, ...], epfd: int) -> str:
    """The kind of a record that is of `_act`; "" for others, as of the session's own epoll instance."""
    one = abi.Record(*record)
    if one.tgid != os.getpid():
        return ""
    kind = abi.Kind(one.kind).name
    return kind if one.addr == _SLOT or (kind == "EPOLL_CREATED" and one.ret == epfd) else ""


def _act(*, probed: bool) -> int:
    """What a server does with one connection; the epoll instance's number."""
    libc = ctypes.CDLL(None, use_errno=True)
    epfd = _done(libc.epoll_create1(os.O_CLOEXEC), "epoll_create1")
    readable, writable = os.pipe2(os.O_CLOEXEC)
    try:
        event = ctypes.create_string_buffer(abi.EPOLL_EVENT.pack(_EPOLLIN, _SLOT), abi.EPOLL_EVENT.size)
        _done(libc.epoll_ctl(epfd, _EPOLL_CTL_ADD, readable, event), "epoll_ctl")
        os.write(writable, b"x")
        got = _done(libc.epoll_wait(epfd, event, 1, 10_000), "epoll_wait")
        if not got:
            raise TimeoutError("epoll_wait gave nothing for a pipe that is full")
    finally:
        os.close(readable)
        os.close(writable)
        os.close(epfd)
    if probed:
        ctypes.pythonapi.Py_IsInitialized(ctypes.c_void_p(_SLOT))  # it takes no argument, and does nothing
    return epfd


def _done(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _probed_offset() -> tuple[int | None, str]:
    """(file offset of Py_IsInitialized in this process's executable, why there is none)."""
    address = ctypes.cast(ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p).value or 0
    own = identity(os.getpid())
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for row in maps:
            span, _, offset, _, inode, *_ = row.split(None, 5)
            start, end = (int(part, 16) for part in span.split("-"))
            if start <= address < end and own is not None and int(inode) == own.inode:
                return address - start + int(offset, 16), ""
    return None, "this interpreter lives in a shared object, and probes go into executables"


def _plan(offset: int | None) -> ProbePlan:
    """No slot, and a "destroy" that is called once, with our word for a slot as its argument."""
    site = Site(
        index=0,
        role=Role.DESTROY,
        function="Py_IsInitialized",
        kind=InstanceKind.OUT_OF_LINE,
        address=Addr(offset or 0),
        file_offset=offset or 0,
        enclosing="Py_IsInitialized",
        call_site=None,
        declared_at=None,
        instruction="",
        price=Price.SINGLE_STEP,
        argument="",
        source=ArgSource(register="rdi"),
    )
    return ProbePlan(
        image=os.path.realpath("/proc/self/exe"),
        identity="self-check",
        machine=platform.machine(),
        pie=False,  # nothing is symbolized
        profile="self-check",
        guard=None,
        userdata=Userdata(),
        slot=SlotLayout(
            type_name="",
            size=64,
            freelist_offset=None,
            object_offset=None,
            object_field=None,
            object_type=None,
        ),
        segments=(),
        sites=() if offset is None else (site,),
        unprobed=(),
    )
