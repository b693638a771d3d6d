# Owns the way from evidence to what debug information says about it: modules, unwound threads, frames in
# source terms, variables with their values. Runs where images may be opened (the symbol worker, a command),
# never in the daemon. Must not judge.
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from agent.forensics.evidence import CrashEvidence, Fragments, ThreadState
from agent.forensics.facts import CodePlace
from agent.forensics.probed import inside, of_instance, site_at
from agent.stack_worker import called_elsewhere, framed, in_the_id, merged, placed, unsure
from probes.events import StackSeen
from symbols.cfi import FrameTable
from symbols.code import FunctionCode
from symbols.errors import STRAY_ERRORS, SymbolError
from symbols.image import Image
from symbols.lines import Symbolizer
from symbols.modules import Module, Modules
from symbols.plan import ProbePlan
from symbols.resolve import Session
from symbols.scopes import Function
from symbols.types import Types
from symbols.unwind import Unwinder, UnwoundFrame
from symbols.variables import Variable, Variables

_MOST_FRAMES = 64
_MOST_THREADS = 256

OpenImage = Callable[[str], Image | None]


@dataclass(frozen=True, slots=True)
class Spot:
    """One physical frame of a thread. address: of the image, to look up; 0 outside of the executable."""

    frame: UnwoundFrame
    module: Module | None
    address: int
    ours: bool  # in the executable


class View:
    """One crash seen through the executable's debug information."""

    def __init__(
        self,
        evidence: CrashEvidence,
        plan: ProbePlan,
        session: Session,
        open_image: OpenImage = lambda _path: None,
    ) -> None:
        """session: of the executable. open_image: other modules, for unwinding; they stay the caller's."""
        self.evidence = evidence
        self.plan = plan
        self.session = session
        self.types = Types(session.dwarf)
        self.variables = Variables(session, self.types)
        self._executable = session.image
        self._symbolizer = Symbolizer(
            session.image, debug=session.debug if session.debug is not session.image else None
        )
        self._modules = Modules(self._opened(open_image))
        self._unwinder = Unwinder(self._modules, evidence.memory.read)
        self._spots: dict[int, tuple[Spot, ...]] = {}
        self._scoped: dict[int, list[Variable]] = {}
        self._codes: dict[int, FunctionCode] = {}

    def _opened(self, open_image: OpenImage) -> Iterator[Module]:
        target = self.evidence.target
        for known in self.evidence.modules:
            image = self._executable if known.path == target.exe else open_image(known.path)
            table = FrameTable(image) if image is not None else None
            yield Module(known.start, known.end, known.bias, known.path, image, table)

    # -- memory ----------------------------------------------------------------------------------

    def read(self, address: int, count: int) -> bytes | None:
        """Captured memory; code that was not captured is read from its file."""
        raw = self.evidence.memory.read(address, count)
        if raw is not None and len(raw) == count:
            return raw
        module = self._modules.find(address)
        if module is None or module.image is None or not module.image.executable(address - module.bias):
            return None  # data of a file is not what the process had in its place
        return self._modules.code(address, count)

    def word(self, address: int) -> int | None:
        raw = self.read(address, 8)
        return int.from_bytes(raw, "little") if raw is not None else None

    # -- frames ----------------------------------------------------------------------------------

    @property
    def bias(self) -> int:
        return self.evidence.target.bias

    def threads(self) -> tuple[ThreadState, ...]:
        """The crashed one first."""
        ordered = sorted(self.evidence.threads, key=lambda thread: not thread.crashed)
        return tuple(ordered[:_MOST_THREADS])

    def spots(self, thread: ThreadState) -> tuple[Spot, ...]:
        """The physical frames of a thread, innermost first. Empty without registers."""
        if thread.tid not in self._spots:
            trace = self._unwinder.unwind(thread.registers, _MOST_FRAMES) if thread.registers else None
            frames = trace.frames if trace is not None else ()
            self._spots[thread.tid] = tuple(self._spot(frame) for frame in frames)
        return self._spots[thread.tid]

    def _spot(self, frame: UnwoundFrame) -> Spot:
        module = self._modules.find(frame.lookup)
        ours = module is not None and module.image is self._executable
        return Spot(frame, module, frame.lookup - module.bias if module is not None and ours else 0, ours)

    def places(self, spot: Spot) -> tuple[CodePlace, ...]:
        """Source frames of a physical one, innermost first."""
        if not spot.ours:
            name = spot.module.path if spot.module is not None else "?"
            return (CodePlace(function=name),)
        return self._described(spot.address)

    def places_at(self, pc: int, *, exact: bool) -> tuple[CodePlace, ...]:
        """Source frames of a run-time address; exact: it was about to run, otherwise it is behind a call."""
        address = pc if exact else pc - 1
        module = self._modules.find(address)
        if module is None or module.image is not self._executable:
            return ()
        return self._described(address - module.bias)

    def places_probed(self, pc: int) -> tuple[CodePlace, ...]:
        """Source frames of where something was seen: of a probe its instance's, as the plan has it."""
        places, site = self.places_at(pc, exact=True), site_at(self.plan, pc - self.bias)
        if site is None or not places:
            return places
        return of_instance(site, self._described(inside(site, pc - self.bias)), places)

    def callers(self, stack: StackSeen, most: int) -> list[tuple[int, bool]]:
        """(pc, whether it is exact) of a recorded stack: unwound where its bytes were kept, as far as its id
        tells it from others."""
        pcs = [(pc, False) for pc in stack.pcs]
        top = stack.registers.get("rsp")
        if top is None or not stack.memory:
            return pcs[:most]
        kept = Fragments([(top, stack.memory)])
        trace = Unwinder(self._modules, kept.read).unwind(stack.registers, most)
        try:
            frames = merged(trace, stack.pcs, stack.registers, partial(framed, self._modules))[:most]
        except ValueError:
            return pcs[:most]
        told = in_the_id({"pcs": stack.pcs, "memory": stack.memory.hex()})
        doubts = unsure(placed(frames, self._modules), told, called_elsewhere)
        return frames[: doubts.index(True)] if True in doubts else frames

    def _described(self, address: int) -> tuple[CodePlace, ...]:
        return tuple(
            CodePlace(
                function=frame.function,
                file=frame.location.file if frame.location is not None else "",
                line=frame.location.line if frame.location is not None else 0,
                column=frame.location.column if frame.location is not None else 0,
                inlined=frame.inlined,
            )
            for frame in self._symbolizer.frames(address)
        )

    def code_of(self, address: int) -> tuple[Function, FunctionCode] | None:
        """The function at an image address with its instructions."""
        try:
            self.session.dwarf.refill()
            function = self.session.scopes.function_of(address)
            if function is None:
                return None
            if function.low not in self._codes:
                self._codes[function.low] = FunctionCode(self._executable, function.ranges)
            return function, self._codes[function.low]
        except (SymbolError, *STRAY_ERRORS):
            return None

    # -- variables -------------------------------------------------------------------------------

    def in_scope(self, spot: Spot) -> list[Variable]:
        """Variables of a frame, innermost scope first; empty where debug information is damaged."""
        if not spot.ours:
            return []
        if spot.address not in self._scoped:
            try:
                self._scoped[spot.address] = self.variables.at(spot.address)
            except (SymbolError, *STRAY_ERRORS):
                self._scoped[spot.address] = []
        return self._scoped[spot.address]
