# Owns the one-screen report of a finding, as styled lines. Must not print, ask symbols or judge.
from __future__ import annotations

import posixpath
import signal
import textwrap

from agent.correlator.findings import MOST_SLOTS, MOST_TARGETS, Finding
from agent.exhibit import Answers, CrashExhibit, Exhibit, SourceFrame, Step
from agent.forensics.desk import BundleDone
from agent.libraries import c_library, library_function, own_code
from agent.sanitize import printable
from agent.text import Line, Span, duration, line, number, short_name, since, total

WIDTH = 96
_BAR = "─" * WIDTH
_FRAMES = 3  # own frames shown per step; four steps, their frames and the rest fit on one screen
_MEMORY = 7
_OTHERS = 3  # lines beside the first one where a step's line is one of several
_LABEL = 11
_PIDS = 4  # named of a group's processes

_VERBS = {
    "created": "created",
    "refused": "refused",
    "registered": "registered",
    "modified": "re-armed",
    "duplicated": "duplicated",
    "removed": "removed",
    "closed": "closed",
    "destroyed": "destroyed",
    "delivered": "delivered",
    "dispatched": "dispatched",
    "disowned": "disowned",
}


_FOLLOWS = "are being looked up: this finding follows once more, with its source lines"
_AGAIN = "   as told above, now with its symbols"


def report(item: Exhibit, answers: Answers, *, told: bool = False) -> list[Line]:
    """What happened, to which slot, who did what and when, what the memory holds, how sure, what to do.

    told: people have had `early` of it already.
    """
    finding = item.finding
    rows: list[Line] = [line(Span(_BAR, "dim")), *_headline(finding, told=told), line("")]
    rows += _subject(item)
    rows.append(line(""))
    for step in item.steps:
        rows += _step(step, item, step.frames(answers))
    rows += _measures(finding)
    rows += _candidates(finding)
    rows += _memory(item, answers)
    rows += _paragraphs("how sure", [f"{finding.confidence}: {_first(finding)}", *finding.reasons[1:]])
    rows += _paragraphs("do", list(finding.advice))
    rows.append(line(Span(_BAR, "dim")))
    return rows


def early(item: Exhibit) -> list[Line]:
    """The report before anything was asked of symbols: of the source only what the plan says."""
    finding = item.finding
    rows: list[Line] = [line(Span(_BAR, "dim")), *_headline(finding), line("")]
    rows += _subject(item)
    rows.append(line(""))
    for step in item.steps:
        rows += _step(step, item, []) + _planned(step)
    rows += _measures(finding)
    rows += _paragraphs("how sure", [f"{finding.confidence}: {_first(finding)}"])
    rows += _paragraphs("symbols", [_FOLLOWS])
    rows.append(line(Span(_BAR, "dim")))
    return rows


def update(finding: Finding) -> list[Line]:
    """One line for a group that was reported before and goes on."""
    lasted = finding.last_ts - finding.first_ts
    during = f" in {duration(lasted)}" if lasted > 0 else ""
    rate = f", {_rate(finding)}" if finding.rate else ""
    return [
        line(
            Span(f" {finding.severity.label.upper()} ", finding.severity.label),
            f" {finding.rule} #{printable(finding.group)} goes on: {counted(finding)}{during}{rate}",
        )
    ]


def counted(finding: Finding) -> str:
    """How often in the whole group, and of how many it is the sum."""
    parts = f"{total(finding.count, finding.at_least)} {printable(finding.unit)}"
    if finding.slots > 1:
        parts += f" of {total(finding.slots, finding.slots >= MOST_SLOTS)} slots"
    pids = list(finding.by_target)
    if len(pids) > 1:
        named = ", ".join(str(pid) for pid in pids[:_PIDS]) + (", …" if len(pids) > _PIDS else "")
        parts += f" in {total(len(pids), len(pids) >= MOST_TARGETS)} processes ({named})"
    return parts


def _rate(finding: Finding) -> str:
    """Of one slot, whatever the count is the sum of."""
    whose = ""
    if finding.slots > 1:
        whose = f" of slot {finding.slot:#x} generation {finding.generation}"
    return f"{number(finding.rate or 0)}/s{whose}"


def crash(item: CrashExhibit, answers: Answers, *, told: bool = False) -> list[Line]:
    """The target got a fatal signal: one line of what, one of where. told: after `crash_early`."""
    return [*_signalled(item, _AGAIN if told else ""), *_stack(item.frames(answers), indent=4)]


def crash_early(item: CrashExhibit) -> list[Line]:
    """The same before symbols were asked."""
    return [*_signalled(item), line("    at         ", f"{item.crash.ip:#x}; its symbols follow")]


def _signalled(item: CrashExhibit, note: str = "") -> list[Line]:
    seen = item.crash
    try:
        name = signal.Signals(seen.signal).name
    except ValueError:
        name = f"signal {seen.signal}"
    where = "" if seen.accessed is None else f" at address {seen.accessed:#x}"
    if seen.signal == signal.SIGSEGV and seen.accessed is None:
        where = " (general protection: the address is not canonical)"
    who = f"target {seen.tgid} {printable(item.target.comm) if item.target else ''}".rstrip()
    return [
        line(
            Span(" CRASH ", "critical"),
            f" {who} got {name}{where}, ",
            f"thread {seen.tid} {_quoted(seen.comm)}, batch {seen.batch}",
            Span(note, "dim"),
        )
    ]


def bundle(done: BundleDone) -> list[Line]:
    """What a crash was, and where everything about it lies."""
    if not done.path:
        reasons = "; ".join(printable(note) for note in done.notes)
        return [line(Span(" CRASH ", "critical"), f" no bundle was written: {reasons}")]
    rows: list[Line] = [line(text) for text in done.report.splitlines()]
    rows.append(line(Span(" BUNDLE ", "info"), f" {printable(done.path)} ({number(done.size)} bytes)"))
    rows += [line(f"    {printable(note)}") for note in done.notes]
    return [*rows, line(f"    afterfree report {printable(done.path)}")]


def _headline(finding: Finding, *, told: bool = False) -> list[Line]:
    kind = f" · {printable(finding.sub_class)}" if finding.sub_class else ""
    count = f"   {counted(finding)}" if finding.count > 1 else ""
    group = f"   #{printable(finding.group)}" if finding.group else ""
    severity = finding.severity.label
    first = line(
        Span(f" {severity.upper()} ", severity),
        " ",
        Span(f"{finding.rule}{kind}", "label"),
        count,
        Span(group + (_AGAIN if told else ""), "dim"),
    )
    title = printable(finding.title)
    return [first, *(line(" ", Span(text, "label")) for text in textwrap.wrap(title, WIDTH - 2))]


def _subject(item: Exhibit) -> list[Line]:
    finding, target = item.finding, item.target
    rows: list[Line] = []
    if finding.slot:
        kind = f"   {short_name(target.slot_type, 48)}" if target and target.slot_type else ""
        rows.append(_labelled("slot", f"{finding.slot:#x}  generation {finding.generation}{kind}"))
    where = []
    if finding.fd >= 0:
        never = finding.epfd < 0 and any(actor.role == "refused" for actor in finding.actors)
        where.append(f"fd {finding.fd}, never registered" if never else f"fd {finding.fd}")
    if finding.epfd >= 0:
        where.append(f"epoll instance {finding.epfd}")
    if finding.batch:
        where.append(f"batch {finding.batch}")
    if where:
        watched = finding.fd >= 0 and not where[0].endswith("never registered")
        rows.append(_labelled("watched by" if watched else "at", " · ".join(where)))
    if target is not None:
        late = "   attached while it ran" if target.late else ""
        late += "   one of several" if len(finding.by_target) > 1 else ""
        rows.append(
            _labelled("target", f"{target.tgid} {printable(target.comm, 32)}   {_tail(target.exe, 56)}{late}")
        )
    else:
        rows.append(_labelled("target", str(finding.tgid)))
    if finding.chain:
        rows.append(_labelled("follows", f"#{printable(finding.chain)}"))
    return rows


def _step(step: Step, item: Exhibit, frames: list[SourceFrame]) -> list[Line]:
    actor = step.actor
    verb = _VERBS.get(actor.role, printable(actor.role))
    if not actor.moment.seen:
        note = f" ({printable(actor.note)})" if actor.note else ""
        return [line(" ", Span(verb.ljust(_LABEL), "label"), Span(f"not seen{note}", "dim"))]
    start = item.target.attached if item.target is not None else item.finding.first_ts
    when = since(actor.moment.ts, start)
    gap = ""
    if actor.gap_ns is not None:
        gap = (
            "   concurrent with the step before" if actor.concurrent else f"   {duration(actor.gap_ns)} later"
        )
    note = f"   {printable(actor.note)}" if actor.note else ""
    thread = f"{step.thread_role} {actor.moment.tid} {_quoted(step.comm)}".rstrip()
    rows = [
        line(
            " ",
            Span(verb.ljust(_LABEL), "label"),
            f"by {thread}".ljust(34),
            f" at {when}",
            Span(gap, "high" if actor.concurrent else ""),
            Span(note, "dim"),
        )
    ]
    rows += _stack(frames)
    return rows


def _planned(step: Step) -> list[Line]:
    """What the plan alone says of where it was: the probed function, and where an inlined one was called."""
    site = step.site
    if site is None:
        return []
    called = ""
    if site.inlined and site.file and site.line:
        column = f":{site.column}" if site.column else ""
        called = f"  called at {printable(posixpath.basename(site.file))}:{site.line}{column}"
    name = short_name(site.function, 44)
    return [line(" " * (_LABEL + 1), "in".ljust(11), name, Span(called, "source"))]


def _stack(frames: list[SourceFrame], indent: int = _LABEL + 1) -> list[Line]:
    """The program's own frames; library frames on top of them are named behind the first one."""
    mine = _own(frames)
    first = mine[0] if mine else 0
    # What starts a thread lies below the last own frame and says nothing.
    end = min(first + _FRAMES, mine[-1] + 1 if mine else 1, len(frames))
    open_to_others = next((i for i in range(first, end) if frames[i].unsure), None)
    if open_to_others is not None:  # whoever called that one is another's caller
        end = next((i for i in range(open_to_others, end) if not frames[i].inlined), end - 1) + 1
        mine = [i for i in mine if i < end]
    shown = frames[first:end]
    through = frames[first - 1] if first else None
    rows = []
    for index, frame in enumerate(shown):
        suffix = ""
        if index == 0 and through is not None and not through.reason:
            suffix = f"   through {short_name(through.function, 40)}"
        if first + index == open_to_others:
            suffix += "   or another caller of the same"
        word = "in" if index == 0 else ("inlined in" if shown[index - 1].inlined else "called by")
        rows.append(_frame(frame, word, indent=indent, suffix=suffix))
    if shown and not mine and not any(frame.reason for frame in shown):
        unknown = "its caller in the program is not known: no frame of it was found on the stack"
        rows.append(line(" " * indent, "called by".ljust(11), Span(unknown, "dim")))
    rest = len([i for i in mine if i >= end])
    if rest:
        rows.append(line(" " * indent, Span(f"… {rest} more frame{'s' if rest > 1 else ''}", "dim")))
    return rows


def _own(frames: list[SourceFrame]) -> list[int]:
    """Which frames are the program's own. What it called through (a standard library, a system call's
    wrapper) says nothing of who called; code without lines beside code with lines is of a library that was
    linked in. Where all is in shared objects: the frames of those that are no C library."""
    known = [(i, frame) for i, frame in enumerate(frames) if not frame.reason]
    known = [
        (i, frame)
        for i, frame in known
        if (own_code(frame.function, frame.file) if frame.file else not library_function(frame.function))
    ]
    mine = [(i, frame) for i, frame in known if not frame.module]
    with_lines = [i for i, frame in mine if frame.file]
    if mine:
        return with_lines or [i for i, _ in mine]
    return [i for i, frame in known if not c_library(posixpath.basename(frame.module))]


def _frame(frame: SourceFrame, word: str, *, indent: int, suffix: str = "") -> Line:
    pad = " " * indent
    if frame.reason:
        place = f"{posixpath.basename(frame.module)}: " if frame.module else ""
        why = printable(f"{place}{frame.reason}", 60)
        return line(pad, word.ljust(11), f"{frame.ip:#x} ?   ", Span(why, "dim"))
    where = printable(posixpath.basename(frame.file or frame.module)) or "?"
    if frame.line and frame.others:
        lines = [f"{printable(posixpath.basename(file)) or '?'}:{number}" for file, number in frame.others]
        rest = f", {len(lines) - _OTHERS} more" if len(lines) > _OTHERS else ""
        where = f"one of: {where}:{frame.line}, {', '.join(lines[:_OTHERS])}{rest}"
    elif frame.line:
        where += f":{frame.line}" + (f":{frame.column}" if frame.column else "")
    return line(
        pad, word.ljust(11), f"{short_name(frame.function, 44)}  ", Span(where, "source"), Span(suffix, "dim")
    )


def _measures(finding: Finding) -> list[Line]:
    parts = []
    if finding.window_ns is not None:
        parts.append(f"window {duration(finding.window_ns)}")
    if finding.margin_ns is not None:
        parts.append(f"margin {duration(finding.margin_ns)}")
    if finding.rate is not None:
        parts.append(f"{number(finding.rate)} {printable(finding.unit)}/s of this slot")
    if finding.share is not None:
        every = number(round(finding.count / finding.share)) if finding.share else "?"
        parts.append(f"{number(finding.count)} of {every} lifetimes so far, {finding.share:.2%}")
    if len(finding.sub_classes) > 1:
        split = ", ".join(f"{number(n)} {printable(name)}" for name, n in sorted(finding.sub_classes.items()))
        parts.append(split)
    return [_labelled("measured", " · ".join(parts))] if parts else []


def _candidates(finding: Finding) -> list[Line]:
    rows: list[Line] = []
    for candidate in finding.candidates:
        rows.append(
            _labelled(
                "candidate" if not rows else "",
                f"{printable(candidate.role)} registration: fd {candidate.fd} on epoll instance "
                f"{candidate.epfd}, generation {candidate.generation}, {candidate.state.name.lower()}",
            )
        )
    return rows


def _memory(item: Exhibit, answers: Answers) -> list[Line]:
    memory = item.finding.memory
    if not memory:
        return []
    rows = [_labelled("memory", Span(memory[:32].hex(" ", 8), "dim"))]
    lines, reason = item.memory_lines(answers)
    pad = " " * (_LABEL + 1)
    rows += [line(pad, printable(text, WIDTH - _LABEL)) for text in lines[:_MEMORY]]
    if len(lines) > _MEMORY:
        rows.append(
            line(" " * (_LABEL + 1), Span(f"… {len(lines) - _MEMORY} more lines in the JSON form", "dim"))
        )
    if reason:
        rows.append(line(" " * (_LABEL + 1), Span(printable(f"not decoded: {reason}", WIDTH), "dim")))
    return rows


def _first(finding: Finding) -> str:
    return finding.reasons[0] if finding.reasons else "no reason was given"


def _paragraphs(label: str, texts: list[str]) -> list[Line]:
    rows: list[Line] = []
    for text in texts:
        wrapped = textwrap.wrap(printable(text), WIDTH - _LABEL - 1) or [""]
        for part in wrapped:
            rows.append(_labelled("" if rows else label, part))
    return rows


def _labelled(label: str, text: str | Span) -> Line:
    return line(" ", Span(label.ljust(_LABEL), "label"), text)


def _tail(path: str, most: int) -> str:
    text = printable(path)
    return text if len(text) <= most else "…" + text[-(most - 1) :]


def _quoted(comm: str) -> str:
    return f'"{printable(comm, 20)}"' if comm else ""
