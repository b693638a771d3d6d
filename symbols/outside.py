# Owns probing a function where it is called: a create that ends in a tail call returns its slot to its
# callers only, and an entry that the kernel takes no probe on has its argument at every call already.
from __future__ import annotations

from dataclasses import dataclass, replace

from symbols.callers import Call, Callers, only_passes_on
from symbols.code import FunctionCode
from symbols.expressions import Unsupported
from symbols.image import Image
from symbols.instances import Finder, Instance
from symbols.plan import ArgSource, Site, Unprobed
from symbols.scopes import Scopes
from symbols.sites import Found, SiteBuilder

_MAX_BACK = 16  # instructions
_MAX_DEPTH = 4  # tail calls of tail calls


@dataclass(slots=True)
class Outside:
    """Sites in callers; lost: the calls that are known and have none. complete: there are no others."""

    sites: list[Site]
    lost: list[Unprobed]

    @property
    def complete(self) -> bool:
        return bool(self.sites) and not self.lost


def earlier(code: FunctionCode, address: int, source: ArgSource) -> int | None:
    """The nearest address before one, on the only way to it, that takes a probe and means the same."""
    at = address
    for _ in range(_MAX_BACK):
        preds = code.preds.get(at, [])
        if len(preds) != 1 or code.succ(preds[0]) != (at,) or at in code.targets:
            return None
        at = preds[0]
        if code.insns[at].mnemonic.startswith("call") or not code.passes(at, source, harmless=False):
            return None
        if code.refused(at) is None:
            return at
    return None


class OutsideProbes:
    """Sites at the calls of functions of one image."""

    def __init__(self, image: Image, scopes: Scopes, finder: Finder, builder: SiteBuilder) -> None:
        self._scopes = scopes
        self._builder = builder
        self._callers = Callers(image, scopes, finder)

    def of_result(self, instance: Instance) -> Outside:
        """Behind each call of a create, where its result is in its register."""
        outside = Outside([], [])
        self._results(instance, instance.function.low, outside, {instance.function.low}, 0)
        return self._said(instance, outside, "it ends in a tail call, and its callers get the result")

    def of_argument(self, instance: Instance, source: ArgSource) -> Outside:
        """At each call of a function that has its argument in a register."""
        outside = Outside([], [])
        calls, reasons = self._callers.of(instance.function.low)
        self._lose(instance, reasons, outside)
        for call in calls:
            if call.kind == "jcc":
                reason = "it is called by a conditional jump, which a probe cannot tell from one not taken"
                outside.lost.append(self._unprobed(instance, call, reason))
                continue
            note = "at its call: the kernel takes no probe on its first instruction"
            self._add(instance, call, Found(call.address, source, instance.spec.argument, note), outside)
        return self._said(instance, outside, "its entry cannot be probed")

    def _results(self, instance: Instance, target: int, outside: Outside, seen: set[int], depth: int) -> None:
        calls, reasons = self._callers.of(target)
        self._lose(instance, reasons, outside)
        for call in calls:
            if call.kind == "call":
                self._behind(instance, call, outside)
            elif not only_passes_on(call, target) or depth >= _MAX_DEPTH:
                reason = f"{call.function.name} hands its result on by a tail call, and other results too"
                outside.lost.append(self._unprobed(instance, call, reason))
            elif call.function.low not in seen:
                seen.add(call.function.low)
                self._results(instance, call.function.low, outside, seen, depth + 1)

    def _behind(self, instance: Instance, call: Call, outside: Outside) -> None:
        at, code = call.following, call.code
        if at not in code.insns:
            return  # nothing follows: it does not return here
        if code.preds.get(at) != [call.address] or at in code.targets:
            reason = "other ways lead to where its caller has the result"
            outside.lost.append(self._unprobed(instance, call, reason))
            return
        note = "where its caller gets the result: it ends in a tail call"
        result = ArgSource(register=code.machine.result)
        self._add(instance, call, Found(at, result, "return value", note), outside)

    def _add(self, instance: Instance, call: Call, found: Found, outside: Outside) -> None:
        there = self._there(instance, call)
        try:
            site = self._builder.site(there, found, 0, harmless=instance.spec.returned)
        except Unsupported as error:
            outside.lost.append(self._unprobed(instance, call, str(error)))
            return
        # The code of the function itself is where nested calls of it would return to, not the caller's.
        own = self._builder.ranges(instance)
        outside.sites.append(replace(site, at_entry=False, ranges=own))

    def _there(self, instance: Instance, call: Call) -> Instance:
        line = self._scopes.lines.at(call.address, call.function.die.unit)
        return replace(instance, function=call.function, code=call.code, call_site=line)

    def _unprobed(self, instance: Instance, call: Call, reason: str) -> Unprobed:
        return self._there(instance, call).unprobed(reason, call.address)

    def _lose(self, instance: Instance, reasons: list[str], outside: Outside) -> None:
        outside.lost += (instance.unprobed(reason) for reason in reasons)

    def _said(self, instance: Instance, outside: Outside, why: str) -> Outside:
        if not outside.sites and not outside.lost:
            outside.lost.append(instance.unprobed("nothing calls it directly"))
        outside.lost = [replace(one, reason=f"{why}: {one.reason}") for one in outside.lost]
        return outside
