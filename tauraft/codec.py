"""Typed values <-> msgpack, by type hint, strictly.

``compile_codec(hint)`` turns a type into a pair of functions once; after that a value costs a few attribute look-ups and type
checks.  Strict both ways: what has another type is refused, nothing is coerced (a bool is no int, an int is a float only
when packing), unknown fields are refused, missing ones must have a default.  Refused as ``TypeError`` when packing
(the caller's mistake) and as ``CodecError`` when unpacking (the sender's).

Codec values: None, bool, int64, float, str, bytes, aware datetimes (as microseconds), enums (by value), Literals, tuples, lists and
other sequences (unpacked as tuples, ``list[X]`` as lists), mappings with str keys, unions that a look at the value can tell apart,
and frozen dataclasses of these, generic ones too.  A dataclass is an array of its fields in order, so
fields may be added at the end with defaults; a *message* is a map by field name, ``[fsm, tag, {field: value}]``.

No type but these comes out of bytes: no pickle, no class named by the wire, no extension types.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, Literal, TypeVar

import msgpack

INT_MIN: Final = -(1 << 63)
INT_MAX: Final = (1 << 63) - 1
MAX_VALUE_BYTES: Final = 8 << 20
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Function = Callable[[Any], Any]


class CodecError(ValueError):
    """Bytes that no value of the expected type has."""


@dataclasses.dataclass(frozen=True, slots=True)
class ValueCodec:
    """``pack``/``unpack``: value <-> what msgpack takes. ``encode``/``decode``: value <-> bytes.

    A value that ``pack`` has accepted once, and that cannot change, is encoded again at a third of the cost:
    ``is_plain`` says that msgpack takes it as it is, ``pack_accepted`` packs without checks where it does not.
    """

    hint: Any
    pack: Function
    unpack: Function
    is_plain: bool = False
    pack_accepted: Function | None = None

    def encode(self, value: Any) -> bytes:
        """Raises ``TypeError`` where the value is not of the type."""
        packed: bytes = msgpack.packb(self.pack(value))
        return packed

    def encode_accepted(self, value: Any) -> bytes:
        """The same bytes, of a value that was accepted before."""
        if not self.is_plain:
            value = self.pack(value) if self.pack_accepted is None else self.pack_accepted(value)
        packed: bytes = msgpack.packb(value)
        return packed

    def decode(self, data: bytes) -> Any:
        """Raises ``CodecError``."""
        return self.unpack(unpack_bytes(data))


def unpack_bytes(data: bytes) -> Any:
    """Plain msgpack without extension types, within limits. Raises ``CodecError``."""
    if len(data) > MAX_VALUE_BYTES:
        raise CodecError(f"a value of {len(data)} bytes: the limit is {MAX_VALUE_BYTES}")
    try:
        return msgpack.unpackb(data, strict_map_key=True, max_ext_len=0)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CodecError(f"not msgpack: {error}") from error


def compile_codec(hint: Any) -> ValueCodec:
    """The codec of a type hint. Raises ``TypeError`` naming what is no codec value."""
    try:
        return _compile(hint)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return _build(hint)


@lru_cache(maxsize=4_096)
def _compile(hint: Any) -> ValueCodec:
    return _build(hint)


def _wrong(expected: str, value: Any) -> TypeError:
    return TypeError(f"expected {expected}, got {type(value).__name__}")


def _build(hint: Any) -> ValueCodec:
    scalar = _SCALARS.get(hint) if isinstance(hint, type) or hint is None else None
    if scalar is not None:
        return ValueCodec(hint, *scalar, is_plain=hint in _PLAIN)
    if hint is Any:
        return ValueCodec(hint, _pack_any, _unpack_any)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(hint, arguments)
    if origin is Literal:
        return _literal(hint, arguments)
    if origin is tuple:
        return _tuple(hint, arguments)
    if origin is list:
        return _sequence(hint, arguments[0], list)
    if origin in (Sequence, frozenset, set):
        if origin is not Sequence:
            raise TypeError(f"{hint}: sets have no order that every process shares; use a tuple")
        return _sequence(hint, arguments[0], tuple)
    if origin in (dict, Mapping):
        return _mapping(hint, arguments)
    kind = origin or hint
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _enum(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return dataclasses.replace(_dataclass(kind, arguments), hint=hint)
    if isinstance(hint, TypeVar):
        raise TypeError(f"{hint} is an open type parameter: name the type")
    raise TypeError(
        f"{hint!r} cannot be stored or sent: use None, bool, int, float, str, bytes, tuples or frozen dataclasses of these"
    )


def _pack_int(value: Any) -> int:
    if type(value) is not int:
        raise _wrong("int", value)
    if not INT_MIN <= value <= INT_MAX:
        raise TypeError(f"{value} does not fit 64 bits")
    return value


def _unpack_int(value: Any) -> int:
    if type(value) is not int or not INT_MIN <= value <= INT_MAX:
        raise CodecError(f"expected a 64-bit int, got {type(value).__name__}")
    return value


def _pack_float(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    raise _wrong("float", value)


def _exactly(kind: type) -> tuple[Function, Function]:
    name = kind.__name__

    def pack(value: Any) -> Any:
        if type(value) is not kind:
            raise _wrong(name, value)
        return value

    def unpack(value: Any) -> Any:
        if type(value) is not kind:
            raise CodecError(f"expected {name}, got {type(value).__name__}")
        return value

    return pack, unpack


def _pack_str(value: Any) -> str:
    if type(value) is not str:
        raise _wrong("str", value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise TypeError("expected text that UTF-8 can say, got a lone surrogate") from error
    return value


def _pack_none(value: Any) -> None:
    if value is not None:
        raise _wrong("None", value)


def _unpack_none(value: Any) -> None:
    if value is not None:
        raise CodecError(f"expected None, got {type(value).__name__}")


def _pack_datetime(value: Any) -> int:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise TypeError("expected a datetime with a timezone")
    return (value - _EPOCH) // timedelta(microseconds=1)


def _unpack_datetime(value: Any) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=_unpack_int(value))
    except OverflowError as error:
        raise CodecError("a moment outside the calendar") from error


_SCALARS: dict[Any, tuple[Function, Function]] = {
    int: (_pack_int, _unpack_int),
    float: (_pack_float, _exactly(float)[1]),
    bool: _exactly(bool),
    str: (_pack_str, _exactly(str)[1]),
    bytes: _exactly(bytes),
    type(None): (_pack_none, _unpack_none),
    None: (_pack_none, _unpack_none),
    datetime: (_pack_datetime, _unpack_datetime),
}
_PLAIN: Final = (int, bool, str, bytes, type(None), None)
# What a packed value of each type looks like, to tell the members of a union apart.
_SHAPES: dict[Any, tuple[type, ...]] = {
    int: (int,), float: (float,), bool: (bool,), str: (str,), bytes: (bytes,), type(None): (type(None),), datetime: (int,),
}  # fmt: skip


def _pack_any(value: Any) -> Any:
    if value is None or type(value) in (bool, float, str, bytes):
        return value
    if type(value) is int:
        return _pack_int(value)
    if isinstance(value, (tuple, list)):
        return [_pack_any(item) for item in value]
    if isinstance(value, dict):
        return {_pack_str(name): _pack_any(item) for name, item in value.items()}
    raise _wrong("a plain value", value)


def _unpack_any(value: Any) -> Any:
    return tuple(_unpack_any(item) for item in value) if type(value) is list else value


def _shape(hint: Any) -> tuple[type, ...]:
    origin = typing.get_origin(hint)
    if hint in _SHAPES:
        return _SHAPES[hint]
    if origin in (typing.Union, types.UnionType):
        return tuple(shape for argument in typing.get_args(hint) for shape in _shape(argument))
    if origin is Literal:
        return tuple({type(argument) for argument in typing.get_args(hint)})
    if origin in (dict, Mapping):
        return (dict,)
    return (list,)


def _python_type(hint: Any) -> type | tuple[type, ...]:
    origin = typing.get_origin(hint)
    if hint is None:
        return type(None)
    if origin is Literal:
        return tuple({type(argument) for argument in typing.get_args(hint)})
    kind = origin or hint
    return list if kind is Sequence else dict if kind is Mapping else kind


def _union(hint: Any, arguments: tuple[Any, ...]) -> ValueCodec:
    members = [(argument, compile_codec(argument)) for argument in arguments]
    by_shape: dict[type, Function] = {}
    for argument, codec in members:
        for shape in _shape(argument):
            if shape in by_shape:
                raise TypeError(f"{hint}: two of its types look alike once stored; use a dataclass with one field each")
            by_shape[shape] = codec.unpack
    packers: list[tuple[Any, Function]] = [(_python_type(argument), codec.pack) for argument, codec in members]
    if float in arguments and int not in arguments:
        packers.append((int, compile_codec(float).pack))  # an int is a float when packing, here as elsewhere
    by_type: dict[type, Function] = {}  # the loop below, for what is exactly of one of the types
    for kind, packer in packers:
        if isinstance(kind, type):
            by_type.setdefault(kind, packer)

    def pack(value: Any) -> Any:
        exact = by_type.get(type(value))
        if exact is not None:
            return exact(value)
        for kind, packer in packers:
            if isinstance(value, kind) and not (kind is int and type(value) is bool):
                return packer(value)
        raise _wrong(str(hint), value)

    def unpack(value: Any) -> Any:
        found = by_shape.get(type(value))
        if found is None:
            raise CodecError(f"expected {hint}, got {type(value).__name__}")
        return found(value)

    return ValueCodec(hint, pack, unpack, is_plain=all(codec.is_plain for _, codec in members))


def _literal(hint: Any, arguments: tuple[Any, ...]) -> ValueCodec:
    allowed = {(type(argument), argument) for argument in arguments}

    def pack(value: Any) -> Any:
        if (type(value), value) not in allowed:
            raise TypeError(f"expected one of {', '.join(map(repr, arguments))}, got {value!r}")
        return value

    def unpack(value: Any) -> Any:
        if type(value) in (list, dict) or (type(value), value) not in allowed:
            raise CodecError(f"expected one of {', '.join(map(repr, arguments))}")
        return value

    return ValueCodec(hint, pack, unpack, is_plain=all(type(argument) in _PLAIN for argument in arguments))


def _tuple(hint: Any, arguments: tuple[Any, ...]) -> ValueCodec:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return _sequence(hint, arguments[0], tuple)
    codecs = [compile_codec(argument) for argument in arguments if argument != ()]
    packers, unpackers, size = [c.pack for c in codecs], [c.unpack for c in codecs], len(codecs)

    def pack(value: Any) -> Any:
        if type(value) is not tuple or len(value) != size:
            raise _wrong(f"a tuple of {size}", value)
        return [packer(item) for packer, item in zip(packers, value, strict=True)]

    def unpack(value: Any) -> Any:
        if type(value) is not list or len(value) != size:
            raise CodecError(f"expected {size} values")
        return tuple([unpacker(item) for unpacker, item in zip(unpackers, value, strict=True)])

    return ValueCodec(hint, pack, unpack, is_plain=all(codec.is_plain for codec in codecs))


def _sequence(hint: Any, argument: Any, result: type) -> ValueCodec:
    codec = compile_codec(argument)
    packer, unpacker = codec.pack, codec.unpack

    def pack(value: Any) -> Any:
        if not isinstance(value, (tuple, list)):
            raise _wrong("a sequence", value)
        return [packer(item) for item in value]

    def unpack(value: Any) -> Any:
        if type(value) is not list:
            raise CodecError(f"expected a sequence, got {type(value).__name__}")
        return result([unpacker(item) for item in value])

    return ValueCodec(hint, pack, unpack, is_plain=codec.is_plain)


def _mapping(hint: Any, arguments: tuple[Any, ...]) -> ValueCodec:
    if arguments[0] is not str:
        raise TypeError(f"{hint}: only str keys can be stored")
    codec = compile_codec(arguments[1])
    packer, unpacker = codec.pack, codec.unpack

    def pack(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _wrong("a mapping", value)
        # Sorted: the same mapping is the same bytes, whatever order it was filled in.
        return {_pack_str(name): packer(value[name]) for name in sorted(value)}

    def unpack(value: Any) -> Any:
        if type(value) is not dict or any(type(name) is not str for name in value):
            raise CodecError("expected a mapping with str keys")
        return {name: unpacker(item) for name, item in value.items()}

    return ValueCodec(hint, pack, unpack)


def _enum(kind: type[enum.Enum]) -> ValueCodec:
    def pack(value: Any) -> Any:
        if type(value) is not kind:
            raise _wrong(kind.__name__, value)
        return value.value

    def unpack(value: Any) -> Any:
        try:
            return kind(value)
        except ValueError as error:
            raise CodecError(str(error)) from error

    return ValueCodec(kind, pack, unpack)


def field_codecs(kind: type, arguments: tuple[Any, ...] = ()) -> list[tuple[dataclasses.Field[Any], ValueCodec]]:
    """Each field with its codec; type parameters replaced by ``arguments``."""
    hints = typing.get_type_hints(kind)
    parameters = dict(zip(getattr(kind, "__parameters__", ()), arguments, strict=False))
    found = []
    for field in dataclasses.fields(kind):
        hint = _substitute(hints[field.name], parameters)
        try:
            found.append((field, compile_codec(hint)))
        except TypeError as error:
            raise TypeError(f"{kind.__name__}.{field.name}: {error}") from error
    return found


def _substitute(hint: Any, parameters: Mapping[Any, Any]) -> Any:
    if isinstance(hint, TypeVar):
        return parameters.get(hint, hint)
    free = getattr(hint, "__parameters__", ())
    return hint[tuple(parameters.get(p, p) for p in free)] if free and parameters else hint


def _dataclass(kind: type, arguments: tuple[Any, ...]) -> ValueCodec:
    if not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise TypeError(f"{kind.__name__} can change after it was stored: make it a frozen dataclass")
    fields = field_codecs(kind, arguments)
    pack = _generate_pack(kind, fields, as_map=False)
    required = sum(1 for field, _ in fields if not _has_default(field))
    unpackers = [codec.unpack for _, codec in fields]
    size = len(fields)

    def unpack(value: Any) -> Any:
        if type(value) is not list or not required <= len(value) <= size:
            raise CodecError(f"expected the fields of {kind.__name__}")
        return kind(*[unpacker(item) for unpacker, item in zip(unpackers, value, strict=False)])

    return ValueCodec(kind, pack, unpack, pack_accepted=_generate_pack_accepted(fields))


def _default_of(field: dataclasses.Field[Any]) -> Any:
    factory: Any = field.default_factory
    return factory() if field.default is dataclasses.MISSING else field.default


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _generate_pack(kind: type, fields: list[tuple[dataclasses.Field[Any], ValueCodec]], *, as_map: bool) -> Function:
    """One function that checks and packs all fields: a loop over closures takes three times as long."""
    scope: dict[str, Any] = {"kind": kind, "wrong": _wrong, "named": _name_field}
    lines = ["def pack(value):", "    if type(value) is not kind: raise wrong(kind.__name__, value)", "    try:"]
    parts = []
    for place, (field, codec) in enumerate(fields):
        scope[f"p{place}"] = codec.pack
        lines.append(f"        at = {field.name!r}")
        lines.append(f"        v{place} = p{place}(value.{field.name})")
        parts.append(f"{field.name!r}: v{place}" if as_map else f"v{place}")
    body = "{" + ", ".join(parts) + "}" if as_map else "[" + ", ".join(parts) + "]"
    lines.append(f"        return {body}")
    lines.append("    except TypeError as error: raise named(kind, at, error) from None")
    if not fields:
        lines = ["def pack(value):", "    if type(value) is not kind: raise wrong(kind.__name__, value)"]
        lines.append("    return {}" if as_map else "    return []")
    exec("\n".join(lines), scope)  # source made of field names, which are identifiers
    generated: Function = scope["pack"]
    return generated


def _generate_pack_accepted(fields: list[tuple[dataclasses.Field[Any], ValueCodec]]) -> Function:
    scope: dict[str, Any] = {}
    parts = []
    for place, (field, codec) in enumerate(fields):
        if codec.is_plain:
            parts.append(f"value.{field.name}")
        else:
            scope[f"p{place}"] = codec.pack_accepted or codec.pack
            parts.append(f"p{place}(value.{field.name})")
    exec(f"def pack(value): return [{', '.join(parts)}]", scope)  # source made of field names, which are identifiers
    generated: Function = scope["pack"]
    return generated


def _name_field(kind: type, field: str, error: TypeError) -> TypeError:
    return TypeError(f"{kind.__name__}.{field}: {error}")


@lru_cache(maxsize=4_096)
def message_codec(kind: Any) -> ValueCodec:
    """A message's fields as a map by name: fields may be added anywhere, with defaults."""
    parameters = getattr(kind, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise TypeError(f"{kind.__name__} must be a frozen dataclass")
    fields = field_codecs(kind)
    pack = _generate_pack(kind, fields, as_map=True)
    scope: dict[str, Any] = {"kind": kind, "CodecError": CodecError}
    lines = [
        "def unpack(value):",
        "    if type(value) is not dict: raise CodecError('expected a map of fields')",
        "    try:",
        "        left = len(value)",
    ]
    names = []
    for place, (field, codec) in enumerate(fields):
        scope[f"u{place}"] = codec.unpack
        names.append(f"v{place}")
        if _has_default(field):
            scope[f"d{place}"] = _default_of(field)
            lines.append(f"        if {field.name!r} in value: v{place} = u{place}(value[{field.name!r}]); left -= 1")
            lines.append(f"        else: v{place} = d{place}")
        else:
            lines.append(f"        v{place} = u{place}(value[{field.name!r}]); left -= 1")
    lines += [
        "    except KeyError as error: raise CodecError(f'{kind.__name__} lacks its field {error}') from None",
        "    if left: raise CodecError(f'{kind.__name__} has unknown fields')",
        f"    return kind({', '.join(names)})",
    ]
    exec("\n".join(lines), scope)
    return ValueCodec(kind, pack, scope["unpack"])
