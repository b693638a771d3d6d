# Orders in which the kernel side was wrong, as small as they go: a thread per step (machine.story tells).
from __future__ import annotations

import pytest

from probes import decode
from probes.abi import Suspect
from tests.host.machine import Scenario, machine, story

ONE = "epoll e; socket s; create 0; add e s 0"

FOUND = {
    "another thread's wait judged a destroy that was not over": (
        "complete",
        Scenario("epoll e; socket s; add e s 0", ["send s; destroy 0", "close s; wait e"]),
        "00111111",
    ),
    "a DEL that came before the ADD took effect had failed to remove": (
        "complete",
        Scenario("epoll e; socket s", ["del e s", "add e s 0"]),
        "100011",
    ),
    "a registration that was removed within its ADD existed for ever": (
        "complete",
        Scenario("epoll e; socket s", ["add e s 0", "close_range s s; destroy 0"]),
        "001110",
    ),
    "a freed slot that was registered had two owners": (
        "complete",
        Scenario(ONE, ["destroy 0; add e s 0 edge", "create 0; socket s"]),
        "110000",
    ),
    "an old close was outlived by the registration that took its place to the byte": (
        "complete",
        Scenario("epoll e; socket s; add e s 0", ["late_close s; add e s 0", "socket s; wait e"]),
        "00000100111",
    ),
    "another thread waited before a closed file was let go by task work": (
        "complete",
        Scenario(ONE, ["destroy 0; wait e", "late_close s"]),
        "0111000",
    ),
    "a close_range closed what was registered under the number after it": (
        "complete",
        Scenario("epoll e; socket s; add e s 0", ["destroy 0", "socket s; add e s 0", "close_range s s"]),
        "20111112",
    ),
    "a dup2 that put the same file back left an orphan": (
        "complete",
        Scenario("epoll e; socket s; dup s d; add e d 0", ["dup2 s d; wait e"]),
        "000000",
    ),
    "a close within the ADD hid the stale deliveries of its slot": (
        "complete",
        Scenario(ONE + "; ready s", ["destroy 0", "socket s; add e s 0; wait e", "close s"]),
        "011122211111",
    ),
    "a close_range closed what was being added under its number": (
        "complete",
        Scenario("epoll e; socket s; add e s 0", ["del e s; close_range s s", "add e s 0", "socket s"]),
        "000100211",
    ),
    "an ADD that was to fail took the place of a registration before, to the byte": (
        "complete",
        Scenario(ONE, ["create 0; close_range s s; add e s 0", "socket s; add e s 0", "socket s"]),
        "000020011111",
    ),
    "a MOD changed the registration that was begun after it": (
        "complete",
        Scenario(
            "epoll e; socket s; add e s 0",
            ["mod e s 0 oneshot", "destroy 1; del e s; add e s 1 edge"],
        ),
        "00" + "11111" + "0" + "11",
    ),
    "one number in two instances was asked of for one slot only": (
        "complete",
        Scenario("epoll e; epoll f; socket s; add e s 0; add f s 1", ["fork 1", "close s; wait f"]),
        "00111111",
    ),
    "a MOD within an ADD hid the stale deliveries of the slot that was added": (
        "complete",
        Scenario(
            "epoll e; socket s; socket t; create 0; add e s 0; ready s",
            ["add e t 0; wait e", "destroy 0; mod e t 1"],
        ),
        "1001110000",
    ),
    "of several registrations of older lives the one of the same owner was looked at": (
        "partial",
        Scenario(
            "epoll e; socket s; socket t; add e s 0; ready s", ["create 0; wait e", "destroy 0; add e t 0"]
        ),
        "11110000",
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_an_order_that_was_judged_wrong_is_judged_right(name: str) -> None:
    shape, scenario, steps = FOUND[name]
    schedule = bytes(map(int, steps))
    verdict = machine(shape).run(scenario, schedule)
    assert not verdict, f"{verdict.words()}\n{story(scenario, schedule)}"


NOT_SEEN = {
    # no tracepoint at its entry: what was registered under the span is not looked at before it is gone
    "close_range leaves a registration behind": Scenario(ONE, ["dup s d; close_range s s; wait e"]),
    "a removal fails after close_range": Scenario(ONE, ["close_range s s; del e s"]),
}


@pytest.mark.parametrize("name", NOT_SEEN)
def test_what_is_known_not_to_be_told(name: str) -> None:
    """Fails when it is told: then it belongs to what the oracle demands (steps.c, `looked`)."""
    played = machine("complete")
    assert not played.run(NOT_SEEN[name], b"")
    assert not [
        message
        for message in played.told()
        if message.suspect in (Suspect.OUTLIVES_CLOSE, Suspect.FAILED_REMOVAL)
    ]


def test_what_is_told_is_what_the_session_decodes() -> None:
    played = machine("complete")
    scenario = Scenario(ONE + "; ready s", ["destroy 0; return; wait e"])
    assert not played.run(scenario, b"")
    told = played.told()
    assert [message.suspect for message in told] == [Suspect.FREED_REGISTERED, Suspect.STALE_DELIVERY]
    stale = told[1]
    assert stale.slot is not None
    assert stale.reg is not None
    assert stale.slot.gen == 1
    assert stale.slot.destroy.seen
    assert stale.reg.slot == stale.slot.addr == stale.trigger.addr
    lives = [decode.lifetime(raw) for raw in played.lifetimes()]
    assert [life.slot.addr for life in lives] == [stale.slot.addr]
