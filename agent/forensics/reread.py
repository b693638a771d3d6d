# Owns bundle -> explanation again: from what it carries, or anew from an executable. Opens nothing but what
# it is given; must not write outside of the caller's scratch folder.
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.forensics import layout
from agent.forensics.bundle import Bundle
from agent.forensics.bundler import events_of
from agent.forensics.casework import Explained, explained
from agent.forensics.from_events import gather
from agent.sanitize import printable


def reread(opened: Bundle, *, exe: Path | None = None, debug_file: str | None = None) -> Explained:
    """What the bundle says. With `exe` it is explained anew. Raises BadBundle, AgentError."""
    notes = list(_notes(opened))
    recording = opened.files.get(layout.RECORDING)
    if exe is not None and recording is not None:
        events, broken = events_of(recording)
        told = explained(
            gather(events), events, core=opened.files.get(layout.CORE), exe=exe, debug_file=debug_file
        )
        notes += [*([f"the recording: {broken}"] if broken else []), *told.notes]
        return Explained(text=told.text, value=told.value, notes=tuple(notes))
    value = opened.value(layout.EXPLANATION)
    text = "\n".join(printable(line) for line in opened.text(layout.REPORT).splitlines())
    return Explained(text=text, value=value if isinstance(value, dict) else {}, notes=tuple(notes))


def _notes(opened: Bundle) -> Iterator[str]:
    for problem in opened.damaged:
        yield f"damaged: {printable(problem)}"
    for key in ("notes", "left_out"):
        listed = opened.manifest.get(key)
        if isinstance(listed, list):
            prefix = "left out: " if key == "left_out" else ""
            yield from (f"{prefix}{printable(str(note))}" for note in listed[:32])
