# Owns finding the debug information that belongs to an executable: where distributions, objcopy, elfutils
# and debuginfod keep it. Every candidate is proven (build-id, CRC32) or refused; a guess is never taken.
# Must not read DWARF.
from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from symbols.errors import DebugFileMismatch, MalformedImage, NoDebugInfo, SymbolError
from symbols.fetch import Debuginfod
from symbols.files import files
from symbols.image import Image

DEBUG_ROOTS = ("/usr/lib/debug",)
_PROC = re.compile(r"(/proc/(?:\d+|self|thread-self))/(?:exe|root|cwd|map_files|fd)(?:/|\Z)")
_HEX = re.compile(r"[0-9a-f]{4,128}\Z")


@dataclass(slots=True)
class Searched:
    """Where to look. tried: one line for each place that did not help, for the error."""

    roots: tuple[str, ...] = DEBUG_ROOTS
    server: Debuginfod = field(default_factory=Debuginfod)
    tried: list[str] = field(default_factory=list)

    def note(self, place: str, outcome: str) -> None:
        self.tried.append(f"{place}: {outcome}")


def mount_prefix(path: str) -> str:
    """ "/proc/PID/root" for a path that goes through /proc/PID: a container's files are below it."""
    found = _PROC.match(path)
    return f"{found.group(1)}/root" if found else ""


def find_debug_file(image: Image, searched: Searched | None = None) -> Image:
    """The image that holds the .debug_info of a stripped executable; the caller closes it.

    Order: build-id directories, .gnu_debuglink, debuginfod (its cache first). Raises NoDebugInfo with
    every place tried. A candidate that is not this build's is never used; the error says it was there.
    """
    searched = searched or Searched()
    mismatches = 0
    for path, crc in _candidates(image, searched):
        try:
            return _proven(image, path, crc)
        except DebugFileMismatch as error:
            mismatches += 1
            searched.note(path, error.detail)
        except SymbolError as error:
            searched.note(path, "not there" if not files().exists(path) else error.detail)
    fetched = _from_server(image, searched)
    if fetched is not None:
        return fetched
    detail = "no DWARF debug information (.debug_info), and no separate debug file"
    if mismatches:
        detail += f" of this build ({mismatches} of another)"
    raise NoDebugInfo(detail, path=image.path, tried=tuple(searched.tried))


def check_pair(image: Image, debug: Image) -> None:
    """Raises DebugFileMismatch unless debug was made from the same build, NoDebugInfo when it is empty."""
    ours, theirs = image.build_id, debug.build_id
    if ours != theirs:
        raise DebugFileMismatch(f"build-id {theirs} is not that of {image.path} ({ours})", path=debug.path)
    if ours is None and debug is not image:
        _check_without_id(image, debug)
    if not debug.has_debug_info:
        raise NoDebugInfo("the debug file has no .debug_info either", path=debug.path)


def _check_without_id(image: Image, debug: Image) -> None:
    """No build-id on either side: the CRC32 of .gnu_debuglink, or the very same code, or the same layout."""
    allocated = [(s.name, s.addr, s.size) for s in image.sections if s.flags & 2]
    if allocated != [(s.name, s.addr, s.size) for s in debug.sections if s.flags & 2]:
        raise DebugFileMismatch(f"its sections are not those of {image.path}", path=debug.path)
    link = debug_link(image)
    if link is not None and debug.crc32() == link[1]:
        return
    code = [s for s in image.sections if s.flags & 4]
    if any(debug.has(s.name) for s in code):  # an unstripped copy, not one of only debug sections
        if all(image.section(s.name).same(debug.section(s.name)) for s in code):
            return
        raise DebugFileMismatch(f"its code is not that of {image.path}", path=debug.path)
    if link is not None:
        raise DebugFileMismatch(
            f"CRC32 {debug.crc32():#010x} is not that of .gnu_debuglink ({link[1]:#010x})", path=debug.path
        )


def debug_link(image: Image) -> tuple[str, int] | None:
    """(file name, CRC32) of .gnu_debuglink; None where there is none. Raises MalformedImage."""
    if not image.has(".gnu_debuglink"):
        return None
    data = image.section(".gnu_debuglink")
    name = data.cstr(0)
    at = len(name) + 4 & ~3  # the terminator counts, then padding to four bytes
    text = os.fsdecode(name)
    if not text or "/" in text or text in (".", ".."):
        raise data.bad("names no file")
    return text, data.uint(at, 4)


def alt_link(image: Image) -> tuple[str, str] | None:
    """(path, build-id) of .gnu_debugaltlink (dwz), or of DWARF 5's .debug_sup; None where there is none."""
    if image.has(".gnu_debugaltlink"):
        data = image.section(".gnu_debugaltlink")
        name = data.cstr(0)
        ident = data.read(len(name) + 1, data.size - len(name) - 1)
    elif image.has(".debug_sup"):
        data = image.section(".debug_sup")  # version (2), is_supplementary (1), name, ULEB length, id
        if data.uint(2, 1):
            return None
        name = data.cstr(3)
        at = 3 + len(name) + 1
        ident = data.read(at + 1, data.uint(at, 1) & 0x7F)
    else:
        return None
    return os.fsdecode(name), ident.hex()


def find_supplement(image: Image, searched: Searched | None = None) -> Image | None:
    """The supplementary file that dwz moved shared entries to; None where the image names none.

    Raises NoDebugInfo (not found, with the places tried) and DebugFileMismatch (found, but another).
    """
    link = alt_link(image)
    if link is None:
        return None
    searched = searched or Searched()
    name, ident = link
    prefix, folder = mount_prefix(image.path), os.path.dirname(files().real(image.path))
    places = [f"{prefix}{name}"] if name.startswith("/") else [os.path.join(folder, name)]
    for root in searched.roots:
        places += [_by_id(f"{prefix}{root}", ident)] if _HEX.match(ident) else []
        places.append(f"{prefix}{root}/.dwz/{os.path.basename(name)}")
    wrong: DebugFileMismatch | None = None
    for path in dict.fromkeys(places):
        try:
            found = Image(path, any_machine=True, relocatable=True)
        except SymbolError as error:
            searched.note(path, "not there" if not files().exists(path) else error.detail)
            continue
        theirs = found.build_id or _sup_id(found)
        if theirs == ident:
            return found
        found.close()
        wrong = DebugFileMismatch(
            f"supplementary file has build-id {theirs}, {image.path} wants {ident}", path=path
        )
        searched.note(path, wrong.detail)
    if wrong is not None:
        raise wrong
    if _HEX.match(ident):
        fetched = searched.server.find(ident)
        searched.tried += searched.server.tried
        if fetched is not None:
            found = Image(fetched, any_machine=True, relocatable=True)
            if found.build_id == ident:
                return found
            found.close()
    raise NoDebugInfo(
        f"its supplementary debug file {name} (build-id {ident}) is missing",
        path=image.path,
        remedy=f"install the file (Debian: the package's -dbgsym or {name}), or undo dwz",
        tried=tuple(searched.tried),
    )


def _sup_id(image: Image) -> str | None:
    if not image.has(".debug_sup"):
        return None
    data = image.section(".debug_sup")
    at = 3 + len(data.cstr(3)) + 1
    return data.read(at + 1, data.uint(at, 1) & 0x7F).hex()


def _by_id(root: str, ident: str) -> str:
    return f"{root}/.build-id/{ident[:2]}/{ident[2:]}.debug"


def _candidates(image: Image, searched: Searched) -> Iterator[tuple[str, int | None]]:
    """(path, CRC32 it must have or None) in gdb's order."""
    prefix, ident = mount_prefix(image.path), image.build_id
    prefixes = dict.fromkeys((prefix, ""))
    if ident is None:
        searched.note("build-id directories", "the executable has no build-id")
    else:
        for before in prefixes:
            for root in searched.roots:
                yield _by_id(f"{before}{root}", ident), None
    try:
        link = debug_link(image)
    except MalformedImage as error:
        searched.note(".gnu_debuglink", error.detail)
        return
    if link is None:
        searched.note(".gnu_debuglink", "the executable has none")
        return
    name, crc = link
    folder = os.path.dirname(_real(image.path))
    places = [os.path.join(folder, name), os.path.join(folder, ".debug", name)]
    inside = folder.removeprefix(prefix) if prefix else folder
    for before in prefixes:
        places += [f"{before}{root}{inside}/{name}" for root in searched.roots]
    for place in dict.fromkeys(places):
        if not files().same(place, image.path):
            yield place, crc


def _real(path: str) -> str:
    """The file's own place, for its neighbours; /proc/PID/exe's target seen through /proc/PID/root."""
    prefix = mount_prefix(path)
    if not prefix:
        return files().real(path)
    if path.endswith("/exe"):
        try:
            return prefix + files().link(path).removesuffix(" (deleted)")
        except OSError:
            return path
    return path


def _proven(image: Image, path: str, crc: int | None) -> Image:
    found = Image(path, any_machine=True, relocatable=True)
    try:
        if crc is not None and found.crc32() != crc:
            raise DebugFileMismatch(
                f"CRC32 {found.crc32():#010x} is not that of .gnu_debuglink ({crc:#010x})", path=path
            )
        check_pair(image, found)
    except BaseException:
        found.close()
        raise
    return found


def _from_server(image: Image, searched: Searched) -> Image | None:
    if image.build_id is None:
        searched.note("debuginfod", "needs a build-id, which the executable does not have")
        return None
    path = searched.server.find(image.build_id)
    searched.tried += searched.server.tried
    if path is None:
        return None
    try:
        return _proven(image, path, None)
    except SymbolError as error:
        searched.note(path, error.detail)
        return None
