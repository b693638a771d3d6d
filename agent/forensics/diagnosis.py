# Owns the judgement which ordering failed and what would have prevented it: from the slot's recorded life,
# or, without one, from memory alone. Pure: facts in, values out; no I/O, no clock.
from __future__ import annotations

from dataclasses import replace

from agent.correlator.findings import RuleId
from agent.forensics.evidence import CrashEvidence, Ended
from agent.forensics.explanation import Cause, Certainty, Evidence
from agent.forensics.facts import Examination, ListEnd
from agent.forensics.past import Diagnosis, Past, broken_by
from agent.forensics.sequel import second_destroy, stale_first
from probes.abi import RegState, SlotFlag, SlotState
from probes.events import Registration, SlotLife


def diagnose(evidence: CrashEvidence, seen: Examination, past: Past) -> tuple[Diagnosis, Past]:
    """(what failed, the life that shows it). Never raises; Cause.UNKNOWN is an answer."""
    life, free = past.life, seen.free_list
    other = broken_by(evidence.history)
    broken = free is not None and free.end in (ListEnd.CYCLE, ListEnd.MISPLACED)
    if not (broken and other.life is not None):
        known = _from_history(evidence, seen, past, life) if life is not None else None
        if known is not None:
            return known, past
    if other.life is not None:
        # The crash touched something that the broken pool gave out; the cause is the second destroy.
        sure = Certainty.OBSERVED if broken else Certainty.INFERRED
        return _twice(other.life, other, sure), other
    if life is not None and life.state is SlotState.FREE and life.destroy.seen and not _late(life, past):
        return _stale_link(seen, life, _certainty(evidence, seen)), past
    return _from_memory(seen, evidence.ended), past


# -- with a history --------------------------------------------------------------------------------


def _from_history(evidence: CrashEvidence, seen: Examination, past: Past, life: SlotLife) -> Diagnosis | None:
    sure = _certainty(evidence, seen)
    if life.double_destroys or past.found(RuleId.DOUBLE_DESTROY, RuleId.ALIASED_SLOT):
        first = _before_the_second(life, past, sure) if stale_first(life, past) else None
        return first or _twice(life, past, sure)
    if life.state is SlotState.FREE:
        if life.removed.seen and _reached_by_older(life, past):
            return _recycled(life)  # this life ended in order: the event was of an older registration
        if _waited_in_batch(life, past):
            return _in_batch(life, sure)
        return _freed(life, past, sure)
    if _reached_by_older(life, past) or life.old_fd >= 0:
        return _recycled(life)
    return None


def _reached_by_older(life: SlotLife, past: Past) -> bool:
    """Events came in this life while a registration of an older one was alive."""
    return bool(life.recycled or past.found(RuleId.RECYCLED_DELIVERY))


def _certainty(evidence: CrashEvidence, seen: Examination) -> Certainty:
    """Events and memory are two sources; lost events make it uncertain."""
    if evidence.history is not None and evidence.history.lost:
        return Certainty.UNCERTAIN
    if seen.slot is not None and not seen.slot.tied:
        return Certainty.INFERRED
    agrees = seen.slot is not None and (seen.slot.filled or "free list" in seen.slot.by)
    return Certainty.CONFIRMED if agrees else Certainty.OBSERVED


def _twice(life: SlotLife, past: Past, sure: Certainty) -> Diagnosis:
    first = life.destroy if life.destroy.seen else life.prev_destroy
    finding = past.found(RuleId.DOUBLE_DESTROY)
    again = life.double_destroys or (finding.count if finding is not None else 0)
    rule = RuleId.DOUBLE_DESTROY if again else (past.findings[0].rule if past.findings else None)
    return Diagnosis(
        cause=Cause.DESTROYED_TWICE,
        certainty=sure if again else Certainty.INFERRED,
        rule=rule,
        missing=(
            f"slot {life.addr:#x} was destroyed again when it was already free (first by thread "
            f"{first.tid}): nothing made the second path see that the slot was gone"
        ),
        fix=(
            "give the slot one owner on that path, so that only one of the two call sites destroys it (clear "
            "the pointer, or return before the outer error path)"
        ),
        fix_kind="destroy-once",
        evidence=(Evidence("events", f"{again} destroy(s) of a free slot"),),
    )


def _before_the_second(life: SlotLife, past: Past, sure: Certainty) -> Diagnosis | None:
    """A stale event came before the slot was destroyed again: the second destroy is what came of it."""
    found = _in_batch(life, sure) if _waited_in_batch(life, past) else _freed(life, past, sure)
    again = second_destroy(past)
    if found is None:
        return None
    by = f" by thread {again.tid}" if again is not None and again.tid else ""
    return replace(
        found,
        missing=f"{found.missing}. The slot was destroyed again{by} afterwards: that is what came of it",
    )


def _waited_in_batch(life: SlotLife, past: Past) -> bool:
    """Its delivery had been handed out before the destroy, and no wait followed that could bring another."""
    if life.stale or past.found(RuleId.STALE_DELIVERY):
        return False
    if past.found(RuleId.FREED_IN_OPEN_BATCH):
        return True
    return bool(life.undispatched and 0 < life.last_delivery <= life.destroy.ts)


def _in_batch(life: SlotLife, sure: Certainty) -> Diagnosis:
    other = life.destroy.tid != life.last_tid and life.last_tid
    who = f"thread {life.destroy.tid}" if other else "the loop itself"
    guessed = bool(life.flags & SlotFlag.NOT_JUDGED)
    when = "not yet dispatched"
    if guessed:
        when = "whether the loop had come to it is not known: no dispatch tells"
        sure = Certainty.UNCERTAIN if sure is Certainty.UNCERTAIN else Certainty.INFERRED
    return Diagnosis(
        cause=Cause.FREED_IN_BATCH,
        certainty=sure,
        rule=RuleId.FREED_IN_OPEN_BATCH,
        missing=(
            f"{who} destroyed the slot while its delivery ({when}) waited in the open batch "
            f"{life.last_batch} of thread {life.last_tid}"
        ),
        fix=(
            "defer the destroy until the thread that holds the batch enters its next wait (collect what is "
            "to be freed and free it after the batch)"
        ),
        fix_kind="deferred-free",
        evidence=(Evidence("events", "delivery, then destroy, then dispatch, within one batch"),),
    )


def _freed(life: SlotLife, past: Past, sure: Certainty) -> Diagnosis | None:
    """None where epoll has no part in it: the life ended in order, and nothing was delivered afterwards."""
    reg = past.surviving
    outlived = past.found(RuleId.DESCRIPTION_OUTLIVES_CLOSE)
    orphan = bool(life.flags & SlotFlag.ORPHANED) or (reg is not None and reg.state is RegState.ORPHAN)
    owner = _owner(life)
    if not life.removed.seen and life.close.seen and (outlived or orphan):
        return Diagnosis(
            cause=Cause.DESCRIPTION_SURVIVED,
            certainty=sure,
            rule=_rule(past, RuleId.FREED_WHILE_REGISTERED),
            missing=(
                f"no EPOLL_CTL_DEL came before close(fd {life.fd}): the close did not end the registration, "
                f"because another descriptor ({_other_descriptor(reg)}) keeps the open file description"
                f"{_threads(life)}"
            ),
            fix=(
                f"call EPOLL_CTL_DEL for the fd before close(), synchronously, {owner}, in the one place "
                "that closes connections"
            ),
            fix_kind="del-before-close",
            evidence=(Evidence("events", "ADD, close without DEL, destroy, delivery"),),
        )
    if not life.removed.seen and (not life.close.seen or life.close.ts > life.destroy.ts):
        return Diagnosis(
            cause=Cause.NEVER_REMOVED,
            certainty=sure if reg is not None or past.findings else Certainty.INFERRED,
            rule=_rule(past, RuleId.FREED_WHILE_REGISTERED),
            missing=(
                "the slot was destroyed while its fd was open and registered: neither DEL nor close came "
                "first"
            ),
            fix=(
                f"call EPOLL_CTL_DEL, {owner}, before the slot is destroyed; and let no list keep a link to "
                "a slot that another path may destroy"
            ),
            fix_kind="del-before-close",
            evidence=(Evidence("events", "ADD, destroy without DEL and close, delivery"),),
        )
    if not _late(life, past) or life.removed.seen:
        return None
    return Diagnosis(
        cause=Cause.CLOSE_RACE,
        certainty=sure,
        rule=_rule(past, RuleId.STALE_DELIVERY),
        missing=(
            "the registration ended only with the close, concurrent with the wait that delivered, and "
            f"nothing kept the slot alive until that batch was over{_threads(life)}"
        ),
        fix=(
            f"call EPOLL_CTL_DEL before close(), {owner}, and destroy the slot only after the batch that is "
            "open then"
        ),
        fix_kind="del-before-close",
        evidence=(Evidence("events", "the close and the wait overlap"),),
    )


def _other_descriptor(reg: Registration | None) -> str:
    if reg is None or reg.dup_fd < 0:
        return "dup, fork, SCM_RIGHTS"
    return f"fd {reg.dup_fd}, duplicated by thread {reg.dup.tid}"


def _late(life: SlotLife, past: Past) -> bool:
    """An event came, or was dispatched, after the destroy."""
    found = past.found(RuleId.STALE_DELIVERY, RuleId.STALE_DISPATCH)
    return bool(life.stale or life.stale_dispatches or found)


def _recycled(life: SlotLife) -> Diagnosis:
    uses = "used, and that was destroyed in order" if life.state is SlotState.FREE else "uses now"
    return Diagnosis(
        cause=Cause.RECYCLED,
        certainty=Certainty.INFERRED,
        rule=RuleId.RECYCLED_DELIVERY,
        missing=(
            f"a registration of generation {life.old_gen} (fd {life.old_fd}) outlived its slot, which "
            f"generation {life.gen} {uses}: its events reach the wrong connection"
        ),
        fix=(
            "call EPOLL_CTL_DEL before close(); until then put the slot's generation into the userdata and "
            "compare it before use"
        ),
        fix_kind="generation-check",
        evidence=(Evidence("events", f"an older registration is alive on fd {life.old_fd}"),),
    )


def _stale_link(seen: Examination, life: SlotLife, sure: Certainty) -> Diagnosis:
    ended = "DEL, close and destroy" if life.removed.seen else "close and destroy"
    frames = (*seen.fault.frames, *seen.fault.callers) if seen.fault is not None else ()
    names = [frame.function.rpartition(".")[2] for frame in frames if frame.own]
    through = f" ({' < '.join(names[:4])})" if names else ""
    return Diagnosis(
        cause=Cause.STALE_LINK,
        certainty=sure,
        rule=None,
        missing=(
            f"epoll has no part in it: the life ended in order ({ended} by thread {life.destroy.tid}), and "
            f"no event came for it afterwards. The program reached the slot by a link of its own{through}"
        ),
        fix=(
            "take the slot out of every list and clear every pointer to it before it is destroyed; a sweep "
            "must not go on through links that it collected before it destroyed"
        ),
        fix_kind="unlink-first",
        evidence=(Evidence("events", f"{ended}, nothing after it"),),
    )


def _rule(past: Past, fallback: RuleId) -> RuleId:
    """The rule that named the cause; the ones that fire at the dispatch name the consequence."""
    consequences = (RuleId.STALE_DISPATCH, RuleId.STALE_DELIVERY, RuleId.RECYCLED_DELIVERY)
    causes = [finding.rule for finding in past.findings if finding.rule not in consequences]
    if fallback in causes or not causes:
        return fallback
    return causes[0]


def _owner(life: SlotLife) -> str:
    return (
        f"on the thread that waits on the epoll instance ({life.waiter})"
        if life.waiter
        else ("on the thread that waits on the epoll instance")
    )


def _threads(life: SlotLife) -> str:
    closer, destroyer = life.close.tid, life.destroy.tid
    if closer and destroyer and closer != destroyer:
        return f"; thread {closer} closed, thread {destroyer} destroyed"
    return ""


# -- from memory alone -----------------------------------------------------------------------------


def _not_freed(address: int) -> str:
    return (
        f"memory does not show slot {address:#x} as freed: it is not found on the free list, and nothing in "
        "it tells. Whether it was given out again since cannot be seen there"
    )


_BROKEN = {
    True: "the free list is a ring: a slot was put on it twice",
    False: (
        "the free list leads through a slot that is in use: it was handed out, or written to, while it was "
        "on the list. That is what a second destroy leaves behind"
    ),
}


def _from_memory(seen: Examination, ended: Ended) -> Diagnosis:
    free, slot = seen.free_list, seen.slot
    broken = free is not None and free.end in (ListEnd.CYCLE, ListEnd.MISPLACED)
    if free is not None and broken:
        ring = free.end is ListEnd.CYCLE
        return Diagnosis(
            cause=Cause.DESTROYED_TWICE if ring else Cause.LIST_BROKEN,
            certainty=Certainty.INFERRED,
            rule=RuleId.DOUBLE_DESTROY,
            order=Certainty.UNCERTAIN,
            missing=f"{_BROKEN[ring]}; which two paths destroyed it is not known without a history",
            fix=(
                "find the two call sites that destroy one slot (`afterfree watch` names both: "
                "double-destroy) and let one of them own it"
            ),
            fix_kind="destroy-once",
            evidence=(Evidence("memory", f"free list {free.path}: {free.end} at {free.last:#x}"),),
        )
    gone = slot is not None and (slot.filled or "free list" in slot.by)
    if slot is not None and gone:
        delivered = "batch" in slot.by
        listed = "free list" in slot.by
        return Diagnosis(
            cause=Cause.FREED_BEFORE_USE,
            certainty=Certainty.CONFIRMED if listed and delivered else Certainty.OBSERVED,
            rule=RuleId.STALE_DISPATCH,
            missing=(
                "whether the slot's registration had outlived it, or it was freed inside the open batch, and "
                "on which threads, is not known without a history"
            ),
            order=Certainty.UNKNOWN,
            fix=(
                "EPOLL_CTL_DEL before close() on the loop's thread keeps later batches clean; destroying "
                "only after the batch keeps this one clean. `afterfree watch` tells which one is missing"
            ),
            fix_kind="",
            evidence=(Evidence("memory", "the slot is free, and its address is in the batch"),)
            if delivered
            else (Evidence("memory", "the slot is free"),),
        )
    if slot is None and seen.fault is not None:
        return Diagnosis(
            cause=Cause.NOT_A_SLOT,
            certainty=Certainty.UNCERTAIN,
            rule=None,
            missing="nothing that was captured connects the fault with a freed slot",
            fix="",
            fix_kind="",
        )
    if slot is None and ended is not Ended.CRASHED:
        return Diagnosis(
            cause=Cause.UNKNOWN,
            certainty=Certainty.UNKNOWN,
            rule=None,
            missing="nothing crashed, and what memory shows of the pool is in order",
            fix="",
            fix_kind="",
        )
    return Diagnosis(
        cause=Cause.UNKNOWN,
        certainty=Certainty.UNKNOWN,
        rule=None,
        missing=_not_freed(slot.address) if slot is not None else "not known",
        fix="",
        fix_kind="",
    )
