# Owns the source frames of a moment that a probe saw: its instance as the plan has it, not the place that the
# probe was moved to, where an optimizer has mixed in its neighbours' code. Must not judge.
from __future__ import annotations

from dataclasses import replace

from agent.forensics.facts import CodePlace
from symbols.plan import InstanceKind, ProbePlan, Site


def site_at(plan: ProbePlan, address: int) -> Site | None:
    """The instance whose hits are told as image address `address`."""
    for site in plan.sites:
        if address == (site.address if site.stands_for is None else site.stands_for):
            return site
    return None


def inside(site: Site, address: int) -> int:
    """An image address in the instance's own code: `address` itself where that is."""
    if not site.ranges or any(low <= address < high for low, high in site.ranges):
        return address
    return site.ranges[0][0]


def of_instance(
    site: Site, within: tuple[CodePlace, ...], probed: tuple[CodePlace, ...]
) -> tuple[CodePlace, ...]:
    """Frames from the function that the profile names outwards, its caller at the plan's call site.

    within: frames of an address of the instance's own code; probed: of the probe's place. Innermost first.
    """
    frames = within or probed
    names = [frame.function for frame in frames]
    if site.function in names:
        frames = frames[names.index(site.function) :]
    call = site.call_site
    if site.kind is not InstanceKind.INLINED or call is None or not call.line or not frames:
        return frames
    if frames[0].function == site.function:
        called, callers = frames[:1], frames[1:]
    elif any((frame.file, frame.line) == (call.file, call.line) for frame in frames):
        return frames  # the instance goes by another form of its name
    else:  # the probe lies before the instance, and where its own code is was not kept
        called, callers = (CodePlace(function=site.function, inlined=True),), frames
    if callers:
        caller = replace(callers[0], file=call.file, line=call.line, column=call.column)
        callers = (caller, *callers[1:])
    return called + callers
