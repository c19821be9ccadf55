"""Plain JSON values back to Python types, by an annotation.

A decoder is built once per annotation; None stands for the decoder that gives the plain value itself.
"""

from __future__ import annotations

import collections
import collections.abc as abc
import dataclasses
import json
import types
import typing
from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from typing import Any, TypeVar, Union, get_args, get_origin

from shardflow.core import scalars
from shardflow.core.custom import Types
from shardflow.core.hints import describe
from shardflow.core.plain import is_model, path_key
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


class Decoders:
    """Builds and keeps the decoders of annotations; `custom` has the user's own types."""

    def __init__(self, custom: Types) -> None:
        self._types = custom
        # Keyed by identity, because Union[int, str] and Union[str, int] are equal and are not the same; the entry
        # keeps its annotation alive, so that the identity stays its own.
        self._cache: dict[tuple[int, bool], tuple[Any, Decoder | None]] = {}

    def of(self, annotation: Any, strict: bool = False) -> Decoder | None:
        """The decoder of an annotation; it raises `Mismatch` for a plain value that does not fit.

        A `strict` one refuses what is not exactly what the annotation's type is encoded to.
        """
        found = self._cache.get((id(annotation), strict))
        if found is None:
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            found = (annotation, self._build(annotation, strict))
            self._cache[id(annotation), strict] = found
        return found[1]

    def _build(self, annotation: Any, strict: bool) -> Decoder | None:
        if annotation is None:
            annotation = types.NoneType
        if annotation in _PASSED_ON:
            return None
        if isinstance(annotation, TypeVar):
            return self.of(annotation.__bound__, strict) if annotation.__bound__ is not None else None
        if type(annotation).__name__ == "TypeAliasType":
            return _later(lambda: self.of(annotation.__value__, strict))
        supertype = getattr(annotation, "__supertype__", None)
        if supertype is not None:
            return self.of(supertype, strict)
        origin = get_origin(annotation)
        if origin is not None:
            return self._generic(annotation, origin, get_args(annotation), strict)
        if isinstance(annotation, type):
            return self._class(annotation, {}, strict)
        return None

    def _generic(self, annotation: Any, origin: Any, args: tuple[Any, ...], strict: bool) -> Decoder | None:
        if origin in _WRAPPERS:
            return self.of(args[0], strict)
        if origin is Union or origin is types.UnionType:
            return self._union(annotation, args)
        if origin is typing.Literal:
            return scalars.literal(annotation, args, self._types.plain)
        if not isinstance(origin, type):
            return None
        if self._types.find(origin) is not None:
            return self._class(origin, {}, strict)
        if origin is tuple:
            return self._tuple(annotation, (Any, ...) if _is_bare(annotation) else args, strict)
        if typing.is_typeddict(origin):
            return self._class(origin, _bound(origin, args), strict)
        if origin is collections.Counter:
            return self._mapping(origin, args[0], int, strict)
        if len(args) == 2 and issubclass(origin, abc.Mapping):
            return self._mapping(_CONCRETE.get(origin, dict), args[0], args[1], strict)
        if len(args) == 1 and origin in _COLLECTIONS:
            return self._collection(annotation, _COLLECTIONS[origin], args[0], strict)
        if is_model(origin):
            return self._class(annotation, {}, strict)
        return self._class(origin, _bound(origin, args), strict)

    def _class(self, cls: Any, bound: dict[Any, Any], strict: bool) -> Decoder | None:
        def of(annotation: Any) -> Decoder | None:
            return self.of(annotation, strict)

        custom = self._types.find(cls)
        if custom is not None:
            return _later(lambda: custom.decoder(cls, of(custom.form)))
        if cls in scalars.SCALARS:
            return scalars.scalar(cls, strict)
        if cls in scalars.FROM_TEXT:
            return scalars.from_text(cls, strict)
        if cls is timedelta:
            return scalars.to_timedelta
        if cls in _COLLECTIONS:
            return self._collection(cls, _COLLECTIONS[cls], Any, strict)
        if cls is collections.Counter:
            return self._mapping(cls, Any, int, strict)
        if cls in _CONCRETE:
            return self._mapping(_CONCRETE[cls], Any, Any, strict)
        if cls is tuple:
            return self._tuple(cls, (Any, ...), strict)
        if is_model(cls):
            return model_decoder(cls)
        if isinstance(cls, type) and issubclass(cls, Enum):
            return scalars.enum(cls, self._types.plain)
        if dataclasses.is_dataclass(cls):
            return _later(lambda: dataclass_decoder(cls, bound, of, strict))
        if typing.is_typeddict(cls):
            return _later(lambda: typed_dict_decoder(cls, bound, of, strict))
        if isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields"):
            return _later(lambda: named_tuple_decoder(cls, bound, of, strict))
        return scalars.from_scalar(cls, strict)

    def _collection(self, annotation: Any, make: Callable[[Any], Any], of: Any, strict: bool) -> Decoder:
        item = self.of(of, strict)

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

    def _tuple(self, annotation: Any, args: tuple[Any, ...], strict: bool) -> Decoder:
        if len(args) == 2 and args[1] is ...:
            return self._collection(annotation, tuple, args[0], strict)
        items = [self.of(arg, strict) for arg in args]

        def decode(value: Any) -> Any:
            if type(value) is not list:
                raise unfit(annotation, value)
            if len(value) != len(items):
                raise Mismatch(f"expected {len(items)} items for {describe(annotation)}, found {len(value)}")
            return tuple(at(f"[{i}]", items[i], each) for i, each in enumerate(value))

        return decode

    def _mapping(self, make: Any, key_type: Any, value_type: Any, strict: bool) -> Decoder:
        key = self._key(key_type)
        item = self.of(value_type, strict)

        def decode(value: Any) -> Any:
            if type(value) is not dict:
                raise unfit(dict, value)
            if item is not None:
                value = {name: at(path_key(name), item, each) for name, each in value.items()}
            if key is not None:
                value = {at(path_key(name), key, name): each for name, each in value.items()}
            return value if make is dict else make(value)

        return decode

    def _key(self, annotation: Any) -> Decoder | None:
        if annotation in (str, *_PASSED_ON):
            return None
        if annotation is float:
            return scalars.float_key
        inner = self.of(annotation, True)
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

    def _union(self, annotation: Any, args: tuple[Any, ...]) -> Decoder | None:
        """Arms in declared order; exact fits first: no unknown fields, no int for a float."""
        if any(arg in _PASSED_ON for arg in args):
            return None
        strict = [self.of(arg, True) for arg in args]
        arms = [*strict, *(self.of(arg, False) for arg in args)]
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


def _later(build: Callable[[], Decoder | None]) -> Decoder:
    """A decoder that is built at its first use, so that a type may contain itself."""
    built: list[Decoder | None] = []

    def decode(value: Any) -> Any:
        if not built:
            built.append(build())
        decoder = built[0]
        return value if decoder is None else decoder(value)

    return decode


def _bound(generic: Any, args: tuple[Any, ...]) -> dict[Any, Any]:
    return dict(zip(getattr(generic, "__parameters__", ()), args, strict=False))


def _is_bare(annotation: Any) -> bool:
    return annotation is typing.Tuple  # noqa: UP006 - the old spelling is what is looked for


def _locate(values: list[Any], decoder: Decoder) -> None:
    for i, each in enumerate(values):
        at(f"[{i}]", decoder, each)


_PASSED_ON: tuple[Any, ...] = (Any, object)

_WRAPPERS: tuple[Any, ...] = (typing.Annotated, typing.Final, typing.Required, typing.NotRequired)

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
