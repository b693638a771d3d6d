"""What /proc says, and what a failed PTRACE_SEIZE means."""

from __future__ import annotations

import errno
import os

import pytest

from probes.capture import process
from probes.capture.facts import (
    Captured,
    Ending,
    Left,
    LeftOut,
    Message,
    Refusal,
    Refused,
    Released,
    Seized,
    ThreadStop,
    from_json,
    to_json,
)

MAPS = rb"""00400000-00401000 r-xp 00000000 fe:01 1234   /bin/a\040b\012c
00600000-00601000 rw-s 00001000 00:05 77        /dev/zero (deleted)
7fff00000000-7fff00001000 r--p 00000000 00:00 0      [vvar]
7fff00001000-7fff00002000 rw-p 00000000 00:00 0
nonsense
ffff-zz r--p
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0   [vsyscall]
"""


def test_maps() -> None:
    vmas = process.parse_maps(MAPS)
    assert [(v.start, v.flags, v.shared, v.of_file, v.readable) for v in vmas] == [
        (0x400000, 5, False, True, True),
        (0x600000, 6, True, True, True),
        (0x7FFF00000000, 4, False, False, False),
        (0x7FFF00001000, 6, False, False, True),
        (0xFFFFFFFFFF600000, 1, False, False, False),
    ]
    assert vmas[0].path == "/bin/a b\nc"
    mappings = process.Mappings(reversed(vmas))
    assert mappings.find(0x400FFF) == vmas[0]
    assert mappings.find(0x401000) is mappings.find(0) is None
    assert mappings.at_or_above(0x401000) == vmas[1]
    assert mappings.at_or_above(1 << 64) is None
    assert list(mappings.between(0x400800, 0x600001)) == vmas[:2]


ROOT = {"CapEff": "000001ffffffffff", "Seccomp": "0", "Pid": "50"}
USER = {"CapEff": "0000000000000000", "Seccomp": "0", "Pid": "50"}
TARGET = {"State": "S (sleeping)", "TracerPid": "0"}


@pytest.mark.parametrize(
    ("target", "own", "yama", "why"),
    [
        ({}, ROOT, "", Refusal.GONE),
        (TARGET | {"State": "Z (zombie)"}, ROOT, "", Refusal.GONE),
        (TARGET | {"TracerPid": "7"}, ROOT, "", Refusal.TRACED),
        (TARGET | {"TracerPid": "7"}, USER, "2", Refusal.TRACED),
        (TARGET, ROOT, "3", Refusal.YAMA),
        (TARGET, USER, "1", Refusal.YAMA),
        (TARGET, ROOT, "1", Refusal.PERMISSION),
        (TARGET, USER, "0", Refusal.PERMISSION),
        (TARGET, ROOT | {"Seccomp": "2"}, "0", Refusal.SECCOMP),
        (TARGET, ROOT, "", Refusal.PERMISSION),
    ],
)
def test_refusals(target: dict[str, str], own: dict[str, str], yama: str, why: Refusal) -> None:
    found, detail = process.refusal(errno.EPERM, target, own, yama, "gdb")
    assert found is why
    assert "Operation not permitted" in detail
    assert ("gdb" in detail) == (why is Refusal.TRACED)
    assert Refused(pid=1, why=why).remedy


def test_this_process() -> None:
    facts = process.facts_of(os.getpid())
    assert (facts.pid, facts.ppid, facts.uid) == (os.getpid(), os.getppid(), os.getuid())
    assert (facts.pgrp, facts.sid) == (os.getpgrp(), os.getsid(0))
    assert facts.auxv[-16:] == b"\0" * 16
    assert process.start_time(1 << 22) is None
    assert process.facts_of(1 << 22).ppid == 0


def test_messages_between_the_processes() -> None:
    stop = ThreadStop(tid=5, name="\x1b[", stopped_ns=1, resumed_ns=-1, signal=11, registers={"rip": 1 << 63})
    left = LeftOut(what="slot", address=1 << 46, size=4096, why=Left.LIMIT)
    messages: list[Message] = [
        Seized(pid=1, threads=2, took_ns=3),
        Refused(pid=1, why=Refusal.TRACED, detail="x", tracer=9),
        Released(pid=1, why=Ending.EXITED, signal=9),
        Captured(
            pid=1, tid=5, signal=11, code=1, fault_address=0x2F8, siginfo=b"\x0b\0\xff", handled=True,
            at_ns=1, pause_ns=2, write_ns=3, path="core", failure="", copied_bytes=4, file_bytes=5,
            threads=(stop,),
            left_out=(left,), left_out_bytes=4096,
        ),
    ]  # fmt: skip
    for message in messages:
        assert from_json(to_json(message)) == message
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_json({"kind": "Seized"})
