# Owns which way of probing an instance is tried, and what comes next where one fails: in the function, on the
# way to it, in its callers. Must not look for instances (instances.py does).
from __future__ import annotations

import contextlib
from dataclasses import replace

from symbols.creates import Births, LeavesByTailCall
from symbols.expressions import Unsupported
from symbols.instances import Instance
from symbols.outside import Outside, OutsideProbes, earlier
from symbols.plan import InstanceKind, Role, Site, Unprobed
from symbols.refcount import counts_references
from symbols.scopes import Scopes
from symbols.sites import Found, Refused, SiteBuilder
from symbols.tangles import Placed


class Placer:
    """Sites of the instances of one image."""

    def __init__(self, scopes: Scopes, builder: SiteBuilder, births: Births, outside: OutsideProbes) -> None:
        self._scopes = scopes
        self._builder = builder
        self._births = births
        self._outside = outside

    def place(self, instance: Instance) -> tuple[Placed, list[Unprobed]]:
        """(the instance's sites, or the reason why it has none; its calls that cannot be probed)."""
        try:
            return Placed(instance, self._sites(instance)), []
        except LeavesByTailCall:
            outside = self._outside.of_result(instance)
            if not outside.complete:
                with contextlib.suppress(Unsupported):
                    return Placed(instance, self._sites(instance, within=True)), []
            return Placed(instance, outside.sites), outside.lost
        except Refused as error:
            found = self._at_calls(instance, error.found)
            if found is None or not found.sites:
                return Placed(instance, [], str(error)), []
            return Placed(instance, found.sites), found.lost
        except Unsupported as error:
            return Placed(instance, [], str(error)), []

    def _sites(self, instance: Instance, *, within: bool = False) -> list[Site]:
        births, returned = self._births, instance.spec.returned
        found = births.find(instance, within=within) if returned else self._builder.arguments(instance)
        sites = [self._site(instance, place) for place in found]
        if instance.role is not Role.DESTROY:
            return sites
        return [self._counting(instance, site, site.address) for site in sites]

    def _site(self, instance: Instance, found: Found) -> Site:
        harmless = instance.role is Role.CREATE
        try:
            return self._builder.site(instance, found, 0, harmless=harmless)
        except Refused:
            at = earlier(instance.code, found.address, found.source)
            if at is None or instance.kind is not InstanceKind.INLINED:
                raise
            note = "before its first instruction, on which the kernel takes no probe"
            return self._builder.site(instance, replace(found, address=at, note=note), 0)

    def _at_calls(self, instance: Instance, found: Found) -> Outside | None:
        """Sites at the calls of a function whose first instruction takes no probe."""
        entered = found.address == instance.function.low and not instance.code.preds.get(found.address)
        if not entered or not found.source.is_register or instance.spec.returned:
            return None
        outside = self._outside.of_argument(instance, found.source)
        if instance.role is Role.DESTROY:
            outside.sites = [self._counting(instance, site, found.address) for site in outside.sites]
        return outside

    def _counting(self, instance: Instance, site: Site, address: int) -> Site:
        """The site of a destroy, with what its code from an address on says of counts."""
        inside = instance.code.inside(instance.ranges)
        for at in instance.code.straight(address):  # a site may lie before the instance's own code
            if at in inside:
                break
            inside.add(at)
        at_field = counts_references(instance.code, inside, address, site.source, self._function_name)
        return replace(site, counts=at_field is not None, counts_at=at_field)

    def _function_name(self, address: int) -> str:
        symbol = self._scopes.symbols.function_at(address)
        return symbol.name if symbol is not None and symbol.address == address else ""
