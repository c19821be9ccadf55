"""Plain JSON values back to Python types, by an annotation.

A decoder is built once per annotation; None stands for the decoder that gives the plain value itself.
"""

from __future__ import annotations

import base64
import binascii
import collections
import collections.abc as abc
import dataclasses
import json
import types
import typing
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, TypeVar, Union, get_args, get_origin
from uuid import UUID

from shardflow.core.hints import describe
from shardflow.core.plain import is_model, path_key, text_of, to_plain
from shardflow.core.records import (
    Decoder,
    Mismatch,
    at,
    dataclass_decoder,
    model_decoder,
    named_tuple_decoder,
    typed_dict_decoder,
    unfit,
)

_MAX_CACHED = 4096


def decoder_of(annotation: Any) -> Decoder | None:
    """The decoder of an annotation; it raises `Mismatch` for a plain value that does not fit."""
    return _decoder(annotation, False)


# Keyed by identity, because Union[int, str] and Union[str, int] are equal and are not the same; the entry
# keeps its annotation alive, so that the identity stays its own.
_cache: dict[tuple[int, bool], tuple[Any, Decoder | None]] = {}


def _decoder(annotation: Any, strict: bool) -> Decoder | None:
    found = _cache.get((id(annotation), strict))
    if found is None:
        if len(_cache) >= _MAX_CACHED:
            _cache.clear()
        found = (annotation, _build(annotation, strict))
        _cache[id(annotation), strict] = found
    return found[1]


def _build(annotation: Any, strict: bool) -> Decoder | None:
    if annotation is None:
        annotation = types.NoneType
    if annotation in _PASSED_ON:
        return None
    if isinstance(annotation, TypeVar):
        return _decoder(annotation.__bound__, strict) if annotation.__bound__ is not None else None
    if type(annotation).__name__ == "TypeAliasType":
        return _later(lambda: _decoder(annotation.__value__, strict))
    supertype = getattr(annotation, "__supertype__", None)
    if supertype is not None:
        return _decoder(supertype, strict)
    origin = get_origin(annotation)
    args = get_args(annotation)
    if origin is not None:
        return _build_generic(annotation, origin, args, strict)
    if isinstance(annotation, type):
        return _build_class(annotation, {}, strict)
    return None


def _build_generic(annotation: Any, origin: Any, args: tuple[Any, ...], strict: bool) -> Decoder | None:
    if origin in _WRAPPERS:
        return _decoder(args[0], strict)
    if origin is Union or origin is types.UnionType:
        return _union(annotation, args)
    if origin is typing.Literal:
        return _literal(annotation, args)
    if not isinstance(origin, type):
        return None
    if origin is tuple:
        return _tuple(annotation, (Any, ...) if _is_bare(annotation) else args, strict)
    if typing.is_typeddict(origin):
        return _build_class(origin, _bound(origin, args), strict)
    if origin is collections.Counter:
        return _mapping(origin, args[0], int, strict)
    if len(args) == 2 and issubclass(origin, abc.Mapping):
        return _mapping(_CONCRETE.get(origin, dict), args[0], args[1], strict)
    if len(args) == 1 and origin in _COLLECTIONS:
        return _collection(annotation, _COLLECTIONS[origin], args[0], strict)
    if is_model(origin):
        return _build_class(annotation, {}, strict)
    return _build_class(origin, _bound(origin, args), strict)


def _bound(generic: Any, args: tuple[Any, ...]) -> dict[Any, Any]:
    return dict(zip(getattr(generic, "__parameters__", ()), args, strict=False))


def _is_bare(annotation: Any) -> bool:
    return annotation is typing.Tuple  # noqa: UP006 - the old spelling is what is looked for


def _build_class(cls: Any, bound: dict[Any, Any], strict: bool) -> Decoder | None:
    def of(annotation: Any) -> Decoder | None:
        return _decoder(annotation, strict)

    if cls in _SCALARS:
        return _scalar(cls, strict)
    if cls in _FROM_TEXT:
        return _from_text(cls, strict)
    if cls is timedelta:
        return _to_timedelta
    if cls in _COLLECTIONS:
        return _collection(cls, _COLLECTIONS[cls], Any, strict)
    if cls is collections.Counter:
        return _mapping(cls, Any, int, strict)
    if cls in _CONCRETE:
        return _mapping(_CONCRETE[cls], Any, Any, strict)
    if cls is tuple:
        return _tuple(cls, (Any, ...), strict)
    if is_model(cls):
        return model_decoder(cls)
    if isinstance(cls, type) and issubclass(cls, Enum):
        return _enum(cls)
    if dataclasses.is_dataclass(cls):
        return _later(lambda: dataclass_decoder(cls, bound, of, strict))
    if typing.is_typeddict(cls):
        return _later(lambda: typed_dict_decoder(cls, bound, of, strict))
    if isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return _later(lambda: named_tuple_decoder(cls, bound, of, strict))
    return _from_scalar(cls, strict)


def _later(build: Callable[[], Decoder | None]) -> Decoder:
    """A decoder that is built at its first use, so that a type may contain itself."""
    built: list[Decoder | None] = []

    def decode(value: Any) -> Any:
        if not built:
            built.append(build())
        decoder = built[0]
        return value if decoder is None else decoder(value)

    return decode


def _scalar(cls: type, strict: bool) -> Decoder:
    accepted = (cls,) if strict else _SCALARS[cls]

    def decode(value: Any) -> Any:
        if type(value) not in accepted:
            raise unfit(cls, value)
        return value

    return decode


def _from_scalar(cls: Any, strict: bool) -> Decoder | None:
    """A user's subclass of str, int or float is made of the scalar; of any other class nothing is known."""
    for base in (str, int, float):
        if isinstance(cls, type) and issubclass(cls, base):
            scalar = _scalar(base, strict)
            return lambda value: cls(scalar(value))
    return None


def _from_text(cls: type, strict: bool) -> Decoder:
    parse = _FROM_TEXT[cls]

    def decode(value: Any) -> Any:
        if type(value) is not str:
            raise unfit(cls, value)
        try:
            parsed = parse(value)
        except (ValueError, InvalidOperation):
            raise unfit(cls, value) from None
        if strict and to_plain(parsed) != value:
            raise unfit(cls, value)
        return parsed

    return decode


def _to_timedelta(value: Any) -> timedelta:
    if type(value) not in (int, float, str):
        raise unfit(timedelta, value)
    try:
        if type(value) is str:
            return timedelta(microseconds=int(Decimal(value).scaleb(6)))
        return timedelta(seconds=value)
    except (ValueError, OverflowError, InvalidOperation):
        raise unfit(timedelta, value) from None


def _collection(annotation: Any, make: Callable[[Any], Any], of: Any, strict: bool) -> Decoder:
    item = _decoder(of, strict)

    def decode(value: Any) -> Any:
        if type(value) is not list:
            raise unfit(annotation, value)
        if item is not None:
            try:
                value = [item(each) for each in value]
            except Mismatch:
                _locate(value, item)
                raise
        try:
            return value if make is list else make(value)
        except TypeError as error:
            raise Mismatch(f"cannot make {describe(annotation)}: {error}") from error

    return decode


def _tuple(annotation: Any, args: tuple[Any, ...], strict: bool) -> Decoder:
    if len(args) == 2 and args[1] is ...:
        return _collection(annotation, tuple, args[0], strict)
    items = [_decoder(arg, strict) for arg in args]

    def decode(value: Any) -> Any:
        if type(value) is not list:
            raise unfit(annotation, value)
        if len(value) != len(items):
            raise Mismatch(f"expected {len(items)} items for {describe(annotation)}, found {len(value)}")
        return tuple(at(f"[{i}]", items[i], each) for i, each in enumerate(value))

    return decode


def _mapping(make: Any, key_type: Any, value_type: Any, strict: bool) -> Decoder:
    key = _key_decoder(key_type)
    item = _decoder(value_type, strict)

    def decode(value: Any) -> Any:
        if type(value) is not dict:
            raise unfit(dict, value)
        if item is not None:
            value = {name: at(path_key(name), item, each) for name, each in value.items()}
        if key is not None:
            value = {at(path_key(name), key, name): each for name, each in value.items()}
        return value if make is dict else make(value)

    return decode


def _key_decoder(annotation: Any) -> Decoder | None:
    if annotation in (str, *_PASSED_ON):
        return None
    if annotation is float:
        return _float_key
    inner = _decoder(annotation, True)
    if inner is None:
        return None

    def decode(text: str) -> Any:
        """A key is text: one that the type takes, or the spelling of a number, a truth value or null."""
        try:
            return inner(text)
        except Mismatch:
            try:
                spelled = json.loads(text)
            except ValueError:
                spelled = None
            if type(spelled) is str or json.dumps(spelled) != text:
                raise
            return inner(spelled)

    return decode


def _float_key(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise unfit(float, text) from None


def _union(annotation: Any, args: tuple[Any, ...]) -> Decoder | None:
    """Arms in declared order; exact fits first: no unknown fields, no int for a float."""
    if any(arg in _PASSED_ON for arg in args):
        return None
    strict = [_decoder(arg, True) for arg in args]
    arms = [*strict, *(_decoder(arg, False) for arg in args)]
    if len(args) == 2 and types.NoneType in args:
        inner = arms[2 if args[1] is types.NoneType else 3]
        return lambda value: value if value is None or inner is None else inner(value)

    def decode(value: Any) -> Any:
        for arm in arms:
            if arm is None:
                return value
            try:
                return arm(value)
            except Mismatch:
                pass
        raise unfit(annotation, value)

    return decode


def _literal(annotation: Any, args: tuple[Any, ...]) -> Decoder:
    by_text = {text_of(arg): arg for arg in args}

    def decode(value: Any) -> Any:
        try:
            return by_text[text_of(value)]
        except KeyError:
            raise unfit(annotation, value) from None

    return decode


def _enum(cls: type[Enum]) -> Decoder:
    by_text: dict[str, Enum] = {}
    for member in cls.__members__.values():
        try:
            by_text.setdefault(text_of(member.value), member)
        except TypeError:
            continue

    def decode(value: Any) -> Any:
        member = by_text.get(text_of(value))
        if member is not None:
            return member
        try:
            return cls(value)
        except (ValueError, TypeError):
            raise unfit(cls, value) from None

    return decode


def _locate(values: list[Any], decoder: Decoder) -> None:
    for i, each in enumerate(values):
        at(f"[{i}]", decoder, each)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


_PASSED_ON: tuple[Any, ...] = (Any, object)

_WRAPPERS: tuple[Any, ...] = (typing.Annotated, typing.Final, typing.Required, typing.NotRequired)

_SCALARS: dict[Any, tuple[type, ...]] = {
    types.NoneType: (types.NoneType,),
    bool: (bool,),
    int: (int, bool),
    float: (float, int, bool),
    str: (str,),
}

_FROM_TEXT: dict[Any, Callable[[str], Any]] = {
    datetime: datetime.fromisoformat,
    date: date.fromisoformat,
    time: time.fromisoformat,
    Decimal: Decimal,
    UUID: UUID,
    bytes: _from_base64,
    bytearray: lambda text: bytearray(_from_base64(text)),
}

_COLLECTIONS: dict[Any, Callable[[Any], Any]] = {
    list: list,
    set: set,
    frozenset: frozenset,
    collections.deque: collections.deque,
    abc.Sequence: list,
    abc.MutableSequence: list,
    abc.Collection: list,
    abc.Iterable: list,
    abc.Set: frozenset,
    abc.MutableSet: set,
}

_CONCRETE: dict[Any, Any] = {
    dict: dict,
    abc.Mapping: dict,
    abc.MutableMapping: dict,
    collections.OrderedDict: collections.OrderedDict,
    collections.defaultdict: lambda pairs: collections.defaultdict(None, pairs),
}
