# Owns resolve_cached(): the plan from the cache, else resolved and kept. Loads the resolver (and capstone)
# only when it is needed: a hit costs a few milliseconds. Must not know DWARF.
from __future__ import annotations

import os

from symbols.cache import PlanCache
from symbols.files import files, shipped
from symbols.image import Image
from symbols.plan import ProbePlan

_MAX_PROFILE = 1 << 20


def resolve_cached(
    path: str | os.PathLike[str],
    profile: str | os.PathLike[str] | None = None,
    *,
    debug_file: str | os.PathLike[str] | None = None,
    cache: PlanCache | None = None,
    fresh: bool = False,
) -> ProbePlan:
    """As resolve.resolve(), for a profile's file (None: the shipped one that fits).

    fresh: neither read the cache nor write to it.

    A named debug file is proven to belong to the image on every call. A plan that lacks split debug
    information is not kept: the missing file may come back. Raises SymbolError.
    """
    cache = cache or PlanCache()
    with Image(path) as image:
        if debug_file is not None:
            from symbols.debugfiles import check_pair

            with Image(debug_file, relocatable=True) as debug:
                check_pair(image, debug)
        parts = _profile_bytes(profile)
        known = None if fresh else cache.load(image, parts)
        if known is not None:
            return known
        from symbols.profile import load_profile
        from symbols.resolve import resolve

        chosen = load_profile(profile) if profile is not None else None
        plan = resolve(path, chosen, debug_file=debug_file)
        split = any(lost.address is None for lost in plan.unprobed)
        if not fresh and plan.identity == image.identity and not split:
            cache.store(image, parts, plan)
        return plan


def _profile_bytes(profile: str | os.PathLike[str] | None) -> list[bytes]:
    """What a plan depends on besides the image: the profile's text and name, or all shipped ones'."""
    if profile is not None:
        return [b"named", os.fsencode(profile), _read(os.fspath(profile))]
    return [b"shipped", *shipped().values()]


def _read(path: str) -> bytes:
    try:
        return files().read(path, _MAX_PROFILE + 1)
    except OSError:
        return b""  # load_profile says why
