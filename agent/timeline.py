# Owns the live race timeline: a bounded model fed with events, and snapshots of its rows.
# Drawing is timeline_lines(); a full-screen view draws from the same snapshots. No I/O, no clock.
from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from agent.sanitize import printable
from agent.scene import Bounded, Scene
from agent.text import Line, Span, counted, duration, line, number
from agent.timeline_slots import MOST_SLOTS, Slots
from probes.abi import Kind, RecordFlag
from probes.events import Event, Lost, RecordsRead, SuspicionRaised, TargetAttached, TargetGone, Tick

_MOST_KEPT = 2000
_MOST_NAMED = 4  # kinds of what is left out
_SECOND = 1_000_000_000
_BEHIND = 100_000_000  # ns; records are read when they are a few milliseconds old (probes/session.py)

_WORDS = {
    Kind.CREATED: "create",
    Kind.DESTROYED: "DESTROY",
    Kind.DISOWNED: "disown",
    Kind.DISPATCHED: "dispatch",
    Kind.ADDED: "ADD",
    Kind.MODIFIED: "MOD",
    Kind.REMOVED: "DEL",
    Kind.CLOSED: "CLOSE",
    Kind.DUPPED: "dup",
    Kind.WAITER_SEEN: "first wait here",
    Kind.DELIVERED: "deliver",
    Kind.ACCEPTED: "accept",
    Kind.FORKED: "fork",
    Kind.FORK_ENDED: "fork ended",
    Kind.SIGNALED: "SIGNAL",
    Kind.EXECED: "exec",
    Kind.EXITED: "exit",
    Kind.PROGRESS: "progress",
    Kind.SPIN_SUSPECTED: "spin suspected",
    Kind.EPOLL_CREATED: "epoll create",
}
"""Kinds that get a line. The *_BEGUN kinds only say when a call was entered; BATCH_CLOSED ends a marker."""

_SLOT_KINDS = frozenset(
    {
        Kind.CREATED, Kind.DESTROYED, Kind.DISOWNED, Kind.ADDED, Kind.MODIFIED, Kind.REMOVED, Kind.CLOSED,
        Kind.DELIVERED,
        Kind.DISPATCHED,
    }
)  # fmt: skip

_EPOLL = ((0x001, "IN"), (0x004, "OUT"), (0x008, "ERR"), (0x010, "HUP"), (0x2000, "RDHUP"), (0x002, "PRI"))
_EPOLL_HIGH = ((1 << 28, "EXCL"), (1 << 30, "ONESHOT"), (1 << 31, "ET"))


def event_mask(mask: int) -> str:
    """EPOLL* bits by name: "IN|RDHUP"."""
    names = [name for bit, name in (*_EPOLL, *_EPOLL_HIGH) if mask & bit]
    return "|".join(names) or f"{mask:#x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the timeline. Texts are untrusted."""

    ts: int
    tgid: int
    tid: int
    role: str  # "loop", "worker"
    comm: str
    what: str
    detail: str = ""
    alias: str = ""  # "S12": the slot's short name for this run; "" no slot
    addr: int = 0
    gen: int = 0
    fd: int = -1
    gap_ns: int | None = None  # to the previous event of the same slot; None: none, or told late
    batch: int = 0  # open batch the event falls into; 0 none
    style: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What came since the last one."""

    rows: tuple[Row, ...]
    left_out: int  # events that got no row because of the rate limit
    left_out_by: dict[str, int]
    left_from: int  # ts of the first and the last of them
    left_to: int
    left_repeats: int  # repeated deliveries that were only counted, before deliveries among them
    start: int  # ts that times are shown relative to


class TimelineModel:
    """Turns events into rows, at most `per_second` of them for each second of event time.

    Findings' evidence (suspicions), losses and process changes are never left out. They reach us ahead of
    the records of that time, which are read a little later: they wait for the first later event.
    """

    def __init__(self, scene: Scene, *, per_second: int = 200, patience_ns: int = 0) -> None:
        """patience_ns: so much event time rows are kept back for what was noticed in a burst and is read in
        portions, after the records of its time. None in a live run, whose lines are to be shown at once."""
        self._patience = patience_ns
        self.recent: deque[Row] = deque(maxlen=_MOST_KEPT)
        self._scene = scene
        self._limit = per_second
        self._held: list[tuple[int, Event]] = []  # (ts, event), what waits for the records before it
        self._newest = self._taken = 0
        self._rows: deque[Row] = deque(maxlen=max(_MOST_KEPT * (8 if patience_ns else 1), per_second * 4))
        self._left: Counter[str] = Counter()
        self._left_from = self._left_to = self._left_repeats = 0
        self._second = -1
        self._used = 0
        self._start = 0
        self._slots = Slots()
        self._last: Bounded[tuple[int, int], int] = Bounded(MOST_SLOTS)
        self._batches: Bounded[tuple[int, int], int] = Bounded(1024)  # (tgid, tid) -> open batch

    def update(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, RecordsRead):
            for record in event.records:
                if self._held and record[3] > self._held[0][0]:
                    self._release(record[3])
                self._record(record)
                self._newest = max(self._newest, record[3])
        elif isinstance(event, TargetAttached):
            self._start = self._start or event.ts
            self._slots.know_plan(event.tgid, event.plan)
            self._add(
                self._row(event.ts, event.tgid, 0, f"{event.tgid} attached", detail=event.comm, style="info")
            )
        elif isinstance(event, SuspicionRaised):
            self._hold(event.trigger.ts, event)
        elif isinstance(event, Lost | TargetGone):
            self._hold(event.ts, event)
        elif isinstance(event, Tick):
            self._release(event.ts - _BEHIND)

    def _hold(self, ts: int, event: Event) -> None:
        insort(self._held, (ts, event), key=lambda held: held[0])
        if len(self._held) >= _MOST_KEPT:
            self._release()

    def _release(self, before: int | None = None) -> None:
        """What happened before this moment; all of it without one."""
        held = [event for ts, event in self._held if before is None or ts < before]
        del self._held[: len(held)]
        for event in held:
            if isinstance(event, SuspicionRaised):
                self._suspicion(event)
            elif isinstance(event, Lost):
                text = f"lost {event.count:,} {event.what}"
                self._add(self._row(event.ts, 0, 0, text, style="high"))
            elif isinstance(event, TargetGone):
                text = f"{event.tgid} gone: {event.reason}"
                self._add(self._row(event.ts, event.tgid, 0, text, style="info"))

    def _suspicion(self, event: SuspicionRaised) -> None:
        t = event.trigger
        name = event.suspect.name.lower().replace("_", " ")
        if event.slot is not None:
            addr, gen = event.slot.addr, event.slot.gen
        elif t.kind == Kind.DISPATCHED:  # its `addr` is the inner object
            addr, gen = self._slots.by_low_half(t.tgid, t.arg), t.gen
        else:
            addr, gen = self._slots.address(t.tgid, t.kind, t.addr), t.gen
        fd = t.fd
        if t.kind == Kind.DELIVERED:  # a delivery carries no descriptor: its `fd` field counts
            fd = event.reg.fd if event.reg else event.slot.fd if event.slot else -1
        detail = ""
        if t.flags & RecordFlag.NOT_JUDGED and not t.tid:  # a process's total, of no slot of its own
            detail = f"{counted(t.arg, 'free')} in process {t.tgid} so far, not judged"
        elif not addr:
            detail = f"{f'fd {fd}' if fd >= 0 else 'slot not known'}, process {t.tgid}"
        ts = t.ts
        if event.rest and ts < self._newest:
            # What was counted beyond what was sent: told now, of what happened last some time ago.
            ts, detail = self._newest, detail or f"last at {(ts - self._start) / 1e9:.6f} s"
        self._add(self._row(ts, t.tgid, t.tid, f"!! {name}", detail=detail, addr=addr, gen=gen, fd=fd,
                            style="critical", gap=not event.rest))  # fmt: skip

    def take(self, *, waiting: bool = False) -> Snapshot:
        """Rows since the last call by time, and what was left out meanwhile. waiting: more is to come, and
        what may have to be shown after records that are still to be read is kept for a later call."""
        if not waiting:
            self._release()
        rows, left = sorted(self._rows, key=lambda row: row.ts), dict(self._left)
        kept: list[Row] = []
        if waiting and self._patience:
            self._taken = self._taken or self._start
            # Seldom enough that what was left out is told after rows of about the same time.
            full = len(rows) >= 4 * _MOST_KEPT
            if self._newest - self._taken < 2 * self._patience and not full:
                rows, kept, left = [], rows, {}
            elif not full:
                self._taken = self._newest
                at = bisect_right(rows, self._newest - self._patience, key=lambda row: row.ts)
                rows, kept = rows[:at], rows[at:]
        shown = Snapshot(
            rows=tuple(rows),
            left_out=sum(left.values()),
            left_out_by=left,
            left_from=self._left_from,
            left_to=self._left_to,
            left_repeats=self._left_repeats if left else 0,
            start=self._start,
        )
        self._rows.clear()
        self._rows.extend(kept)
        if left:
            self._left.clear()
            self._left_repeats = 0
        return shown

    def _record(self, record: tuple[int, ...]) -> None:
        _seq, kind, flags, ts, _enter, addr, tgid, tid, gen, fd, _epfd, ret, arg, stack = record
        if kind == Kind.BATCH_CLOSED:
            self._batches.pop((tgid, tid), None)
            return
        repeats = 0
        if kind == Kind.DISPATCHED:
            # `addr` is the inner object; `arg` holds the low half of the slot's address when it is known.
            addr = self._slots.by_low_half(tgid, arg)
        else:
            of_userdata = kind == Kind.DELIVERED and bool(flags & RecordFlag.UNKNOWN)
            addr = self._slots.address(tgid, kind, addr, userdata=of_userdata)
        if kind == Kind.DELIVERED:
            # A delivery carries its batch in `stack`; its `fd` field holds no descriptor.
            self._batches[tgid, tid] = stack
            if not of_userdata:
                repeats = self._slots.unrecorded(tgid, addr, gen, fd)
            fd = self._slots.fd(tgid, addr, gen)
        elif kind == Kind.CREATED:
            self._slots.created(tgid, addr)
        elif kind in (Kind.ADDED, Kind.MODIFIED) and ret == 0:
            self._slots.registered(tgid, addr, gen, fd)
        word = _WORDS.get(kind)  # type: ignore[call-overload]  # IntEnum keys compare equal to ints
        if word is None:
            return
        second = ts // _SECOND
        if second != self._second:
            self._second, self._used = second, 0
        has_slot = addr and kind in _SLOT_KINDS and not flags & RecordFlag.NO_SLOT
        if self._used >= self._limit:
            self._leave_out(word, ts)
            self._left_repeats += repeats
            if has_slot:
                self._last[tgid, addr] = max(ts, self._last.get((tgid, addr), 0))
            return
        self._used += 1
        detail, style = _detail(kind, ret, arg, addr)
        if repeats:
            detail += f" (+{number(repeats)} not recorded)"
        self._start = self._start or ts
        self._add(
            self._row(
                ts, tgid, tid, word, detail=detail, addr=addr if has_slot else 0, gen=gen, fd=fd, style=style
            )
        )

    def _row(
        self,
        ts: int,
        tgid: int,
        tid: int,
        what: str,
        *,
        detail: str = "",
        addr: int = 0,
        gen: int = 0,
        fd: int = -1,
        style: str = "",
        gap: bool = True,
    ) -> Row:
        alias, gap_ns = "", None
        if addr:
            alias = self._slots.alias(tgid, addr)
            before = self._last.get((tgid, addr))
            if gap and before is not None and ts >= before:
                gap_ns = ts - before
            if gap:
                self._last[tgid, addr] = max(ts, before or 0)
        return Row(
            ts=ts,
            tgid=tgid,
            tid=tid,
            role=self._scene.role(tgid, tid) if tid else "",
            comm=self._scene.comm(tgid, tid) if tid else "",
            what=what,
            detail=detail,
            alias=alias,
            addr=addr,
            gen=gen,
            fd=fd,
            gap_ns=gap_ns,
            batch=self._open_batch(tgid, tid),
            style=style,
        )

    def _open_batch(self, tgid: int, tid: int) -> int:
        own = self._batches.get((tgid, tid))
        if own is not None:
            return own
        # Another thread: the batch that was opened last in its process is what it may collide with.
        return next((batch for (group, _), batch in reversed(self._batches.items()) if group == tgid), 0)

    def _leave_out(self, word: str, ts: int) -> None:
        self._left_from = min(self._left_from, ts) if self._left else ts
        self._left_to = max(self._left_to, ts) if self._left else ts
        self._left[word] += 1

    def _add(self, row: Row) -> None:
        if len(self._rows) == self._rows.maxlen:
            first = self._rows[0]
            self._leave_out(first.what if first.tid else "loss or change of process", first.ts)
        self._rows.append(row)
        self.recent.append(row)


def _detail(kind: int, ret: int, arg: int, addr: int) -> tuple[str, str]:
    if kind == Kind.WAITER_SEEN:
        return "", "dim"
    if kind in (Kind.DELIVERED, Kind.ADDED, Kind.MODIFIED):
        if ret < 0 and kind != Kind.DELIVERED:
            return f"failed ({ret})", "high"
        return event_mask(arg), ""
    if kind in (Kind.REMOVED, Kind.CLOSED) and ret < 0:
        return f"failed ({ret})", "high"
    if kind == Kind.DUPPED:
        return f"to fd {ret}", ""
    if kind == Kind.ACCEPTED:
        return f"fd {ret}", ""
    if kind == Kind.SIGNALED:
        return f"{arg} at {addr:#x}", "critical"
    return "", ""


def header() -> Line:
    """Column titles of `timeline_lines`."""
    return line(
        Span(f"{'time s':>12}  {'thread':<29} {'what':<36} {'slot':<31} {'fd':>5} {'gap':>9}  batch", "label")
    )


def timeline_lines(snapshot: Snapshot) -> Iterable[Line]:
    """The snapshot as text, with an honest last line when events were left out."""
    for row in snapshot.rows:
        thread = f"{row.role:<6} {row.tid} {printable(row.comm, 15)}" if row.tid else ""
        slot = f"{row.alias} {row.addr:#x} g{row.gen}" if row.addr else ""
        what = f"{printable(row.what)} {printable(row.detail, 48)}".rstrip()
        gap = "" if row.gap_ns is None or row.gap_ns < 0 else f"+{duration(row.gap_ns)}"
        fd = str(row.fd) if row.fd >= 0 else ""
        batch = f"│{row.batch}" if row.batch else ""
        yield line(
            f"{(row.ts - snapshot.start) / 1e9:>12.6f}  {thread:<29} ",
            Span(f"{what:<36}", row.style),
            f" {slot:<31} {fd:>5} {gap:>9}  ",
            Span(batch, "dim"),
        )
    if snapshot.left_out:
        kinds = sorted(snapshot.left_out_by.items(), key=lambda item: (-item[1], item[0]))
        parts = [f"{number(n)} {printable(name)}" for name, n in kinds[:_MOST_NAMED]]
        others = sum(n for _, n in kinds[_MOST_NAMED:])
        named = ", ".join(parts) + (f" and {counted(others, 'other')}" if others else "")
        first, last = (f"{(ts - snapshot.start) / 1e9:.6f}" for ts in (snapshot.left_from, snapshot.left_to))
        when = f"from {first} to {last} s" if first != last else f"at {first} s"
        what = counted(snapshot.left_out, "more event")
        again = snapshot.left_repeats
        more = f"; {counted(again, 'repeated delivery', 'repeated deliveries')} not recorded" if again else ""
        yield line(Span(f"{'':>12}  … {what} left out {when} ({named}){more}", "dim"))
