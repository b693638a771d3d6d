# Owns which image lies where in a process: mappings (of /proc/PID/maps or a core's NT_FILE) -> modules.
# Must not read processes; who has the mappings brings them, and a way to open an image.
from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from symbols.cfi import FrameTable
from symbols.image import Image
from symbols.plan import Segment

_PAGE = 4096


class Mapping(NamedTuple):
    """One file-backed mapping: run-time addresses [start, end), the file offset of `start`, the path."""

    start: int
    end: int
    offset: int
    path: str


@dataclass(frozen=True, slots=True)
class Module:
    """An image in a process. bias: run-time address minus image address."""

    start: int
    end: int
    bias: int
    path: str
    image: Image | None = None
    table: FrameTable | None = None

    def executable(self, pc: int) -> bool:
        """Whether code of the image lies at a run-time address; where the image is unknown: perhaps."""
        return self.image.executable(pc - self.bias) if self.image is not None else True


class Modules:
    """The modules of one process, by address."""

    def __init__(self, modules: Iterable[Module]) -> None:
        self._modules = sorted(modules, key=lambda module: module.start)
        self._starts = [module.start for module in self._modules]

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules)

    def __bool__(self) -> bool:
        return bool(self._modules)

    def find(self, address: int) -> Module | None:
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0 or address >= self._modules[index].end:
            return None
        return self._modules[index]

    def code(self, address: int, count: int) -> bytes | None:
        """Bytes of the image's file behind a run-time address: what a core leaves out."""
        module = self.find(address)
        if module is None or module.image is None:
            return None
        raw = module.image.code(address - module.bias, count)
        return raw if len(raw) == count else None


def bias_of(segments: Sequence[Segment], mapping: Mapping, *, executable: bool = False) -> int | None:
    """What the loader added to the image's addresses, from the mapping that brings one of its segments.

    executable: the mapping is. Two segments may share a page of the file, which is mapped twice then.
    """
    wanted = [segment for segment in segments if segment.executable or not executable]
    starts = [segment.offset - segment.offset % _PAGE for segment in wanted]
    exact = [pair for pair in zip(wanted, starts, strict=True) if pair[1] == mapping.offset]
    for segment, first in exact or zip(wanted, starts, strict=True):
        if first <= mapping.offset < segment.offset + max(segment.filesz, 1):
            return mapping.start - (segment.vaddr - segment.vaddr % _PAGE) - (mapping.offset - first)
    return None


def load_bias(segments: Sequence[Segment], parts: Iterable[Mapping]) -> int | None:
    """The bias under which most segments are where the loader puts them; None where no part fits.

    A file may be mapped a second time, as data: programs that print their own stack read themselves so.
    """
    votes: dict[int, int] = {}
    for part in sorted(parts):
        bias = bias_of(segments, part)
        if bias is not None:
            votes[bias] = votes.get(bias, 0) + 1
    return max(votes, key=lambda bias: votes[bias]) if votes else None


def modules_of(mappings: Iterable[Mapping], open_image: Callable[[str], Image | None]) -> Modules:
    """Modules of mappings. open_image: None where the file is gone or no image."""
    groups: dict[str, list[Mapping]] = {}
    for mapping in sorted(mappings):
        groups.setdefault(mapping.path, []).append(mapping)
    found = []
    for path, parts in groups.items():
        image = open_image(path)
        bias = load_bias(image.segments, parts) if image is not None else None
        if image is None or bias is None or not image.segments:
            found += [Module(part.start, part.end, part.start - part.offset, path) for part in parts]
            continue
        start = bias + min(segment.vaddr for segment in image.segments)
        end = bias + max(segment.vaddr + segment.memsz for segment in image.segments)
        found.append(Module(start, end, bias, path, image, FrameTable(image)))
    return Modules(found)
