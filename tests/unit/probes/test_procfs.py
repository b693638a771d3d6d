"""Who else has a description open: real sockets, held by real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from probes import procfs
from probes.procfs import holders


@contextmanager
def child_with(fd: int) -> Iterator[int]:
    """A process that holds a descriptor under the same number; its pid."""
    code = "import sys; print('ready', flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", code], pass_fds=(fd,), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        yield child.pid
    finally:
        child.communicate()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def inode(which: socket.socket) -> int:
    return os.fstat(which.fileno()).st_ino


def test_nobody_else(pair: tuple[socket.socket, socket.socket]) -> None:
    assert holders(inode(pair[0]), os.getpid(), pair[0].fileno()) == []


def test_a_duplicate_of_the_same_process(pair: tuple[socket.socket, socket.socket]) -> None:
    copy = os.dup(pair[0].fileno())
    try:
        found = holders(inode(pair[0]), os.getpid(), pair[0].fileno())
        assert found == [(os.getpid(), copy, procfs.comm(os.getpid(), os.getpid()))]
    finally:
        os.close(copy)


def test_a_child_that_still_has_what_its_parent_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    number, fd = inode(pair[0]), pair[0].fileno()
    with child_with(fd) as pid:
        assert [row[:2] for row in holders(number, os.getpid(), fd)] == [(pid, fd)]
        pair[0].close()
        assert [row[:2] for row in holders(number, os.getpid(), fd)] == [(pid, fd)]
    assert holders(number, os.getpid(), fd) == []


def test_one_in_flight_is_held_by_nobody(pair: tuple[socket.socket, socket.socket]) -> None:
    sent, other = socket.socketpair()
    number, fd = inode(sent), sent.fileno()
    with other:
        socket.send_fds(pair[0], [b"x"], [fd])
        sent.close()
        assert holders(number, os.getpid(), fd) == []
        _, fds, _, _ = socket.recv_fds(pair[1], 1, 1)
        try:
            assert [row[:2] for row in holders(number, os.getpid(), -1)] == [(os.getpid(), fds[0])]
        finally:
            os.close(fds[0])


def test_the_others_end_of_a_pair_is_another_socket(pair: tuple[socket.socket, socket.socket]) -> None:
    assert inode(pair[0]) != inode(pair[1])
    assert holders(inode(pair[1]), os.getpid(), pair[1].fileno()) == []


def test_no_more_are_named_than_fit(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(procfs, "MAX_HOLDERS", 3)
    copies = [os.dup(pair[0].fileno()) for _ in range(5)]
    try:
        assert len(holders(inode(pair[0]), os.getpid(), pair[0].fileno())) == 3
    finally:
        for copy in copies:
            os.close(copy)
