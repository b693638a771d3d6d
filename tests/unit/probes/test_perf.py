"""Putting a program on a tracepoint without bcc: what it says when it cannot."""

from __future__ import annotations

import errno
import os

import pytest

from probes import perf


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def a_tracepoint() -> int:
    number = perf.tracepoint_id("syscalls", "sys_exit_read")
    if number is None:
        pytest.skip("tracefs is not mounted, or cannot be read")
    return number


def test_what_is_no_program_is_refused_and_nothing_stays_open() -> None:
    number = a_tracepoint()
    read, write = os.pipe()
    before = descriptors()
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - which one depends on our rights
            perf.attach(read, number)
        assert caught.value.errno in (errno.EINVAL, errno.EACCES, errno.EPERM)
        assert descriptors() == before
    finally:
        os.close(read)
        os.close(write)


def test_a_tracepoint_that_this_kernel_does_not_have() -> None:
    assert perf.tracepoint_id("syscalls", "sys_exit_nothing") is None
    before = descriptors()
    with pytest.raises(OSError) as caught:  # noqa: PT011
        perf.attach(-1, 1 << 60)
    assert caught.value.errno in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EINVAL)
    assert descriptors() == before
