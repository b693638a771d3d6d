# Owns programs nobody thought of: calls picked at random for two or three threads, by whatever picks.
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from tests.host.machine import Scenario

T = TypeVar("T")
Pick = Callable[[Sequence[T]], T]

PREPARED = (
    "epoll e; socket s; create 0",
    "epoll e; socket s; create 0; add e s 0; ready s",
    "epoll e; epoll f; socket s; socket t; create 0; create 1; add e s 0; ready s; ready t",
)
_FD = ("s", "s", "t")
_SLOT = ("0", "0", "0", "1")
_EP = ("e", "e", "e", "e", "e", "f")
_EVENTS = ("level", "level", "edge", "oneshot")
_OPERANDS: dict[str, tuple[Sequence[str], ...]] = {
    "add": (_EP, _FD, _SLOT, _EVENTS),
    "mod": (_EP, _FD, _SLOT, _EVENTS),
    "del": (_EP, _FD),
    "close": (("s", "s", "s", "t", "t", "f"),),
    "slow_close": (_FD,),
    "late_close": (_FD,),
    "close_range": (("s",), ("s",)),
    "dup": (_FD, ("t", "u")),
    "dup2": (_FD, ("t", "u")),
    "wait": (_EP,),
    "create": (_SLOT,),
    "destroy": (_SLOT,),
    "dispatch": (_SLOT,),
    "return": (),
    "socket": (_FD,),
    "ready": (_FD,),
    "drain": (_FD,),
    "fork": (("1",),),
    "child_exit": (("1",),),
    "send": (("s",),),
    "received": (("s",),),
}
_WEIGHTS = {"add": 2, "del": 2, "close": 3, "wait": 3, "destroy": 2, "socket": 2}
CALLS = tuple(name for name in _OPERANDS for _ in range(_WEIGHTS.get(name, 1)))


def call(pick: Pick[str]) -> str:
    name = pick(CALLS)
    return " ".join([name, *(pick(choices) for choices in _OPERANDS[name])])


def program(pick: Pick[str], threads: int, calls: int) -> Scenario:
    """Every thread makes `calls` calls."""
    prepare = pick(PREPARED)
    return Scenario(prepare, ["; ".join(call(pick) for _ in range(calls)) for _ in range(threads)])
