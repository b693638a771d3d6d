# Owns the places at which a function's entry values are kept for sites further inside it (DW_OP_entry_value):
# which address, which value, and what tells one call of the function from another.
from __future__ import annotations

from symbols.code import FunctionCode
from symbols.expressions import Unsupported
from symbols.image import Image
from symbols.instances import Instance
from symbols.plan import Addr, ArgSource, EntrySite
from symbols.scopes import Function, Scopes

_Key = tuple[int, ArgSource]  # address, value


class EntryValues:
    """Entry sites of one image, each function's value once."""

    def __init__(self, image: Image, scopes: Scopes) -> None:
        self._image = image
        self._scopes = scopes
        self._sites: dict[_Key, EntrySite] = {}

    def sites(self) -> tuple[EntrySite, ...]:
        return tuple(self._sites.values())

    def keep(
        self, instance: Instance, source: ArgSource, address: int
    ) -> tuple[int | None, ArgSource | None]:
        """(index of the entry site, the CFA at the address), for a source that needs one; else two Nones.

        Raises Unsupported where a call's entry value cannot be told from that of another call.
        """
        wanted = source.at_entry()
        if not wanted:
            return None, None
        if len(wanted) > 1:
            raise Unsupported("its location needs two values of the function's entry (DW_OP_entry_value)")
        function, code = instance.function, instance.code
        frame = self._scopes.cfa(function, address)
        if frame is None:
            raise Unsupported(
                "its location needs DW_OP_entry_value, and no call frame information says which call it is in"
            )
        at = self._address(function, code, wanted[0], address)
        known = self._sites.get((at, wanted[0]))
        if known is None:
            known = self._sites[at, wanted[0]] = self._site(function, code, wanted[0], at)
        return known.index, frame

    def _address(self, function: Function, code: FunctionCode, value: ArgSource, before: int) -> int:
        """The cheapest address that every call passes once, with the value as it was at the entry."""
        if function.low not in code.insns or code.preds.get(function.low):
            raise Unsupported(
                "its location needs DW_OP_entry_value, and the function's entry is also the head of a loop"
            )
        at = code.cheapest(function.low, value, harmless=True, before=before)
        if at is None:
            raise Unsupported(
                "its location needs DW_OP_entry_value, and the function's entry cannot be probed: "
                + (code.refused(function.low) or "no instruction there can be")
            )
        return at

    def _site(self, function: Function, code: FunctionCode, value: ArgSource, at: int) -> EntrySite:
        frame, offset = self._scopes.cfa(function, at), self._image.file_offset(at)
        if frame is None or offset is None or not self._image.executable(at):
            raise Unsupported(
                "its location needs DW_OP_entry_value, and the function's entry has no call frame information"
            )
        return EntrySite(
            index=len(self._sites),
            function=function.name,
            address=Addr(at),
            file_offset=offset,
            instruction=str(code.insns[at]),
            price=code.price(at),
            value=value,
            frame=frame,
        )
