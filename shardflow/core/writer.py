"""Values to JSON text, fast; and where a value has no JSON form, slowly again to say which part of it."""

from __future__ import annotations

import json
import json.encoder
import math
from collections.abc import Callable, Coroutine, Mapping
from enum import Enum
from typing import Any

from shardflow.core.plain import Plain, key_text, path_key, to_plain
from shardflow.errors import SerializationError

#: What the fast way raises for a value that it cannot write, or cannot write as it is.
FAILURES = (TypeError, ValueError, RecursionError, AttributeError)

quote: Callable[[str], str] = json.encoder.encode_basestring

_SUPPORTED = (
    "use JSON values, dataclasses, TypedDict, NamedTuple, Enum, datetime, Decimal, UUID, bytes, sets or "
    "pydantic models, or add a codec for its type (Codecs.add)"
)


class Writer:
    """Writes values whose parts that JSON does not have get their forms from `plain`.

    Attribute `write`: the fast way, value to text; raises one of `FAILURES`, and the slow way then knows more.
    """

    __slots__ = ("_plain", "write")

    def __init__(self, plain: Plain = to_plain) -> None:
        self._plain = plain
        self.write = _fast(plain)

    def encode(self, value: Any, what: str) -> bytes:
        """A value as JSON in UTF-8. Raises `SerializationError`, with the path of the part that has no JSON form."""
        try:
            if type(value) is str:
                return quote(value).encode()
            if value is None:
                return b"null"
            return self.write(value).encode()
        except FAILURES:
            return self.encode_slowly(value, what, "$")

    def encode_slowly(self, value: Any, what: str, root: str) -> bytes:
        """The same with keys of every kind, for a value at the path `root`."""
        try:
            return self.write(self._form(value, what, root)).encode()
        except RecursionError:
            raise SerializationError(f"{what}: contains itself, or is nested too deeply") from None

    def _form(self, value: Any, what: str, path: str) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if not isinstance(value, Enum):
            if isinstance(value, str):
                return _checked_text(str.__str__(value), what, path)
            if isinstance(value, (int, float)):
                return _checked_number(value, what, path)
            if isinstance(value, (list, tuple)):
                return [self._form(each, what, f"{path}[{i}]") for i, each in enumerate(value)]
            if isinstance(value, dict):
                return self._dict(value, what, path)
        try:
            inner = self._plain(value)
        except TypeError as error:
            raise _unserialisable(value, what, path, error) from None
        except (ValueError, AttributeError) as error:
            raise SerializationError(f"{what}, at {path}: {type(value)}: {error}") from error
        return self._form(inner, what, path)

    def _dict(self, value: Mapping[Any, Any], what: str, path: str) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for key, each in value.items():
            try:
                text = key_text(key, self._plain)
            except (ValueError, AttributeError) as error:
                raise SerializationError(f"{what}, at {path}: a key of {type(key)}: {error}") from error
            if text is None:
                raise SerializationError(
                    f"{what}, at {path}: a key cannot be {type(key)}: use str keys, or a list of pairs"
                )
            _checked_text(text, what, path)
            if text in plain:
                raise SerializationError(f"{what}, at {path}: two keys become the same text {text!r}")
            plain[text] = self._form(each, what, path + path_key(text))
        return plain


def _fast(plain: Plain) -> Callable[[Any], str]:
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return json.JSONEncoder(
            ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"), default=plain
        ).encode
    chunks = make(None, plain, quote, None, ":", ",", False, False, False)
    return lambda value: "".join(chunks(value, 0))


def _checked_number(value: float, what: str, path: str) -> float:
    if isinstance(value, int):
        try:
            int.__repr__(value)
        except ValueError as error:
            raise SerializationError(f"{what}, at {path}: an integer is too long: {error}") from None
    elif not math.isfinite(value):
        raise SerializationError(f"{what}, at {path}: {value!r} is not JSON: use None, or a Decimal")
    return value


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
