# Owns which sites of a plan are probed at the branches that lead to them: those on which the kernel would
# have to single-step. Must not look for sites.
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from symbols.code import FunctionCode
from symbols.image import Image
from symbols.plan import Addr, Price, Role, Site
from symbols.registers import X86_64
from symbols.scopes import Function, Scopes
from symbols.ways import ways_to

_SHORTEST = 16  # instructions of a loop over events in which one is passed over
_MOST_SITES = 64  # of a plan: more probes take longer to attach than they save


def cheaper(
    sites: Sequence[Site], image: Image, scopes: Scopes, code_of: Callable[[Function], FunctionCode]
) -> list[Site]:
    """The sites, numbered anew; in the place of a single-stepped one the branches that stand for it, where
    each time exactly one of them is passed just before it, and says the same."""
    taken = {int(site.address) for site in sites}
    made: list[Site] = []
    for position, site in enumerate(sites):
        moved: list[Site] = []
        if (
            scopes.machine is X86_64
            and site.price is Price.SINGLE_STEP
            and site.entry is None
            and not site.at_entry
        ):
            moved = _moved(site, image, scopes, code_of, taken)
        if not moved or len(made) + len(moved) + len(sites) - position > _MOST_SITES:
            moved = [site]
        taken |= {int(one.address) for one in moved}
        made += moved
    return [replace(site, index=index) for index, site in enumerate(made)]


def _moved(
    site: Site,
    image: Image,
    scopes: Scopes,
    code_of: Callable[[Function], FunctionCode],
    taken: set[int],
) -> list[Site]:
    function = scopes.function_of(site.address)
    if function is None:
        return []
    code = code_of(function)
    made = []
    shortest = _SHORTEST if site.role is Role.DISPATCH else 0
    for way in ways_to(code, site.address, site.source, taken, shortest=shortest) or ():
        offset = image.file_offset(way.address)
        if offset is None:
            return []
        why = f"probed at a branch that leads to {site.address:#x}: cheaper"
        made.append(
            replace(
                site,
                address=Addr(way.address),
                file_offset=offset,
                instruction=str(code.insns[way.address]),
                price=code.price(way.address),
                source=way.source,
                note=f"{site.note}; {why}" if site.note else why,
                stands_for=site.address,
                when=way.when,
            )
        )
    return made
