# Owns the counts of one run and its closing summary. Counts come from events only.
# Must not print.
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from agent.correlator.findings import MOST_TARGETS, Finding, Severity
from agent.sanitize import printable
from agent.text import Line, Span, counted, duration, line, number, table, total
from probes.events import (
    CountersRead,
    CrashSeen,
    Event,
    LifetimeEnded,
    LifetimesCounted,
    Lost,
    ProcessForked,
    RecordsRead,
    SuspicionRaised,
    TargetAttached,
    TargetGone,
    Tick,
)

_LOSSES = {
    "recorder": "stream records were overwritten before they were read",
    "lifetimes": "lifetimes were overwritten before they were counted",
    "urgent": "urgent messages did not fit: a finding may be missing",
    "suspicions-of-one-batch": "suspicions of a single batch were more than are kept",
    "slots-map-full": "slots could not be tracked: the map is full (--max-slots)",
    "registrations-map-full": "registrations could not be tracked: the map is full",
    "registrations-of-one-file-beyond-limit": "a file has more registrations than are looked at",
    "nested-waits-beyond-limit": "waits within waits were more than are kept",
    "objects-map-full": "objects could not be tied to their slots: the map is full",
    "tail-call": "deliveries of a batch were not looked at to its end: a tail call failed",
    "processes-beyond-limit": "processes were not watched: more run at once than there is room for "
    "(--max-processes)",
    "slots-forgotten": "slots freed long ago were forgotten to make room for others (--max-slots)",
    "builds-not-watched": "builds of a program were replaced before they could be watched",
    "threads-map-full": "threads could not be tracked: the map is full (--max-threads)",
    "progress-not-watched": "spins cannot be told from work: the calls that make progress cannot be traced "
    "(afterfree doctor)",
    "deliveries-beyond-limit": "deliveries of one wait were more than are read",
    "user-memory-not-resident": "reads of target memory failed",
    "probe-hits-preempted": "probe hits had no place to work on: others were preempted within theirs",
    "tracepoint-hits-left-out": "calls went unseen: the kernel leaves them out where a task was preempted in "
    "bpf(2) (docs/kernels.md)",
    "calls-entered-before-watching": "probe hits in calls that began before watching: slot not known",
}
"""What Lost.what means to a user; any other kind is shown by its name."""


_MOST_PLANS = 256
_UNSEEN = {
    "create": "births may be missed",
    "destroy": "destroys may be missed, and with them every finding about freed slots",
    "dispatch": "how far a loop is may not be known",
}
"""What follows from an instance of a role that is not probed."""


class Stats:
    """What was consumed."""

    def __init__(self) -> None:
        self.events = 0
        self.records = 0
        self.suspicions = 0
        self.crashes = 0
        self.attached = 0
        self.bootstrapped = 0
        self.gaps: dict[str, dict[str, list[int]]] = {}  # image -> role -> [not probed, probed]
        self.unwatched = 0  # forked children of targets that are not watched
        self.gone: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.counters: dict[str, int] = {}
        self.first = 0
        self.last = 0
        self._decoded = 0
        self._counted = 0

    @property
    def lifetimes(self) -> int:
        """Counts include decoded examples where both are sent."""
        return self._counted or self._decoded

    def feed(self, event: Event) -> None:
        """Count one event."""
        self.events += 1
        if isinstance(event, RecordsRead):
            self.records += len(event.records)
            if event.records:
                self._at(event.records[-1][3])
        elif isinstance(event, Tick):
            self._at(event.ts)
        elif isinstance(event, LifetimeEnded):
            self._decoded += 1
        elif isinstance(event, LifetimesCounted):
            self._counted += sum(event.counts.values())
        elif isinstance(event, SuspicionRaised):
            self.suspicions += 1
        elif isinstance(event, TargetAttached):
            self.attached += 1
            self.bootstrapped += event.bootstrapped
            self._plan(event)
            self._at(event.ts)
        elif isinstance(event, TargetGone):
            self.gone[event.reason] += 1
            self._at(event.ts)
        elif isinstance(event, Lost):
            self.lost[event.what] += event.count
        elif isinstance(event, CountersRead):
            self.counters = dict(event.counters)
        elif isinstance(event, CrashSeen):
            self.crashes += 1
        elif isinstance(event, ProcessForked):
            self.unwatched += not event.ended and not event.watched

    def _plan(self, event: TargetAttached) -> None:
        """What of a program's plan could not be probed."""
        image = str(event.plan.get("identity") or event.exe)
        if image in self.gaps or len(self.gaps) >= _MOST_PLANS:
            return
        roles = self.gaps.setdefault(image, {})
        told: set[tuple[str, str]] = set()  # several probes may stand for one instance
        for place, key in enumerate(("unprobed", "sites")):
            listed = event.plan.get(key)
            for instance in listed if isinstance(listed, list | tuple) else ():
                if isinstance(instance, Mapping):
                    role, stands = str(instance.get("role")), instance.get("stands_for")
                    count = roles.setdefault(role, [0, 0])
                    count[place] += stands is None or (role, str(stands)) not in told
                    told.add((role, str(stands)))

    def _at(self, ts: int) -> None:
        self.first = self.first or ts
        self.last = max(self.last, ts)

    def to_json(self) -> dict[str, Any]:
        return {
            "events": self.events,
            "records": self.records,
            "lifetimes": self.lifetimes,
            "suspicions": self.suspicions,
            "crashes": self.crashes,
            "targets": self.attached,
            "unwatched_children": self.unwatched,
            "gone": dict(self.gone),
            "lost": dict(self.lost),
            "counters": self.counters,
            "seconds": round((self.last - self.first) / 1e9, 3),
        }


def worst(findings: Sequence[Finding]) -> Severity | None:
    """The highest severity; None without findings."""
    return max((finding.severity for finding in findings), default=None)


def summary(stats: Stats, findings: Sequence[Finding], *, notes: Sequence[str] = ()) -> list[Line]:
    """The end of a run: findings by group, what was seen, what was lost."""
    rows: list[Line] = [line("")]
    alarming = [finding for finding in findings if finding.severity > Severity.WARNING]
    if alarming:
        rows.append(
            line(Span(f"{len(alarming)} finding{'s' if len(alarming) > 1 else ''} above warning", "high"))
        )
    elif not stats.attached:
        rows.append(line(Span("no process was ever seen: nothing was judged", "high")))
    else:
        rows.append(line(Span("no finding above warning", "good")))
        if not stats.lifetimes and stats.counters.get("deliveries") == 0:
            idle = "no event was delivered and no slot destroyed meanwhile: there was nothing to judge"
            rows.append(line(Span(idle, "warning")))
    rows += [line(Span(text, "high")) for text in _nothing_tied(stats)]
    if findings:
        rows += _table(findings)
    rows.append(line(""))
    rows += [line("  ", text) for text in _seen(stats)]
    rows += [line("  ", text) for text in _not_judged(stats)]
    rows += [line("  ", Span(text, "warning")) for text in (*_blind(stats), *_missed(stats))]
    rows += [line("  ", printable(note)) for note in notes]
    return rows


def _table(findings: Sequence[Finding]) -> list[Line]:
    ordered = sorted(findings, key=lambda f: (-f.severity, f.rule.value, f.group))
    return table(
        ("severity", "rule", "group", "count", "unit", "confidence", "target", "lasted"),
        (
            (
                finding.severity.label,
                finding.rule.value + (f" ({finding.sub_class})" if finding.sub_class else ""),
                finding.group,
                total(finding.count, finding.at_least),
                finding.unit,
                finding.confidence.value,
                _targets(finding),
                duration(finding.last_ts - finding.first_ts) if finding.last_ts > finding.first_ts else "",
            )
            for finding in ordered
        ),
        right=(3,),
    )


def _targets(finding: Finding) -> str:
    """Whose counts the finding's is the sum of."""
    pids = list(finding.by_target) or [finding.tgid]
    if len(pids) <= 2:
        return ", ".join(str(pid) for pid in pids)
    more = total(len(pids) - 1, len(pids) >= MOST_TARGETS)
    return f"{pids[0]} and {more} more"


def _seen(stats: Stats) -> list[str]:
    deliveries = stats.counters.get("deliveries")
    parts = [f"{number(stats.attached)} target{'s' if stats.attached != 1 else ''}"]
    if stats.last > stats.first:
        parts.append(f"watched for {duration(stats.last - stats.first)}")
    if deliveries is not None:
        parts.append(counted(deliveries, "delivery", "deliveries"))
    parts.append(counted(stats.lifetimes, "lifetime"))
    if stats.records:
        parts.append(counted(stats.records, "stream record"))
    rows = [" · ".join(parts)]
    repeats = stats.counters.get("repeats", 0)
    if repeats and stats.records:
        were = counted(repeats, "repeated delivery was", "repeated deliveries were")
        rows.append(
            f"{were} counted, and only those at "
            "doublings (the 64th, 128th, …) recorded: the timeline shows no others"
        )
    if stats.gone:
        rows.append("ended: " + ", ".join(f"{n} {printable(why)}" for why, n in sorted(stats.gone.items())))
    return rows


def _missed(stats: Stats) -> list[str]:
    lost = sorted(stats.lost.items())
    return [f"LOST {number(n)}: {_LOSSES.get(what, printable(what))}" for what, n in lost]


def _nothing_tied(stats: Stats) -> list[str]:
    """Registrations that carry nothing that create gave out: then silence says nothing."""
    made, tied = (stats.counters.get(name, 0) for name in ("adds", "adds_created"))
    created = stats.counters.get("hits_create", 0)
    if not made or tied or not created:
        return []
    counts = f"{number(made)} made, {number(created)} slots created"
    remedy = "Does the profile's [userdata] say how userdata leads to a slot (mask, offset)?"
    return [
        f"no registration carried a slot that create gave out ({counts}): nothing could be judged. {remedy}"
    ]


def _not_judged(stats: Stats) -> list[str]:
    frees = stats.counters.get("not_judged", 0)
    never = stats.counters.get("not_registered", 0)
    rows = []
    if frees:
        rows.append(
            f"{counted(frees, 'free')} within a batch not judged: no dispatch tells how far the loop was. "
            "Name the handler as `dispatch` in the profile's [slot] (docs/profiles.md)"
        )
    other = stats.counters.get("adds_freed", 0)
    if other:
        rows.append(
            f"{counted(other, 'registration')} where a freed slot was: another object's, or too late: "
            "not judged"
        )
    if never:
        rows.append(f"{counted(never, 'removal')} failed of what was never seen registered: no harm known")
    bad = stats.counters.get("bad_closes", 0)
    if bad:
        rows.append(
            f"{counted(bad, 'close')} failed (EBADF), of one number after the other or of what was never "
            "seen registered: counted only"
        )
    return rows


def _blind(stats: Stats) -> list[str]:
    """What was done to the target's descriptors that no probe saw; and whether we and the kernel agree."""
    counters = stats.counters
    rows = []
    for role, what in _UNSEEN.items():
        missing = sum(roles[role][0] for roles in stats.gaps.values() if role in roles)
        there = sum(roles[role][1] for roles in stats.gaps.values() if role in roles)
        if missing:
            rows.append(
                f"{missing} of {missing + there} {role} instances could not be probed: {what} "
                "(afterfree symbols names a remedy)"
            )
    if counters.get("io_uring"):
        rows.append(
            f"{counted(counters['io_uring'], 'io_uring request')}: who closed by them, and when, was not seen"
        )
    if counters.get("shared_tables"):
        rows.append(
            f"{counted(counters['shared_tables'], 'process shares', 'processes share')} a target's "
            "descriptors (CLONE_FILES): what they closed was not seen"
        )
    if counters.get("ranges"):
        rows.append(
            f"{counted(counters['ranges'], 'call')} of close_range(2): which slots they closed was not seen"
        )
    if counters.get("links_full"):
        many = counted(counters["links_full"], "registration")
        rows.append(f"{many} of slots that have more at once than are followed: the oldest were let go")
    if stats.unwatched:
        children = "child was" if stats.unwatched == 1 else "children were"
        rows.append(
            f"{number(stats.unwatched)} forked {children} not watched: nothing is known of them (use --exe)"
        )
    audit = {
        "audit_add": "ADDs succeeded on what the kernel had said exists",
        "audit_missing": "removals found nothing where the kernel had said there is something",
        "audit_unseen": "deliveries came of registrations that were never seen",
    }
    rows += [
        f"SELF-AUDIT {number(counters[name])}: {text}; report this"
        for name, text in audit.items()
        if counters.get(name)
    ]
    return rows
