"""Values that JSON does not have, and the plain forms that stand for them.

A plain form carries no type names: the annotation of a parameter, field or result brings the type back. `plain`
is what gives the form of a value inside another: `to_plain`, or a function that knows more types.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

Plain = Callable[[Any], Any]


def to_plain(value: Any, plain: Plain | None = None) -> Any:
    """One level of the plain form of a value that JSON does not have; what it contains is left as it is.

    Raises `TypeError` for a type without a plain form.
    """
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return _seconds(value)
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, (set, frozenset)):
        return _ordered(value, plain or to_plain)
    if isinstance(value, collections.deque):
        return list(value)
    if is_model(type(value)):
        return value.model_dump(mode="json", by_alias=True, round_trip=True)
    raise TypeError(type(value).__name__)


def key_text(key: Any, plain: Plain = to_plain) -> str | None:
    """The text that stands for a mapping's key in JSON, or None for a key that has none."""
    while not isinstance(key, (str, int, float)) and key is not None:
        try:
            key = plain(key)
        except TypeError:
            return None
        if isinstance(key, (dict, list, tuple)):
            return None
    if isinstance(key, str):
        return str.__str__(key)
    return json.dumps(key)


def path_key(name: str) -> str:
    """A mapping's key as a piece of a path: `.name`, or `["a name"]`."""
    return f".{name}" if name.isidentifier() else f"[{json.dumps(name)}]"


def text_of(value: Any, plain: Plain = to_plain) -> str:
    """The JSON text of a value, as a key to compare values by."""
    return json.dumps(value, default=plain)


def is_model(cls: Any) -> bool:
    """Whether a class has pydantic's protocol; pydantic itself is never imported."""
    return isinstance(cls, type) and hasattr(cls, "model_dump") and hasattr(cls, "model_validate")


def _seconds(value: timedelta) -> int | float | str:
    if not value.microseconds:
        return value.days * 86400 + value.seconds
    seconds = value.total_seconds()
    with suppress(OverflowError):
        if timedelta(seconds=seconds) == value:
            return seconds
    return str(Decimal(value // timedelta(microseconds=1)).scaleb(-6))


def _ordered(values: set[Any] | frozenset[Any], plain: Plain) -> list[Any]:
    """A set in an order that is the same in every process, so that equal values have equal bytes."""
    kinds = set(map(type, values))
    if kinds <= {str} or kinds <= {int}:
        return sorted(values)
    try:
        return sorted(values, key=lambda value: text_of(value, plain))
    except TypeError:
        return list(values)  # one of them has no plain form, and whoever looks at them all says which
