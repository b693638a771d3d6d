"""What an argument source (as JSON) gives in a stopped process. Self-contained: gdb's Python runs it too."""

M = (1 << 64) - 1


def signed(value, bits=64):
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


OPS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "%": lambda a, b: a % b,
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "<<": lambda a, b: a << b if b < 64 else 0,
    ">>": lambda a, b: a >> b if b < 64 else 0,
    "s>>": lambda a, b: signed(a) >> min(b, 63),
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: signed(a) < signed(b),
    "<=": lambda a, b: signed(a) <= signed(b),
    ">": lambda a, b: signed(a) > signed(b),
    ">=": lambda a, b: signed(a) >= signed(b),
}


def value_of(source, register, memory, entry=None):
    """register(name) -> int ("bias" is one), memory(address, size) -> bytes, entry: the value kept."""
    if source["entry"] is not None:
        value = entry
    elif source["register"] is not None:
        value = register(source["register"])
    else:
        value = source["constant"]
    for step in source["steps"]:
        if step[0] == "add":
            value += step[1]
        elif step[0] == "deref":
            value = int.from_bytes(memory(value, step[1]), "little")
        elif step[0] == "extend":
            value = signed(value, 8 * step[1]) if step[2] else value & ((1 << 8 * step[1]) - 1)
        else:
            value = int(OPS[step[1]](value, value_of(step[2], register, memory, entry)))
        value &= M
    return value
