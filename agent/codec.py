# Owns events <-> plain JSON values: positional arrays, lossless for every Event type.
# Must not do I/O. Input may come from a file, so decoding trusts nothing.
from __future__ import annotations

import base64
import binascii
import types
import typing
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import IntEnum, IntFlag
from functools import partial
from itertools import repeat
from operator import attrgetter, call, itemgetter
from typing import Any, NamedTuple, cast

from probes import events

_I64_MIN = -(1 << 63)
_U64_MAX = (1 << 64) - 1
_ONLY_INT = {int}
_MOST_MEMBERS = 4096  # remembered of one enum: flags come in any combination

TAGS: dict[str, type[Any]] = {
    "suspicion": events.SuspicionRaised,
    "lifetime": events.LifetimeEnded,
    "lifetimes": events.LifetimesCounted,
    "lingering": events.SlotLingering,
    "lost": events.Lost,
    "stack": events.StackSeen,
    "thread": events.ThreadSeen,
    "modules": events.ModulesMapped,
    "attached": events.TargetAttached,
    "gone": events.TargetGone,
    "forked": events.ProcessForked,
    "crash": events.CrashSeen,
    "flight": events.FlightRecorded,
    "process": events.ProcessCaptured,
    "fdinfo": events.FdinfoChecked,
    "counters": events.CountersRead,
    "tick": events.Tick,
}
"""Every event but RecordsRead, which is stored in bulk as the 64-byte records themselves."""


class BadEvent(ValueError):
    """A JSON value does not describe an event of this build."""


Encode = Callable[[Any], Any]
Decode = Callable[[Any], Any]


class _Codec(NamedTuple):
    encode: Encode
    decode: Decode
    trust: Decode  # the same for a value whose types are known to be right (agent/shapes.py)


def _same(value: Any) -> Any:
    return value


def _to_int(value: Any) -> int:
    if type(value) is not int or not _I64_MIN <= value <= _U64_MAX:
        raise BadEvent("expected an integer of 64 bits")
    return value


def _to_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise BadEvent("expected true or false")
    return value


def _to_str(value: Any) -> str:
    if type(value) is not str:
        raise BadEvent("expected text")
    return value


def _from_bytes(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _to_bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(_to_str(value), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadEvent("expected base64") from error


def _to_any_mapping(value: Any) -> Any:
    if type(value) is not dict:
        raise BadEvent("expected an object")
    return value


def _codec(hint: Any) -> _Codec:
    """Encoder and decoders for one type hint of probes.events."""
    simple: dict[Any, _Codec] = {
        int: _Codec(_same, _to_int, _same),
        bool: _Codec(_same, _to_bool, _same),
        str: _Codec(_same, _to_str, _same),
        bytes: _Codec(_from_bytes, _to_bytes, _to_bytes),
    }
    if hint in simple:
        return simple[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _optional(next(arg for arg in args if arg is not types.NoneType))
    if origin is tuple:
        return _sequence(args[0]) if args[-1] is Ellipsis else _row(args)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(*args)
    if isinstance(hint, type):
        if issubclass(hint, IntFlag | IntEnum):
            return _enum(hint)
        if issubclass(hint, tuple):
            return _named_tuple(hint)
        if is_dataclass(hint):
            return _record(hint)
    raise TypeError(f"no codec for {hint!r}")


def _optional(hint: Any) -> _Codec:
    encode, decode, trust = _codec(hint)
    return _Codec(
        lambda value: None if value is None else encode(value),
        lambda value: None if value is None else decode(value),
        lambda value: None if value is None else trust(value),
    )


def _sequence(hint: Any) -> _Codec:
    encode, decode, trust = _codec(hint)

    def read(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise BadEvent("expected a list")
        return tuple(map(decode, value))

    return _Codec(
        lambda value: [encode(item) for item in value], read, lambda value: tuple(map(trust, value))
    )


def _row(hints: tuple[Any, ...]) -> _Codec:
    """A tuple of so many items, each of its own type."""
    codecs = [_codec(hint) for hint in hints]

    def read(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != len(codecs):
            raise BadEvent(f"expected a list of {len(codecs)}")
        return tuple(codec.decode(item) for codec, item in zip(codecs, value, strict=True))

    return _Codec(
        lambda row: [codec.encode(item) for codec, item in zip(codecs, row, strict=True)], read, read
    )


def _mapping(key: Any, item: Any) -> _Codec:
    if item is Any:
        return _Codec(dict, _to_any_mapping, _same)
    keys, items = _codec(key), _codec(item)

    def read(value: Any) -> dict[Any, Any]:
        if type(value) is not list or any(type(pair) is not list or len(pair) != 2 for pair in value):
            raise BadEvent("expected a list of pairs")
        return {keys.decode(k): items.decode(v) for k, v in value}

    return _Codec(lambda value: [[keys.encode(k), items.encode(v)] for k, v in value.items()], read, read)


def _enum(hint: type[IntFlag] | type[IntEnum]) -> _Codec:
    known: dict[int, Any] = {}  # making a member takes longer than all the rest of a field

    def read(value: Any) -> Any:
        found = known.get(value) if type(value) is int else None
        if found is not None:
            return found
        try:
            found = hint(_to_int(value))
        except ValueError as error:
            raise BadEvent(f"{value} is no {hint.__name__}") from error
        if len(known) < _MOST_MEMBERS:
            known[value] = found
        return found

    return _Codec(int, read, read)


def _check_ints(values: Sequence[Any]) -> None:
    """Raises BadEvent unless all are integers of 64 bits."""
    if values and (set(map(type, values)) != _ONLY_INT or min(values) < _I64_MIN or max(values) > _U64_MAX):
        raise BadEvent("expected integers of 64 bits")


def _maker(hint: type[Any]) -> Decode:
    """Makes a NamedTuple of a list that was checked: its own `_make` looks at the length again, in Python."""
    return partial(tuple.__new__, hint)


def _named_tuple(hint: type[Any]) -> _Codec:
    size = len(hint._fields)
    make = _maker(hint)

    def read(value: Any) -> Any:
        if type(value) is not list or len(value) != size:
            raise BadEvent(f"expected a list of {size} integers")
        _check_ints(value)
        return make(value)

    return _Codec(list, read, make)


def _is_row_of_ints(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields")


def _record(hint: type[Any]) -> _Codec:
    names = tuple(field.name for field in fields(hint))
    hints = typing.get_type_hints(hint)
    codecs = [_codec(hints[name]) for name in names]
    # Most fields are what they are in JSON (int, str, NamedTuple): only the others are converted.
    special = [(i, codec.encode) for i, codec in enumerate(codecs) if codec.encode is not _same]
    get: Callable[[Any], Any] = attrgetter(*names)
    single, count = len(names) == 1, len(names)
    numbers = [i for i, name in enumerate(names) if hints[name] is int]
    many = len(numbers) > 1
    integers: Callable[[Any], Any] = itemgetter(*numbers) if many else _same
    rows = [
        (i, _maker(hints[name]), len(hints[name]._fields))
        for i, name in enumerate(names)
        if _is_row_of_ints(hints[name])
    ]
    others = [
        (i, codec.decode)
        for i, (name, codec) in enumerate(zip(names, codecs, strict=True))
        if hints[name] is not int and not _is_row_of_ints(hints[name])
    ]
    trusted = [(i, codec.trust) for i, codec in enumerate(codecs) if codec.trust is not _same]
    # Frozen and with slots: filled in as its own __init__ would, without a call by keyword for each field.
    new: Callable[[Any], Any] = object.__new__
    put = [vars(hint)[name].__set__ for name in names]

    def write(value: Any) -> list[Any]:
        row = [get(value)] if single else list(get(value))
        for i, encode in special:
            row[i] = encode(row[i])
        return row

    def read(value: Any) -> Any:
        if type(value) is not list or len(value) != count:
            raise BadEvent(f"expected the {count} fields of {hint.__name__}")
        ints = list(integers(value)) if many else [value[i] for i in numbers]
        for i, _make, size in rows:
            row = value[i]
            if type(row) is not list or len(row) != size:
                raise BadEvent(f"expected a list of {size} integers")
            ints += row
        _check_ints(ints)
        for i, make, _size in rows:
            value[i] = make(value[i])
        for i, decode in others:
            value[i] = decode(value[i])
        made = new(hint)
        deque(map(call, put, repeat(made), value), 0)
        return made

    def trust(value: Any) -> Any:
        for i, decode in trusted:
            value[i] = decode(value[i])
        made = new(hint)
        deque(map(call, put, repeat(made), value), 0)
        return made

    return _Codec(write, read, trust)


_CODECS = {tag: _codec(kind) for tag, kind in TAGS.items()}
_TAG_OF = {kind: tag for tag, kind in TAGS.items()}


def _fingerprint() -> str:
    """Changes with every field of every event and its type: a reader never misreads an older layout."""
    kinds = [*TAGS.values(), events.SlotLife, events.Registration, events.MappedModule]
    kinds += [events.CrashSlot, events.ThreadStatus]
    seen = [
        f"{kind.__name__}({','.join(f'{field.name}:{field.type}' for field in fields(kind))})"
        for kind in kinds
    ]
    seen += [f"{kind.__name__}({','.join(kind._fields)})" for kind in (events.Moment, events.Trigger)]
    text = ";".join(seen).encode()
    # No adversary here: a checksum does, and hashlib would load 3 MB of libcrypto into the daemon.
    return f"{zlib.crc32(text):08x}{zlib.crc32(text[::-1]):08x}"


SCHEMA = _fingerprint()


def encode(event: events.Event) -> list[Any]:
    """[tag, [fields in declaration order]]. RecordsRead has its own form: TypeError."""
    tag = _TAG_OF.get(type(event))
    if tag is None:
        raise TypeError(f"{type(event).__name__} is not stored as JSON")
    return [tag, _CODECS[tag].encode(event)]


def decode(value: Any) -> events.Event:
    """Inverse of `encode`. Raises BadEvent for anything else."""
    if type(value) is not list or len(value) != 2 or type(value[0]) is not str:
        raise BadEvent("expected [tag, fields]")
    codec = _CODECS.get(value[0])
    if codec is None:
        raise BadEvent(f"unknown event {value[0][:40]!r}")
    return cast("events.Event", codec.decode(value[1]))


class Decoder:
    """`decode` for many events: what was found right of one is not looked at again in others of its shape."""

    def __init__(self) -> None:
        self._known: dict[bytes, dict[str, Decode]] = {}  # shape -> tag -> decoder

    def decode(self, value: Any, shape: bytes) -> events.Event:
        """shape: of agent/shapes.py. Raises BadEvent."""
        known = self._known.get(shape)
        if known is not None:
            trust = known.get(value[0])
            if trust is not None:
                return cast("events.Event", trust(value[1]))
        event = decode(value)
        if shape:
            self._known.setdefault(shape, {})[value[0]] = _CODECS[value[0]].trust
        return event
