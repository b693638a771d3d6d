# Owns how evidence becomes a draft finding: actors in time order, call sites, confidence and its reasons.
# The rules decide what fired; this module must not.
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from agent.correlator.catalog import RULES, uncertain_title
from agent.correlator.context import Context
from agent.correlator.findings import Actor, CallSite, Candidate, Confidence, Finding, RuleId, Severity
from probes.abi import Kind, RegFlag, RegState, SlotFlag
from probes.events import NOWHERE, Moment, Registration, SlotLife, SuspicionRaised, Trigger
from symbols.plan import Role

_UNREAD = "user-memory-not-resident"
_UPROBES = frozenset({Kind.CREATED, Kind.DESTROYED, Kind.DISOWNED, Kind.DISPATCHED})


@dataclass(frozen=True, slots=True)
class Dropped:
    """Evidence that is no finding, and why; counted under `reason`."""

    reason: str


def trigger_moment(trigger: Trigger) -> Moment:
    """The trigger as a Moment: a uprobe hit carries its address in `enter`, a call its entry time."""
    if trigger.kind in _UPROBES:
        return Moment(trigger.ts, trigger.ts, trigger.enter, trigger.tid, trigger.stack)
    return Moment(trigger.enter, trigger.ts, 0, trigger.tid, trigger.stack)


def precise(moment: Moment, *others: Moment) -> Moment:
    """The same moment as another record has it, when that one knows the instruction."""
    if moment.ip:
        return moment
    for other in others:
        if other.ts == moment.ts and other.tid == moment.tid and other.ip:
            return other
    return moment


def order(actors: Iterable[Actor]) -> tuple[Actor, ...]:
    """Seen actors by time with gaps; an unseen one stays before the next seen one of the given order."""
    given = list(actors)
    unseen = [a for a in given if not a.moment.seen]
    timed: list[Actor] = []
    for actor in _by_time(given):
        if not timed:
            timed.append(actor)
            continue
        before = timed[-1].moment
        moment = actor.moment
        timed.append(
            Actor(
                role=actor.role,
                moment=moment,
                gap_ns=moment.ts - before.ts,
                concurrent=moment.tid != before.tid and moment.enter <= before.ts,
                note=actor.note,
            )
        )
    return (*unseen, *timed)


def _by_time(actors: Iterable[Actor]) -> list[Actor]:
    """Those that were seen."""
    return sorted((a for a in actors if a.moment.ts), key=lambda a: (a.moment.ts, a.moment.enter))


def actor(role: str, moment: Moment | None, note: str = "") -> Actor:
    return Actor(role, moment if moment is not None else NOWHERE, None, False, note)


def seen(role: str, moment: Moment | None, note: str = "") -> tuple[Actor, ...]:
    """The actor if it was seen, nothing otherwise: for steps that need not have happened."""
    return (Actor(role, moment, None, False, note),) if moment is not None and moment.ts else ()


def duplicated(reg: Registration | None) -> tuple[Actor, ...]:
    """Who made the duplicate that keeps a closed fd's description open."""
    if reg is None or reg.state is not RegState.ORPHAN or reg.dup_fd < 0:
        return ()
    return seen("duplicated", reg.dup, f"fd {reg.dup_fd}")


def candidate(role: str, reg: Registration) -> Candidate:
    return Candidate(
        role=role,
        generation=reg.gen,
        epfd=reg.epfd,
        fd=reg.fd,
        events=reg.events,
        state=reg.state,
        added=reg.add,
    )


@dataclass(slots=True, kw_only=True)
class Doubts:
    """Collects what speaks for and against a chain; `weigh` makes the confidence of it."""

    context: Context
    against: list[str] = field(default_factory=list)
    inferred: list[str] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    asked: bool = True  # False: no more than inferred, whatever else agrees

    def doubt(self, sentence: str) -> None:
        self.against.append(sentence)

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def confirm(self, sentence: str | None) -> None:
        if sentence:
            self.confirmed.append(sentence)

    def needs(self, *roles: Role) -> None:
        """The rule is only certain when every instance of these roles is probed."""
        plan = self.context.plan
        if plan is None:
            self.doubt("the probe plan of this process is not known")
            return
        for role in roles:
            if not plan.complete(role):
                self.doubt(plan.gap(role))

    def lost(self, slot: SlotLife | None, regs: Sequence[Registration | None], end: int) -> None:
        """Losses between the first moment of the chain and its trigger make it uncertain."""
        if not len(self.context.loss):
            return
        moments = [slot.create.ts, slot.add.enter, slot.add.ts] if slot is not None else []
        for reg in regs:
            if reg is not None:
                moments += [reg.add.enter, reg.add.ts]
        known = [ts for ts in moments if ts]
        start = min(known) if known else self.context.target.attached
        plan = self.context.plan
        # An ADD whose arguments could not be read hides a birth only where no create is seen either.
        ignoring = _UNREAD if plan is not None and plan.complete(Role.CREATE) else ""
        what = self.context.loss.overlapping(min(start, end), end, ignoring)
        if what is not None:
            self.doubt(f"records were lost while this chain was built ({what})")

    def predates(self, slot: SlotLife | None, *regs: Registration | None) -> None:
        if slot is not None and slot.flags & SlotFlag.INFERRED:
            self.inferred.append("the slot was registered before the attach: its birth was not seen")
        flags = 0
        for reg in regs:
            if reg is not None:
                flags |= int(reg.flags)
        if flags & RegFlag.INFERRED:
            self.inferred.append("the registration predates the attach: who made it was not seen")
        if flags & RegFlag.NOT_ASKED:
            self.inferred.append("the kernel could not be asked whether the registration exists")
            self.asked = False

    def registered(self, reg: Registration | None, since: int) -> bool | None:
        """Asks fdinfo whether `reg` was alive at or after `since`; a yes confirms."""
        if reg is None:
            return None
        answer = self.context.fdinfo.present((reg.tgid, reg.epfd, reg.fd, reg.userdata), since)
        if answer:
            self.confirm(f"/proc/{reg.tgid}/fdinfo/{reg.epfd} lists the registration (tfd {reg.fd})")
        return answer

    def exists(self, reg: Registration, when: str) -> None:
        """The kernel answered that the registration exists; `when` completes the sentence."""
        if reg.flags & RegFlag.NOT_ASKED or reg.state not in (RegState.LIVE, RegState.ORPHAN):
            return
        self.confirm(
            f"the kernel had the registration of fd {reg.fd} with instance {_number(reg.epfd)} {when}"
        )

    def kept_open(self, evidence: SuspicionRaised, reg: Registration) -> None:
        """Who keeps the description of a closed fd open, as far as that is known."""
        if reg.state is not RegState.ORPHAN:
            return
        held = self.context.fdinfo.holders((reg.tgid, reg.epfd, reg.fd, reg.userdata), evidence.trigger.ts)
        others = [(pid, fd, comm) for pid, fd, comm in held or () if (pid, fd) != (reg.tgid, reg.dup_fd)]
        if reg.dup_fd >= 0:
            self.note(f"kept open by fd {reg.dup_fd}, its duplicate")
        for pid, fd, comm in others[:3]:
            child = " (forked by the target)" if pid == evidence.last_child else ""
            self.note(f"kept open by fd {fd} of process {pid} {comm!r}{child}")
        if reg.dup_fd >= 0 or others:
            return
        if evidence.forks:
            self.note(
                f"kept open by one of {evidence.forks} forked children that have not executed a program, "
                f"probably: the newest is process {evidence.last_child}"
            )
        elif held is not None and reg.ino:
            self.note(
                "no descriptor of any process names it now: in flight in a socket (SCM_RIGHTS) or closed"
            )
        if reg.flags & RegFlag.TABLE_SHARED:
            self.note("another process shares the descriptor table (CLONE_FILES): what it did was not seen")

    def confidence(self) -> Confidence:
        if self.against:
            return Confidence.UNCERTAIN
        if self.confirmed and self.asked:
            return Confidence.CONFIRMED
        return Confidence.INFERRED if self.inferred else Confidence.OBSERVED

    def reasons(self) -> tuple[str, ...]:
        """Why the confidence is what it is."""
        if self.against or self.confirmed or self.inferred:
            return (*self.against, *self.confirmed, *self.inferred, *self.notes)
        return ("every event of the chain was seen", *self.notes)


@dataclass(slots=True)
class Draft:
    """What a rule makes of evidence, as far as counting and grouping ask; fields as in Finding.

    Few of a storm are ever shown: only those are written out.
    """

    rule: RuleId
    doubts: Doubts
    actors: Sequence[Actor]  # in any order, without gaps
    confidence: Confidence
    severity: Severity
    title: str
    tgid: int
    sub_class: str
    slot: int
    generation: int
    fd: int
    epfd: int
    candidates: tuple[Candidate, ...]
    window_ns: int | None
    margin_ns: int | None
    sites: tuple[CallSite, ...]
    first_ts: int
    last_ts: int
    count: int = 1
    batch: int = 0
    comm: str = ""
    memory: bytes = b""
    rate: float | None = None
    chain: str = ""
    remedies: tuple[str, ...] = ()  # advised before what the rule always says

    def finding(self) -> Finding:
        """All of it, not grouped yet."""
        text = RULES[self.rule]
        return Finding(
            rule=self.rule,
            severity=self.severity,
            confidence=self.confidence,
            reasons=self.doubts.reasons(),
            title=self.title,
            advice=(*self.remedies, *text.advice),
            tgid=self.tgid,
            sub_class=self.sub_class,
            slot=self.slot,
            generation=self.generation,
            fd=self.fd,
            epfd=self.epfd,
            batch=self.batch,
            comm=self.comm,
            actors=order(self.actors),
            candidates=self.candidates,
            memory=self.memory,
            window_ns=self.window_ns,
            margin_ns=self.margin_ns,
            rate=self.rate,
            sites=self.sites,
            chain=self.chain,
            count=self.count,
            unit=text.unit,
            sub_classes={self.sub_class: self.count} if self.sub_class else {},
            first_ts=self.first_ts,
            last_ts=self.last_ts,
        )


def draft(
    rule: RuleId,
    doubts: Doubts,
    *,
    slot: SlotLife | None,
    reg: Registration | None,
    ts: int,
    tgid: int,
    actors: Sequence[Actor],
    site_roles: Sequence[str],
    title: str | None = None,
    severity: Severity | None = None,
    sub_class: str = "",
    candidates: tuple[Candidate, ...] = (),
    generation: int | None = None,
    fd: int | None = None,
    epfd: int | None = None,
    window_ns: int | None = None,
    margin_ns: int | None = None,
) -> Draft:
    """A finding before grouping: severity capped by confidence, sites the same in every process."""
    text, context = RULES[rule], doubts.context
    guard = context.guard if text.guarded else None
    if guard is not None:
        doubts.note(f"the profile declares a guard ({guard}): counted, not alarming")
    confidence = doubts.confidence()
    severity = Severity.INFO if guard is not None else text.severity if severity is None else severity
    headline = title or text.title
    if confidence is Confidence.UNCERTAIN:
        severity = min(severity, Severity.WARNING)
        headline = uncertain_title(rule)
    if generation is None:
        generation = slot.gen if slot is not None else 0
    site, target = context.places.site, context.target
    return Draft(
        rule,
        doubts,
        actors,
        confidence,
        severity,
        headline,
        tgid,
        sub_class,
        slot.addr if slot is not None else (reg.slot if reg is not None else 0),
        generation,
        _fd(fd, reg.fd if reg else None, slot.fd if slot else None),
        _fd(epfd, reg.epfd if reg else None, slot.epfd if slot else None),
        candidates,
        window_ns,
        margin_ns,
        tuple([site(a.role, a.moment, target) for a in _by_time(actors) if a.role in site_roles]),
        ts,
        ts,
    )


def of_suspicion(made: Draft, evidence: SuspicionRaised) -> Draft:
    """Adds what every suspicion carries beside the chain."""
    made.batch, made.comm, made.memory = evidence.batch, evidence.comm, evidence.memory
    return made


def _number(fd: int) -> str:
    return str(fd) if fd >= 0 else "of an unknown number"


def _fd(*choices: int | None) -> int:
    for fd in choices:
        if fd is not None and fd >= 0:
            return fd
    return -1
