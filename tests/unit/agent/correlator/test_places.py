# Where a step stood: the same words in every process of a program, wherever it and its libraries are mapped.
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.correlator import Correlator
from agent.correlator.findings import CallSite
from probes.events import MappedModule, ModulesMapped, StackSeen, SuspicionRaised
from tests.unit.agent.correlator.playbook import TGID, attached, life, plan

CODE = {"vaddr": 0x1000, "offset": 0, "filesz": 0x4000, "memsz": 0x4000, "executable": True}
STACK = 0x7FFC_0000_0000
CLOSE_IN_LIBC = 0x9_1234


def _memory(*frames: tuple[int, int, int]) -> bytes:
    """Stack bytes with (offset, next frame, return address) each."""
    raw = bytearray(1024)
    for offset, following, back in frames:
        raw[offset : offset + 8] = following.to_bytes(8, "little")
        raw[offset + 8 : offset + 16] = back.to_bytes(8, "little")
    return bytes(raw)


def _bad_close(bias: int) -> SuspicionRaised:
    event = life(bias=bias).bad_close(50)
    return replace(event, trigger=event.trigger._replace(stack=77))


def _site(
    image: int, libc: int, *, walk: tuple[int, ...], of: str = "", build: str = "one", path: str = ""
) -> tuple[str, CallSite]:
    """(group, site) of a bad close in a process whose image and libc lie there.

    walk: return addresses in the image, outwards; of: "frames" for real ones, "garbage" for a wild rbp.
    """
    pcs = (libc + CLOSE_IN_LIBC, *(image + pc for pc in walk))
    kept: dict[str, Any] = {}
    if of:
        frames = [(0x40 * (n + 1), STACK + 0x40 * (n + 2), pc) for n, pc in enumerate(pcs[1:])]
        rbp = STACK + 0x40 if of == "frames" else image + 0x2000
        kept = {"registers": {"rsp": STACK, "rbp": rbp}, "memory": _memory(*frames)}
    correlator = Correlator()
    the_plan = plan() | {"segments": [CODE]}
    modules = (
        MappedModule(
            start=image + 0x1000, end=image + 0x5000, bias=image, path="/srv/server", identity="build-id:cafe"
        ),
        MappedModule(
            start=libc,
            end=libc + 0x20_0000,
            bias=libc,
            path=path or "/lib/x86_64-linux-gnu/libc.so.6",
            identity=f"build-id:{build}",
        ),
    )
    for event in (
        attached(the_plan, bias=image),
        ModulesMapped(ts=2, tgid=TGID, modules=modules),
        StackSeen(tgid=TGID, id=77, pcs=pcs, **kept),
    ):
        correlator.feed(event)
    (found,) = correlator.feed(_bad_close(image))
    (site,) = found.sites
    return found.group, site


HERE, THERE = (0x5555_5000_0000, 0x7F00_1000_0000), (0x5612_3000_0000, 0x7F99_0040_0000)


@pytest.mark.parametrize("of", ["", "frames"])
def test_the_own_caller_of_a_library_is_the_place(of: str) -> None:
    group, site = _site(*HERE, walk=(0x1234, 0x1500), of=of)
    assert site == CallSite(role="closed", address=0x1234)
    assert _site(*THERE, walk=(0x1234, 0x1500), of=of)[0] == group
    assert _site(*THERE, walk=(0x1300, 0x1500), of=of)[0] != group


def test_another_build_of_libc_is_no_other_bug() -> None:
    groups = {_site(*place, walk=(), build=build)[0] for place in (HERE, THERE) for build in ("one", "two")}
    assert len(groups) == 1
    assert _site(*HERE, walk=())[1] == CallSite(role="closed", address=0, module="libc")


def test_what_a_wild_frame_pointer_led_to_is_no_place() -> None:
    group, site = _site(*HERE, walk=(0x1234,), of="garbage")
    assert site.module == "libc"
    assert _site(*THERE, walk=(0x4000,), of="garbage")[0] == group


def test_a_library_of_the_program_is_a_place_of_its_own() -> None:
    group, site = _site(*HERE, walk=(), path="/srv/lib/libserver.so.1")
    assert site == CallSite(role="closed", address=CLOSE_IN_LIBC, module="build-id:one")
    assert _site(*THERE, walk=(), path="/srv/lib/libserver.so.1")[0] == group
    assert CallSite.from_dict(site.to_dict()) == site


def test_code_of_no_file_has_no_address() -> None:
    """What a just-in-time compiler made, or the vdso."""
    groups = set()
    for tgid_bias, jitted in ((0x5555_5000_0000, 0x7F00_1234_0000), (0x5612_3000_0000, 0x7F11_4321_0000)):
        correlator = Correlator()
        correlator.feed(attached(plan() | {"segments": [CODE]}, bias=tgid_bias))
        correlator.feed(StackSeen(tgid=TGID, id=77, pcs=(jitted,)))
        (found,) = correlator.feed(_bad_close(tgid_bias))
        groups.add((found.group, found.sites))
    assert groups == {(found.group, (CallSite(role="closed", address=0, module="?"),))}
