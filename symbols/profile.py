# Owns profiles: TOML that names a program's create, destroy, disown and dispatch functions. Validates
# completely, with key and line. Must not look into executables (resolve.py does).
from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from symbols.errors import ProfileError
from symbols.files import files, shipped
from symbols.globs import matches
from symbols.plan import Role, Userdata

__all__ = ["FunctionSpec", "Profile", "load_profile", "matches", "parse_profile", "shipped_profiles"]

_MAX_PROFILE = 1 << 20
_TOP = frozenset(("name", "guard", "slot", "userdata", "description"))
_SLOT = frozenset(("type", "create", "destroy", "disown", "dispatch", "freelist_link"))
_USERDATA = frozenset(("kind", "mask", "reserved", "offset"))
_ARGUMENTS: Mapping[Role, tuple[str, ...]] = {
    Role.CREATE: ("returns", "slot"),
    Role.DESTROY: ("slot",),
    Role.DISOWN: ("slot",),
    Role.DISPATCH: ("object",),
}
_NARROWING = frozenset(("function", "in", "not_in", "file"))
_EXTRA: Mapping[Role, frozenset[str]] = {
    Role.DESTROY: frozenset(("count", "frees_at")),
    Role.DISPATCH: frozenset(("is",)),
}
_HIGHEST = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSpec:
    """One function of the profile."""

    role: Role
    pattern: str  # glob on linkage name, on name and on the name with its namespaces
    argument: str  # the parameter's name; "slot" where the slot is what the function returns
    returned: bool = False  # create: the slot is what the function returns
    within: str | None = None  # glob: only instances in (functions inlined into) a function of that name
    not_within: str | None = None  # glob: none of those
    file: str | None = None  # glob on the source file that declares the function
    tie: str | None = None  # dispatch: "slot", or "slot.FIELD", the field that points to the object
    count: str | None = None  # destroy: path of the slot's field that counts references
    frees_at: int = 1  # destroy: the count that the call which frees finds


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    name: str
    path: str  # file it came from
    slot_type: str  # glob on the type's name; "*" where the profile does not say
    functions: Mapping[Role, FunctionSpec]
    freelist_offset: int | None
    userdata: Userdata
    guard: str | None = None
    userdata_field: str | None = None  # the slot's field that userdata points to, instead of an offset


def load_profile(path: str | os.PathLike[str]) -> Profile:
    """Read and validate a profile file. Raises ProfileError."""
    name = os.fspath(path)
    try:
        raw = files().read(name, _MAX_PROFILE + 1)
    except OSError as error:
        raise ProfileError(
            f"cannot be read ({error.strerror})", path=name, remedy="check the path"
        ) from error
    return _profile(raw, name)


def _profile(raw: bytes, name: str) -> Profile:
    if len(raw) > _MAX_PROFILE:
        raise ProfileError("longer than 1 MiB", path=name)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ProfileError("not UTF-8 text", path=name, line=line) from error
    return parse_profile(text, name)


def shipped_profiles() -> tuple[Profile, ...]:
    """The profiles that come with the package, by file name."""
    return tuple(_profile(content, path) for path, content in shipped().items())


def parse_profile(text: str, path: str = "<profile>") -> Profile:
    """Validate a profile's text. Raises ProfileError with key and, best effort, line."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of a number with more digits than int() takes
        found = re.search(r"at line (\d+)", str(error))
        line = int(found.group(1)) if found else len(text.splitlines())  # "(at end of document)"
        raise ProfileError(f"not valid TOML ({error})", path=path, line=line) from error
    return _Reader(text, path).profile(data)


_STRING = re.compile(r"""("(?:[^"\\]|\\.)*"|'[^']*')(\s*[=.\]])?""")


def _blank(string: re.Match[str]) -> str:
    """A string's text says nothing of where a key is written, unless it is a quoted key."""
    return string.group() if string.group(2) else '""'


class _Reader:
    def __init__(self, text: str, path: str) -> None:
        self._lines = [_STRING.sub(_blank, row).split("#")[0] for row in text.splitlines()]
        self._path = path

    def _error(self, key: str, detail: str) -> ProfileError:
        return ProfileError(f"{key}: {detail}", path=self._path, line=self._line(key), key=key)

    def _line(self, key: str) -> int:
        """Where the last part of a dotted key is written, after the headers of the parts before it."""
        line, parts = 0, key.split(".")
        for depth, part in enumerate(parts):
            name = rf"[\"']?{re.escape(part)}[\"']?"
            dotted = r"\.".join(re.escape(p) for p in parts[: depth + 1])
            regex = re.compile(rf"\s*\[\s*{dotted}\s*\]|(^|[\s{{,.]){name}\s*=|^\s*{dotted}\s*=")
            for number in range(max(line - 1, 0), len(self._lines)):
                if regex.search(self._lines[number]):
                    line = number + 1
                    break
        return line

    def _keys(self, table: Mapping[str, Any], known: frozenset[str], where: str) -> None:
        for key in table:
            if key not in known:
                raise self._error(f"{where}{key}", f"unknown key; known here: {', '.join(sorted(known))}")

    def _table(self, value: Any, key: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self._error(key, "must be a table")
        return value

    def _text(self, value: Any, key: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self._error(key, "must be a non-empty string")
        if any(ord(char) < 32 for char in value):
            raise self._error(key, "must not contain control characters")
        return value

    def _integer(self, value: Any, key: str, low: int, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._error(key, f"must be an integer from {low:#x} to {high:#x}")
        return value

    def profile(self, data: Mapping[str, Any]) -> Profile:
        self._keys(data, _TOP, "")
        if "slot" not in data:
            raise self._error("slot", "is missing")
        slot = self._table(data["slot"], "slot")
        self._keys(slot, _SLOT, "slot.")
        functions = {}
        for role in Role:
            if role.value in slot:
                functions[role] = self._function(role, slot[role.value])
        if Role.DESTROY not in functions:
            raise self._error("slot.destroy", "is missing")
        freelist = None
        if "freelist_link" in slot:
            link = self._table(slot["freelist_link"], "slot.freelist_link")
            self._keys(link, frozenset(("offset",)), "slot.freelist_link.")
            freelist = self._integer(link.get("offset"), "slot.freelist_link.offset", 0, 1 << 20)
        guard = data.get("guard")
        userdata, userdata_field = self._userdata(data.get("userdata", {}))
        if "description" in data:
            self._text(data["description"], "description")
        return Profile(
            name=self._text(data.get("name"), "name"),
            path=self._path,
            slot_type=self._text(slot.get("type", "*"), "slot.type"),
            functions=functions,
            freelist_offset=freelist,
            userdata=userdata,
            userdata_field=userdata_field,
            guard=None if guard is None else self._text(guard, "guard"),
        )

    def _function(self, role: Role, value: Any) -> FunctionSpec:
        key, arguments = f"slot.{role.value}", _ARGUMENTS[role]
        table = self._table(value, key)
        self._keys(table, _NARROWING | {*arguments} | _EXTRA.get(role, frozenset()), f"{key}.")
        if "function" not in table:
            raise self._error(f"{key}.function", "is missing")
        given = [name for name in arguments if name in table]
        if not given:
            other = ', and so is slot, the name of the parameter of a constructor ("this")'
            raise self._error(f"{key}.{arguments[0]}", "is missing" + (other if arguments[1:] else ""))
        if len(given) > 1:
            detail = "give either returns or slot: the function returns the slot, or has it as a parameter"
            raise self._error(f"{key}.{given[1]}", detail)
        wanted = self._text(table[given[0]], f"{key}.{given[0]}")
        returned = given[0] == "returns"
        if returned and wanted != "slot":
            raise self._error(f"{key}.returns", 'must be "slot"')
        pattern = self._text(table["function"], f"{key}.function")
        if not pattern.strip("*?"):
            raise self._error(f"{key}.function", "matches every function")
        if "frees_at" in table and "count" not in table:
            raise self._error(f"{key}.frees_at", "says nothing without count")
        tie = self._optional(table, "is", key)
        if tie is not None and tie != "slot" and not re.match(r"slot\.[^.]", tie):
            detail = 'must be "slot", or "slot.FIELD" with the field that points to the object'
            raise self._error(f"{key}.is", detail)
        return FunctionSpec(
            role=role,
            pattern=pattern,
            argument=wanted,
            returned=returned,
            within=self._optional(table, "in", key),
            not_within=self._optional(table, "not_in", key),
            file=self._optional(table, "file", key),
            tie=tie,
            count=self._optional(table, "count", key),
            frees_at=self._integer(table.get("frees_at", 1), f"{key}.frees_at", 0, _HIGHEST),
        )

    def _optional(self, table: Mapping[str, Any], name: str, where: str) -> str | None:
        return self._text(table[name], f"{where}.{name}") if name in table else None

    def _userdata(self, value: Any) -> tuple[Userdata, str | None]:
        """(userdata, the field whose offset is still to be found)."""
        table = self._table(value, "userdata")
        self._keys(table, _USERDATA, "userdata.")
        kind = table.get("kind", "pointer")
        if kind not in ("pointer", "fd"):
            raise self._error("userdata.kind", 'must be "pointer" or "fd"')
        mask = self._integer(table.get("mask", _HIGHEST), "userdata.mask", 1, _HIGHEST)
        reserved = table.get("reserved", [])
        if not isinstance(reserved, list) or len(reserved) > 1024:
            raise self._error("userdata.reserved", "must be a list of at most 1024 integers")
        numbers = tuple(self._integer(item, "userdata.reserved", 0, _HIGHEST) for item in reserved)
        offset = table.get("offset", 0)
        if "offset" in table and kind == "fd":
            raise self._error("userdata.offset", 'says nothing of kind = "fd"')
        named = self._text(offset, "userdata.offset") if isinstance(offset, str) else None
        if named is None:
            offset = self._integer(offset, "userdata.offset", 0, 1 << 20)
        userdata = Userdata(kind=kind, mask=mask, reserved=numbers, offset=offset if named is None else 0)
        return userdata, named
