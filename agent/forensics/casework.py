# Owns one case -> its explanation: evidence from the events, debug information from the executable, words
# from explain and render. Opens executables; must not write anything.
from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.correlator.core import Correlator
from agent.correlator.findings import Finding
from agent.errors import AgentError
from agent.forensics.evidence import CrashEvidence, ThreadState
from agent.forensics.examine import examine
from agent.forensics.explain import explain
from agent.forensics.explanation import Cause
from agent.forensics.from_events import Gathered, evidence
from agent.forensics.render import text
from agent.forensics.statements import place_text
from agent.forensics.view import OpenImage, View
from agent.text import plain
from probes.events import Event, TargetAttached
from symbols.corefile import CoreFile
from symbols.errors import STRAY_ERRORS, SymbolError
from symbols.image import Image
from symbols.overlay import describe_bytes
from symbols.plan import ProbePlan
from symbols.resolve import Session, close_session, open_session
from symbols.serial import plan_from_json

_MOST_IMAGES = 256
_MOST_FRAMES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """What came out. text: for a terminal; value: explanation.json; empty where it could not be explained."""

    text: str = ""
    value: dict[str, Any] = field(default_factory=dict)
    key: str = ""  # equal for crashes that one report explains; "" where the cause is not known
    threads: list[dict[str, Any]] = field(default_factory=list)
    slots: list[dict[str, Any]] = field(default_factory=list)
    notes: tuple[str, ...] = ()


class OtherBuild(AgentError):
    """The executable that was named is not the one that crashed."""


def findings_of(events: list[Event]) -> tuple[Finding, ...]:
    """Judge the case's suspicions again: the same findings as were shown live."""
    judge = Correlator()
    for event in events:
        judge.feed(event)
    return judge.findings()


def explained(
    gathered: Gathered,
    events: list[Event],
    *,
    core: Path | int | None = None,
    exe: Path | None = None,
    debug_file: str | None = None,
) -> Explained:
    """Explain a case as far as debug information is at hand. Never raises for what the case holds.

    exe: instead of the path that the process had. Raises OtherBuild where it is another build.
    """
    attached = gathered.attached
    if attached is None or not gathered.crashes:
        return Explained(notes=("not explained: the case holds no crash",))
    with ExitStack() as stack:
        try:
            plan = plan_from_json(attached.plan)
            image = _executable(attached, exe, stack)
            session = open_session(image, debug_file)
        except (SymbolError, *STRAY_ERRORS) as error:
            return Explained(notes=(f"not explained: {error}",))
        stack.callback(close_session, session)
        notes: list[str] = []
        read, threads = _core(core, stack, notes)
        found = evidence(
            gathered, findings=findings_of(events), core=read, threads=threads, notes=tuple(notes)
        )
        if found is None:
            return Explained(notes=("not explained: the case holds no crash",))
        return _told(found, plan, session, images_of(found, stack), gathered)


def _told(
    found: CrashEvidence, plan: ProbePlan, session: Session, open_image: OpenImage, gathered: Gathered
) -> Explained:
    item = explain(found, examine(found, plan, session, open_image))
    return Explained(
        text=plain(text(item)).rstrip("\n"),
        value=item.to_json(),
        key="" if item.cause in (Cause.UNKNOWN, Cause.NOT_A_SLOT) else item.key,
        threads=list(_threads(View(found, plan, session, open_image))),
        slots=list(_slots(gathered, plan)),
        notes=found.notes,
    )


def _executable(attached: TargetAttached, exe: Path | None, stack: ExitStack) -> Image:
    """The very build that crashed. Raises SymbolError, OtherBuild."""
    wanted = str(attached.plan.get("identity", ""))
    paths = (
        [str(exe)]
        if exe
        else [attached.exe, str(attached.plan.get("image", "")), f"/proc/{attached.tgid}/exe"]
    )
    error: SymbolError | None = None
    for path in dict.fromkeys(filter(None, paths)):
        try:
            image = stack.enter_context(Image(path))
        except SymbolError as refused:
            error = error or refused
            continue
        if image.identity == wanted:
            return image
        if exe is not None:
            raise OtherBuild(
                f"{exe} is another build than the one that crashed",
                detail=f"it is {image.identity}, the crash was of {wanted}",
                remedy="name the executable that was running; without --exe the bundle's own text is shown",
            )
    raise error or SymbolError(
        "the executable was replaced since", path=attached.exe, remedy="afterfree report BUNDLE --exe FILE"
    )


def _core(core: Path | int | None, stack: ExitStack, notes: list[str]) -> tuple[Any, tuple[ThreadState, ...]]:
    """(memory reader, threads) of the mini core; (None, ()) without one."""
    if core is None:
        return None, ()
    try:
        opened = CoreFile(core)
    except SymbolError as error:
        notes.append(f"the mini core cannot be read: {error}")
        return None, ()
    stack.callback(opened.close)
    return opened.memory, tuple(ThreadState(tid=t.tid, registers=t.registers) for t in opened.threads)


def images_of(found: CrashEvidence, stack: ExitStack) -> OpenImage:
    """Opens what the process had mapped, as long as the file is still the same one."""
    identities = {module.path: module.identity for module in found.modules}
    known: dict[str, Image | None] = {}

    def open_image(path: str) -> Image | None:
        if path not in known and len(known) < _MOST_IMAGES:
            known[path] = None
            try:
                image = Image(path, any_machine=True)
            except SymbolError:
                return None
            stack.callback(image.close)
            if identities.get(path) in ("", image.identity):
                known[path] = image
        return known.get(path)

    return open_image


def _threads(view: View) -> Iterator[dict[str, Any]]:
    """threads.json: registers and unwound frames of every thread that has any."""
    for thread in view.threads():
        frames = [
            {"pc": hex(spot.frame.pc), "at": place_text(place), "inlined": place.inlined}
            for spot in view.spots(thread)[:_MOST_FRAMES]
            for place in view.places(spot)
        ]
        yield {
            "tid": thread.tid,
            "comm": view.evidence.thread_name(thread.tid),
            "crashed": thread.crashed,
            "registers": {name: hex(value) for name, value in thread.registers.items()},
            "frames": frames,
        }


def _slots(gathered: Gathered, plan: ProbePlan) -> Iterator[dict[str, Any]]:
    """slots.json: every slot that was captured, decoded as its type."""
    for held in gathered.crashes[0].slots:
        yield {
            "address": hex(held.slot.addr),
            "generation": held.slot.gen,
            "state": held.slot.state.name.lower(),
            "registers": list(held.registers),
            "in_batch": held.in_batch,
            "type": plan.slot.type_name,
            "bytes": held.memory.hex(),
            "as_type": list(describe_bytes(plan.slot, held.memory)),
        }
