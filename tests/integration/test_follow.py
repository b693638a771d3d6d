"""`watch --exe` follows a program: later processes, restarts, exec in and out, a binary replaced on disk."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.replay_source import RecordingSource
from probes.events import Event, SuspicionRaised, TargetAttached, TargetGone
from tests.integration.harness import Daemon, daemon, load, wait_for, watched
from tests.requirements import require_program
from tests.targets.build import build

pytestmark = pytest.mark.bpf

BUG = ("--bug", "double-close", "--survive", "--duration-s", "120")
CONNECTIONS = 60


class Running(subprocess.Popen[str]):
    """A target that was started by hand; `port` once it is ready."""

    port: int


@contextlib.contextmanager
def started(*argv: str, cwd: Path | None = None) -> Iterator[Running]:
    process = Running([*argv], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=cwd)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready "), line
        process.port = int(line.split("port=")[1].split()[0])
        yield process
    finally:
        process.kill()
        process.communicate()


def provoke(process: Running) -> None:
    """Every connection is closed twice: a finding with the process' own number."""
    descriptors = Path(f"/proc/{process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    client = load(process.port, "churn", connections=CONNECTIONS)
    _, err = client.communicate(timeout=60)
    assert client.returncode == 0, err
    # the client is through before the target has closed them all
    wait_for(lambda: len(list(descriptors.iterdir())) <= before, 10, "connections stay open")


def wait_watched(watch: Daemon, *pids: int) -> None:
    wait_for(lambda: set(pids) <= watched(watch.pid), 15, f"{pids} are not watched but {watched(watch.pid)}")


def ended(watch: Daemon) -> list[Event]:
    """End the watch and read everything it recorded."""
    assert watch.end() == 0, watch.said()
    assert "Traceback" not in watch.said()
    return recorded(watch)


def recorded(watch: Daemon) -> list[Event]:
    source = RecordingSource.open(watch.out.parent / "recording")
    found: list[Event] = []
    try:
        while not source.finished:
            found.extend(source.poll(0))
    finally:
        source.close()
    return found


def attached(events: list[Event]) -> dict[int, TargetAttached]:
    found = {event.tgid: event for event in events if isinstance(event, TargetAttached)}
    assert len(found) == sum(isinstance(event, TargetAttached) for event in events), "attached twice"
    return found


def gone(events: list[Event]) -> dict[int, str]:
    return {event.tgid: event.reason for event in events if isinstance(event, TargetGone)}


def suspicions(events: list[Event], pid: int) -> int:
    return sum(isinstance(event, SuspicionRaised) and event.trigger.tgid == pid for event in events)


@pytest.fixture
def exe(tmp_path: Path) -> Path:
    """A copy of the target of its own: other tests run the same program."""
    copy = tmp_path / "bin" / "poolserver"
    copy.parent.mkdir()
    shutil.copy2(build("poolserver", "ReleaseSafe"), copy)
    return copy


@contextlib.contextmanager
def watching(tmp_path: Path, *what: str) -> Iterator[Daemon]:
    with daemon(tmp_path, "watch", *what, "--record", str(tmp_path / "recording")) as watch:
        watch.wait_ready()
        yield watch


def test_later_processes_are_picked_up_however_they_are_named(tmp_path: Path, exe: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(exe)
    with watching(tmp_path, "--exe", str(exe)) as watch:
        assert watched(watch.pid) == set()
        with (
            started(str(exe), *BUG) as absolute,
            started("./poolserver", *BUG, cwd=exe.parent) as relative,
            started(str(link), *BUG) as linked,
        ):
            processes = (absolute, relative, linked)
            wait_watched(watch, *(process.pid for process in processes))
            for process in processes:
                provoke(process)
            events = ended(watch)
    assert set(attached(events)) == {process.pid for process in processes}
    late = [process.args for process in processes if attached(events)[process.pid].late]
    assert not late, "their execs were seen, by the file whatever its name: nothing of them was missed"
    for process in processes:
        assert suspicions(events, process.pid) == CONNECTIONS
    assert not any(isinstance(event, TargetGone) for event in events)


def test_the_program_named_by_a_link_is_the_one_behind_it(tmp_path: Path, exe: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(exe)
    with watching(tmp_path, "--exe", str(link)) as watch, started(str(link), *BUG) as process:
        wait_watched(watch, process.pid)
        provoke(process)
        events = ended(watch)
    assert set(attached(events)) == {process.pid}
    assert suspicions(events, process.pid) == CONNECTIONS


def test_a_restart_is_followed(tmp_path: Path, exe: Path) -> None:
    with started(str(exe), *BUG) as first, watching(tmp_path, "--exe", str(exe)) as watch:
        assert watched(watch.pid) == {first.pid}
        provoke(first)
        first.terminate()
        first.wait(10)
        wait_for(lambda: not watched(watch.pid), 60, "the first process is still watched")
        with started(str(exe), *BUG) as second:
            wait_watched(watch, second.pid)
            provoke(second)
            events = ended(watch)
    assert list(attached(events)) == [first.pid, second.pid]
    assert attached(events)[first.pid].late
    assert not attached(events)[second.pid].late
    assert gone(events) == {first.pid: "exited"}
    assert suspicions(events, first.pid) == suspicions(events, second.pid) == CONNECTIONS


def test_a_replaced_binary_is_watched_beside_the_old_one(tmp_path: Path, exe: Path) -> None:
    other = tmp_path / "next"
    shutil.copy2(build("poolserver", "ReleaseFast"), other)
    with started(str(exe), *BUG) as old, watching(tmp_path, "--exe", str(exe)) as watch:
        assert watched(watch.pid) == {old.pid}
        other.rename(exe)
        wait_for(lambda: "watching the new file as well" in watch.said(), 30, "the new file is not noticed")
        with started(str(exe), *BUG) as new:
            wait_watched(watch, old.pid, new.pid)
            provoke(new)
            provoke(old)
            old.terminate()
            old.wait(10)
            # each probe waits for a grace period of the kernel when it goes
            wait_for(lambda: watched(watch.pid) == {new.pid}, 60, "the old process is still watched")
            events = ended(watch)
    assert list(attached(events)) == [old.pid, new.pid]
    assert attached(events)[old.pid].plan["identity"] != attached(events)[new.pid].plan["identity"]
    assert gone(events) == {old.pid: "exited"}
    assert suspicions(events, old.pid) == suspicions(events, new.pid) == CONNECTIONS


def test_several_pids_and_the_end_with_the_last(tmp_path: Path, exe: Path) -> None:
    fast = build("poolserver", "ReleaseFast")
    with (
        started(str(exe), *BUG) as one,
        started(str(exe), *BUG) as two,
        started(str(fast), *BUG) as three,
        started(str(exe), *BUG) as bystander,
    ):
        named = [argument for process in (one, two, three) for argument in ("--pid", str(process.pid))]
        with watching(tmp_path, *named) as watch:
            assert watched(watch.pid) == {one.pid, two.pid, three.pid}
            for process in (one, two, three, bystander):
                provoke(process)
            for process in (one, two, three):
                assert watch.process.poll() is None
                process.terminate()
                process.wait(10)
            assert watch.process.wait(20) == 0, watch.said()
            events = recorded(watch)
    assert set(attached(events)) == {one.pid, two.pid, three.pid}
    assert gone(events) == dict.fromkeys((one.pid, two.pid, three.pid), "exited")
    for process in (one, two, three):
        assert suspicions(events, process.pid) == CONNECTIONS
    assert suspicions(events, bystander.pid) == 0


EXECS = """
    #include <stdlib.h>
    #include <signal.h>
    #include <stdio.h>
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <unistd.h>
    struct conn { int fd; long state[8]; };
    __attribute__((noinline)) void conn_destroy(struct conn *conn) { conn->state[0] = 0; free(conn); }
    int main(int argc, char **argv) {
        int ep = epoll_create1(0), fd = eventfd(1, 0);
        struct conn *conn = calloc(1, sizeof *conn);
        struct epoll_event event = { .events = EPOLLIN, .data.ptr = conn };
        epoll_ctl(ep, EPOLL_CTL_ADD, conn->fd = fd, &event);
        printf("ready port=0\\n"); fflush(stdout);
        getchar();                        /* the test says when */
        epoll_wait(ep, &event, 1, 0);
        epoll_ctl(ep, EPOLL_CTL_DEL, fd, 0);
        close(fd); close(fd);             /* the second one fails: bad-close */
        conn_destroy(conn);
        execvp(argv[1], argv + 1);
        return 1;
    }
"""
PROFILE = """
    name = "execs"
    [slot]
    type = "conn"
    destroy = { function = "conn_destroy", slot = "conn" }
    [userdata]
    kind = "pointer"
"""


def test_a_target_that_executes_another_program_is_gone(tmp_path: Path) -> None:
    source, program, profile = tmp_path / "execs.c", tmp_path / "execs", tmp_path / "execs.toml"
    source.write_text(textwrap.dedent(EXECS))
    profile.write_text(textwrap.dedent(PROFILE))
    subprocess.run([require_program("cc"), "-g", "-O1", "-o", program, source], check=True)
    options = ("--exe", str(program), "--profile", str(profile))
    with watching(tmp_path, *options) as watch:
        shell = subprocess.Popen(
            # the process becomes the target by exec, and leaves it by exec
            ["/bin/sh", "-c", f"exec {program} sleep 60"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert shell.stdin is not None
            assert shell.stdout is not None
            assert shell.stdout.readline().startswith("ready ")
            wait_watched(watch, shell.pid)
            shell.stdin.write("\n")
            shell.stdin.flush()
            wait_for(lambda: os.readlink(f"/proc/{shell.pid}/exe") != str(program), 10, "no exec")
            wait_for(lambda: not watched(watch.pid), 10, "still watched after its exec")
            events = ended(watch)
        finally:
            shell.kill()
            shell.communicate()
    assert set(attached(events)) == {shell.pid}
    assert not attached(events)[shell.pid].late
    (reason,) = gone(events).values()
    assert reason.startswith("executed another program")
    assert "sleep" in reason
    assert suspicions(events, shell.pid) == 1
    assert json.loads(json.dumps(attached(events)[shell.pid].plan))["profile"] == "execs"
