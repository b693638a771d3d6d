# Owns what a chain of hazards began with and ended in, beside the slot's own life: a failing ADD, a stale
# event before a second destroy, the failed close that ended the program. Pure values; must not judge.
from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import NamedTuple

from agent.correlator.findings import Actor, Finding, RuleId
from agent.forensics.evidence import CrashEvidence
from agent.forensics.past import Past
from probes.abi import Kind
from probes.events import Moment, SlotLife

_STALE = (RuleId.STALE_DELIVERY, RuleId.STALE_DISPATCH)
_BEGAN = "it began with "  # agent.correlator.steps.refused


class BadClose(NamedTuple):
    """A close that failed with EBADF."""

    moment: Moment
    fd: int


def second_destroy(past: Past) -> Moment | None:
    """When a slot that was free was destroyed again, for the first time."""
    again = [
        actor.moment
        for finding in past.findings
        if finding.rule is RuleId.DOUBLE_DESTROY
        for actor in finding.actors
        if actor.role == "destroyed" and actor.note == "again"
    ]
    return min(again, key=lambda moment: moment.ts, default=None)


def stale_first(life: SlotLife, past: Past) -> bool:
    """Whether an event for the freed slot came before it was destroyed a second time."""
    again = second_destroy(past)
    if again is None or not life.destroy.seen:
        return False
    came = [finding.first_ts for finding in past.findings if finding.rule in _STALE]
    if life.stale:
        came.append(life.last_delivery)
    return any(life.destroy.ts < ts < again.ts for ts in came)


def began_with(past: Past) -> tuple[str, str]:
    """("an EPOLL_CTL_ADD of fd 44 that failed with ENOSPC: …", what to do about it); "" where none failed."""
    for finding in past.findings:
        if any(actor.role == "refused" for actor in finding.actors):
            reason = next((text for text in finding.reasons if text.startswith(_BEGAN)), "")
            return reason.removeprefix(_BEGAN), finding.advice[0] if finding.advice else ""
    return "", ""


def ended_by(evidence: CrashEvidence) -> BadClose | None:
    """The close that failed with EBADF as the last thing that the crashed thread did before its signal.

    Checked builds make a panic of it; others go on.
    """
    history, crashed = evidence.history, evidence.crashed
    if history is None or crashed is None or not evidence.ts:
        return None
    done = [row for row in history.records if row[7] == crashed.tid and row[1] != Kind.SIGNALED]
    last = max((row for row in done if row[3] <= evidence.ts), key=lambda row: row[3], default=None)
    if last is not None and last[1] == Kind.CLOSED and last[11] == -errno.EBADF:
        return BadClose(Moment(last[4], last[3], 0, last[7], last[13]), last[9])
    return None


def further_steps(evidence: CrashEvidence, past: Past) -> Iterator[Actor]:
    """Steps of the chain that are none of the slot's life: the failing ADD, closes that failed with EBADF,
    and what an older registration went through whose events it got."""
    seen: set[tuple[str, int]] = set()
    begun = past.life.create.ts or past.life.add.ts if past.life is not None else 0
    old = past.found(RuleId.RECYCLED_DELIVERY)
    for actor in old.actors if old is not None else ():
        if actor.moment.seen and actor.moment.ts < begun:
            seen.add((actor.role, actor.moment.ts))
            yield actor
    for finding in _about(evidence, past):
        for actor in finding.actors:
            failed = actor.role == "closed" and "EBADF" in actor.note
            if (actor.role == "refused" or failed) and (actor.role, actor.moment.ts) not in seen:
                seen.add((actor.role, actor.moment.ts))
                yield actor
    last = ended_by(evidence)
    if last is not None and ("closed", last.moment.ts) not in seen:
        yield Actor(role="closed", moment=last.moment, note=f"fd {last.fd} returned -EBADF")


def _about(evidence: CrashEvidence, past: Past) -> Iterator[Finding]:
    yield from past.findings
    history = evidence.history
    for finding in history.findings if history is not None else ():
        known = past.life is not None and finding.slot == past.life.addr
        if finding.rule is RuleId.BAD_CLOSE and known and finding not in past.findings:
            yield finding
