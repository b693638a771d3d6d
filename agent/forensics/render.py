# Owns the text of an explanation: one screen of styled lines. Every name in it is untrusted and made
# printable here. Must not judge, read memory or print.
from __future__ import annotations

import posixpath
import signal as signals
import textwrap

from agent.forensics.explanation import Alternative, Explanation, Outcome, Statement, Step, Topic
from agent.sanitize import printable
from agent.text import Line, Span, duration, line

WIDTH = 96
_BAR = "─" * WIDTH
_LABEL = 11
_STACK = 4
_MEMORY = 3
_STEPS = 10
_FACTS = (
    Topic.FAULT, Topic.POINTER, Topic.ORIGIN, Topic.SLOT, Topic.FREE_LIST, Topic.DELIVERY, Topic.CONNECTIONS,
)  # fmt: skip
_LABELS = {
    Topic.FAULT: "fault",
    Topic.POINTER: "",
    Topic.ORIGIN: "from",
    Topic.SLOT: "slot",
    Topic.FREE_LIST: "free list",
    Topic.DELIVERY: "delivered",
    Topic.CONNECTIONS: "others",
}
_MARKS = {
    Outcome.EXCLUDED: "no ",
    Outcome.UNLIKELY: "no?",
    Outcome.POSSIBLE: "?  ",
    Outcome.CAUSE: "YES",
    Outcome.UNKNOWN: "?  ",
}


def text(item: Explanation) -> list[Line]:
    """What happened, to which slot, in which order, why, how sure, what else it could be, what to do."""
    rows: list[Line] = [line(Span(_BAR, "dim")), *_headline(item), line("")]
    rows += _who(item)
    rows += _frames(item)
    rows.append(line(""))
    last = ""
    for statement in item.statements:
        if statement.topic in _FACTS:
            label = _LABELS[statement.topic]
            rows += _statement("" if label == last else label, statement)
            last = label or last
            if statement.topic is Topic.SLOT and statement.text.startswith(("its first", "it is", "whether")):
                rows += [line(" " * (_LABEL + 3), Span(_cut(one), "dim")) for one in item.memory[:_MEMORY]]
    rows += _life(item)
    rows.append(line(""))
    for topic, label in ((Topic.RULE, "rule"), (Topic.ORDER, "missing"), (Topic.FIX, "fix")):
        for statement in item.statements:
            if statement.topic is topic:
                rows += _statement(label, statement)
    rows += _others(item.alternatives)
    for index, sentence in enumerate(item.unknown):
        rows += _paragraph("unknown" if not index else "", sentence, "dim")
    rows.append(line(Span(_BAR, "dim")))
    return rows


def _headline(item: Explanation) -> list[Line]:
    parts = textwrap.wrap(printable(item.headline), WIDTH - 10) or [""]
    return [
        line(
            Span(" CORE  " if item.headline.startswith("no crash") else " CRASH ", "critical"),
            " ",
            Span(parts[0], "label"),
        ),
        *(line(" " * 8, Span(part, "label")) for part in parts[1:]),
    ]


def _who(item: Explanation) -> list[Line]:
    try:
        name = signals.Signals(item.signal).name
    except ValueError:
        name = f"signal {item.signal}"
    thread = f'thread {item.tid} "{printable(item.thread, 20)}"' if item.thread else f"thread {item.tid}"
    exe = printable(posixpath.basename(item.exe), 40)
    rows = [_labelled("process", f"{item.pid} {exe}, {thread}, {name}   from a {printable(item.source)}")]
    if item.slot:
        generation = f", generation {item.generation}" if item.generation else ""
        field = f", its field {printable(item.slot_field, 40)}" if item.slot_field else ""
        rows.append(_labelled("object", f"slot {item.slot:#x}{generation}{field}"))
    return rows


def _frames(item: Explanation) -> list[Line]:
    rows = []
    for index, frame in enumerate(item.stack[:_STACK]):
        rows.append(_labelled("at" if not index else "", printable(frame, WIDTH - _LABEL - 2)))
    return rows


def _statement(label: str, statement: Statement) -> list[Line]:
    return _paragraph(label, f"{statement.text}  [{statement.certainty}]")


def _paragraph(label: str, sentence: str, style: str = "") -> list[Line]:
    rows: list[Line] = []
    for part in textwrap.wrap(printable(sentence), WIDTH - _LABEL - 1) or [""]:
        rows.append(_labelled("" if rows else label, Span(part, style)))
    return rows


def _life(item: Explanation) -> list[Line]:
    if not item.steps:
        return []
    rows: list[Line] = [line("")]
    shown = item.steps if len(item.steps) <= _STEPS else (*item.steps[:4], *item.steps[-(_STEPS - 4) :])
    rows += [_step(step) for step in shown]
    if len(shown) < len(item.steps):
        hidden = len(item.steps) - len(shown)
        rows.append(line(" " * (_LABEL + 1), Span(f"… {hidden} more steps in the JSON form", "dim")))
    return rows


def _step(step: Step) -> Line:
    label = Span(printable(step.role, _LABEL).ljust(_LABEL), "label")
    if not step.ts:
        return line(" ", label, Span("not seen", "dim"))
    name = f'{step.tid} "{printable(step.comm, 16)}"' if step.comm else str(step.tid)
    gap = ""
    if step.gap_ns is not None:
        gap = "concurrent with the step before" if step.concurrent else f"{duration(step.gap_ns)} later"
    note = f"  {printable(step.note, 40)}" if step.note else ""
    where = f"  in {printable(step.place, 56)}" if step.place else ""
    return line(" ", label, f"by {name} ".ljust(24), gap.ljust(16), Span(where, "source"), Span(note, "dim"))


def _others(rows: tuple[Alternative, ...]) -> list[Line]:
    found: list[Line] = []
    for index, one in enumerate(rows):
        label = "was it" if not index else ""
        sentence = f"{one.name}? {one.outcome}: {one.because}"
        parts = textwrap.wrap(printable(sentence), WIDTH - _LABEL - 6)
        mark = Span(f"{_MARKS[one.outcome]} ", "good" if one.outcome is Outcome.EXCLUDED else "label")
        found.append(line(" ", Span(label.ljust(_LABEL), "label"), mark, parts[0] if parts else ""))
        found += [line(" " * (_LABEL + 5), part) for part in parts[1:]]
    return found


def _labelled(label: str, content: str | Span) -> Line:
    return line(" ", Span(label.ljust(_LABEL), "label"), content)


def _cut(one: str) -> str:
    return printable(one, WIDTH - _LABEL - 4)
