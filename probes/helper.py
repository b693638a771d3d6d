# Owns the daemon's end of probes/proc_helper.py: on-demand start, restart after death, typed answers.
from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from typing import Any

from probes.events import MappedModule
from probes.procfs import EpollEntry, Identity

TIMEOUT_S = 2.0
START_S = 10.0
"""For the first answer of a helper: a loaded machine takes its time to start an interpreter."""


class ProcHelper:
    """Asks the helper process. Every method answers None (or []) when it cannot be known."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self.failures = 0  # requests that got no answer
        self.silent = False  # the last one got none, from two helpers: that says nothing of the process

    def _ask(self, op: str, *args: Any) -> Any:
        for _ in range(1 if self.silent else 2):
            try:
                answer = self._request(op, args)
            except (OSError, TimeoutError, ValueError):
                self.failures += 1
                self.close()
            else:
                self.silent = False
                return answer.get("ok")
        self.silent = True
        return None

    def _request(self, op: str, args: tuple[Any, ...]) -> Any:
        patience = TIMEOUT_S
        if self._child is None or self._child.poll() is not None:
            patience = START_S
            self._child = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", _START, os.pathsep.join(p for p in sys.path if p)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        child = self._child
        if child.stdin is None or child.stdout is None:
            raise BrokenPipeError
        child.stdin.write(json.dumps({"op": op, "args": args}).encode() + b"\n")
        child.stdin.flush()
        poller = select.poll()  # not select(2): the daemon may hold more than 1024 descriptors
        poller.register(child.stdout, select.POLLIN)
        if not poller.poll(1000 * patience):
            raise TimeoutError
        return json.loads(child.stdout.readline())

    def registrations(self, pid: int) -> list[EpollEntry]:
        return [EpollEntry(*entry) for entry in self._ask("registrations", pid) or []]

    def epoll_entries(self, pid: int, epfd: int) -> list[EpollEntry] | None:
        entries = self._ask("epoll_entries", pid, epfd)
        return None if entries is None else [EpollEntry(*entry) for entry in entries]

    def identity(self, pid: int) -> Identity | None:
        found = self._ask("identity", pid)
        return Identity(**found) if isinstance(found, dict) else None

    def comm(self, pid: int, tid: int) -> str:
        return str(self._ask("comm", pid, tid) or "")

    def load_bias(self, pid: int, inode: int, segments: tuple[tuple[int, int], ...]) -> int | None:
        bias = self._ask("load_bias", pid, inode, segments)
        return None if bias is None else int(bias)

    def modules(self, pid: int, own: str) -> list[MappedModule] | None:
        """own: the identity of the process's executable."""
        rows = self._ask("modules", pid, own)
        if rows is None:
            return None
        return [MappedModule(start=s, end=e, bias=b, path=path, identity=i) for s, e, b, path, i in rows]

    def process(self, pid: int) -> tuple[str, list[tuple[int, str, str]], dict[int, str]]:
        """(maps, [(tid, comm, state)], {epfd: fdinfo}) of a process; empty parts where it is gone."""
        found = self._ask("process", pid)
        if found is None:
            return "", [], {}
        maps, threads, fdinfo = found
        return (
            str(maps),
            [(int(tid), str(comm), str(state)) for tid, comm, state in threads],
            {int(epfd): str(text) for epfd, text in fdinfo},
        )

    def processes_of(self, device: int, inode: int) -> list[int]:
        return [int(pid) for pid in self._ask("processes_of", device, inode) or []]

    def close(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue
        try:
            child.wait(1)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


_START = (
    "import sys, os; sys.path[:0] = sys.argv[1].split(os.pathsep); "
    "from probes.proc_helper import main; main()"
)
