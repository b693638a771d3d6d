# The helper process that reads other processes' /proc entries for the daemon (which may have dropped its
# privileges). Says that it is ready, then takes one JSON request a line on stdin and gives one JSON answer a
# line on stdout. Ends with its parent.
from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from probes import procfs


def _epoll_entries(pid: int, epfd: int) -> Any:
    return procfs.epoll_entries(pid, epfd)


def _registrations(pid: int) -> Any:
    return [entry for epfd in procfs.epoll_fds(pid) for entry in procfs.epoll_entries(pid, epfd) or []]


def _identity(pid: int) -> Any:
    found = procfs.identity(pid)
    return None if found is None else {name: getattr(found, name) for name in found.__slots__}


def _comm(pid: int, tid: int) -> Any:
    return procfs.comm(pid, tid)


def _load_bias(pid: int, inode: int, segments: list[list[int]]) -> Any:
    return procfs.load_bias(pid, inode, tuple((int(a), int(b)) for a, b in segments))


def _processes_of(device: int, inode: int) -> Any:
    return procfs.processes_of(device, inode)


def _holders(inode: int, pid: int, fd: int) -> Any:
    return procfs.holders(inode, pid, fd)


def _modules(pid: int, own: str) -> Any:
    return procfs.modules(pid, own)


def _process(pid: int) -> Any:
    return procfs.process(pid)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "epoll_entries": _epoll_entries,
    "registrations": _registrations,
    "identity": _identity,
    "comm": _comm,
    "load_bias": _load_bias,
    "processes_of": _processes_of,
    "holders": _holders,
    "modules": _modules,
    "process": _process,
}


def main() -> None:
    _say({"ok": "ready"})
    for line in sys.stdin.buffer:
        try:
            request = json.loads(line)
            answer = {"ok": OPERATIONS[request["op"]](*request["args"])}
        except Exception as error:  # noqa: BLE001 - the daemon must get an answer to every request
            answer = {"error": f"{type(error).__name__}: {error}"}
        _say(answer)


def _say(answer: dict[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # nobody waits for it any more
        os._exit(0)


if __name__ == "__main__":
    main()
