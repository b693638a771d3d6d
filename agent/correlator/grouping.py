# Owns the groups: one alert and a counter for each (rule, severity, call sites), in bounded memory.
# Must not judge; what it reports and when depends on counts alone.
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.correlator.copies import replace
from agent.correlator.findings import Finding, RuleId

try:  # hashlib would map OpenSSL: 3.4 MB of the daemon's resident memory
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

_OVERFLOW_NOTE = "too many different call sites: grouped with others of the same rule"


@dataclass(slots=True)
class _Group:
    best: Finding  # its evidence; count, first, last and sub-classes are of the group
    reported: int  # count at the last report


class Groups:
    """At most `limit` groups by call site, then one more per rule and severity for whatever comes later."""

    def __init__(self, limit: int) -> None:
        self._limit = max(1, limit)
        self._groups: dict[str, _Group] = {}
        self.overflowed = 0  # occurrences that found no place of their own
        self.lifetimes = 0  # all lifetimes so far, for the share of the rules that count lifetimes

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, finding: Finding, image: str, into: str | None = None) -> Finding | None:
        """Counts `finding.count` more; what to report now, if anything.

        Reported are the first occurrence, then the doublings of the count, then a rise of confidence.
        A count of 0 only offers evidence. `into` names the group instead of the call sites.
        """
        key = into if into is not None else group_id(finding, image)
        group = self._groups.get(key)
        if group is None and len(self._groups) >= self._limit:
            self.overflowed += finding.count
            finding = replace(finding, sites=(), reasons=(*finding.reasons, _OVERFLOW_NOTE))
            key = group_id(finding, "overflow")
            group = self._groups.get(key)
        if group is None:
            first = replace(finding, group=key)
            self._groups[key] = _Group(first, first.count)
            return self._shown(first)
        before = group.best
        group.best = _merged(before, finding)
        stronger = before.actors and group.best.confidence.rank > before.confidence.rank
        if group.best.count < 2 * max(1, group.reported) and not stronger:
            return None
        group.reported = group.best.count
        return self._shown(replace(group.best, update=True))

    def unreported(self) -> tuple[Finding, ...]:
        """Groups that have grown since they were reported last, as they stand; each is reported now."""
        out = []
        for group in self._groups.values():
            if group.best.count != group.reported:
                group.reported = group.best.count
                out.append(self._shown(replace(group.best, update=True)))
        return tuple(out)

    def get(self, key: str) -> Finding | None:
        """A group as it stands."""
        group = self._groups.get(key)
        return group.best if group is not None else None

    def has_evidence(self, key: str) -> bool:
        group = self._groups.get(key)
        return group is not None and bool(group.best.actors)

    def locate(self, finding: Finding, image: str) -> str:
        """The id of the group `add` would put it into, were there room."""
        return group_id(finding, image)

    def current(self, more: Iterable[Finding] = ()) -> tuple[Finding, ...]:
        """All groups as they stand, and `more`: most severe first, then by first occurrence."""
        every = map(self._shown, (*(group.best for group in self._groups.values()), *more))
        return tuple(sorted(every, key=lambda f: (-f.severity, f.first_ts, f.rule.value, f.group)))

    def _shown(self, finding: Finding) -> Finding:
        if finding.unit != "lifetimes" or self.lifetimes <= 0:
            return finding
        return replace(finding, share=min(1.0, finding.count / self.lifetimes))


def group_id(finding: Finding, image: str) -> str:
    """Ten hex digits, the same in every process of the image, wherever it and its libraries lie."""
    parts = [finding.rule.value, finding.severity.label, image]
    parts += [
        f"{site.role}@{site.module}{'+' if site.module else ''}{site.address:x}" for site in finding.sites
    ]
    return blake2b("|".join(parts).encode("utf-8", "replace"), digest_size=5).hexdigest()


def _merged(group: Finding, more: Finding) -> Finding:
    sub_classes = dict(group.sub_classes)
    if more.sub_class and more.count:
        sub_classes[more.sub_class] = sub_classes.get(more.sub_class, 0) + more.count
    evidence = more if _better(group, more) else group
    return replace(
        evidence,
        group=group.group,
        chain=group.chain or more.chain,
        count=group.count + more.count,
        sub_classes=sub_classes,
        first_ts=min(group.first_ts, more.first_ts),
        last_ts=max(group.last_ts, more.last_ts),
        update=False,
    )


def _better(group: Finding, more: Finding) -> bool:
    """Whether the newer evidence tells more than what the group shows."""
    if not group.actors or not more.actors:
        return bool(more.actors)
    if more.confidence is not group.confidence:
        return more.confidence.rank > group.confidence.rank
    if more.rule is RuleId.HOT_REDELIVERY:
        return True  # its rate and its run length are those of now
    if more.rule is RuleId.DELIVERY_AFTER_CLOSE:
        return (more.margin_ns or 0) < (group.margin_ns or 0)
    if more.rule in (RuleId.IMPLICIT_REMOVAL, RuleId.LEAKED_SLOT):
        return (more.window_ns or 0) > (group.window_ns or 0)
    return False
