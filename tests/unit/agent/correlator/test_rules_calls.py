# description-outlives-close, failed-removal, bad-close.
from __future__ import annotations

from dataclasses import replace

import pytest

from probes.abi import Kind, RegFlag, RegState
from probes.events import FdinfoChecked, Lost
from tests.unit.agent.correlator.playbook import (
    EPFD,
    SLOT,
    TGID,
    WORKER,
    Playbook,
    attached,
    high,
    life,
    nothing,
    warning,
)


def fdinfo(present: bool | None, holders: tuple[tuple[int, int, str], ...] = ()) -> FdinfoChecked:
    return FdinfoChecked(ts=60, tgid=TGID, epfd=EPFD, fd=9, userdata=SLOT, present=present, holders=holders)


def reasons(play: Playbook) -> str:
    assert play.last is not None
    return "; ".join(play.last.reasons)


class TestDescriptionOutlivesClose:
    def test_the_kernel_still_had_it(self, play: Playbook) -> None:
        play >> attached() >> life().outlives_close(40, WORKER)
        play << high("description-outlives-close", "confirmed", fd=9)
        assert play.last is not None
        assert [(a.role, a.moment.tid, bool(a.moment.ip)) for a in play.last.actors][-1] == (
            "closed",
            WORKER,
            True,
        )
        assert "the kernel had the registration of fd 9 with instance 5 after the close" in reasons(play)

    def test_a_duplicate_that_was_seen_is_named_with_who_made_it(self, play: Playbook) -> None:
        play >> attached() >> life().dupped(30, fd=12, by=WORKER).outlives_close(40)
        play << high("description-outlives-close", "confirmed")
        assert play.last is not None
        assert [(a.role, a.moment.tid, a.note) for a in play.last.actors][1] == (
            "duplicated",
            WORKER,
            "fd 12",
        )
        assert "kept open by fd 12, its duplicate" in reasons(play)

    def test_the_holders_are_named_and_a_child_is_called_that(self, play: Playbook) -> None:
        held = ((TGID, 12, "server"), (4711, 3, "worker"), (4712, 8, "nosy\x1b[2J"))
        event = life().dupped(30, fd=12).outlives_close(40, forks=1, last_child=4711)
        play >> attached() >> fdinfo(True, holders=held) >> event
        play << high("description-outlives-close", "confirmed")
        assert play.last is not None
        assert [r for r in play.last.reasons if r.startswith("kept open")] == [
            "kept open by fd 12, its duplicate",
            "kept open by fd 3 of process 4711 'worker' (forked by the target)",
            "kept open by fd 8 of process 4712 'nosy\\x1b[2J'",
        ]

    def test_children_are_suspected_where_nobody_is_known(self, play: Playbook) -> None:
        play >> attached() >> life().outlives_close(40, forks=2, last_child=4711)
        play << high("description-outlives-close", "confirmed")
        assert "one of 2 forked children that have not executed a program" in reasons(play)
        assert "the newest is process 4711" in reasons(play)

    @pytest.mark.parametrize(("checks", "said"), [((True, ()), True), (None, False)])
    def test_in_flight_is_said_only_after_looking(
        self, play: Playbook, checks: tuple[bool, tuple[()]] | None, said: bool
    ) -> None:
        play >> attached() << nothing
        if checks is not None:
            play >> fdinfo(checks[0], holders=checks[1]) << nothing
        play >> life().outlives_close(40) << high("description-outlives-close", "confirmed")
        assert ("in flight in a socket (SCM_RIGHTS) or closed" in reasons(play)) is said

    def test_a_shared_table_is_said(self, play: Playbook) -> None:
        story = life().registration(flags=RegFlag.TABLE_SHARED)
        play >> attached() >> story.outlives_close(40) << high("description-outlives-close", "confirmed")
        assert "another process shares the descriptor table (CLONE_FILES)" in reasons(play)

    def test_closed_soon_after_is_still_what_the_kernel_answered(self, play: Playbook) -> None:
        play >> attached() >> fdinfo(False) >> life().outlives_close(40)
        play << high("description-outlives-close", "confirmed")
        assert "the duplicate was closed soon after" in reasons(play)

    @pytest.mark.parametrize(("present", "reason"), [(False, "refuted-by-fdinfo"), (None, "not-confirmed")])
    def test_where_the_kernel_cannot_be_asked_fdinfo_must_say_so(
        self, play: Playbook, present: bool | None, reason: str
    ) -> None:
        story = life().registration(flags=RegFlag.NOT_ASKED)
        play >> attached() >> fdinfo(present) >> story.outlives_close(40) << nothing
        assert play.correlator.stats.dropped == {reason: 1}

    def test_where_the_kernel_cannot_be_asked_and_fdinfo_lists_it(self, play: Playbook) -> None:
        story = life().registration(flags=RegFlag.NOT_ASKED)
        play >> attached() >> fdinfo(True) >> story.outlives_close(40)
        play << high("description-outlives-close", "inferred")

    def test_a_loss_makes_it_uncertain(self, play: Playbook) -> None:
        play >> attached() >> Lost(ts=30, what="registrations-map-full", count=1, since=25)
        play >> life().outlives_close(40) << warning("description-outlives-close", "uncertain")

    def test_uncertain_without_the_registration(self, play: Playbook) -> None:
        play >> attached() >> replace(life().outlives_close(40), reg=None)
        play << warning("description-outlives-close", "uncertain")


class TestFailedRemoval:
    def test_del_after_close(self, play: Playbook) -> None:
        play >> attached() >> life().closed(40, WORKER).failed_removal(50, -2)
        play << high("failed-removal", sub_class="after-close", window_ns=10)
        assert play.last is not None
        assert play.last.actors[-1].note == "EPOLL_CTL_DEL returned -ENOENT"

    def test_ebadf(self, play: Playbook) -> None:
        play >> attached() >> life().closed(40).failed_removal(50, -9)
        play << high("failed-removal", sub_class="bad-descriptor")

    def test_mod(self, play: Playbook) -> None:
        (
            play
            >> attached()
            >> life().closed(40).failed_removal(50, -2, Kind.MODIFIED)
            << high("failed-removal")
        )
        assert play.last is not None
        assert play.last.actors[-1].note == "EPOLL_CTL_MOD returned -ENOENT"

    def test_removed_twice(self, play: Playbook) -> None:
        play >> attached() >> life().removed(40).failed_removal(50, -2)
        play << high("failed-removal", sub_class="removed-twice")

    def test_ended_by_no_call_that_was_seen(self, play: Playbook) -> None:
        story = life().registration(state=RegState.ENDED)
        play >> attached() >> story.failed_removal(50, -2)
        play << high("failed-removal", sub_class="ended-elsewhere", window_ns=None)
        assert "another process that shares the instance or the table did, or io_uring" in reasons(play)

    def test_never_registered(self, play: Playbook) -> None:
        play >> attached() >> replace(life().failed_removal(50, -2), slot=None, reg=None)
        play << high("failed-removal", sub_class="not-registered")

    @pytest.mark.parametrize(("ret", "kind"), [(0, Kind.REMOVED), (-22, Kind.REMOVED), (-2, Kind.ADDED)])
    def test_does_not_fire(self, play: Playbook, ret: int, kind: Kind) -> None:
        play >> attached() >> life().failed_removal(50, ret, kind) << nothing


class TestBadClose:
    def test_ebadf(self, play: Playbook) -> None:
        play >> attached() >> life().bad_close(50) << high("bad-close", fd=9)

    def test_names_the_close_before_when_it_is_known(self, play: Playbook) -> None:
        story = life().closed(40, WORKER)
        play >> attached() >> replace(story.bad_close(50), slot=story.slot, reg=story.reg)
        play << high("bad-close", window_ns=10)
        assert play.last is not None
        assert [(a.role, a.moment.tid) for a in play.last.actors][1] == ("closed", WORKER)

    @pytest.mark.parametrize(("fd", "ret"), [(9, 0), (9, -4), (-1, -9)])
    def test_does_not_fire(self, play: Playbook, fd: int, ret: int) -> None:
        play >> attached() >> life().bad_close(50, fd=fd, ret=ret) << nothing
