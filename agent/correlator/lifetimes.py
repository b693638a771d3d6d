# Owns how often each warning over lifetimes occurred, whether lifetimes come decoded or as counts.
# The warnings themselves are rules_lifetime.py, the groups grouping.py.
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.correlator.chain import Draft
from agent.correlator.context import Context
from agent.correlator.copies import replace
from agent.correlator.findings import Finding, RuleId
from agent.correlator.grouping import Groups
from agent.correlator.rules_lifetime import signature_rules, unseen_lifetime
from probes.events import LifetimesCounted


@dataclass(slots=True)
class _Signature:
    counted: int = 0  # lifetimes by LifetimesCounted
    attributed: dict[RuleId, int] = field(default_factory=dict)  # of these, what groups already hold
    home: dict[RuleId, str] = field(default_factory=dict)  # group that takes the counts


class LifetimeLedger:
    """Brings counts without evidence and evidence without counts together, each lifetime once.

    A count belongs to the group of the first decoded example of its signature; one that stays without an
    example gets a group without evidence at the next Tick.
    """

    def __init__(self, groups: Groups, limit: int = 1024) -> None:
        self._groups = groups
        self._limit = max(1, limit)
        self._signatures: dict[int, _Signature] = {}
        self._counting = False
        self._decoded = 0
        self._counted = 0
        self.overflowed = 0  # counted lifetimes with a warning whose signature found no place

    def __len__(self) -> int:
        return len(self._signatures)

    def ended(self, signature: int, findings: Iterable[Draft], image: str) -> list[Finding]:
        """One decoded lifetime and the warnings it gave."""
        self._decoded += 1
        self._total()
        state = self._signature(signature) if signature_rules(signature) else None
        out: list[Finding] = []
        for finding in findings:
            if state is None:
                shown = self._groups.add(finding, image)
            else:
                shown = self._example(state, finding, image)
            if shown is not None:
                out.append(shown)
        return out

    def _example(self, state: _Signature, finding: Draft, image: str) -> Finding | None:
        rule = finding.rule
        home = state.home.get(rule)
        attributed = state.attributed.get(rule, 0)
        own = self._groups.locate(finding, image)
        into: str | None = None
        count = 1
        if home is None:
            state.home[rule] = own
            if self._counting:
                count = max(1, state.counted - attributed)
        elif self._counting and (own == home or not self._groups.has_evidence(home)):
            into, count = home, 0
        state.attributed[rule] = attributed + count
        finding.count = count
        return self._groups.add(finding, image, into)

    def counted(self, event: LifetimesCounted) -> list[Finding]:
        """Lifetimes by signature; those with a known group are counted there at once."""
        self._counting = True
        out: list[Finding] = []
        for signature, count in event.counts.items():
            if count <= 0:
                continue
            self._counted += count
            rules = signature_rules(signature)
            state = self._signature(signature) if rules else None
            if state is None:
                self.overflowed += count if rules else 0
                continue
            state.counted += count
        self._total()
        for signature in event.counts:
            state = self._signatures.get(signature)
            if state is None:
                continue
            for rule, home in state.home.items():
                more = state.counted - state.attributed.get(rule, 0)
                evidence = self._groups.get(home)
                if more <= 0 or evidence is None:
                    continue
                state.attributed[rule] = state.counted
                last = max(event.ts, evidence.last_ts)
                shown = self._groups.add(replace(evidence, count=more, last_ts=last), "", home)
                if shown is not None:
                    out.append(shown)
        return out

    def flush(self, ts: int, context: Context) -> list[Finding]:
        """Makes groups for counts that got no example; what to report."""
        out: list[Finding] = []
        for state, finding, image in self._without_example(ts, context):
            state.home[finding.rule] = self._groups.locate(finding, image)
            state.attributed[finding.rule] = state.counted
            shown = self._groups.add(finding, image)
            if shown is not None:
                out.append(shown)
        return out

    def pending(self, ts: int, context: Context) -> list[Finding]:
        """What `flush` would make groups of; changes nothing."""
        return [
            replace(finding.finding(), group=self._groups.locate(finding, image))
            for _, finding, image in self._without_example(ts, context)
        ]

    def _without_example(self, ts: int, context: Context) -> list[tuple[_Signature, Draft, str]]:
        return [
            (state, unseen_lifetime(rule, ts, context, state.counted), f"signature {signature:#x}")
            for signature, state in self._signatures.items()
            for rule in signature_rules(signature)
            if rule not in state.home and state.counted
        ]

    def _signature(self, signature: int) -> _Signature | None:
        state = self._signatures.get(signature)
        if state is None and len(self._signatures) < self._limit:
            state = self._signatures[signature] = _Signature()
        return state

    def _total(self) -> None:
        self._groups.lifetimes = self._counted if self._counting else self._decoded
