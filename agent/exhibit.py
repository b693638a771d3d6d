# Owns a finding together with what was known when it fired: threads, stacks, target, and the questions
# that symbols must answer. Also its JSON form. Must not draw; must not ask the clock or /proc.
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from agent.correlator.findings import Actor, Finding
from agent.scene import PlanSite, Scene, Target
from agent.symbolize import Answer, Question
from probes.events import CrashSeen, Moment

SCHEMA = "afterfree.finding/1"
"""Version of one JSON line; raised when a key changes its meaning or goes away."""

_MOST_PCS = 24
_UPROBE_ROLES = frozenset({"created", "destroyed", "disowned", "dispatched", "crashed"})


class Answers(Protocol):
    """Where answers to questions are looked up."""

    def answer(self, question: Question) -> Answer | None: ...


@dataclass(frozen=True, slots=True)
class Pc:
    """One run-time address of a stack, and the question about it; None outside of every known file."""

    ip: int
    question: Question | None
    module: str = ""  # path of the shared object it lies in; "" in the executable


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """One source-level frame; `reason` says why there is no function."""

    ip: int
    function: str
    file: str = ""
    line: int = 0
    column: int = 0
    inlined: bool = False
    reason: str = ""
    module: str = ""  # path of the shared object it lies in; "" in the executable
    # (file, line) of other calls of the same in its function, where the stack does not tell which it was
    others: tuple[tuple[str, int], ...] = ()
    unsure: bool = False  # another function may have called instead: the stack does not tell which it was


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An actor of the chain with its thread and stack."""

    actor: Actor
    comm: str
    thread_role: str  # "loop" or "worker", "thread" where that is not known; "" when the step was not seen
    pcs: tuple[Pc, ...]  # by frame pointers
    unwound: Question | None = None  # the whole stack by call frame information, where its bytes were kept
    identity: str = ""  # of the executable
    site: PlanSite | None = None  # the probed instance, of a step that a probe saw

    def questions(self) -> Iterator[Question]:
        if self.unwound is not None:
            yield self.unwound
        yield from (pc.question for pc in self.pcs if pc.question is not None)

    def frames(self, answers: Answers) -> list[SourceFrame]:
        """Source frames, innermost first."""
        return [frame for physical in self.physical(answers) for frame in physical]

    def physical(self, answers: Answers) -> list[list[SourceFrame]]:
        """Source frames of each physical one, innermost first."""
        answer = answers.answer(self.unwound) if self.unwound is not None else None
        rows = answer.get("stack") if answer is not None else None
        if isinstance(rows, list) and rows:
            stack = [_unwound(row, self.identity) for row in rows]
        else:
            stack = [_frames(pc, answers) for pc in self.pcs]
        if self.site is not None and stack:
            if self.site.at_entry:
                stack[1:2] = [
                    [replace(frame, others=(), unsure=False) for frame in caller] for caller in stack[1:2]
                ]
            stack[0] = _of_instance(self.site, _frames(self.pcs[0], answers) if self.pcs else [], stack[0])
        return stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """One finding, complete but for the answers."""

    finding: Finding
    target: Target | None
    steps: tuple[Step, ...]
    memory: Question | None

    def questions(self) -> Iterator[Question]:
        """Everything that must be answered before it can be shown."""
        for step in self.steps:
            yield from step.questions()
        if self.memory is not None:
            yield self.memory

    @property
    def tgids(self) -> frozenset[int]:
        """Every process that had part in it, as far as they are told apart."""
        return frozenset((self.finding.tgid, *self.finding.by_target))

    def memory_lines(self, answers: Answers) -> tuple[list[str], str]:
        """(what the bytes look like as the slot's type, or why that is not known)."""
        if self.memory is None:
            return [], "" if not self.finding.memory else "the slot's type is not known"
        answer = answers.answer(self.memory) or {}
        lines = answer.get("lines")
        if isinstance(lines, list):
            return [str(line) for line in lines], ""
        return [], str(answer.get("reason", "not answered"))

    def to_json(self, answers: Answers) -> dict[str, Any]:
        """One line of `--format json`: the finding, its threads and its symbolized frames."""
        value = self.finding.to_dict()
        value["schema"] = SCHEMA
        for row, step in zip(value["actors"], self.steps, strict=True):
            row["comm"] = step.comm
            row["thread"] = step.thread_role
            row["frames"] = [_frame_json(frame) for frame in step.frames(answers)]
        lines, reason = self.memory_lines(answers)
        value["memory_as"] = {"type": self.target.slot_type if self.target else "", "lines": lines}
        if reason:
            value["memory_as"]["reason"] = reason
        value["target"] = _target_json(self.target)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashExhibit:
    """A fatal signal of a target, with what its instruction pointer is in the source."""

    crash: CrashSeen
    target: Target | None
    pc: Pc
    stack: Step | None = None  # of the signal: its first frame is where `pc` is

    @property
    def tgids(self) -> frozenset[int]:
        return frozenset((self.crash.tgid,))

    def questions(self) -> Iterator[Question]:
        if self.pc.question is not None:
            yield self.pc.question
        if self.stack is not None:
            yield from self.stack.questions()

    def frames(self, answers: Answers) -> list[SourceFrame]:
        """Innermost first; with the callers: the instruction alone may be libc's, which says nothing."""
        callers = self.stack.physical(answers)[1:] if self.stack is not None else []
        return [*_frames(self.pc, answers), *(frame for physical in callers for frame in physical)]


def exhibit(finding: Finding, scene: Scene) -> Exhibit:
    """`finding` with what `scene` knows now. Later events must not change it."""
    target = scene.targets.get(finding.tgid)
    memory = None
    if finding.memory and target is not None and target.slot_type:
        memory = Question("memory", target.identity, (target.slot_type, finding.memory.hex()))
    return Exhibit(
        finding=finding,
        target=target,
        steps=tuple(_step(actor, finding.tgid, target, scene) for actor in finding.actors),
        memory=memory,
    )


def crash_exhibit(crash: CrashSeen, scene: Scene) -> CrashExhibit:
    target = scene.targets.get(crash.tgid)
    pc = _pc(crash.ip, target, scene, exact=True)
    at = Moment(crash.ts, crash.ts, crash.ip, crash.tid, crash.stack_id)
    step = _step(Actor(role="crashed", moment=at), crash.tgid, target, scene) if crash.stack_id >= 0 else None
    return CrashExhibit(crash=crash, target=target, pc=pc, stack=step)


def _step(actor: Actor, tgid: int, target: Target | None, scene: Scene) -> Step:
    moment: Moment = actor.moment
    exact = actor.role in _UPROBE_ROLES
    site = target.site(moment.ip) if target is not None and exact and moment.ip else None
    pcs = tuple(
        _pc(ip, target, scene, exact=exact and index == 0)
        for index, ip in enumerate(scene.stack(tgid, moment)[:_MOST_PCS])
    )
    if site is not None and target is not None and target.identity and pcs and pcs[0].ip == moment.ip:
        # the line of the instance, wherever its probe was put
        pcs = (Pc(moment.ip, Question("frames", target.identity, (site.inside,))), *pcs[1:])
    kept, unwound = scene.kept(tgid, moment), None
    if kept and target is not None and target.identity:
        unwound = Question("unwind", target.identity, (tgid, moment.stack, kept))
    return Step(
        actor=actor,
        comm=scene.comm(tgid, moment.tid) if moment.tid else "",
        thread_role=scene.thread_role(tgid, moment.tid) if moment.tid else "",
        pcs=pcs,
        unwound=unwound,
        identity=target.identity if target is not None else "",
        site=site,
    )


def _pc(ip: int, target: Target | None, scene: Scene, *, exact: bool) -> Pc:
    """exact: the address itself was probed. Otherwise it is one behind a call or syscall instruction."""
    if target is None or not ip:
        return Pc(ip, None)
    step = 0 if exact else 1
    address = target.image_address(ip)
    if address is not None and target.identity:
        return Pc(ip, Question("frames", target.identity, (address - step,)))
    module = scene.module(target.tgid, ip - step)
    if module is None:
        return Pc(ip, None)
    question = Question("frames", module.identity, (ip - step - module.bias,)) if module.identity else None
    return Pc(ip, question, module.path)


def _frames(pc: Pc, answers: Answers) -> list[SourceFrame]:
    if pc.question is None:
        reason = "its file cannot be read" if pc.module else "outside of every mapped file"
        return [SourceFrame(pc.ip, "?", reason=reason, module=pc.module)]
    return _source_frames(pc.ip, pc.module, answers.answer(pc.question) or {})


def _of_instance(site: PlanSite, within: list[SourceFrame], probed: list[SourceFrame]) -> list[SourceFrame]:
    """The frames of a probed instance: from the function that the profile names outwards, its call site as
    the plan has it. within: frames of an address in the instance's own code; probed: of the probe's place."""
    frames = within if within and not within[0].reason else probed
    if not frames or frames[0].reason:
        return frames
    names = [frame.function for frame in frames]
    if site.function in names:
        frames = frames[names.index(site.function) :]
    if not site.inlined or not site.file or not site.line:
        return frames
    if frames[0].function == site.function:
        called, callers = frames[:1], frames[1:]
    elif any((frame.file, frame.line) == (site.file, site.line) for frame in frames):
        return frames  # the instance goes by another form of its name
    else:  # the probe lies before the instance, and where its own code is was not kept
        called, callers = [SourceFrame(frames[0].ip, site.function, inlined=True)], frames
    if callers:
        caller = replace(callers[0], file=site.file, line=site.line, column=site.column)
        callers = [caller, *callers[1:]]
    return called + callers


def _unwound(row: Any, own: str) -> list[SourceFrame]:
    """One physical frame of an unwound stack. own: the identity of the executable."""
    if not isinstance(row, list) or len(row) != 4 or not isinstance(row[0], int):
        return []
    ip, path, identity, answer = row
    module = "" if identity == own else str(path)
    return _source_frames(ip, module, answer if isinstance(answer, Mapping) else {})


def _source_frames(ip: int, module: str, answer: Mapping[str, Any]) -> list[SourceFrame]:
    rows = answer.get("frames")
    frames = [_source_frame(ip, row, module) for row in rows] if isinstance(rows, list) else []
    if frames and None not in frames:
        known = [frame for frame in frames if frame is not None]
        unsure = answer.get("unsure") is True
        return [
            replace(known[0], others=_others(answer.get("others")), unsure=unsure),
            *(replace(frame, unsure=unsure) for frame in known[1:]),
        ]
    return [SourceFrame(ip, "?", reason=str(answer.get("reason", "not answered")), module=module)]


def _others(rows: Any) -> tuple[tuple[str, int], ...]:
    if not isinstance(rows, list):
        return ()
    return tuple(
        (str(row[0]), row[1])
        for row in rows
        if isinstance(row, list) and len(row) == 2 and isinstance(row[1], int)
    )


def _source_frame(ip: int, row: Any, module: str) -> SourceFrame | None:
    if not isinstance(row, list) or len(row) != 5:
        return None
    function, file, line, column, inlined = row
    if not isinstance(line, int) or not isinstance(column, int):
        return None
    return SourceFrame(ip, str(function), str(file), line, column, bool(inlined), module=module)


def _frame_json(frame: SourceFrame) -> dict[str, Any]:
    place = {"module": frame.module} if frame.module else {}
    if frame.reason:
        return {"ip": hex(frame.ip), "reason": frame.reason, **place}
    return {
        "ip": hex(frame.ip),
        **place,
        "function": frame.function,
        "file": frame.file,
        "line": frame.line,
        "column": frame.column,
        "inlined": frame.inlined,
        **(
            {"others": [{"file": file, "line": number} for file, number in frame.others]}
            if frame.others
            else {}
        ),
        **({"unsure": True} if frame.unsure else {}),
    }


def _target_json(target: Target | None) -> dict[str, Any] | None:
    if target is None:
        return None
    return {
        "pid": target.tgid,
        "exe": target.exe,
        "comm": target.comm,
        "identity": target.identity,
        "profile": target.profile,
        "attached_ts": target.attached,
        "late": target.late,
    }
