# Owns the groups: one alert and a counter for each (rule, severity, call sites), in bounded memory.
# Must not judge; what it reports and when depends on counts alone.
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.correlator.chain import Draft
from agent.correlator.copies import replace
from agent.correlator.findings import MOST_SLOTS, MOST_TARGETS, CallSite, Finding, RuleId, Severity

try:  # hashlib would map OpenSSL: 3.4 MB of the daemon's resident memory
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

_MOST_IDS = 4096
_OVERFLOW_NOTE = "too many different call sites: grouped with others of the same rule"


@dataclass(slots=True)
class _Group:
    best: Finding  # its evidence; what is counted stands beside it
    reported: int  # count at the last report
    count: int
    sub_classes: dict[str, int]
    first_ts: int
    last_ts: int
    chain: str
    by_target: dict[int, int]  # pid -> count
    targets_reported: int  # how many of them at the last report
    slots: set[int]  # hashes of (process, address, generation), where the count is a sum of runs

    @classmethod
    def of(cls, first: Finding) -> _Group:
        counted = dict(first.sub_classes)
        times = first.first_ts, first.last_ts
        group = cls(first, first.count, first.count, counted, *times, first.chain, {}, 0, set())
        group._involve(first)
        group.report()
        return group

    @property
    def unreported(self) -> bool:
        return self.count != self.reported or len(self.by_target) != self.targets_reported

    def report(self) -> None:
        self.reported, self.targets_reported = self.count, len(self.by_target)

    def _involve(self, more: Finding | Draft) -> None:
        before = self.by_target.get(more.tgid)
        if more.tgid > 0 and (before is not None or len(self.by_target) < MOST_TARGETS):
            # lifetimes are counted by their signature, of all processes together
            part = 0 if self.best.unit == "lifetimes" else more.count
            self.by_target[more.tgid] = (before or 0) + part
        if more.rule is RuleId.HOT_REDELIVERY and len(self.slots) < MOST_SLOTS:
            self.slots.add(hash(_life(more)))

    def add(self, more: Finding | Draft) -> bool:
        """Whether the confidence rose."""
        if more.sub_class and more.count:
            self.sub_classes[more.sub_class] = self.sub_classes.get(more.sub_class, 0) + more.count
        self.count += more.count
        self.first_ts = min(self.first_ts, more.first_ts)
        self.last_ts = max(self.last_ts, more.last_ts)
        self.chain = self.chain or more.chain
        self._involve(more)
        if not _better(self.best, more):
            return False
        before, self.best = self.best, replace(_written(more), group=self.best.group)
        if _life(before) == _life(more):  # what is only the rest of a count brings neither
            kept = {"comm": more.comm or before.comm, "memory": more.memory or before.memory}
            self.best = replace(self.best, **kept)
        return bool(before.actors) and more.confidence.rank > before.confidence.rank

    def finding(self, *, update: bool = False) -> Finding:
        return replace(
            self.best,
            chain=self.chain,
            count=self.count,
            sub_classes=dict(self.sub_classes),
            slots=len(self.slots),
            by_target=dict(self.by_target),
            first_ts=self.first_ts,
            last_ts=self.last_ts,
            update=update,
        )


class Groups:
    """At most `limit` groups by call site, then one more per rule and severity for whatever comes later."""

    def __init__(self, limit: int) -> None:
        self._limit = max(1, limit)
        self._groups: dict[str, _Group] = {}
        self._ids: dict[tuple[RuleId, Severity, str, tuple[CallSite, ...]], str] = {}  # as found before
        self.overflowed = 0  # occurrences that found no place of their own
        self.lifetimes = 0  # all lifetimes so far, for the share of the rules that count lifetimes

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, finding: Finding | Draft, image: str, into: str | None = None) -> Finding | None:
        """Counts `finding.count` more; what to report now, if anything.

        Reported are the first occurrence, then the doublings of the count, then a rise of confidence.
        A count of 0 only offers evidence. `into` names the group instead of the call sites.
        """
        key = into if into is not None else self.locate(finding, image)
        group = self._groups.get(key)
        if group is None and len(self._groups) >= self._limit:
            self.overflowed += finding.count
            whole = _written(finding)
            finding = replace(whole, sites=(), reasons=(*whole.reasons, _OVERFLOW_NOTE))
            key = group_id(finding, "overflow")
            group = self._groups.get(key)
        if group is None:
            first = replace(_written(finding), group=key)
            group = self._groups[key] = _Group.of(first)
            return self._shown(group.finding())
        stronger = group.add(finding)
        if group.count < 2 * max(1, group.reported) and not stronger:
            return None
        group.report()
        return self._shown(group.finding(update=True))

    def unreported(self) -> tuple[Finding, ...]:
        """Groups that have grown since they were reported last, if only by a process; reported now."""
        out = []
        for group in self._groups.values():
            if group.unreported:
                group.report()
                out.append(self._shown(group.finding(update=True)))
        return tuple(out)

    def get(self, key: str) -> Finding | None:
        """A group as it stands."""
        group = self._groups.get(key)
        return group.finding() if group is not None else None

    def has_evidence(self, key: str) -> bool:
        group = self._groups.get(key)
        return group is not None and bool(group.best.actors)

    def locate(self, finding: Finding | Draft, image: str) -> str:
        """The id of the group `add` would put it into, were there room."""
        key = (finding.rule, finding.severity, image, finding.sites)
        found = self._ids.get(key)
        if found is None:
            if len(self._ids) >= _MOST_IDS:
                self._ids.clear()
            found = self._ids[key] = group_id(finding, image)
        return found

    def current(self, more: Iterable[Finding] = ()) -> tuple[Finding, ...]:
        """All groups as they stand, and `more`: most severe first, then by first occurrence."""
        every = map(self._shown, (*(group.finding() for group in self._groups.values()), *more))
        return tuple(sorted(every, key=lambda f: (-f.severity, f.first_ts, f.rule.value, f.group)))

    def _shown(self, finding: Finding) -> Finding:
        if finding.unit != "lifetimes" or self.lifetimes <= 0:
            return finding
        return replace(finding, share=min(1.0, finding.count / self.lifetimes))


def group_id(finding: Finding | Draft, image: str) -> str:
    """Ten hex digits, the same in every process of the image, wherever it and its libraries lie."""
    parts = [finding.rule.value, finding.severity.label, image]
    parts += [
        f"{site.role}@{site.module}{'+' if site.module else ''}{site.address:x}" for site in finding.sites
    ]
    return blake2b("|".join(parts).encode("utf-8", "replace"), digest_size=5).hexdigest()


def _life(finding: Finding | Draft) -> tuple[int, int, int]:
    return finding.tgid, finding.slot, finding.generation


def _written(finding: Finding | Draft) -> Finding:
    return finding if isinstance(finding, Finding) else finding.finding()


def _better(group: Finding, more: Finding | Draft) -> bool:
    """Whether the newer evidence tells more than what the group shows."""
    if not group.actors or not more.actors:
        return bool(more.actors)
    if more.confidence is not group.confidence:
        return more.confidence.rank > group.confidence.rank
    if more.rule is RuleId.HOT_REDELIVERY:
        # Its rate and its run length are those of now. The rest of another slot's count names no thread.
        return _life(more) == _life(group) or bool(more.comm) or not group.comm
    if more.rule is RuleId.DELIVERY_AFTER_CLOSE:
        return (more.margin_ns or 0) < (group.margin_ns or 0)
    if more.rule in (RuleId.IMPLICIT_REMOVAL, RuleId.LEAKED_SLOT):
        return (more.window_ns or 0) > (group.window_ns or 0)
    return False
