# description-outlives-close, failed-removal, bad-close.
from __future__ import annotations

from dataclasses import replace

import pytest

from probes.abi import Kind, RegFlag
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


def fdinfo(present: bool) -> FdinfoChecked:
    return FdinfoChecked(ts=60, tgid=TGID, epfd=EPFD, fd=9, userdata=SLOT, present=present)


class TestDescriptionOutlivesClose:
    def test_a_dup_keeps_it(self, play: Playbook) -> None:
        play >> attached() >> life().outlives_close(40, WORKER) << high("description-outlives-close", fd=9)
        assert play.last is not None
        assert [(a.role, a.moment.tid, bool(a.moment.ip)) for a in play.last.actors][-1] == (
            "closed",
            WORKER,
            True,
        )

    def test_fdinfo_confirms(self, play: Playbook) -> None:
        play >> attached() >> fdinfo(True) >> life().outlives_close(40)
        play << high("description-outlives-close", "confirmed")

    @pytest.mark.parametrize("checks", [(), (fdinfo(False),)])
    def test_a_fork_that_may_share_it_is_none(
        self, play: Playbook, checks: tuple[FdinfoChecked, ...]
    ) -> None:
        play >> attached() << nothing
        for check in checks:
            play >> check << nothing
        story = life()
        event = story.outlives_close(40)
        play >> replace(event, reg=replace(story.reg, flags=RegFlag.FORK_SHARED)) << nothing
        assert sum(play.correlator.stats.dropped.values()) == 1

    def test_a_loss_makes_it_uncertain(self, play: Playbook) -> None:
        play >> attached() >> Lost(ts=30, what="descs-map-full", count=1, since=25)
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
