"""Values to stored bytes and back: JSON in UTF-8, never pickle.

What has been encoded can be decoded by the annotation it was declared with; with `Any` it comes back as plain
JSON. A value has the same bytes in every process (sets are put in order), so that bytes can be compared.
"""

from __future__ import annotations

import inspect
import json
import json.encoder
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from enum import Enum
from types import NoneType
from typing import Any, get_args, get_origin

from shardflow.core.hints import resolve_hints
from shardflow.core.payload import checked_size
from shardflow.core.plain import key_text, path_key, to_plain
from shardflow.core.records import Decoder, Mismatch
from shardflow.core.typed import decoder_of
from shardflow.errors import SerializationError, UsageError

EMPTY_CALL = b"[[],{}]"

_SUPPORTED = (
    "use JSON values, dataclasses, TypedDict, NamedTuple, Enum, datetime, Decimal, UUID, bytes, sets or "
    "pydantic models"
)
_EXACT = frozenset({NoneType, bool, int, str})
_SAME: frozenset[Any] = _EXACT | {float}  # of a float that could be encoded, and so is finite
_FAILURES = (TypeError, ValueError, RecursionError, AttributeError)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _make_writer() -> Callable[[Any], str]:
    encoder = json.JSONEncoder(
        ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"), default=to_plain
    )
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return encoder.encode
    quote = json.encoder.encode_basestring
    chunks = make(None, to_plain, quote, None, ":", ",", False, False, False)
    return lambda value: "".join(chunks(value, 0))


_write = _make_writer()
_quote: Callable[[str], str] = json.encoder.encode_basestring
_parser = json.JSONDecoder(parse_constant=_refuse_constant)
_scan: Callable[[str, int], tuple[Any, int]] = vars(_parser)["scan_once"]


def encode(value: Any, *, what: str) -> bytes:
    """A value as JSON in UTF-8.

    `what` names the value in an error: "result of step charge". Raises `SerializationError`, with the path of
    the part that has no JSON form: an unknown type, a float that is not finite, a lone surrogate, a value
    inside itself. Keys that are no text become text, and come back by the annotation.
    """
    kind = type(value)
    try:
        if kind is str:
            return _quote(value).encode()
        if value is None:
            return b"null"
        return _write(value).encode()
    except _FAILURES:
        return _encode_slowly(value, what, "$")


def decode(data: bytes, annotation: Any = Any, *, what: str) -> Any:
    """The value of encoded bytes, typed by `annotation`; with `Any` the plain JSON value.

    Arms of a union are tried in declared order, exact ones first. A field that a class no longer has is left
    out. Raises `SerializationError`, with the path of the part that does not fit the annotation.
    """
    value = _parse(data, what)
    if annotation is Any:
        return value
    return _typed(value, decoder_of(annotation), what, "$")


def same_after_roundtrip(value: Any) -> bool:
    """Whether decoding what `encode` gives is certain to give an equal value of the same type.

    Only says so of what it sees at a glance: None, and exact bool, int, str and finite float.
    """
    kind = type(value)
    return kind in _EXACT or (kind is float and math.isfinite(value))


class CallCodec:
    """The arguments and the result of one function, encoded, and decoded by its annotations.

    `func` is a step or workflow; `name` stands for it in errors ("step charge"). `localns` holds names that
    its annotations may use beside its module's globals. The annotations are resolved at the first decoding;
    one that cannot be resolved counts as `Any`, and is listed in `unresolved` from then on.
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
        "_plain",
        "_positional",
        "_required",
        "_resolved",
        "_rest",
        "_returns",
        "_same",
        "_signature",
        "name",
        "unresolved",
    )

    def __init__(
        self, func: Callable[..., Any], *, name: str | None = None, localns: Mapping[str, Any] | None = None
    ) -> None:
        self.name = name or getattr(func, "__qualname__", type(func).__qualname__)
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
        self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *, check: bool = True
    ) -> bytes:
        """Arguments as the JSON array `[positional, by name]`, keywords in the order of their names.

        Raises `UsageError` for arguments that the function does not take, except with `check=False`, and
        `SerializationError`, naming the parameter.
        """
        if check:
            self.check_call(args, kwargs or {})
        if not kwargs:
            if not args:
                return EMPTY_CALL
            kwargs = {}
        elif len(kwargs) > 1:
            kwargs = dict(sorted(kwargs.items()))
        try:
            encoded = _write((args, kwargs)).encode()
        except _FAILURES:
            encoded = self._encode_call_slowly(args, kwargs)
        return checked_size(encoded, f"arguments of {self.name}")

    def decode_call(self, data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional arguments, and those by name, typed by the parameters' annotations.

        Raises `SerializationError`, naming the parameter.
        """
        if data == EMPTY_CALL:
            return (), {}
        what = f"arguments of {self.name}"
        call = _parse(data, what)
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
                _typed(each, self._by_position[i] if i < known else self._rest, what, f"$.{self._argument(i)}")
                for i, each in enumerate(args)
            ),
            {
                name: _typed(each, self._by_name.get(name, self._keywords), what, f"$.{name}")
                for name, each in kwargs.items()
            },
        )

    def encode_result(self, value: Any) -> bytes:
        """The result as JSON; raises `SerializationError`."""
        return (
            b"null"
            if value is None
            else checked_size(encode(value, what=f"result of {self.name}"), f"result of {self.name}")
        )

    def decode_result(self, data: bytes) -> Any:
        """The result, typed by the return annotation; raises `SerializationError`."""
        if not self._resolved:
            self._resolve()
        what = f"result of {self.name}"
        return _typed(_parse(data, what), self._returns, what, "$")

    def roundtrip_result(self, value: Any) -> tuple[bytes, Any]:
        """The encoded result, and the value as every replay will see it.

        To hand the caller that second value makes the first run see what its replays see. Raises
        `SerializationError`, also where the result does not fit the return annotation.
        """
        data = self.encode_result(value)
        if not self._resolved:
            self._resolve()
        if type(value) in self._same:
            return data, value
        return data, self.decode_result(data)

    def _argument(self, position: int) -> str:
        return self._names[position] if position < len(self._names) else f"args[{position}]"

    def _encode_call_slowly(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        what = f"arguments of {self.name}"
        positional = [_encode_slowly(each, what, f"$.{self._argument(i)}") for i, each in enumerate(args)]
        by_name = [
            b"%s:%s" % (_quote(name).encode(), _encode_slowly(each, what, f"$.{name}"))
            for name, each in kwargs.items()
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
            decoder = decoder_of(hints.get(parameter.name, Any))
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
        self._returns = decoder_of(returns)
        if self._returns is None:
            self._same = _SAME
        elif returns in _SAME:
            self._same = frozenset({returns})
        self._resolved = True


def _parse(data: bytes, what: str) -> Any:
    try:
        text = str(data, "utf-8")
        try:
            value, end = _scan(text, 0)
        except StopIteration:
            return _parser.decode(text)
        return value if end == len(text) else _parser.decode(text)
    except (ValueError, RecursionError) as error:
        raise SerializationError(f"{what}: not JSON: {error}; found {bytes(data[:80])!r}") from error


def _typed(value: Any, decoder: Decoder | None, what: str, root: str) -> Any:
    if decoder is None:
        return value
    try:
        return decoder(value)
    except Mismatch as mismatch:
        path = root + "".join(reversed(mismatch.path))
        raise SerializationError(f"{what}, at {path}: {mismatch}") from mismatch
    except RecursionError as error:
        raise SerializationError(f"{what}: nested too deeply") from error


def _encode_slowly(value: Any, what: str, root: str) -> bytes:
    """Encode with keys of every kind, or say where a value is that cannot be."""
    try:
        return _write(_plain_form(value, what, root)).encode()
    except RecursionError:
        raise SerializationError(f"{what}: contains itself, or is nested too deeply") from None


def _plain_form(value: Any, what: str, path: str) -> Any:
    if isinstance(value, Enum):
        return _plain_form(value.value, what, path)
    if isinstance(value, str):
        return _checked_text(str.__str__(value), what, path)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        try:
            int.__repr__(value)
        except ValueError as error:
            raise SerializationError(f"{what}, at {path}: an integer is too long: {error}") from None
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise SerializationError(f"{what}, at {path}: {value!r} is not JSON: use None, or a Decimal")
        return value
    if isinstance(value, (list, tuple)):
        return [_plain_form(each, what, f"{path}[{i}]") for i, each in enumerate(value)]
    if isinstance(value, dict):
        return _plain_dict(value, what, path)
    try:
        inner = to_plain(value)
    except TypeError as error:
        raise _unserialisable(value, what, path, error) from None
    except (ValueError, AttributeError) as error:
        raise SerializationError(f"{what}, at {path}: {type(value)}: {error}") from error
    return _plain_form(inner, what, path)


def _plain_dict(value: Mapping[Any, Any], what: str, path: str) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, each in value.items():
        text = key_text(key)
        if text is None:
            raise SerializationError(
                f"{what}, at {path}: a key cannot be {type(key)}: use str keys, or a list of pairs"
            )
        _checked_text(text, what, path)
        if text in plain:
            raise SerializationError(f"{what}, at {path}: two keys become the same text {text!r}")
        plain[text] = _plain_form(each, what, path + path_key(text))
    return plain


def _checked_text(text: str, what: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SerializationError(
            f"{what}, at {path}: the lone surrogate U+{ord(text[error.start]):04X} is no character: decode "
            "the bytes it came from with the right encoding, or pass them as bytes"
        ) from None
    return text


def _unserialisable(value: Any, what: str, path: str, error: TypeError) -> SerializationError:
    if isinstance(value, Coroutine):
        return SerializationError(f"{what}, at {path}: found a coroutine: await it first")
    cause = "" if str(error) == type(value).__name__ else f" ({error})"
    return SerializationError(f"{what}, at {path}: cannot serialise {type(value)}{cause}: {_SUPPORTED}")


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
