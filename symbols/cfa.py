# Owns the CFA rule of a pc, from .eh_frame or .debug_frame: what DW_OP_call_frame_cfa means there. Only
# rules of the form register + offset, which is what a probe can evaluate.
from __future__ import annotations

from symbols.cfi import FrameTable
from symbols.image import Image
from symbols.registers import REGISTERS

Rule = tuple[str, int]
"""(register, offset): CFA = register + offset."""


class CfaRules:
    """CFA rules of one image. Anything malformed or unusual gives None, never an exception."""

    def __init__(self, image: Image, debug: Image | None = None) -> None:
        self._table = FrameTable(image, debug)

    def at(self, address: int) -> Rule | None:
        row = self._table.row(address)
        if row is None or row.cfa_expression is not None or row.cfa_register >= len(REGISTERS):
            return None
        return REGISTERS[row.cfa_register], row.cfa_offset
