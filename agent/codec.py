# Owns events <-> plain JSON values: positional arrays, lossless for every Event type.
# Must not do I/O. Input may come from a file, so decoding trusts nothing.
from __future__ import annotations

import base64
import binascii
import types
import typing
import zlib
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import IntEnum, IntFlag
from operator import attrgetter
from typing import Any, cast

from probes import events

_I64_MIN = -(1 << 63)
_U64_MAX = (1 << 64) - 1

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


def _codec(hint: Any) -> tuple[Encode, Decode]:
    """Encoder and decoder for one type hint of probes.events."""
    simple: dict[Any, tuple[Encode, Decode]] = {
        int: (_same, _to_int),
        bool: (_same, _to_bool),
        str: (_same, _to_str),
        bytes: (_from_bytes, _to_bytes),
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


def _optional(hint: Any) -> tuple[Encode, Decode]:
    encode, decode = _codec(hint)
    return (
        lambda value: None if value is None else encode(value),
        lambda value: None if value is None else decode(value),
    )


def _sequence(hint: Any) -> tuple[Encode, Decode]:
    encode, decode = _codec(hint)

    def read(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise BadEvent("expected a list")
        return tuple(map(decode, value))

    return (lambda value: [encode(item) for item in value]), read


def _row(hints: tuple[Any, ...]) -> tuple[Encode, Decode]:
    """A tuple of so many items, each of its own type."""
    codecs = [_codec(hint) for hint in hints]

    def read(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != len(codecs):
            raise BadEvent(f"expected a list of {len(codecs)}")
        return tuple(decode(item) for (_, decode), item in zip(codecs, value, strict=True))

    return (lambda row: [encode(item) for (encode, _), item in zip(codecs, row, strict=True)]), read


def _mapping(key: Any, item: Any) -> tuple[Encode, Decode]:
    if item is Any:
        return dict, _to_any_mapping
    (encode_key, decode_key), (encode_item, decode_item) = _codec(key), _codec(item)

    def read(value: Any) -> dict[Any, Any]:
        if type(value) is not list or any(type(pair) is not list or len(pair) != 2 for pair in value):
            raise BadEvent("expected a list of pairs")
        return {decode_key(k): decode_item(v) for k, v in value}

    return (lambda value: [[encode_key(k), encode_item(v)] for k, v in value.items()]), read


def _enum(hint: type[IntFlag] | type[IntEnum]) -> tuple[Encode, Decode]:
    def read(value: Any) -> Any:
        try:
            return hint(_to_int(value))
        except ValueError as error:
            raise BadEvent(f"{value} is no {hint.__name__}") from error

    return int, read


def _named_tuple(hint: type[Any]) -> tuple[Encode, Decode]:
    size = len(hint._fields)

    def read(value: Any) -> Any:
        if type(value) is not list or len(value) != size:
            raise BadEvent(f"expected a list of {size} integers")
        return hint(*map(_to_int, value))

    return list, read


def _record(hint: type[Any]) -> tuple[Encode, Decode]:
    names = tuple(field.name for field in fields(hint))
    hints = typing.get_type_hints(hint)
    codecs = [_codec(hints[name]) for name in names]
    decoders = [decode for _, decode in codecs]
    # Most fields are what they are in JSON (int, str, NamedTuple): only the others are converted.
    special = [(i, encode) for i, (encode, _) in enumerate(codecs) if encode is not _same]
    get: Callable[[Any], Any] = attrgetter(*names)
    single = len(names) == 1

    def write(value: Any) -> list[Any]:
        row = [get(value)] if single else list(get(value))
        for i, encode in special:
            row[i] = encode(row[i])
        return row

    def read(value: Any) -> Any:
        if type(value) is not list or len(value) != len(names):
            raise BadEvent(f"expected the {len(names)} fields of {hint.__name__}")
        return hint(**{name: decode(item) for name, decode, item in zip(names, decoders, value, strict=True)})

    return write, read


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
    return [tag, _CODECS[tag][0](event)]


def decode(value: Any) -> events.Event:
    """Inverse of `encode`. Raises BadEvent for anything else."""
    if type(value) is not list or len(value) != 2 or type(value[0]) is not str:
        raise BadEvent("expected [tag, fields]")
    codec = _CODECS.get(value[0])
    if codec is None:
        raise BadEvent(f"unknown event {value[0][:40]!r}")
    return cast("events.Event", codec[1](value[1]))
