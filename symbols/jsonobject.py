# Owns typed access to untrusted JSON values: a wrong type, range or length is refused by its key.
# Must not know what a plan is made of.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TypeVar

from symbols.errors import BadPlan
from symbols.plan import SourceLine

U64 = (1 << 64) - 1
MAX_ITEMS = 100_000
_MAX_TEXT = 1 << 20

E = TypeVar("E", bound=Enum)


def integer(value: object, key: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise BadPlan(f"not an integer from {low} to {high}", key=key)
    return value


def string(value: object, key: str) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise BadPlan("not a text", key=key)
    return value


class JsonObject:
    """Typed access to one JSON object; every failure names its key."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, Mapping):
            raise BadPlan("not an object", key=where)
        self._data = data
        self._where = where

    def key(self, name: str) -> str:
        return f"{self._where}.{name}"

    def _get(self, name: str) -> object:
        if name not in self._data:
            raise BadPlan("is missing", key=self.key(name))
        return self._data[name]

    def has(self, name: str) -> bool:
        """For what plans of older recordings do not say."""
        return name in self._data

    def absent(self, name: str) -> bool:
        return self._get(name) is None

    def text(self, name: str) -> str:
        return string(self._get(name), self.key(name))

    def text_or_none(self, name: str) -> str | None:
        return None if self._get(name) is None else self.text(name)

    def flag(self, name: str) -> bool:
        value = self._get(name)
        if not isinstance(value, bool):
            raise BadPlan("neither true nor false", key=self.key(name))
        return value

    def number(self, name: str, low: int, high: int) -> int:
        return integer(self._get(name), self.key(name), low, high)

    def number_or_none(self, name: str, low: int, high: int) -> int | None:
        return None if self._get(name) is None else self.number(name, low, high)

    def enum(self, name: str, kind: type[E]) -> E:
        try:
            return kind(self._get(name))
        except ValueError:
            raise BadPlan("unknown value", key=self.key(name)) from None

    def items(self, name: str) -> Sequence[object]:
        value = self._get(name)
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise BadPlan("not a list of bearable length", key=self.key(name))
        return value

    def inner(self, name: str) -> JsonObject:
        return JsonObject(self._get(name), self.key(name))

    def readers(self, name: str) -> list[JsonObject]:
        return [JsonObject(item, f"{self.key(name)}[{i}]") for i, item in enumerate(self.items(name))]

    def line(self, name: str) -> SourceLine | None:
        if self._get(name) is None:
            return None
        data = self.inner(name)
        column = data.number("column", 0, U64)
        return SourceLine(file=data.text("file"), line=data.number("line", 0, U64), column=column)
