# Owns the step from a core file to evidence: which mapping is the executable, whether the two belong
# together, what the core leaves out. The core is untrusted. Must not explain.
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from agent.forensics.evidence import (
    CrashEvidence,
    Layered,
    Region,
    Source,
    TargetIdentity,
    ThreadState,
)
from agent.forensics.examine import examine
from agent.forensics.explain import explain
from agent.forensics.explanation import Explanation
from agent.forensics.view import OpenImage
from probes.events import MappedModule
from symbols.cached import resolve_cached
from symbols.corefile import CoreFile, DamagedCore
from symbols.errors import STRAY_ERRORS, SymbolError, stray
from symbols.image import Image
from symbols.modules import load_bias, modules_of
from symbols.resolve import close_session, open_session

_PAGE = 4096
_COMPARED = 1 << 20  # bytes of captured code that are compared with the executable's
_MOST_FILES = 256
_FAULTS = (4, 5, 7, 8, 11)  # SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV: si_addr has a meaning


class CoreMismatch(SymbolError):
    """The core is of another program, or of another build of it."""

    default_remedy = "name the very executable that crashed; the core's files are listed by `file CORE`"


class OpenedCore:
    """A core and the images it maps."""

    def __init__(self, core: CoreFile, evidence: CrashEvidence, open_image: OpenImage) -> None:
        self.core = core
        self.evidence = evidence
        self.open_image = open_image


def explain_core(
    core: str, exe: str, *, profile: str | None = None, debug_file: str | None = None
) -> Explanation:
    """The explanation of a core, as far as it goes.

    Raises SymbolError: of the executable or its profile; NotACore, DamagedCore, CoreMismatch of the core.
    """
    # The core comes before the plan: one of another program is told at once.
    with Image(exe) as image, opened(core, image) as found:
        plan = resolve_cached(exe, profile, debug_file=debug_file)
        try:
            session = open_session(image, debug_file)
        except STRAY_ERRORS as error:
            raise stray(error, image.path) from error
        try:
            return explain(found.evidence, examine(found.evidence, plan, session, found.open_image))
        finally:
            close_session(session)


@contextmanager
def opened(path: str, image: Image) -> Iterator[OpenedCore]:
    """The evidence in a core of `image`. Raises SymbolError: NotACore, DamagedCore, CoreMismatch."""
    with ExitStack() as stack:
        core = CoreFile(path)
        stack.callback(core.close)
        if not core.threads:
            cut = _cut(core)
            why = f": {cut}" if cut else ""
            raise DamagedCore(f"no thread's registers are in it{why}", path=path, where="core file")
        name = executable_path(core, image)
        bias = load_bias(image.segments, (m for m in core.files if m.path == name))
        if bias is None:
            raise CoreMismatch(f"the core maps {name}, whose segments are others", path=image.path)
        proven = compare(core, image, bias)
        known: dict[str, Image | None] = {name: image}

        def open_image(name: str) -> Image | None:
            if name not in known:
                known[name] = _library(name) if len(known) < _MOST_FILES else None
                found = known[name]
                if found is not None:
                    stack.callback(found.close)
            return known[name]

        yield OpenedCore(core, _evidence(core, image, name, bias, open_image, proven), open_image)


def _cut(core: CoreFile) -> str:
    """What is missing of a core that is shorter than its headers say; "" where nothing is."""
    if core.whole <= core.size:
        return ""
    return (
        f"the core is truncated: it holds {core.size} of {core.whole} bytes (a full disk, `ulimit -c`, or "
        "systemd's ExternalSizeMax=); what lay in the rest is not known"
    )


def executable_path(core: CoreFile, image: Image) -> str:
    """The program's path as the core has it. Raises CoreMismatch."""
    path = next((m.path for m in core.files if core.entry and m.start <= core.entry < m.end), None)
    if path is None:
        names = [m.path for m in core.files]
        wanted = os.path.realpath(image.path)
        path = next((name for name in names if name in (wanted, image.path)), None)
        base = os.path.basename(wanted)
        path = path or next((name for name in names if os.path.basename(name) == base), None)
    if path is None:
        raise CoreMismatch("the core does not say that it maps this file", path=image.path)
    return path


def compare(core: CoreFile, image: Image, bias: int) -> bool:
    """Compare what the core holds of the executable's headers and code with the file.

    False where it holds neither. Raises CoreMismatch.
    """
    seen = False
    for segment in image.segments:
        start = segment.vaddr + bias
        # the first page of an ELF mapping is dumped for its headers and build-id (coredump_filter bit 4)
        header = segment.offset == 0 and not segment.executable
        if not (segment.executable or header):
            continue
        left = min(segment.filesz, _PAGE if header else _COMPARED)
        for at in range(start, start + left, _PAGE):
            count = min(_PAGE, start + left - at)
            raw = core.memory(at, count)
            if raw is None:
                continue
            seen = True
            file = image.code(at - bias, count)
            if raw != file and not (header and at == start and _unsectioned(raw) == _unsectioned(file)):
                what = "headers" if header else "code"
                raise CoreMismatch(
                    f"it is another build than the one that crashed: its {what} differ", path=image.path
                )
    return seen


def _unsectioned(page: bytes) -> bytes:
    """An ELF file's first bytes without where its section headers are: all that strip(1) changes of them."""
    head = bytearray(page)
    for at, size in ((40, 8), (58, 6)):  # e_shoff; e_shentsize, e_shnum, e_shstrndx of struct Elf64_Ehdr
        head[at : at + size] = bytes(size)
    return bytes(head)


def _library(path: str) -> Image | None:
    try:
        return Image(path, any_machine=True)
    except SymbolError:
        return None


def _evidence(
    core: CoreFile, image: Image, name: str, bias: int, open_image: OpenImage, proven: bool
) -> CrashEvidence:
    first = core.threads[0]  # the kernel, and gdb, write the thread with the signal first
    crashed = next((t for t in core.threads if t.info is not None and t.info.signal), first)
    crashed = first if first.signal or first.info is not None else crashed
    info = crashed.info
    signal = info.signal if info is not None and info.signal else crashed.signal
    address = info.address if info is not None and signal in _FAULTS and info.code > 0 else None
    notes = [note for note in (_cut(core),) if note]
    if not proven:
        notes.append(
            "the core holds nothing of the executable to compare: that they belong together is not proven"
        )
    return CrashEvidence(
        source=Source.CORE,
        target=TargetIdentity(tgid=core.pid, exe=name, identity=image.identity, bias=bias, comm=core.comm),
        signal=signal,
        si_code=info.code if info is not None else None,
        fault_addr=address,
        threads=tuple(
            ThreadState(tid=thread.tid, registers=thread.registers, crashed=thread is crashed)
            for thread in core.threads
        ),
        modules=tuple(
            MappedModule(
                start=module.start,
                end=module.end,
                bias=module.bias,
                path=module.path,
                identity=image.identity if module.image is image else "",
            )
            for module in modules_of(core.files, open_image)
        ),
        regions=tuple(Region(s.start, s.end, s.flags) for s in core.segments),
        memory=Layered(core.memory),
        notes=tuple(notes),
    )
