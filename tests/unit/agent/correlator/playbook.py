# Owns the language of the correlator's tests: a life told step by step, events in, expected findings out.
#   play >> attached() >> life().added(20).destroyed(50).stale_delivery(70) << critical("stale-delivery")
from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

from agent.correlator import Confidence, Correlator, CorrelatorOptions, Finding, RuleId, Severity
from agent.correlator.rules_lifetime import FEWEST_LEAKED
from probes.abi import Kind, RegFlag, RegState, Signature, SlotFlag, SlotState, Suspect
from probes.events import (
    LifetimeEnded,
    Moment,
    Registration,
    SlotLife,
    SlotLingering,
    SuspicionRaised,
    TargetAttached,
    Trigger,
)

TGID = 4000
LOOP = 4001  # the thread that waits
WORKER = 4002
BIAS = 0x5000_0000
SLOT = 0x7F00_0000_1000
EPFD = 5
EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP = 0x1, 0x4, 0x8, 0x10, 0x2000
EPOLLONESHOT = 1 << 30
SITES = {  # image addresses
    "create": 0x100,
    "add": 0x200,
    "del": 0x300,
    "close": 0x400,
    "destroy": 0x500,
    "dup": 0x600,
}
FILE = 0xFFFF_8881_0000_0000  # struct file * of fd 0 of these stories; each number has its own
INODE = 90_000

_UPROBES = {Kind.CREATED, Kind.DESTROYED, Kind.DISPATCHED}


def plan(
    *,
    create: int = 1,
    destroy: int = 1,
    dispatch: int = 1,
    unprobed: tuple[str, ...] = (),
    guard: str | None = None,
    counting: bool = False,
    count_offset: int | None = None,
) -> dict[str, Any]:
    """A probe plan as its JSON: so many sites of each role, and roles with an instance left out.

    counting: the destroys seem to count references down; count_offset: the profile names the count.
    """
    counts = {"create": create, "destroy": destroy, "dispatch": dispatch}
    slot: dict[str, Any] = {"freelist_offset": 0, "size": 64}
    if count_offset is not None:
        slot["count_offset"] = count_offset
    return {
        "identity": "build-id:cafe",
        "guard": guard,
        "slot": slot,
        "sites": [
            {"role": role, "counts": counting and role == "destroy"}
            for role, n in counts.items()
            for _ in range(n)
        ],
        "unprobed": [{"role": role, "enclosing": "worker.run"} for role in unprobed],
    }


def attached(the_plan: dict[str, Any] | None = None, *, bias: int = BIAS, ts: int = 1) -> TargetAttached:
    return TargetAttached(
        ts=ts,
        tgid=TGID,
        start_time=7,
        exe="/srv/server",
        comm="server",
        bias=bias,
        plan=plan() if the_plan is None else the_plan,
        bootstrapped=0,
        late=False,
    )


def freed_bytes(link: int = 0x7F00_0000_2000) -> bytes:
    """What destroy leaves in a safe build: the free-list link, then Zig's `undefined`."""
    return link.to_bytes(8, "little") + b"\xaa" * 56


_BLANK: dict[str, Any] = {f.name: 0 for f in fields(SlotLife)} | {
    name: Moment() for name in ("create", "add", "removed", "close", "destroy", "prev_destroy")
}


class Life:
    """One slot as the kernel side would have it. Steps return self; evidence methods return events."""

    def __init__(self, addr: int = SLOT, gen: int = 1, fd: int = 9, bias: int = BIAS) -> None:
        self._bias = bias
        self.slot = SlotLife(
            **_BLANK
            | {
                "addr": addr,
                "tgid": TGID,
                "gen": gen,
                "state": SlotState.LIVE,
                "flags": SlotFlag(0),
                "live_from": gen,
                "fd": fd,
                "epfd": EPFD,
                "old_fd": -1,
                "old_epfd": -1,
                "waiter": LOOP,
            }
        )
        self.reg: Registration | None = None
        self.other: Registration | None = None

    def _at(self, site: str, ts: int, by: int, began: int | None = None) -> Moment:
        return Moment(ts - 1 if began is None else began, ts, SITES[site] + self._bias, by, 77)

    def has(self, **changes: Any) -> Self:
        self.slot = replace(self.slot, **changes)
        return self

    def flagged(self, flags: SlotFlag) -> Self:
        return self.has(flags=self.slot.flags | flags)

    def registration(self, **changes: Any) -> Self:
        assert self.reg is not None
        self.reg = replace(self.reg, **changes)
        return self

    def created(self, ts: int, by: int = LOOP) -> Self:
        return self.has(create=self._at("create", ts, by)._replace(enter=ts)).flagged(SlotFlag.CREATE_SEEN)

    def added(self, ts: int, by: int = LOOP, events: int = EPOLLIN | EPOLLRDHUP) -> Self:
        self.has(add=self._at("add", ts, by))
        self.reg = Registration(
            userdata=self.slot.addr,
            slot=self.slot.addr,
            tgid=TGID,
            gen=self.slot.gen,
            epfd=self.slot.epfd,
            fd=self.slot.fd,
            events=events,
            state=RegState.LIVE,
            flags=RegFlag(0),
            add=self.slot.add,
            mod=Moment(),
            end=Moment(),
            file=FILE + self.slot.fd,
            ino=INODE + self.slot.fd,
        )
        return self

    def dupped(self, ts: int, fd: int = 12, by: int = LOOP) -> Self:
        """dup(2) of the registered fd; the duplicate stays open."""
        return self.registration(dup_fd=fd, dup=self._at("dup", ts, by))

    def delivered(self, ts: int, by: int = LOOP) -> Self:
        late = bool(self.slot.flags & SlotFlag.CLOSED)
        return self.has(
            first_delivery=self.slot.first_delivery or ts,
            last_delivery=ts,
            last_delivery_enter=ts - 3,
            last_tid=by,
            deliveries=self.slot.deliveries + 1,
            undispatched=1,
            after_close=self.slot.after_close + late,
            last_after_close=ts if late else 0,
        )

    def dispatched(self) -> Self:
        return self.has(dispatches=self.slot.dispatches + 1, undispatched=0)

    def removed(self, ts: int, by: int = LOOP) -> Self:
        moment = self._at("del", ts, by)
        if self.reg is not None:
            self.registration(state=RegState.ENDED, flags=self.reg.flags | RegFlag.BY_DEL, end=moment)
        return self.has(removed=moment).flagged(SlotFlag.DELETED)

    def closed(self, ts: int, by: int = LOOP, began: int | None = None, *, shared: bool = False) -> Self:
        moment = self._at("close", ts, by, began)
        if self.reg is not None and self.reg.state is RegState.LIVE:
            state = RegState.ORPHAN if shared else RegState.ENDED
            self.registration(state=state, flags=self.reg.flags | RegFlag.BY_CLOSE, end=moment)
        return self.has(close=moment).flagged(SlotFlag.CLOSED)

    def destroyed(self, ts: int, by: int = LOOP) -> Self:
        return self.has(destroy=self._at("destroy", ts, by)._replace(enter=ts), state=SlotState.FREE)

    def reborn(self, ts: int) -> Self:
        """Created again: what was the registration is now the older one (`reg`)."""
        before = self.slot
        self.slot = Life(before.addr, before.gen + 1, before.fd, self._bias).slot
        return self.has(prev_destroy=before.destroy).created(ts)

    def given_out_again(self, ts: int) -> Self:
        """Created again with no destroy in between: two owners. `reg` is the first one's."""
        before = self.slot
        self.slot = Life(before.addr, before.gen + 1, before.fd, self._bias).slot
        return self.has(live_from=before.live_from).created(ts).flagged(SlotFlag.REBORN_LIVE)

    def with_current(self, ts: int, fd: int = 12, events: int = EPOLLIN | EPOLLRDHUP) -> Self:
        """The new generation registers too: `reg` stays the older registration, `other` is this one."""
        assert self.reg is not None
        self.other = replace(
            self.reg,
            gen=self.slot.gen,
            fd=fd,
            events=events,
            state=RegState.LIVE,
            flags=RegFlag(0),
            add=self._at("add", ts, LOOP),
            end=Moment(),
            file=FILE + fd,
            ino=INODE + fd,
        )
        return self.has(fd=fd, add=self.other.add)

    def suspicion(
        self, suspect: Suspect, kind: Kind, ts: int, by: int = LOOP, **more: Any
    ) -> SuspicionRaised:
        wait = more.pop("wait", ts - 5)
        memory = more.pop("memory", b"")
        batch = more.pop("batch", 1)
        by = more.pop("by", by)
        children = {name: more.pop(name, 0) for name in ("forks", "last_child", "forked_at")}
        trigger = {
            "seq": 0,
            "kind": kind,
            "flags": 0,
            "ts": ts,
            "enter": SITES["destroy"] + self._bias if kind in _UPROBES else wait,
            "addr": self.slot.addr,
            "tgid": TGID,
            "tid": by,
            "gen": self.slot.gen,
            "fd": self.slot.fd,
            "epfd": self.slot.epfd,
            "ret": 0,
            "arg": 0,
            "stack": 78,
        } | more
        return SuspicionRaised(
            suspect=suspect,
            trigger=Trigger(**trigger),
            wait_enter=wait,
            wait_exit=ts,
            batch=batch,
            batch_open=True,
            slot=self.slot,
            reg=self.reg,
            other=self.other,
            comm="loop",
            memory=memory,
            **children,
        )

    def stale_delivery(self, ts: int, *, stale: int = 1, **more: Any) -> SuspicionRaised:
        self.has(stale=stale, stale_reported=stale)
        more = {"arg": EPOLLIN} | more
        return self.suspicion(Suspect.STALE_DELIVERY, Kind.DELIVERED, ts, **more)

    def recycled_delivery(
        self, ts: int, *, events: int = EPOLLIN, n: int = 1, **more: Any
    ) -> SuspicionRaised:
        self.has(recycled=n, recycled_reported=n)
        return self.suspicion(Suspect.RECYCLED_DELIVERY, Kind.DELIVERED, ts, arg=events, **more)

    def stale_dispatch(self, ts: int, obj: int = 0, **more: Any) -> SuspicionRaised:
        return self.suspicion(Suspect.STALE_DISPATCH, Kind.DISPATCHED, ts, addr=obj, **more)

    def destroy_again(self, ts: int, by: int = LOOP, **more: Any) -> SuspicionRaised:
        return self.suspicion(Suspect.DOUBLE_DESTROY, Kind.DESTROYED, ts, by, **more)

    def aliased_by(self, ts: int, fd: int = 12, **other: Any) -> SuspicionRaised:
        """Another ADD of the same slot, under `fd`; what was `reg` becomes the other registration."""
        assert self.reg is not None
        first = replace(self.reg, **other)
        mine = replace(
            self.reg,
            fd=fd,
            gen=self.slot.gen,
            add=self._at("add", ts, LOOP),
            state=RegState.LIVE,
            file=FILE + fd,
            ino=INODE + fd,
        )
        event = self.suspicion(Suspect.ALIASED_SLOT, Kind.ADDED, ts, fd=fd)
        return replace(event, reg=mine, other=first)

    def freed_registered(self, ts: int, by: int = LOOP, **more: Any) -> SuspicionRaised:
        if not self.slot.destroy.seen:
            self.destroyed(ts, by)
        return self.suspicion(Suspect.FREED_REGISTERED, Kind.DESTROYED, ts, by, **more)

    def freed_in_batch(self, ts: int, by: int = LOOP, **more: Any) -> SuspicionRaised:
        self.destroyed(ts, by)
        return self.suspicion(Suspect.FREED_IN_BATCH, Kind.DESTROYED, ts, by, **more)

    def outlives_close(self, ts: int, by: int = LOOP, **more: Any) -> SuspicionRaised:
        self.closed(ts, by, shared=True)
        return self.suspicion(Suspect.OUTLIVES_CLOSE, Kind.CLOSED, ts, by, **more)

    def failed_removal(self, ts: int, ret: int, kind: Kind = Kind.REMOVED) -> SuspicionRaised:
        return self.suspicion(Suspect.FAILED_REMOVAL, kind, ts, ret=ret)

    def bad_close(self, ts: int, fd: int = 9, ret: int = -9) -> SuspicionRaised:
        event = self.suspicion(Suspect.BAD_CLOSE, Kind.CLOSED, ts, fd=fd, ret=ret)
        return replace(event, slot=None, reg=None)

    def hot(self, ts: int, idle: int, **more: Any) -> SuspicionRaised:
        """`idle` deliveries with no progress on its file; since when is the story's `idle_since`."""
        self.has(idle=idle)
        return self.suspicion(Suspect.HOT, Kind.DELIVERED, ts, arg=EPOLLIN, **more)

    def ended(self, signature: int = 0) -> LifetimeEnded:
        """The lifetime record; `signature` is added to what the steps say."""
        slot = self.slot
        sig = Signature.WAITER_KNOWN | signature
        sig |= Signature.ADD if slot.add.seen else 0
        sig |= Signature.DELIVERED if slot.deliveries else 0
        sig |= Signature.DEL if slot.removed.seen else 0
        if slot.close.seen:
            sig |= Signature.CLOSE
            sig |= Signature.CLOSE_OTHER if slot.close.tid != LOOP else 0
        sig |= Signature.AFTER_CLOSE if slot.after_close else 0
        sig |= Signature.DESTROY_OTHER if slot.destroy.tid != LOOP else 0
        return LifetimeEnded(signature=int(sig), slot=slot)

    def lingering(self, ts: int, total: int = FEWEST_LEAKED) -> SlotLingering:
        """`total` slots of the target have lingered at least as long as this one."""
        return SlotLingering(ts=ts, slot=self.slot, total=total)


def life(addr: int = SLOT, gen: int = 1, fd: int = 9, bias: int = BIAS) -> Life:
    """A slot that was created and registered by the loop."""
    return Life(addr, gen, fd, bias).created(10).added(20)


@dataclass(frozen=True)
class Expected:
    """What a finding must be; further attributes by name."""

    rule: RuleId
    severity: Severity
    confidence: Confidence
    attributes: tuple[tuple[str, Any], ...]


def _expected(severity: Severity) -> Any:
    def make(rule: str, confidence: str = "observed", **attributes: Any) -> Expected:
        return Expected(RuleId(rule), severity, Confidence(confidence), tuple(attributes.items()))

    return make


critical = _expected(Severity.CRITICAL)
high = _expected(Severity.HIGH)
warning = _expected(Severity.WARNING)
info = _expected(Severity.INFO)


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


nothing = _Nothing()


class Playbook:
    """`>> event` feeds, `<< expected` takes the next finding; a finding nobody expected is an error."""

    def __init__(self, options: CorrelatorOptions | None = None) -> None:
        self.correlator = Correlator(options)
        self.pending: list[Finding] = []
        self.last: Finding | None = None

    def __rshift__(self, event: Any) -> Self:
        self.finish()
        self.pending = list(self.correlator.feed(event))
        return self

    def __lshift__(self, expected: Expected | _Nothing) -> Self:
        if isinstance(expected, _Nothing):
            self.finish()
            return self
        assert self.pending, f"expected {expected}, nothing came; dropped: {self.correlator.stats.dropped}"
        finding = self.last = self.pending.pop(0)
        want = {"rule": expected.rule, "severity": expected.severity, "confidence": expected.confidence}
        want |= dict(expected.attributes)
        have = {name: getattr(finding, name) for name in want}
        assert have == want, finding
        return self

    def finish(self) -> None:
        assert not self.pending, f"unexpected {[(f.rule, f.severity, f.reasons) for f in self.pending]}"
