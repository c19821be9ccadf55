"""Decoders of what holds nothing else: scalars, dates, decimals, bytes, enums, literals.

`strict` refuses what is not spelled as it would have been encoded, or has another type, such as an int for a float.
"""

from __future__ import annotations

import base64
import binascii
import types
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any
from uuid import UUID

from shardflow.core.plain import Plain, text_of, to_plain
from shardflow.core.records import Decoder, unfit


def scalar(cls: type, strict: bool) -> Decoder:
    """Of one of `SCALARS`, which JSON has itself."""
    accepted = (cls,) if strict else SCALARS[cls]

    def decode(value: Any) -> Any:
        if type(value) not in accepted:
            raise unfit(cls, value)
        return value

    return decode


def from_scalar(cls: Any, strict: bool) -> Decoder | None:
    """A user's subclass of str, int or float is made of the scalar; of any other class nothing is known."""
    for base in (str, int, float):
        if isinstance(cls, type) and issubclass(cls, base):
            inner = scalar(base, strict)
            return lambda value: cls(inner(value))
    return None


def from_text(cls: type, strict: bool) -> Decoder:
    """Of one of `FROM_TEXT`, which JSON has as text."""
    parse = FROM_TEXT[cls]

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


def to_timedelta(value: Any) -> timedelta:
    """Of seconds, or their decimal text where a float could not hold them."""
    if type(value) not in (int, float, str):
        raise unfit(timedelta, value)
    try:
        if type(value) is str:
            return timedelta(microseconds=int(Decimal(value).scaleb(6)))
        return timedelta(seconds=value)
    except (ValueError, OverflowError, InvalidOperation):
        raise unfit(timedelta, value) from None


def float_key(text: str) -> float:
    """Of a mapping's key."""
    try:
        return float(text)
    except ValueError:
        raise unfit(float, text) from None


def literal(annotation: Any, args: tuple[Any, ...], plain: Plain) -> Decoder:
    by_text = {text_of(arg, plain): arg for arg in args}

    def decode(value: Any) -> Any:
        try:
            return by_text[text_of(value)]
        except KeyError:
            raise unfit(annotation, value) from None

    return decode


def enum(cls: type[Enum], plain: Plain) -> Decoder:
    by_text: dict[str, Enum] = {}
    for member in cls.__members__.values():
        try:
            by_text.setdefault(text_of(member.value, plain), member)
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


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


SCALARS: dict[Any, tuple[type, ...]] = {
    types.NoneType: (types.NoneType,),
    bool: (bool,),
    int: (int, bool),
    float: (float, int, bool),
    str: (str,),
}

FROM_TEXT: dict[Any, Callable[[str], Any]] = {
    datetime: datetime.fromisoformat,
    date: date.fromisoformat,
    time: time.fromisoformat,
    Decimal: Decimal,
    UUID: UUID,
    bytes: _from_base64,
    bytearray: lambda text: bytearray(_from_base64(text)),
}
