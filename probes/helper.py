# Owns the daemon's end of probes/proc_helper.py: on-demand start, restart after death, typed answers.
from __future__ import annotations

import contextlib
import json
import select
import subprocess
from collections.abc import Sequence
from typing import Any

from probes import children, errors
from probes.events import MappedModule
from probes.procfs import EpollEntry, Identity

TIMEOUT_S = 30.0  # answers take milliseconds; on an emulated machine under load a second
START_S = 300.0
"""Until a helper is ready: a slow or loaded machine takes its time to start an interpreter."""


class ProcHelper:
    """Asks the helper process. Every method answers None (or []) when it cannot be known."""

    def __init__(self, command: Sequence[str] = ()) -> None:
        self._command = list(command) or children.command("probes.proc_helper", packages=False)
        self._child: children.Child | None = None
        self._ready = False  # it has said so
        self.failures = 0  # requests that got no answer
        self.silent = False  # the last one got none, from two helpers: that says nothing of the process
        self.ended = ""  # how the last one ended without an answer, and its last words; "": it was slow

    def refusal(self, pid: int) -> errors.ProbeError:
        """Why nothing is known of a process while the helper is silent."""
        limits = f"{START_S:.0f} s to start, {TIMEOUT_S:.0f} s for an answer"
        return errors.HelperEnded(self.ended) if self.ended else errors.TargetNotReadable(pid, limits)

    def _ask(self, op: str, *args: Any) -> Any:
        for _ in range(1 if self.silent else 2):
            try:
                answer = self._request(op, args)
            except TimeoutError:
                self.failures += 1
                self.ended = ""
                self.close()
            except (OSError, ValueError) as error:
                self.failures += 1
                self.ended = self._epitaph(error)
                self.close()
            else:
                self.silent = False
                return answer.get("ok")
        self.silent = True
        return None

    def _epitaph(self, error: Exception) -> str:
        if self._child is None:
            return f"it could not be started: {error}"
        try:
            self._child.wait(1)
        except subprocess.TimeoutExpired:
            return f"it {self._child.ending()}, and its answer makes no sense: {error}"
        return f"it {self._child.ending()}\n{self._child.last_words()}".strip()

    def begin(self) -> None:
        """Start it now: it comes up while the caller does something else. Whoever asks first is told of a
        failure."""
        with contextlib.suppress(OSError):
            self._started()

    def _started(self) -> children.Child:
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = children.Child(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._ready = False
        return self._child

    def _request(self, op: str, args: tuple[Any, ...]) -> Any:
        child = self._started()
        if not self._ready:
            self._line(child, START_S)
            self._ready = True
        if child.stdin is None:
            raise BrokenPipeError
        child.stdin.write(json.dumps({"op": op, "args": args}).encode() + b"\n")
        child.stdin.flush()
        return self._line(child, TIMEOUT_S)

    def _line(self, child: children.Child, patience: float) -> Any:
        if child.stdout is None:
            raise BrokenPipeError
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

    def holders(self, inode: int, pid: int, fd: int) -> list[tuple[int, int, str]] | None:
        """Who has a socket open, but for `fd` of `pid`: (pid, fd, comm)."""
        found = self._ask("holders", inode, pid, fd)
        return None if found is None else [(int(p), int(f), str(comm)) for p, f, comm in found]

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
