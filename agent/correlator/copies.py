# Owns copying frozen values with some fields changed: dataclasses.replace() calls __init__ with every field
# by name, which a storm of findings spends a fifth of its time on.
from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


@cache
def _slots(kind: Hashable) -> tuple[tuple[str, Callable[..., Any], Callable[..., None]], ...]:
    """(name, reader, writer) of every field of a dataclass with slots. Raises TypeError for others."""
    if not isinstance(kind, type) or hasattr(kind, "__post_init__") or "__slots__" not in vars(kind):
        raise TypeError(f"{kind!r} cannot be copied field by field")
    places = [(field.name, vars(kind)[field.name]) for field in fields(kind)]
    return tuple((name, place.__get__, place.__set__) for name, place in places)


def replace(value: T, **changes: Any) -> T:
    """As dataclasses.replace(), for dataclasses with slots and nothing to do after __init__."""
    kind: Any = type(value)
    slots, left = _slots(kind), len(changes)
    made: T = object.__new__(kind)
    for name, read, write in slots:
        if name in changes:
            write(made, changes[name])
            left -= 1
        else:
            write(made, read(value))
    if left:
        raise TypeError(f"{type(value).__name__} has no such field: {', '.join(changes)}")
    return made
