# Owns guessing a profile: which functions of an unknown program look like a pool's create and destroy, by
# name and signature. Proposes and says how sure it is; the user decides. Must not attach or write files.
from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from symbols import dwarf_const as dw
from symbols.dwarf import Die, Dwarf
from symbols.errors import STRAY_ERRORS, NoProfileMatch, SymbolError, stray
from symbols.image import Image
from symbols.plan import Role
from symbols.pointers import pointee, strip
from symbols.profile import parse_profile
from symbols.resolve import Session, close_session, open_session, resolve
from symbols.search import FUNCTION_TAGS
from symbols.types import member_offset

_DESTROY = re.compile(r"destroy|dealloc|release|recycle|reclaim|free|delete|put|drop|retire", re.IGNORECASE)
_CREATE = re.compile(r"create|alloc|acquire|new|obtain|take|get|make|fetch", re.IGNORECASE)
_SLOTLIKE = re.compile(
    r"conn|client|session|sock|peer|stream|channel|request|slot|handle|context", re.IGNORECASE
)
_SLOT = re.compile(r"(?<![a-z])(conn|connection|client|session|peer|slot)(?![a-z])", re.IGNORECASE)
_POOLLIKE = re.compile(r"pool|slab|arena|free_?list|cache|ring", re.IGNORECASE)
_LINK = re.compile(r"next|link|free|node|sibling", re.IGNORECASE)
_STRUCTS = frozenset((dw.TAG_structure_type, dw.TAG_class_type, dw.TAG_union_type))
_WORK = 6 << 30  # bytes searched for names, all in all
_UNITS = 2_000_000  # units searched, all in all
_MOST_NAMES = 3000
_NESTED = 4  # anonymous members in anonymous members
_SHOWN = 4
_TRIED = 6


@dataclass(slots=True)
class Candidate:
    """A type that some function gives out or takes back."""

    type_name: str
    size: int  # bytes
    link: int | None  # offset of a pointer to its own kind, a likely free-list link
    destroys: list[tuple[int, str, str]] = field(default_factory=list)  # score, function, parameter
    creates: list[tuple[int, str]] = field(default_factory=list)  # score, function
    verdict: str = ""  # what resolving said
    resolves: bool | None = None  # None: not tried

    @property
    def score(self) -> int:
        best = max((score for score, _name, _argument in self.destroys), default=-100)
        both = 6 if self.creates and self.destroys else 0
        named = 4 * bool(_SLOTLIKE.search(self.type_name)) + 2 * bool(_SLOT.search(self.type_name))
        generic = re.split(r"[(<]", self.type_name)[0]
        holder = "memory_pool" in generic or _POOLLIKE.search(re.split(r"[.:]", generic)[-1])
        itself = 10 if holder else 0  # the pool, not what is in it
        return best + both + named - itself + 2 * (self.link is not None)

    @property
    def link_offset(self) -> int | None:
        """Where a free slot's link stands, as far as can be told."""
        return 0 if self.destroys and "memory_pool" in self.destroys[0][1] else self.link

    def to_dict(self) -> dict[str, Any]:
        """For scripts. "verdict" is what resolving said; "" when it was not tried."""
        _score, destroy, argument = self.destroys[0]
        return {
            "type": self.type_name,
            "size": self.size,
            "create": {"function": self.creates[0][1]} if self.creates else None,
            "destroy": {"function": destroy, "slot": argument},
            "freelist_link": self.link_offset,
            "resolves": self.resolves,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What --suggest shows: a guess that resolves if any does, and up to three others."""

    path: str
    chosen: Candidate
    others: tuple[Candidate, ...]

    def text(self) -> str:
        """TOML to start from, the others as comments."""
        return _text(self.path, self.chosen, list(self.others))

    def to_dict(self) -> dict[str, Any]:
        """For scripts: {"image", "profile" (TOML), "chosen", "others"}; of each candidate its functions."""
        return {
            "image": self.path,
            "profile": self.text(),
            "chosen": self.chosen.to_dict(),
            "others": [other.to_dict() for other in self.others],
        }


def suggest(path: str | os.PathLike[str], *, debug_file: str | os.PathLike[str] | None = None) -> str:
    """A profile's text to start from, with the runners-up as comments. Raises as suggestion() does."""
    return suggestion(path, debug_file=debug_file).text()


def suggestion(
    path: str | os.PathLike[str], *, debug_file: str | os.PathLike[str] | None = None
) -> Suggestion:
    """The best guess and the runners-up.

    Raises SymbolError; NoProfileMatch when nothing looks like a pool.
    """
    with Image(path) as image:
        try:
            session = open_session(image, debug_file)
            try:
                ranked = sorted(_candidates(session), key=lambda c: (-c.score, c.type_name))
            finally:
                close_session(session)
        except STRAY_ERRORS as error:
            raise stray(error, image.path) from error
        if not ranked:
            raise NoProfileMatch(
                "no function looks like one that takes back a pool's objects",
                path=image.path,
                remedy="write a profile by hand: docs/profiles.md",
            )
        chosen = None
        for candidate in ranked[:_TRIED]:
            good = _try(candidate, image.path, debug_file)
            if good and chosen is None:
                chosen = candidate
                break
        chosen = chosen or ranked[0]
        others = [candidate for candidate in ranked if candidate is not chosen][: _SHOWN - 1]
        return Suggestion(image.path, chosen, tuple(others))


def _try(candidate: Candidate, path: str, debug_file: str | os.PathLike[str] | None) -> bool:
    """Whether the profile resolves; drops a create that does not."""
    try:
        plan = resolve(path, parse_profile(_profile(candidate, "suggested")), debug_file=debug_file)
    except SymbolError as error:
        candidate.verdict, candidate.resolves = f"does not resolve: {error.detail}", False
        return False
    counts = [(role.value, len(list(plan.by_role(role)))) for role in (Role.CREATE, Role.DESTROY)]
    lost = f", {len(plan.unprobed)} that cannot be probed" if plan.unprobed else ""
    candidate.verdict = ", ".join(f"{count} {name} site(s)" for name, count in counts) + lost
    candidate.resolves = True
    return True


# -- finding -----------------------------------------------------------------------------------------


def _candidates(session: Session) -> Iterator[Candidate]:
    dwarf = session.dwarf
    found: dict[tuple[str, int], Candidate] = {}
    creates: list[tuple[str, Die | None, str]] = []  # name, what a pointer result points to, its type
    for die in _functions(session):
        name = dwarf.linkage_name(die)
        short = _verb_of(dwarf.name(die) or name)
        if _DESTROY.search(short):
            for argument, kind in _pointers(dwarf, die):
                candidate = _candidate(dwarf, kind, found)
                entry = (_rate(name, short, _DESTROY, candidate.type_name), name, argument)
                if entry not in candidate.destroys:
                    candidate.destroys.append(entry)
        if _CREATE.search(short):
            result = pointee(dwarf, die)
            whole = strip(dwarf, dwarf.target(die, dw.AT_type))
            creates.append((name, result, dwarf.name(whole) if whole is not None else ""))
    for name, result, returned in creates:
        for candidate in found.values():
            mine = result is not None and dwarf.name(result) == candidate.type_name
            # Zig: error{OutOfMemory}!*T is a struct of that name, or nothing where it comes back in memory.
            mine = mine or returned.endswith(f"!*{candidate.type_name}")
            if mine or any(_siblings(name, destroy) for _score, destroy, _argument in candidate.destroys):
                rated = (_rate(name, _verb_of(name), _CREATE, candidate.type_name), name)
                if rated not in candidate.creates:
                    candidate.creates.append(rated)
    for candidate in found.values():
        candidate.destroys.sort(key=lambda e: (-e[0], e[1]))
        candidate.creates.sort(key=lambda e: (-e[0], e[1]))
        _pair(candidate)
        if candidate.destroys and candidate.size >= 8:
            yield candidate


def _pair(candidate: Candidate) -> None:
    """Put the create first that is a method of the same pool as the destroy."""
    if not candidate.destroys:
        return
    destroy = candidate.destroys[0][1]

    candidate.creates.sort(key=lambda e: (not _siblings(e[1], destroy), -e[0], e[1]))


def _siblings(create: str, destroy: str) -> bool:
    """Methods of one generic pool: "heap.memory_pool.Extra(T).create" and "….destroy"."""
    verb, other = _verb_of(create), _verb_of(destroy)
    home = create[: len(create) - len(verb)]
    return ")" in home and home == destroy[: len(destroy) - len(other)]


def _functions(session: Session) -> Iterator[Die]:
    """Functions whose names have one of the verbs; the more telling names first where there are many."""
    dwarf = session.dwarf
    if any(unit.abbrevs and unit.part.suffix for unit in dwarf.units) or not any(
        unit.part.str.size for unit in dwarf.units
    ):
        names = set(_names_by_scan(session))
    else:
        names = set()
        for unit in {id(u.part.str.buf): u for u in dwarf.units}.values():
            data = unit.part.str
            for start in range(0, data.size, 1 << 22):
                piece = data.read(start, min(1 << 22, data.size - start))
                for raw in piece.split(b"\0"):
                    if 2 < len(raw) < 512:
                        text = raw.decode("utf-8", "replace")
                        verb = _verb_of(text)
                        if _DESTROY.search(verb) or _CREATE.search(verb):
                            names.add(text)
    size = sum(unit.end - unit.first for unit in dwarf.units) or 1
    most = max(24, min(_MOST_NAMES, _WORK // size, _UNITS // max(len(dwarf.units), 1)))
    seen: set[int] = set()
    for name in sorted(names, key=lambda n: (-_rate(n, _verb_of(n), _DESTROY, n), len(n), n))[:most]:
        dwarf.refill()
        if name[:1] in "*?":
            continue
        for die in session.search.named(name, FUNCTION_TAGS):
            if die.offset not in seen and die.tag == dw.TAG_subprogram:
                seen.add(die.offset)
                yield die


def _names_by_scan(session: Session) -> Iterator[str]:
    dwarf = session.dwarf
    for unit in dwarf.units:
        dwarf.refill()
        for offset, _abbrev in session.search.scan(unit, (dw.TAG_subprogram,)):
            die = dwarf.die(offset, unit)
            name = dwarf.linkage_name(die) if die is not None else ""
            if _DESTROY.search(_verb_of(name)) or _CREATE.search(_verb_of(name)):
                yield name


def _verb_of(name: str) -> str:
    """The last part of a qualified name: "destroy" of "heap.memory_pool.Extra(a.B,.{ .c = 1 }).destroy"."""
    return re.split(r"[.:)>]", name.rstrip())[-1] or name


def _rate(name: str, verb: str, wanted: re.Pattern[str], type_name: str) -> int:
    """How much a function looks like a pool's: exact verbs, pool-like names, the object's name in it."""
    match = wanted.search(verb)
    if match is None:
        return -5
    order = wanted.pattern.split("|").index(match.group().lower())
    score = 6 - order // 2 + (4 if match.group() == verb else 0)
    score += 4 * bool(_POOLLIKE.search(name)) + 3 * bool(_SLOTLIKE.search(name))
    stem = re.sub(r"\W.*", "", type_name).lower()
    score += 3 if len(stem) > 2 and stem in name.lower() else 0
    if re.search(r"\b(std|__gnu|core|alloc|fmt|debug|Io|posix)\b|allocator|ArrayList|HashMap|_ZNSt|^_", name):
        score -= 4 if "memory_pool" in name else 12
    return score


def _pointers(dwarf: Dwarf, die: Die) -> Iterator[tuple[str, Die]]:
    """(name, struct) of parameters that point to a struct."""
    for child in dwarf.children(die):
        if child.tag == dw.TAG_formal_parameter:
            name, kind = dwarf.name(child), pointee(dwarf, child)
            if name and kind is not None and kind.tag in _STRUCTS and dwarf.name(kind):
                yield name, kind


def _candidate(dwarf: Dwarf, kind: Die, found: dict[tuple[str, int], Candidate]) -> Candidate:
    name, size = dwarf.name(kind), kind.number(dw.AT_byte_size) or 0
    if (name, size) not in found:
        links = sorted(_links(dwarf, kind, name))
        link = links[0][1] if links else None
        found[name, size] = Candidate(name, size, link)
    return found[name, size]


def _links(dwarf: Dwarf, kind: Die, name: str, base: int = 0, depth: int = 0) -> Iterator[tuple[int, int]]:
    """(rank, offset) of pointers to its own kind; what says "free" comes first, then what shares its place.

    Members of anonymous structs and unions are members of the type (C11, 6.7.2.1).
    """
    for child in dwarf.children(kind):
        if child.tag != dw.TAG_member:
            continue
        offset = base + (member_offset(child) or 0)
        inner = strip(dwarf, dwarf.target(child, dw.AT_type))
        if inner is not None and inner.tag in _STRUCTS and not dwarf.name(child) and depth < _NESTED:
            yield from _links(dwarf, inner, name, offset, depth + 1)
            continue
        target, label = pointee(dwarf, child), dwarf.name(child)
        if target is not None and dwarf.name(target) == name and _LINK.search(label):
            shared = kind.tag == dw.TAG_union_type
            yield (0 if "free" in label.lower() else 1 if shared else 2), offset


# -- showing -----------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    """A TOML basic string. Control characters become ?, which a glob reads as any character."""
    clean = "".join("?" if ord(c) < 32 or ord(c) == 127 else c for c in text)
    return '"' + clean.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _profile(candidate: Candidate, name: str) -> str:
    _score, function, argument = candidate.destroys[0]
    lines = [f"name = {_quoted(name)}", "", "[slot]", f"type = {_quoted(candidate.type_name)}"]
    if candidate.creates:
        create = _quoted(candidate.creates[0][1])
        lines.append(f'create = {{ function = {create}, returns = "slot" }}')
    lines.append(f"destroy = {{ function = {_quoted(function)}, slot = {_quoted(argument)} }}")
    if candidate.link_offset is not None:
        lines.append(f"freelist_link = {{ offset = {candidate.link_offset} }}")
    return "\n".join(lines) + "\n"


def _text(path: str, chosen: Candidate, others: list[Candidate]) -> str:
    exe = _quoted(os.path.basename(path))[1:-1]
    kept = [
        f"# A guess for {exe}, from names and signatures: read it before you use it.",
        f"# {chosen.verdict or 'not resolved'}; the type has {chosen.size} bytes.",
        _profile(chosen, re.sub(r"\W+", "-", os.path.basename(path)).strip("-") or "suggested"),
        '# disown   = { function = "…", slot = "…" }    # takes the slot out of use before destroy',
        '# dispatch = { function = "…", object = "…" }  # starts to work on a delivery',
        "",
        "[userdata]",
        'kind = "pointer"  # or "fd"; mask = … where low bits carry a generation; docs/profiles.md',
    ]
    for other in others:
        verdict = f" ({other.verdict})" if other.verdict else ""
        kept += ["", f"# Or{verdict}:"]
        kept += [f"#   {line}" for line in _profile(other, "other").splitlines()[2:] if line]
    return "\n".join(kept) + "\n"
