# Owns what DESIGN section 4 says of each rule: severity, the operator's sentence, what to do next.
# Plain text and constants; must not look at evidence.
from __future__ import annotations

from dataclasses import dataclass

from agent.correlator.findings import RuleId, Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleText:
    severity: Severity
    title: str
    advice: tuple[str, ...]
    unit: str  # what `count` counts
    guarded: bool = False  # a profile's `guard` makes this harmless: counted as info


RULES: dict[RuleId, RuleText] = {
    RuleId.STALE_DELIVERY: RuleText(
        severity=Severity.CRITICAL,
        title="epoll delivered an event for a slot that had already been destroyed",
        advice=(
            (
                "Remove the registration with EPOLL_CTL_DEL on the thread that owns the fd, while the fd "
                "is still valid, before close() and before the slot goes back to the pool."
            ),
            "Until then a generation guard in the userdata keeps the handler away from freed slots.",
        ),
        unit="deliveries",
        guarded=True,
    ),
    RuleId.RECYCLED_DELIVERY: RuleText(
        severity=Severity.CRITICAL,
        title="epoll delivered an old connection's event to the connection that now lives in its slot",
        advice=(
            (
                "An older registration survived its slot: find out who keeps its description open (dup, "
                "fork, SCM_RIGHTS) and remove it with EPOLL_CTL_DEL before the first close."
            ),
            (
                "Put the slot's generation into the userdata and compare it before use: nothing crashes "
                "here, so nothing else will tell."
            ),
        ),
        unit="deliveries",
        guarded=True,
    ),
    RuleId.STALE_DISPATCH: RuleText(
        severity=Severity.CRITICAL,
        title="the event handler started to work on a freed slot",
        advice=(
            (
                "The handler is about to use freed memory: follow the chain to the destroy and let it "
                "happen only after the batch that may still carry an event for the slot."
            ),
        ),
        unit="dispatches",
    ),
    RuleId.DOUBLE_DESTROY: RuleText(
        severity=Severity.CRITICAL,
        title="a slot was destroyed that was already free",
        advice=(
            (
                "What was given back twice is given out twice: two later connections will share it (a "
                "pool's free list links it to itself; malloc's free() ends the program when it notices). "
                "Give the slot one owner on the error path, so that only one of the two call sites destroys."
            ),
        ),
        unit="destroys",
    ),
    RuleId.ALIASED_SLOT: RuleText(
        severity=Severity.CRITICAL,
        title="two live registrations carry the same slot: two connections share one object",
        advice=(
            (
                "The pool handed the same slot out twice: look for a double-destroy of this address "
                "before, and for an owner that keeps a slot it has already given back."
            ),
        ),
        unit="registrations",
    ),
    RuleId.FREED_WHILE_REGISTERED: RuleText(
        severity=Severity.HIGH,
        title="a slot was destroyed while epoll still has a registration that points at it",
        advice=(
            "The next event on that fd is a use after free: call EPOLL_CTL_DEL before the slot is destroyed.",
            (
                "`cat /proc/PID/fdinfo/EPFD` lists the registration (tfd, data); a description shared by "
                "dup or fork keeps it alive after close()."
            ),
        ),
        unit="destroys",
        guarded=True,
    ),
    RuleId.FREED_IN_OPEN_BATCH: RuleText(
        severity=Severity.HIGH,
        title="a slot was destroyed while a delivery for it waited in an open batch",
        advice=(
            (
                "The batch still carries a pointer to the slot: defer the destroy until the thread that "
                "holds the batch enters its next wait."
            ),
        ),
        unit="destroys",
        guarded=True,
    ),
    RuleId.DESCRIPTION_OUTLIVES_CLOSE: RuleText(
        severity=Severity.HIGH,
        title="a registered fd was closed while a duplicate keeps its description, and so its registration",
        advice=(
            (
                "Call EPOLL_CTL_DEL before close(): afterwards this fd can no longer remove the "
                "registration. Find the duplicate (dup, fork without close-on-exec, SCM_RIGHTS) and close it."
            ),
        ),
        unit="closes",
    ),
    RuleId.FAILED_REMOVAL: RuleText(
        severity=Severity.HIGH,
        title="an epoll_ctl on a registration failed because the registration or its fd was already gone",
        advice=(
            (
                "The removal came after the close: move EPOLL_CTL_DEL before close(), on the same thread. "
                "With EBADF the fd number may already belong to another connection."
            ),
        ),
        unit="calls",
    ),
    RuleId.BAD_CLOSE: RuleText(
        severity=Severity.HIGH,
        title="close() failed with EBADF: the fd had been closed before",
        advice=(
            (
                "A double close that comes a little later closes somebody else's connection: give the fd "
                "one owner, and set the stored number to -1 when it is closed."
            ),
        ),
        unit="calls",
    ),
    RuleId.IMPLICIT_REMOVAL: RuleText(
        severity=Severity.WARNING,
        title="registrations end only by close() on a thread other than the one that waits, and the slot "
        "is destroyed afterwards",
        advice=(
            (
                "Only the order of two threads protects the slot: call EPOLL_CTL_DEL before close(), or "
                "close on the thread that waits."
            ),
        ),
        unit="lifetimes",
        guarded=True,
    ),
    RuleId.DELIVERY_AFTER_CLOSE: RuleText(
        severity=Severity.WARNING,
        title="an event became visible after its fd was closed and before its slot was destroyed",
        advice=(
            (
                "Had the destroy come first, this was a use after free: call EPOLL_CTL_DEL before close(), "
                "and destroy only when no batch can carry the slot any more."
            ),
        ),
        unit="lifetimes",
        guarded=True,
    ),
    RuleId.CLOSE_IN_OPEN_BATCH: RuleText(
        severity=Severity.WARNING,
        title="an fd was closed by another thread while a batch with its delivery was open",
        advice=(
            (
                "The thread that holds the batch may still use the fd, whose number can be reused at once: "
                "hand the close over to that thread."
            ),
        ),
        unit="lifetimes",
        guarded=True,
    ),
    RuleId.HOT_REDELIVERY: RuleText(
        severity=Severity.WARNING,
        title="the same registration is delivered in every batch and nothing reads it: a spinning loop",
        advice=(
            (
                "The server dropped a connection while it stayed registered, or ignores an event it keeps "
                "asking for: find it by fd in /proc/PID/fdinfo/EPFD, then remove or re-arm it."
            ),
        ),
        unit="deliveries",
    ),
    RuleId.LEAKED_SLOT: RuleText(
        severity=Severity.WARNING,
        title="a slot's fd was closed long ago and the slot was never destroyed",
        advice=(
            (
                "The slot fell out of every list that would free it: look at the path that closed it for "
                "the hand-over it misses."
            ),
        ),
        unit="slots",
    ),
}


def uncertain_title(rule: RuleId) -> str:
    """Says first that nothing is concluded, then what it looked like."""
    return f"cannot conclude: it looks as if {RULES[rule].title}"
