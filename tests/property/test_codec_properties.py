"""Whatever type a function is annotated with, its values come back through every way of storing them."""

from __future__ import annotations

import collections
import dataclasses
import json
import string
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any, Literal, NamedTuple, TypedDict
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from support.cipher import Cipher

from shardflow import Codecs, PayloadConfig
from shardflow.core import compress
from shardflow.core.codec import DEFAULT, CallCodec
from shardflow.core.payload import Payloads
from shardflow.errors import SerializationError
from shardflow.model import NEVER


class Suit(Enum):
    HEART = "h"
    PAIR = (1, 2)
    DAY = date(2026, 1, 2)


@dataclass(frozen=True)
class Typed:
    """An annotation and values of it; `key` where they can be keys and members of sets."""

    annotation: Any
    values: SearchStrategy[Any]
    key: bool = False


def codecs_of(*payload: Cipher, **limits: int) -> Codecs:
    codecs = Codecs(payload=payload)
    codecs.add(Fraction, encode=lambda f: (f.numerator, f.denominator), decode=lambda p: Fraction(*p), form=tuple)
    codecs.add(complex, encode=lambda c: (c.real, c.imag), decode=lambda p: complex(*p), form=tuple[float, float])
    codecs.limits = PayloadConfig(**limits)
    return codecs


WAYS = [
    codecs_of(),
    codecs_of(compress_above=NEVER),
    codecs_of(compress_above=0),
    codecs_of(Cipher("k2", b"2"), Cipher("k1", b"1")),
    codecs_of(Cipher("k1", b"1"), compress_above=0),
]

text = st.text(st.characters(codec="utf-8"))
scalars = st.sampled_from(
    [
        Typed(int, st.integers(), True),
        Typed(str, text, True),
        Typed(bool, st.booleans(), True),
        Typed(float, st.floats(allow_nan=False, allow_infinity=False), True),
        Typed(None, st.none(), True),
        Typed(bytes, st.binary(max_size=200), True),
        Typed(datetime, st.datetimes(), True),
        Typed(date, st.dates(), True),
        Typed(time, st.times(), True),
        Typed(timedelta, st.timedeltas(), True),
        Typed(Decimal, st.decimals(allow_nan=False), True),
        Typed(UUID, st.uuids(), True),
        Typed(Suit, st.sampled_from(Suit)),
        Typed(Literal["a", 1], st.sampled_from(["a", 1])),
        Typed(Fraction, st.fractions()),
        Typed(complex, st.complex_numbers(allow_nan=False, allow_infinity=False)),
    ]
)
names = st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=6), min_size=1, max_size=3, unique=True)


@st.composite
def holders(draw: DrawFn, inner: SearchStrategy[Typed]) -> Typed:
    """A type that holds others: a collection, a mapping, a record, or one that may be None."""
    of = draw(inner)
    kind = draw(
        st.sampled_from(["list", "deque", "tuple", "pair", "dict", "optional", "set", "record", "row", "shape"])
    )
    match kind:
        case "list":
            return Typed(list[of.annotation], st.lists(of.values, max_size=4))
        case "deque":
            return Typed(collections.deque[of.annotation], st.lists(of.values, max_size=3).map(collections.deque))
        case "tuple":
            return Typed(tuple[of.annotation, ...], st.lists(of.values, max_size=3).map(tuple))
        case "pair":
            other = draw(inner)
            return Typed(tuple[of.annotation, other.annotation], st.tuples(of.values, other.values))
        case "optional":
            return Typed(of.annotation | None if of.annotation is not None else None, st.none() | of.values)
        case "dict" | "set":
            key = draw(scalars.filter(lambda typed: typed.key))
            if kind == "set":
                return Typed(frozenset[key.annotation], st.frozensets(key.values, max_size=3))
            return Typed(dict[key.annotation, of.annotation], st.dictionaries(key.values, of.values, max_size=3))
    fields = {f"{name}_": draw(inner) for name in draw(names)}
    hints = {name: typed.annotation for name, typed in fields.items()}
    values = {name: typed.values for name, typed in fields.items()}
    if kind == "record":
        record = dataclasses.make_dataclass("Record", hints.items())
        return Typed(record, st.builds(record, **values))
    if kind == "row":
        row = NamedTuple("Row", list(hints.items()))  # type: ignore[misc]
        return Typed(row, st.builds(row, **values))
    return Typed(TypedDict("Shape", hints), st.fixed_dictionaries(values))  # type: ignore[operator]


anything = st.recursive(scalars, holders, max_leaves=6)


@st.composite
def typed_values(draw: DrawFn) -> tuple[Any, Any]:
    typed = draw(anything)
    return typed.annotation, draw(typed.values)


def alike(one: Any, other: Any) -> bool:
    """Equal, and of the same types at every depth."""
    if type(one) is not type(other) or one != other:
        return False
    if isinstance(one, dict):
        return all(map(alike, one.keys(), other.keys())) and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple, collections.deque)):
        return len(one) == len(other) and all(map(alike, one, other))
    if dataclasses.is_dataclass(one):
        return all(alike(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    return True


@given(typed_values(), st.sampled_from(WAYS))
def test_a_value_comes_back_by_its_annotation_however_it_is_stored(case, codecs):
    annotation, value = case
    data = codecs.encode(value, what="x")
    assert alike(codecs.decode(data, annotation, what="x"), value)
    assert codecs.open(data, what="x") == WAYS[1].encode(value, what="x")
    assert codecs.same(data, WAYS[1].encode(value, what="x"), what="x")


@given(typed_values(), typed_values(), st.sampled_from(WAYS))
def test_arguments_and_results_come_back_by_the_annotations_of_the_function(first, second, codecs):
    def call(a, *rest, b): ...

    call.__annotations__ = {"a": first[0], "rest": second[0], "b": second[0], "return": first[0]}
    calls = CallCodec(call, codecs=codecs)
    args, kwargs = (first[1], second[1], second[1]), {"b": second[1]}
    again, by_name = calls.decode_call(calls.encode_call(args, kwargs))
    assert all(map(alike, again, args))
    assert alike(by_name["b"], second[1])
    data, seen = calls.roundtrip_result(first[1])
    assert alike(seen, first[1])
    assert alike(calls.decode_result(data), seen)
    assert alike(calls.decode_result(calls.encode_result(first[1])), seen)


@given(typed_values())
def test_the_first_run_sees_what_replays_see_also_where_nothing_is_annotated(case):
    def step(): ...

    for codecs in WAYS:
        calls = CallCodec(step, codecs=codecs)
        data, seen = calls.roundtrip_result(case[1])
        assert alike(calls.decode_result(data), seen)


@given(typed_values(), st.sampled_from(WAYS), st.sampled_from(WAYS))
def test_what_another_key_or_setting_has_written_stays_readable(case, writer, reader):
    annotation, value = case
    data = writer.encode(value, what="x")
    if data[0] == 2 and len(reader.payloads._codecs) < len(writer.payloads._codecs):
        return  # a key that this reader does not have
    assert alike(reader.decode(data, annotation, what="x"), value)


@given(st.binary(max_size=300), st.sampled_from(WAYS), st.sampled_from([b"", b"\x01", b"\x02", b"\x02\x02k1"]))
def test_any_bytes_give_a_value_or_a_serialization_error(data, codecs, start):
    message, value = "", None
    try:
        value = codecs.decode(start + data, what="x")
    except SerializationError as error:
        message = str(error)
    assert message.startswith("x: ") if message else json.dumps(value) is not None


@given(
    st.integers(0, 20_000),
    st.integers(0, 30),
    st.integers(1024, 20_000),
    st.integers(1024, 20_000),
    st.integers(0, 20_000),
)
def test_what_is_accepted_is_within_both_limits_and_can_be_read_back(size, kinds, stored, decoded, above):
    limits = PayloadConfig(max_size=stored, max_decoded=decoded, compress_above=above)
    data = json.dumps("".join(chr(97 + i * i % (kinds + 1)) for i in range(size))).encode()
    payloads = Payloads()
    payloads.limits = limits
    try:
        sealed = payloads.seal(data, "x")
    except SerializationError:
        packed = compress.compressed(data) if len(data) > above else None
        assert len(data) > decoded or len(packed or data) > stored
    else:
        assert len(sealed) <= stored
        assert len(data) <= decoded
        assert payloads.open(sealed, "x") == data
        assert len(data) > payloads.small or sealed == data  # what need not be sealed is not changed by it


@given(st.integers(1, 100_000), st.integers(0, 100_000))
def test_decompression_stops_at_its_limit(size, most):
    packed = compress.MARK + compress.zlib.compress(bytes(size))
    try:
        assert len(compress.decompressed(packed, most)) == size <= most
    except ValueError:
        assert size > most


def test_the_default_has_nothing_of_an_apps():
    assert DEFAULT.encode(Decimal(1), what="x") == b'"1"'
