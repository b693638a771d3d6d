# Owns the names of DWARF operations (DWARF 5, section 7.7.1, and GNU's), for refusals by name.
# Must not know what they do.
from __future__ import annotations

from typing import Final

_PLAIN = {
    0x03: "addr", 0x06: "deref", 0x08: "const1u", 0x09: "const1s", 0x0A: "const2u", 0x0B: "const2s",
    0x0C: "const4u", 0x0D: "const4s", 0x0E: "const8u", 0x0F: "const8s", 0x10: "constu", 0x11: "consts",
    0x12: "dup", 0x13: "drop", 0x14: "over", 0x15: "pick", 0x16: "swap", 0x17: "rot", 0x18: "xderef",
    0x19: "abs", 0x1A: "and", 0x1B: "div", 0x1C: "minus", 0x1D: "mod", 0x1E: "mul", 0x1F: "neg", 0x20: "not",
    0x21: "or", 0x22: "plus", 0x23: "plus_uconst", 0x24: "shl", 0x25: "shr", 0x26: "shra", 0x27: "xor",
    0x28: "bra", 0x29: "eq", 0x2A: "ge", 0x2B: "gt", 0x2C: "le", 0x2D: "lt", 0x2E: "ne", 0x2F: "skip",
    0x90: "regx", 0x91: "fbreg", 0x92: "bregx", 0x93: "piece", 0x94: "deref_size", 0x95: "xderef_size",
    0x96: "nop", 0x97: "push_object_address", 0x98: "call2", 0x99: "call4", 0x9A: "call_ref",
    0x9B: "form_tls_address", 0x9C: "call_frame_cfa", 0x9D: "bit_piece", 0x9E: "implicit_value",
    0x9F: "stack_value", 0xA0: "implicit_pointer", 0xA1: "addrx", 0xA2: "constx", 0xA3: "entry_value",
    0xA4: "const_type", 0xA5: "regval_type", 0xA6: "deref_type", 0xA7: "xderef_type", 0xA8: "convert",
    0xA9: "reinterpret", 0xE0: "GNU_push_tls_address", 0xF0: "GNU_uninit", 0xF1: "GNU_encoded_addr",
    0xF2: "GNU_implicit_pointer", 0xF3: "GNU_entry_value", 0xF4: "GNU_const_type", 0xF5: "GNU_regval_type",
    0xF6: "GNU_deref_type", 0xF7: "GNU_convert", 0xF9: "GNU_reinterpret", 0xFA: "GNU_parameter_ref",
    0xFB: "GNU_addr_index", 0xFC: "GNU_const_index", 0xFD: "GNU_variable_value",
}  # fmt: skip
_RUNS = ((0x30, "lit"), (0x50, "reg"), (0x70, "breg"))  # 32 of each

NAMES: Final = {
    **{op: f"DW_OP_{name}" for op, name in _PLAIN.items()},
    **{first + n: f"DW_OP_{name}{n}" for first, name in _RUNS for n in range(32)},
}


def operation_name(op: int) -> str:
    return NAMES.get(op, f"operation {op:#x}")
