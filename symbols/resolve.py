# Owns resolve(): executable + profile -> ProbePlan. Puts the parts together and decides nothing twice.
# Must not print, cache, or attach.
from __future__ import annotations

import os
from dataclasses import dataclass, replace

from symbols.cheaper import cheaper
from symbols.creates import Births
from symbols.debugfiles import Searched, check_pair, find_debug_file
from symbols.dwarf import Die, Dwarf
from symbols.dwarf_const import RECORD_TAGS
from symbols.errors import STRAY_ERRORS, NoDestroySite, NoProfileMatch, stray
from symbols.expressions import Unsupported
from symbols.image import Image
from symbols.instances import Finder, Instance
from symbols.layout import Tie, slot_layout
from symbols.linetable import LineTables
from symbols.merged import MergedDestroys
from symbols.outside import OutsideProbes
from symbols.owntype import of_slot_type, slot_type_by_name
from symbols.parts import without_nested, without_parts
from symbols.placing import Placer
from symbols.plan import EntrySite, InstanceKind, ProbePlan, Role, Site, Unprobed
from symbols.pointers import pointee
from symbols.profile import Profile, shipped_profiles
from symbols.qualified import complete_type
from symbols.registers import X86_64
from symbols.remedies import remedy as remedy_of
from symbols.scopes import Scopes
from symbols.search import FUNCTION_TAGS, Search
from symbols.sites import SiteBuilder
from symbols.tangles import Placed, untangle
from symbols.ties import Ties

_MAX_REASONS = 3  # in the error of a destroy that cannot be probed
_MAX_MISSING = 64  # split units without their file that are named one by one


@dataclass(slots=True)
class Session:
    """One image with its debug information opened for searching."""

    image: Image  # the code that runs
    debug: Image  # where .debug_* sections come from; often the same
    dwarf: Dwarf
    search: Search
    lines: LineTables
    scopes: Scopes


def open_session(
    image: Image, debug_file: str | os.PathLike[str] | None = None, searched: Searched | None = None
) -> Session:
    """The debug information of an image: its own, the named file's, or what debugfiles.py finds.

    Raises SymbolError. The caller closes both images (close_session).
    """
    debug = image
    if debug_file is not None:
        debug = Image(debug_file, relocatable=True)
        try:
            check_pair(image, debug)
        except BaseException:
            debug.close()
            raise
    elif not image.has_debug_info:
        debug = find_debug_file(image, searched)
    try:
        dwarf = Dwarf(debug, searched)
        search, lines = Search(dwarf), LineTables(dwarf)
        scopes = Scopes(image, dwarf, search, lines, symbols=debug if debug.has_functions else image)
    except BaseException:
        if debug is not image:
            debug.close()
        raise
    return Session(image, debug, dwarf, search, lines, scopes)


def close_session(session: Session) -> None:
    session.dwarf.close()
    if session.debug is not session.image:
        session.debug.close()


def resolve(
    path: str | os.PathLike[str],
    profile: Profile | None = None,
    *,
    debug_file: str | os.PathLike[str] | None = None,
    searched: Searched | None = None,
) -> ProbePlan:
    """The probe plan of an executable.

    Without a profile, the shipped one whose destroy resolves. Without debug information of its own and no
    debug_file, it is looked for where distributions and debuginfod keep it (searched: where).
    Raises SymbolError: NotElf, WrongMachine, NoDebugInfo, DebugFileMismatch, MalformedImage,
    NoProfileMatch, NoDestroySite.
    """
    with Image(path) as image:
        try:
            session = open_session(image, debug_file, searched)
            try:
                return _Resolver(session, profile or _pick(session)).plan()
            finally:
                close_session(session)
        except STRAY_ERRORS as error:
            raise stray(error, image.path) from error


def pick_profile(image: Image) -> Profile:
    """The shipped profile whose destroy function is in the image. Raises NoProfileMatch, NoDebugInfo."""
    try:
        return _pick(open_session(image))
    except STRAY_ERRORS as error:
        raise stray(error, image.path) from error


def _pick(session: Session) -> Profile:
    profiles = shipped_profiles()
    for profile in profiles:
        if session.search.named(profile.functions[Role.DESTROY].pattern, FUNCTION_TAGS):
            return profile
    names = tuple(profile.name for profile in profiles)
    raise NoProfileMatch(
        f"no shipped profile fits this executable (tried: {', '.join(names)})",
        path=session.image.path,
        tried=names,
    )


class _Resolver:
    def __init__(self, session: Session, profile: Profile) -> None:
        self._session = session
        self._profile = profile
        self._finder = Finder(session.image, session.dwarf, session.search, session.scopes)
        self._builder = SiteBuilder(
            session.image,
            session.dwarf,
            session.scopes,
            slot_type=profile.slot_type,
            link_offset=profile.freelist_offset or 0,
        )
        births = Births(
            session.dwarf,
            session.scopes,
            slot_type=profile.slot_type,
            link_offset=profile.freelist_offset or 0,
        )
        outside = OutsideProbes(session.image, session.scopes, self._finder, self._builder)
        self._placer = Placer(session.scopes, self._builder, births, outside)
        self._sites: list[Site] = []
        self._unprobed: list[Unprobed] = []
        self._warnings: list[str] = []
        self._slot_type: Die | None = None
        self._tie: Tie | None = None

    def plan(self) -> ProbePlan:
        session, profile = self._session, self._profile
        for role in Role:
            spec = profile.functions.get(role)
            if spec is None:
                continue
            instances, lost = self._finder.find(spec)
            self._unprobed += lost
            instances, others = of_slot_type(session.dwarf, session.scopes, instances, profile)
            if others:
                self._warnings.append(f"{role.value}: left alone, of another type: {', '.join(others)}")
            self._builder.learn(instances)
            placed = [self._place(instance) for instance in instances]
            placed = without_parts(placed, session.scopes.symbols)
            if not spec.returned:
                placed = without_nested(placed, self._builder.holds, session.dwarf)
            if role is Role.DISPATCH:
                self._tie_all(placed)
            for one in untangle(placed) if role is Role.DESTROY else placed:
                self._take(one)
            if role is Role.DESTROY:
                self._merged(placed)
            if not self._finder.matched[role]:
                self._warnings.append(
                    f"{role.value}: no function matches {spec.pattern!r}: its name is another one, or the "
                    "compiler left nothing of it (noinline keeps it)"
                )
            elif not instances and self._finder.narrowed.get(role):
                self._warnings.append(f"{role.value}: in, not_in and file leave out every instance")
            elif not instances and not lost:
                self._warnings.append(
                    f"{role.value}: {spec.pattern!r} has no code in this executable (noinline keeps it)"
                )
        if not any(site.role is Role.DESTROY for site in self._sites):
            raise self._no_destroy()
        self._unknown_units()
        self._sites = cheaper(self._sites, session.image, session.scopes, self._finder.code_of)
        entries = self._used_entries()
        layout, userdata, notes = slot_layout(session.dwarf, profile, self._slot(), self._tie)
        self._warnings += notes
        image = session.image
        return ProbePlan(
            image=image.path,
            identity=image.identity,
            machine=image.machine,
            pie=image.pie,
            profile=profile.name,
            guard=profile.guard,
            userdata=userdata,
            slot=layout,
            segments=image.segments,
            sites=tuple(self._sites),
            unprobed=tuple(self._unprobed),
            warnings=tuple(self._warnings),
            entries=entries,
        )

    def _slot(self) -> Die | None:
        """The slot's type: what destroy's parameter points to, else what the profile names."""
        session = self._session
        if self._slot_type is None:
            self._slot_type = slot_type_by_name(session.dwarf, session.search, self._profile)
        return self._slot_type

    def _tie_all(self, placed: list[Placed]) -> None:
        """Takes the sites from dispatches whose object does not lead to a slot: they would tell nothing."""
        session = self._session
        ties = Ties(session.dwarf, session.scopes, session.search, self._profile, self._slot())
        for one in placed:
            if not one.sites:
                continue
            tie = ties.of(one.instance, one.sites)
            if isinstance(tie, str):
                one.sites, one.reason = [], tie
            elif self._tie is not None and not self._tie.same_place(tie):
                one.sites = []
                one.reason = (
                    f"cannot be tied to a slot: {self._tie} in another dispatch, {tie} in this one; narrow"
                    " function, or use in and not_in"
                )
            else:
                self._tie = self._tie or tie

    def _used_entries(self) -> tuple[EntrySite, ...]:
        """The entry sites of the sites that are left, numbered anew."""
        made = self._builder.kept_at_entries
        used = sorted({site.entry for site in self._sites if site.entry is not None})
        self._sites = [
            site if site.entry is None else replace(site, entry=used.index(site.entry))
            for site in self._sites
        ]
        return tuple(replace(made[old], index=new) for new, old in enumerate(used))

    def _unknown_units(self) -> None:
        """A split unit without its file may hold instances of anything: say so for every role."""
        lost = self._session.dwarf.missing
        shown = [*lost[:_MAX_MISSING], *([f"{len(lost)} units in all"] if len(lost) > _MAX_MISSING else [])]
        for missing in shown:
            self._unprobed += [
                Unprobed(
                    role=role,
                    function=spec.pattern,
                    kind=InstanceKind.INLINED,
                    address=None,
                    enclosing="?",
                    call_site=None,
                    reason=f"may have instances in split debug information that is not there: {missing}",
                )
                for role, spec in self._profile.functions.items()
            ]

    def _place(self, instance: Instance) -> Placed:
        """Sites of one instance, or the reason why it has none: all of it or nothing."""
        self._learn_type(instance)
        placed, lost = self._placer.place(instance)
        self._unprobed += lost
        return placed

    def _take(self, placed: Placed) -> None:
        if placed.reason:
            self._unprobed.append(placed.instance.unprobed(placed.reason))
        for site in placed.sites:
            if not self._same_as_before(site):
                self._sites.append(replace(site, index=len(self._sites)))

    def _merged(self, placed: list[Placed]) -> None:
        """Destroys that lost their debug entries (merged.py)."""
        known = [(one.instance, site.source) for one in placed for site in one.sites]
        instances = [one.instance for one in placed]
        if self._session.scopes.machine is not X86_64:
            self._warnings.append(
                "destroy: copies that were merged and have no debug entry are looked for on x86-64 only"
            )
        merged = MergedDestroys(
            self._session.dwarf,
            self._session.scopes,
            self._finder,
            self._session.search,
            slot_type=self._profile.slot_type,
            link_offset=self._profile.freelist_offset or 0,
        )
        found, lost = merged.find(known, instances)
        self._unprobed += lost
        for instance, place in found:
            try:
                self._sites.append(self._builder.site(instance, place, len(self._sites)))
            except Unsupported as error:
                self._unprobed.append(instance.unprobed(str(error)))

    def _same_as_before(self, site: Site) -> bool:
        """Two DIEs for one piece of code (identical instances folded): one probe is right."""
        for other in self._sites:
            if other.address == site.address and other.role is site.role and other.source == site.source:
                return True
        return False

    def _learn_type(self, instance: Instance) -> None:
        """What destroy's (disown's) parameter points to is the slot."""
        if self._slot_type is not None or instance.role in (Role.CREATE, Role.DISPATCH):
            return
        session = self._session
        for die in session.dwarf.origin_chain(instance.die):
            for variable in session.scopes.variables(die):
                if session.dwarf.name(variable) == instance.spec.argument:
                    target = pointee(session.dwarf, variable)
                    if target is not None and target.tag in RECORD_TAGS:
                        self._slot_type = complete_type(session.dwarf, session.search, target)
                    return

    def _no_destroy(self) -> NoDestroySite:
        spec = self._profile.functions[Role.DESTROY]
        found = [f"matched {name}" for name in self._finder.matched.get(Role.DESTROY, [])]
        for lost in self._unprobed:
            if lost.role is Role.DESTROY:
                where = f"{lost.address:#x} in {lost.enclosing}" if lost.address else lost.enclosing
                found.append(f"{lost.kind.value} at {where}: {lost.reason}")
        left_out = self._finder.narrowed.get(Role.DESTROY)
        if left_out:
            found.append(f"{left_out} left out by in, not_in and file")
        detail = f"profile {self._profile.name!r}: no place to probe destroy ({spec.pattern})"
        reasons = list(dict.fromkeys(one.reason for one in self._unprobed if one.role is Role.DESTROY))
        if reasons or left_out:
            detail += f": {'; '.join(reasons[:_MAX_REASONS] or found[-1:])}"
        misnamed = any("has no parameter" in reason for reason in reasons)
        remedy = f'write one of its parameters in the profile instead of slot = "{spec.argument}"'
        path = self._session.image.path
        if not misnamed:
            first = next((one for one in self._unprobed if one.role is Role.DESTROY), None)
            call = first.call_site.file if first is not None and first.call_site is not None else ""
            remedy = remedy_of("destroy", first.function, first.reason, call) if first is not None else ""
        return NoDestroySite(detail, path=path, found=tuple(found), remedy=remedy)
