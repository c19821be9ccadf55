"""Postgres arrays as parameters in the binary format, one `bytes.join` each.

psycopg dumps a list by calling a Python dumper per element, which would be the worker's largest single cost;
see benchmarks/LOG.md. Wire format: PostgreSQL source, `array_send` in src/backend/utils/adt/arrayfuncs.c.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from struct import Struct
from sys import byteorder
from typing import Any, cast

from psycopg.adapt import AdaptersMap, Dumper
from psycopg.pq import Format

_HEAD = Struct(">iiIii").pack
_INT8 = Struct(">iq").pack
_INT4 = Struct(">ii").pack
_INT2 = Struct(">ih").pack
_FLOAT8 = Struct(">id").pack
_LENGTH = Struct(">i").pack
_NULL = b"\xff\xff\xff\xff"
#: From so many numbers on they are written all at once.
_MANY = 64


class Array:
    """A one-dimensional array; subclasses say of which type. `values` may hold None where the type allows it."""

    __slots__ = ("values",)
    element_oid = 0
    array_oid = 0

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values

    def elements(self) -> Iterable[bytes]:
        """Each element as its length in four bytes and its content."""
        raise NotImplementedError


class Int8s(Array):
    __slots__ = ()
    element_oid, array_oid = 20, 1016

    def elements(self) -> Iterable[bytes]:
        values = self.values
        if len(values) < _MANY:
            return map(_INT8, repeat(8), values)
        # All at once: the numbers in network order, then each of their eight bytes to its place behind the lengths.
        numbers = array("q", values)
        if byteorder == "little":
            numbers.byteswap()
        raw = numbers.tobytes()
        elements = bytearray(b"\0\0\0\x08\0\0\0\0\0\0\0\0" * len(values))
        for place in range(8):
            elements[4 + place :: 12] = raw[place::8]
        return (bytes(elements),)


class Int4s(Array):
    __slots__ = ()
    element_oid, array_oid = 23, 1007

    def elements(self) -> Iterable[bytes]:
        if None in self.values:
            return (_NULL if v is None else _INT4(4, v) for v in self.values)
        return map(_INT4, repeat(4), self.values)


class Int2s(Array):
    __slots__ = ()
    element_oid, array_oid = 21, 1005

    def elements(self) -> Iterable[bytes]:
        values = self.values
        if values.count(values[0]) == len(values):
            return repeat(_INT2(2, values[0]), len(values))
        return map(_INT2, repeat(2), values)


class Float8s(Array):
    __slots__ = ()
    element_oid, array_oid = 701, 1022

    def elements(self) -> Iterable[bytes]:
        if None in self.values:
            return (_NULL if v is None else _FLOAT8(8, v) for v in self.values)
        return map(_FLOAT8, repeat(8), self.values)


class Byteas(Array):
    __slots__ = ()
    element_oid, array_oid = 17, 1001

    def elements(self) -> Iterable[bytes]:
        return _sized(self.values)


class Texts(Array):
    __slots__ = ()
    element_oid, array_oid = 25, 1009

    def elements(self) -> Iterable[bytes]:
        if None in self.values:
            return _sized([None if value is None else value.encode() for value in self.values])
        return _sized(list(map(str.encode, self.values)))


class Names(Texts):
    """Texts of which there are few different ones, such as the names of steps."""

    __slots__ = ()

    def elements(self) -> Iterable[bytes]:
        return map(
            {name: _LENGTH(len(text := name.encode())) + text for name in set(self.values)}.__getitem__, self.values
        )


def _sized(values: Sequence[bytes | None]) -> Iterable[bytes]:
    """Each value behind its length; in C as far as there is no NULL among them."""
    nulls = values.count(None)
    if nulls == len(values):
        return repeat(_NULL, nulls)
    if nulls:
        return chain.from_iterable((_NULL,) if v is None else (_LENGTH(len(v)), v) for v in values)
    present = cast(Sequence[bytes], values)
    return chain.from_iterable(zip(map(_LENGTH, map(len, present)), present, strict=True))


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Array) -> bytes:
        if not obj.values:
            return _HEAD(0, 0, obj.element_oid, 0, 1)[:12]
        return _HEAD(1, 1, obj.element_oid, len(obj.values), 1) + b"".join(obj.elements())


def register(adapters: AdaptersMap) -> None:
    """Teaches a connection to send these arrays."""
    for kind in (Int8s, Int4s, Int2s, Float8s, Byteas, Texts, Names):
        dumper = type(f"{kind.__name__}Dumper", (_ArrayDumper,), {"oid": kind.array_oid})
        adapters.register_dumper(kind, dumper)
