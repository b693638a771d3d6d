"""When the calls that make progress are traced, for how long, and how often a wrong suspicion is believed."""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest

from probes import perf, progress
from probes.errors import LoaderFailed
from probes.progress import CALLS, FIRST_PAUSE_S, LONGEST_PAUSE_S, LOOK_S, STILL_S, ProgressWatch
from probes.sysbpf import Map

PROGRAMS = {name: 100 + number for number, name in enumerate(sorted(set(CALLS.values())))}


def _at_once(work: Callable[[], None]) -> None:
    work()


class World:
    """What the watch wrote into `control`, and what it has attached."""

    def __init__(self) -> None:
        self.control = (0, 0)  # watch_since, spin_quiet
        self.asked: list[list[tuple[int, str]]] = []
        self.open: list[int] = []
        self.refuse = False
        self.none = False  # this kernel has none of the tracepoints

    def put(self, key: bytes, value: bytes) -> bool:
        assert key == bytes(4)
        self.control = struct.unpack("<QQ", value)
        return True

    def attach(self, programs: Sequence[tuple[int, str]]) -> list[int]:
        self.asked.append(list(programs))
        if self.refuse:
            raise LoaderFailed("the loader failed", detail="no more perf events")
        if self.none:
            return []
        self.open = [os.memfd_create("link"), os.memfd_create("link")]
        return list(self.open)

    def held(self) -> list[bool]:
        return [os.path.exists(f"/proc/self/fd/{fd}") for fd in self.open]

    def watch(self, programs: dict[str, int] | None = None) -> ProgressWatch:
        return ProgressWatch(
            cast("Map", self), PROGRAMS if programs is None else programs, self.attach, _at_once
        )


@pytest.fixture
def world() -> World:
    return World()


def look(watch: ProgressWatch, now: float) -> float:
    """A whole look that finds no spin; when it ended."""
    watch.suspected(now)
    watch.tick(now + LOOK_S)
    return now + LOOK_S


def pause(world: World) -> float:
    """How long the kernel side keeps its suspicions to itself now."""
    return (world.control[1] - time.monotonic_ns()) / 1e9


def test_nothing_is_attached_before_a_suspicion(world: World) -> None:
    watch = world.watch()
    watch.tick(1e9)
    assert (watch.watching, world.asked, world.control) == (False, [], (0, 0))


def test_a_look_of_some_seconds(world: World) -> None:
    watch = world.watch()
    watch.suspected(10.0)
    assert watch.watching
    since, quiet = world.control
    assert 0 < since <= time.monotonic_ns()
    assert quiet == 0
    watch.suspected(11.0)
    watch.tick(10.0 + LOOK_S - 0.1)
    assert world.held() == [True, True]
    watch.tick(10.0 + LOOK_S)
    assert not watch.watching
    assert world.held() == [False, False]
    assert (watch.looks, len(world.asked)) == (1, 1)


def test_every_call_is_asked_for_by_its_tracepoint(world: World) -> None:
    world.watch().suspected(0.0)
    assert {name: program for program, name in world.asked[0]} == {
        f"syscalls:sys_exit_{call}": PROGRAMS[program] for call, program in CALLS.items()
    }


def test_programs_that_were_not_loaded_are_left_out(world: World) -> None:
    world.watch({"af_progress_two": 7}).suspected(0.0)
    assert world.asked == [[(7, "syscalls:sys_exit_splice"), (7, "syscalls:sys_exit_copy_file_range")]]


def test_a_suspicion_that_keeps_being_wrong_is_looked_at_less_and_less_often(world: World) -> None:
    watch, now = world.watch(), 0.0
    pauses = []
    for _ in range(6):
        now = look(watch, now)
        assert world.control[0] == 0, "progress is not watched any more"
        pauses.append(round(pause(world)))
    assert pauses == [5, 10, 20, 40, 60, 60]
    assert (pauses[0], pauses[-1]) == (FIRST_PAUSE_S, LONGEST_PAUSE_S)


def test_a_spin_that_was_found_is_watched_as_long_as_it_is_heard_of(world: World) -> None:
    watch = world.watch()
    look(watch, 0.0)
    watch.suspected(100.0)
    for now in (101.0, 105.0, 112.0):
        watch.confirmed(now)
    watch.tick(112.0 + STILL_S - 0.1)
    assert watch.watching
    watch.tick(112.0 + STILL_S)
    assert not watch.watching
    assert world.control == (0, 0), "the next suspicion is looked at at once"
    look(watch, 200.0)
    assert round(pause(world)) == FIRST_PAUSE_S, "the pauses begin anew"


def test_a_late_word_of_a_spin_begins_no_look(world: World) -> None:
    watch = world.watch()
    watch.confirmed(5.0)
    assert not watch.watching


def test_a_failure_is_kept_and_not_tried_again(world: World) -> None:
    watch = world.watch()
    world.refuse = True
    watch.suspected(0.0)
    watch.suspected(100.0)
    assert watch.failure == "the loader failed: no more perf events"
    assert (watch.watching, len(world.asked), world.control) == (False, 1, (0, 0))


def test_without_any_of_the_tracepoints_nothing_is_watched(world: World) -> None:
    watch = world.watch()
    world.none = True
    watch.suspected(0.0)
    watch.suspected(100.0)
    assert "none of the tracepoints" in watch.failure
    assert world.control == (0, 0), "the kernel side must not take silence for a spin"
    assert len(world.asked) == 1


def test_closing_lets_go_of_everything(world: World) -> None:
    watch = world.watch()
    watch.suspected(0.0)
    watch.close()
    watch.close()
    assert world.held() == [False, False]


def test_the_programs_are_those_of_the_kernel_side() -> None:
    text = (Path(progress.__file__).parent / "bpf" / "55-progress.c").read_text()
    assert set(re.findall(r"^int (af_progress\w*)\(struct af_sys_exit", text, re.MULTILINE)) - {
        "af_progress_on"
    } == set(CALLS.values())


def test_this_kernel_has_the_tracepoints() -> None:
    if perf.tracepoint_id("syscalls", "sys_exit_read") is None:
        pytest.skip("tracefs is not mounted, or cannot be read")
    missing = [call for call in CALLS if perf.tracepoint_id("syscalls", f"sys_exit_{call}") is None]
    assert missing == []
    assert perf.tracepoint_id("syscalls", "sys_exit_nothing") is None
