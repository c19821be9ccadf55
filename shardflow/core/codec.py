"""A function's arguments and result, to stored bytes and back, typed by its annotations.

How one value is stored is decided in `core.codecs`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from types import NoneType
from typing import Any, get_args, get_origin

from shardflow.core.codecs import Codecs, parse, typed
from shardflow.core.hints import resolve_hints
from shardflow.core.records import Decoder
from shardflow.core.writer import FAILURES, quote
from shardflow.errors import SerializationError, UsageError
from shardflow.model import PayloadConfig

EMPTY_CALL = b"[[],{}]"

_EXACT = frozenset({NoneType, bool, int, str})
_SAME: frozenset[Any] = _EXACT | {float}  # of a float that could be encoded, and so is finite

#: Of what belongs to no app: the built-in forms, and no payload codec.
DEFAULT = Codecs()
encode = DEFAULT.encode
decode = DEFAULT.decode


def same_after_roundtrip(value: Any) -> bool:
    """Whether decoding what `encode` gives is certain to give an equal value of the same type.

    Only says so of what it sees at a glance: None, and exact bool, int, str and finite float.
    """
    kind = type(value)
    return kind in _EXACT or (kind is float and math.isfinite(value))


class CallCodec:
    """The arguments and the result of one function, encoded, and decoded by its annotations.

    `func` is a step or workflow; `name` stands for it in errors ("step charge"). `localns` holds names that
    its annotations may use beside its module's globals. `codecs`, the app's, say how values are stored. The
    annotations are resolved at the first decoding; one that cannot be resolved counts as `Any`, and is listed in
    `unresolved` from then on.
    """

    __slots__ = (
        "_annotations",
        "_by_name",
        "_by_position",
        "_exact",
        "_func",
        "_keywords",
        "_localns",
        "_names",
        "_payloads",
        "_plain",
        "_positional",
        "_required",
        "_resolved",
        "_rest",
        "_returns",
        "_same",
        "_signature",
        "_what_call",
        "_what_result",
        "codecs",
        "name",
        "unresolved",
    )

    def __init__(
        self,
        func: Callable[..., Any],
        *,
        name: str | None = None,
        localns: Mapping[str, Any] | None = None,
        codecs: Codecs = DEFAULT,
    ) -> None:
        self.name = name or getattr(func, "__qualname__", type(func).__qualname__)
        self._what_call = f"arguments of {self.name}"
        self._what_result = f"result of {self.name}"
        self.codecs = codecs
        self._payloads = codecs.payloads
        self.unresolved: tuple[str, ...] = ()
        self._func = inspect.unwrap(func)
        self._localns = localns
        try:
            self._signature: inspect.Signature | None = inspect.signature(func)
        except (TypeError, ValueError):
            self._signature = None
        parameters = list(self._signature.parameters.values()) if self._signature else []
        in_order = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self._names = [p.name for p in in_order]
        # How many positional arguments alone make a right call; (1, 0) where only binding can tell.
        self._required, self._positional = 1, 0
        if self._signature and not any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
            self._required = sum(p.default is p.empty for p in in_order)
            self._positional = len(in_order)
        self._resolved = False
        self._plain = False
        self._exact: tuple[Any, ...] | None = None
        self._by_position: list[Decoder | None] = []
        self._rest: Decoder | None = None
        self._by_name: dict[str, Decoder | None] = {}
        self._keywords: Decoder | None = None
        self._returns: Decoder | None = None
        self._same: frozenset[type] = frozenset()

    def check_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise `UsageError` where the function cannot be called with these arguments."""
        if self._signature is None or (not kwargs and self._required <= len(args) <= self._positional):
            return
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise UsageError(f"wrong call of {self.name}{self._signature}: {error}") from None

    def encode_call(
        self,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        check: bool = True,
        limits: PayloadConfig | None = None,
    ) -> bytes:
        """Arguments as the JSON array `[positional, by name]`, keywords in the order of their names; then sealed.

        `limits`: others than those of the codecs. Raises `UsageError` for arguments that the function does not take,
        except with `check=False`, and `SerializationError`, naming the parameter.
        """
        if check:
            self.check_call(args, kwargs or {})
        if not kwargs:
            kwargs = {}
        elif len(kwargs) > 1:
            kwargs = dict(sorted(kwargs.items()))
        try:
            data = self.codecs.writer.write((args, kwargs)).encode() if args or kwargs else EMPTY_CALL
        except FAILURES:
            data = self._encode_call_slowly(args, kwargs)
        if limits is not None or len(data) > self._payloads.small:
            return self._payloads.seal(data, self._what_call, limits)
        return data

    def decode_call(
        self, data: bytes, *, limits: PayloadConfig | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional arguments, and those by name, typed by the parameters' annotations.

        Raises `SerializationError`, naming the parameter.
        """
        if data == EMPTY_CALL:
            return (), {}
        what = self._what_call
        call = self.codecs.parse(data, what, limits)
        if type(call) is not list or len(call) != 2 or type(call[0]) is not list or type(call[1]) is not dict:
            raise SerializationError(f"{what}: expected [positional, by name], found {data[:80]!r}")
        if not self._resolved:
            self._resolve()
        args, kwargs = call
        if self._plain or (not kwargs and tuple(map(type, args)) == self._exact):
            return tuple(args), kwargs
        known = len(self._by_position)
        return (
            tuple(
                typed(each, self._by_position[i] if i < known else self._rest, what, f"$.{self._argument(i)}")
                for i, each in enumerate(args)
            ),
            {
                name: typed(each, self._by_name.get(name, self._keywords), what, f"$.{name}")
                for name, each in kwargs.items()
            },
        )

    def encode_result(self, value: Any) -> bytes:
        """The bytes to store for the result; raises `SerializationError`."""
        return self._sealed(self.codecs.writer.encode(value, self._what_result))

    def decode_result(self, data: bytes, *, limits: PayloadConfig | None = None) -> Any:
        """The result, typed by the return annotation; raises `SerializationError`."""
        if not self._resolved:
            self._resolve()
        return typed(self.codecs.parse(data, self._what_result, limits), self._returns, self._what_result, "$")

    def roundtrip_result(self, value: Any) -> tuple[bytes, Any]:
        """The bytes to store for the result, and the value as every replay will see it.

        To hand the caller that second value makes the first run see what its replays see. Raises
        `SerializationError`, also where the result does not fit the return annotation.
        """
        data = self.codecs.writer.encode(value, self._what_result)
        if not self._resolved:
            self._resolve()
        if type(value) not in self._same:
            value = typed(parse(data, self._what_result), self._returns, self._what_result, "$")
        return self._sealed(data), value

    def _sealed(self, data: bytes) -> bytes:
        if len(data) > self._payloads.small:
            return self._payloads.seal(data, self._what_result)
        return data

    def _argument(self, position: int) -> str:
        return self._names[position] if position < len(self._names) else f"args[{position}]"

    def _encode_call_slowly(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        slowly, what = self.codecs.writer.encode_slowly, self._what_call
        positional = [slowly(each, what, f"$.{self._argument(i)}") for i, each in enumerate(args)]
        by_name = [
            b"%s:%s" % (quote(name).encode(), slowly(each, what, f"$.{name}")) for name, each in kwargs.items()
        ]
        return b"[[%s],{%s}]" % (b",".join(positional), b",".join(by_name))

    def _resolve(self) -> None:
        signature = self._signature
        raw: dict[str, Any] = dict(getattr(self._func, "__annotations__", {}))
        hints = resolve_hints(self._func, raw, self._localns) if raw else {}
        self.unresolved = tuple(
            name for name, hint in hints.items() if hint is Any and raw[name] not in (Any, *_ANY_AS_TEXT)
        )
        decoders: dict[str, Decoder | None] = {}
        for parameter in signature.parameters.values() if signature else ():
            decoder = self.codecs.decoder_of(hints.get(parameter.name, Any))
            if decoder is not None and parameter.default is None:
                decoder = _or_none(decoder)
            decoders[parameter.name] = decoder
            if parameter.kind is parameter.VAR_POSITIONAL:
                self._rest = decoder
            elif parameter.kind is parameter.VAR_KEYWORD:
                self._keywords = decoder
            elif parameter.kind is not parameter.POSITIONAL_ONLY:
                self._by_name[parameter.name] = decoder
        self._by_position = [decoders[name] for name in self._names]
        self._plain = not any(decoders.values())
        # All positional, each annotated with a type that JSON gives back as it is: nothing to convert.
        annotations = tuple(hints.get(name, Any) for name in self._names)
        self._exact = annotations if all(each in _SAME for each in annotations) else None
        returns = _unwrapped(hints.get("return", Any))
        self._returns = self.codecs.decoder_of(returns)
        if self._returns is None:
            self._same = _SAME
        elif returns in _SAME:
            self._same = frozenset({returns})
        self._resolved = True


def _or_none(decoder: Decoder) -> Decoder:
    return lambda value: None if value is None else decoder(value)


def _unwrapped(annotation: Any) -> Any:
    """What awaiting gives, for the annotation of a plain function that returns an awaitable."""
    origin = get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, Awaitable):
        args = get_args(annotation)
        return args[-1] if args else Any
    return annotation


_ANY_AS_TEXT = ("Any", "typing.Any", "t.Any")
