# Owns the CFA of a pc, from .eh_frame or .debug_frame: what DW_OP_call_frame_cfa means there, as
# something a probe can evaluate. Must not read memory.
from __future__ import annotations

from symbols.cfi import FrameTable
from symbols.expressions import Place, Unsupported, value_of
from symbols.image import Image
from symbols.plan import ArgSource
from symbols.registers import Machine
from symbols.values import register


class CfaRules:
    """CFA rules of one image. Anything malformed or beyond a probe gives None, never an exception."""

    def __init__(self, image: Image, machine: Machine, debug: Image | None = None) -> None:
        self._machine = machine
        self._table = FrameTable(image, debug)

    def at(self, address: int) -> ArgSource | None:
        row = self._table.row(address)
        if row is None:
            return None
        if row.cfa_expression is not None:
            try:
                return value_of(row.cfa_expression, None, Place(machine=self._machine))
            except Unsupported:
                return None
        names = self._machine.registers
        if row.cfa_register >= len(names):
            return None
        return register(names[row.cfa_register]).add(row.cfa_offset).source
