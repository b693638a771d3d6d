# Whose ADD, DEL and close a finding shows, and the failing ADD that a chain began with.
from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from agent.correlator import Correlator, Finding
from probes.abi import Kind, RegFlag, RegState, Suspect
from probes.events import Moment, Registration, SuspicionRaised
from tests.unit.agent.correlator.playbook import LOOP, SLOT, TGID, WORKER, Life, attached, life


def judged(event: SuspicionRaised) -> Finding:
    correlator = Correlator()
    correlator.feed(attached())
    (found,) = correlator.feed(event)
    return found


def roles(found: Finding) -> list[tuple[str, int, str]]:
    return [(actor.role, actor.moment.ts, actor.note) for actor in found.actors]


def failed_add(ts: int, error: int, fd: int = 44, gen: int = 1) -> Registration:
    blank = life().added(1).reg
    assert blank is not None
    return replace(
        blank,
        gen=gen,
        fd=fd,
        state=RegState.ENDED,
        flags=RegFlag.ADD_FAILED,
        error=error,
        add=Moment(ts - 1, ts, 0, LOOP, -1),
    )


def twice(of: Life, ts: int) -> SuspicionRaised:
    return of.suspicion(Suspect.DOUBLE_DESTROY, Kind.DESTROYED, ts)


@pytest.mark.parametrize(
    ("error", "said", "advised"),
    [
        (errno.ENOSPC, "failed with ENOSPC: the limit of watches", "Raise fs.epoll.max_user_watches"),
        (errno.EEXIST, "failed with EEXIST: the instance had this fd", "EPOLL_CTL_MOD what is registered"),
        (errno.EPERM, "failed with EPERM: epoll cannot watch", "Do not register regular files"),
        (errno.ENOMEM, "failed with ENOMEM", "Look at the path that cleans up"),
        (200, "failed with errno 200", "Look at the path that cleans up"),
    ],
)
def test_a_failing_add_begins_the_chain(error: int, said: str, advised: str) -> None:
    story = Life(fd=-1).created(10).destroyed(50)
    story.other = failed_add(30, error)
    found = judged(twice(story, 60))
    assert [step[:2] for step in roles(found)] == [
        ("created", 10),
        ("refused", 30),
        ("destroyed", 50),
        ("destroyed", 60),
    ]
    assert any(said in reason for reason in found.reasons)
    assert found.advice[0].startswith(advised)
    assert found.advice[0].endswith("it must end the slot and the fd once.")


def test_a_bad_close_of_what_was_never_registered_is_watched_by_nobody() -> None:
    story = life(fd=9).created(10).added(20).closed(25)  # another fd of the slot
    event = replace(
        story.suspicion(Suspect.BAD_CLOSE, Kind.CLOSED, 60, fd=44, ret=-9), reg=failed_add(30, errno.ENOSPC)
    )
    found = judged(event)
    assert (found.fd, found.epfd) == (44, -1)
    assert [step[:2] for step in roles(found)] == [("refused", 30), ("closed", 60)]
    assert "fs.epoll.max_user_watches" in found.advice[0]


def test_the_close_of_another_fd_of_the_slot_is_not_the_registrations() -> None:
    """The slot's last close is that of its newer fd; the older one was never closed."""
    story = life(fd=9).created(10).added(20)
    old = story.reg
    story.has(fd=12, add=Moment(21, 22, 1, LOOP, 1)).has(close=Moment(29, 30, 1, WORKER, 1)).destroyed(50)
    story.reg = old
    found = judged(story.stale_delivery(70))
    assert found.fd == 9
    assert [step[:2] for step in roles(found)] == [("registered", 20), ("destroyed", 50), ("delivered", 70)]
    in_batch = story.suspicion(Suspect.FREED_IN_BATCH, Kind.DESTROYED, 50)
    assert all(actor.role != "closed" for actor in judged(in_batch).actors)


def test_a_registration_of_an_older_generation_keeps_its_own_steps() -> None:
    story = life(fd=9).created(10).added(20).closed(30, shared=True).destroyed(40)
    story.reborn(50).has(fd=12, add=Moment(54, 55, 1, LOOP, 1), close=Moment(59, 60, 1, LOOP, 1)).destroyed(
        70
    )
    found = judged(story.stale_delivery(90))
    assert [(role, ts, note) for role, ts, note in roles(found) if role != "delivered"] == [
        ("registered", 20, "generation 1"),
        ("closed", 30, "generation 1"),
        ("destroyed", 40, "generation 1"),
        ("destroyed", 70, "generation 2"),
    ]
    assert found.slot == SLOT
    assert found.tgid == TGID
