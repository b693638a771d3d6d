"""What a session makes of messages that come late."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from probes import abi
from probes.events import Event, Lost
from probes.session import LiveSession

TGID = 4711


class NoProgress:
    """A watch that cannot attach."""

    def __init__(self, failure: str) -> None:
        self.failure = failure

    def suspected(self, _now: float) -> None:
        pass


@pytest.mark.parametrize(("failure", "said"), [("the loader failed", 1), ("", 0)])
def test_progress_that_cannot_be_watched_is_said_once(failure: str, said: int) -> None:
    session = object.__new__(LiveSession)
    session._progress = NoProgress(failure)  # type: ignore[assignment]
    session._reported = {}
    session._losses_since = 0
    message = abi.LifecycleMessage()
    message.head.what = abi.Kind.SPIN_SUSPECTED
    told = [event for _ in range(3) for event in session._lifecycle(message)]
    assert [(event.what, event.count) for event in told if isinstance(event, Lost)] == [
        ("progress-not-watched", 1)
    ] * said
    assert len(told) == said


@pytest.mark.parametrize(("ts", "again"), [(90, False), (110, True)])
def test_an_exec_from_before_the_process_was_looked_at_is_not_another_one(
    ts: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was found by a search for the program may have the message of its exec still to come."""
    done: list[str] = []

    def note(what: str) -> Iterator[Event]:
        done.append(what)
        yield from ()

    session = object.__new__(LiveSession)
    session._looked = {TGID: 100}
    session.targets = {TGID: object()}  # type: ignore[dict-item]
    monkeypatch.setattr(session, "_gone", lambda *_: note("gone"))
    monkeypatch.setattr(session, "_attach", lambda *_, **__: note("attached"))
    message = abi.LifecycleMessage()
    message.head.what = abi.Kind.EXECED
    message.trigger.tgid, message.trigger.ts, message.trigger.arg = TGID, ts, 1
    assert list(session._lifecycle(message)) == []
    assert done == (["gone", "attached"] if again else [])
