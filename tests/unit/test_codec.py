from __future__ import annotations

import collections
import json
import subprocess
import sys
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    TypedDict,
    TypeVar,
    Union,
)
from uuid import UUID

import pytest

from shardflow.core.codec import EMPTY_CALL, CallCodec, decode, encode, same_after_roundtrip
from shardflow.core.codecs import Codecs
from shardflow.errors import SerializationError, UsageError

T = TypeVar("T")
Cents = NewType("Cents", int)


class Colour(Enum):
    RED = "red"
    PAIR = (1, 2)


class Size(IntEnum):
    S = 1
    L = 2


class Kind(StrEnum):
    BOOK = "book"


class Right(Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    when: date
    label: str = ""


class Address(TypedDict):
    city: str
    since: NotRequired[date]


@dataclass
class Item:
    sku: str
    price: Decimal


@dataclass
class Order:
    id: UUID
    items: list[Item]
    placed: datetime
    address: Address | None = None
    parent: Order | None = None
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Box(Generic[T]):
    content: T
    history: tuple[T, ...] = ()


@dataclass(frozen=True)
class Squared:
    x: int
    square: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "square", self.x**2)


@dataclass
class Small:
    x: int


@dataclass
class Large:
    x: int
    y: int = 0


class Model:
    """What pydantic's models look like from outside."""

    def __init__(self, n: int) -> None:
        self.n = n

    def model_dump(self, **options: Any) -> dict[str, Any]:
        assert options["mode"] == "json"
        return {"n": self.n}

    @classmethod
    def model_validate(cls, value: Any) -> Model:
        if not isinstance(value, dict) or not isinstance(value.get("n"), int):
            raise ValueError("n must be an int")
        return cls(value["n"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and other.n == self.n

    __hash__ = None  # type: ignore[assignment]


class Opaque:
    pass


ORDER = Order(
    UUID(int=7),
    [Item("a", Decimal("1.10")), Item("b", Decimal("-0"))],
    datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    {"city": "Zürich", "since": date(2020, 2, 29)},
    parent=Order(UUID(int=8), [], datetime(2026, 1, 1)),
    tags=frozenset({"x", "y"}),
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (-7, "-7"),
        (1.5, "1.5"),
        ('Zü"rich\n', '"Zü\\"rich\\n"'),
        ([1, "a", None], '[1,"a",null]'),
        ({"a": {"b": ()}}, '{"a":{"b":[]}}'),
        ({2: "x"}, '{"2":"x"}'),
        (Colour.RED, '"red"'),
        (Size.L, "2"),
        (Kind.BOOK, '"book"'),
        (date(2026, 1, 2), '"2026-01-02"'),
        (datetime(2026, 1, 2, tzinfo=UTC), '"2026-01-02T00:00:00+00:00"'),
        (timedelta(minutes=1.5), "90"),
        (timedelta(milliseconds=1500), "1.5"),
        (Decimal("1.10"), '"1.10"'),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (b"\x00\xff", '"AP8="'),
        ({"b", "a"}, '["a","b"]'),
        ({10, 9}, "[9,10]"),
        (Item("a", Decimal(1)), '{"sku":"a","price":"1"}'),
        (Point(1, date(2026, 1, 2)), '[1,"2026-01-02",""]'),
        (Model(3), '{"n":3}'),
    ],
)
def test_values_have_a_compact_plain_form(value, text):
    assert encode(value, what="x").decode() == text
    assert json.loads(text) == decode(encode(value, what="x"), what="x")


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (None, None),
        (5, int),
        (5, Cents),
        (1.5, float),
        ("a", str),
        (ORDER, Order),
        (ORDER, Order | None),
        ([ORDER], Sequence[Order]),
        ({"a": ORDER}, Mapping[str, Order]),
        ((1, "a", 2.5), tuple[int, str, float]),
        ((1, 2, 3), tuple[int, ...]),
        ((), tuple[()]),
        ((1, "a"), tuple),
        ({1, 2}, set[int]),
        (frozenset({Colour.RED}), frozenset[Colour]),
        ({frozenset({1, 2}), frozenset({3})}, set[frozenset[int]]),
        (collections.deque([1, 2]), collections.deque[int]),
        ({1: "a"}, dict[int, str]),
        ({True: 1}, dict[bool, int]),
        ({1.5: 1}, dict[float, int]),
        ({None: 1}, dict[None, int]),
        ({Size.S: 1}, dict[Size, int]),
        ({Colour.RED: 1}, dict[Colour, int]),
        ({UUID(int=1): b"x"}, dict[UUID, bytes]),
        ({date(2026, 1, 2): 1}, dict[date, int]),
        ({Decimal("1.0"): 1}, dict[Decimal, int]),
        (collections.OrderedDict(b=1, a=2), collections.OrderedDict[str, int]),
        (collections.Counter("aab"), collections.Counter[str]),
        (Colour.PAIR, Colour),
        (Size.L, Size),
        (Right.READ | Right.WRITE, Right),
        (Point(1, date(2026, 1, 2), "p"), Point),
        ({"city": "Bern"}, Address),
        (b"\x00\xff", bytes),
        (bytearray(b"ab"), bytearray),
        (time(1, 2, 3, tzinfo=timezone(timedelta(hours=2))), time),
        (datetime(2026, 1, 2, 3, 4, 5), datetime),
        (timedelta(days=-1, microseconds=1), timedelta),
        (timedelta.max, timedelta),
        (Decimal("1E+1000"), Decimal),
        (Box(date(2026, 1, 2), (date(2025, 1, 1),)), Box[date]),
        (Squared(3), Squared),
        (Model(3), Model),
        ([Model(3)], list[Model]),
        ("b", Literal["a", "b"]),
        (1, Literal["1", 1]),
        (Size.S, Literal[Size.S]),
        (5, Annotated[int, "cents"]),
        (None, Optional[Decimal]),  # noqa: UP045
        (Decimal(5), Optional[Decimal]),  # noqa: UP045
        (5, int | str),
        ("5", int | str),
        (5, float | int),
        (2.5, int | float),
        (True, int | bool),
        (date(2026, 1, 2), datetime | date),
        (datetime(2026, 1, 2), date | datetime),
        ("2026-13-01", date | str),
        ([1], int | list[int]),
        (Small(1), Small | Large),
        (Large(1, 2), Small | Large),
        ([Large(1, 2)], list[Small] | list[Large]),
    ],
)
def test_the_annotation_brings_the_type_back(value, annotation):
    again = decode(encode(value, what="x"), annotation, what="x")
    assert again == value
    assert type(again) is type(value)


def test_nested_types_come_back_at_every_depth():
    again = decode(encode(ORDER, what="x"), Order, what="x")
    assert type(again.items[1]) is Item
    assert str(again.items[1].price) == "-0"
    assert type(again.parent) is Order
    assert again.address == {"city": "Zürich", "since": date(2020, 2, 29)}


def test_unions_of_the_same_arms_in_another_order_are_told_apart():
    text = b'"2026-01-02"'
    assert decode(text, Union[date, str], what="x") == date(2026, 1, 2)  # noqa: UP007
    assert decode(text, Union[str, date], what="x") == "2026-01-02"  # noqa: UP007


def test_a_field_that_the_class_no_longer_has_is_left_out():
    assert decode(b'{"x":1,"gone":2}', Small, what="x") == Small(1)
    assert decode(b'{"x":1,"gone":2}', Small | None, what="x") == Small(1)


def test_a_field_that_the_class_has_gained_gets_its_default():
    assert decode(b'{"x":1}', Large, what="x") == Large(1, 0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"items": [1, {"price": Opaque()}]}, r"at \$\.items\[1\]\.price: cannot serialise .*Opaque"),
        (Box(Opaque()), r"at \$\.content: cannot serialise"),
        ([{1}, {object()}], r"at \$\[1\]\[0\]: cannot serialise"),
        ({"a b": Opaque()}, r'at \$\["a b"\]: cannot serialise'),
        (Opaque, r"at \$: cannot serialise"),
        (float("nan"), r"at \$: nan is not JSON"),
        ({"x": [float("-inf")]}, r"at \$\.x\[0\]: -inf is not JSON"),
        ("\ud800", r"at \$: the lone surrogate U\+D800"),
        (["ok", "\udfff"], r"at \$\[1\]: the lone surrogate U\+DFFF"),
        ({"\ud800": 1}, r"at \$: the lone surrogate"),
        ({(1, 2): 3}, r"at \$: a key cannot be <class 'tuple'>"),
        ({Opaque(): 3}, r"at \$: a key cannot be .*Opaque"),
        ({UUID(int=1): 1, str(UUID(int=1)): 2}, r"at \$: two keys become the same text"),
        ([10**5000], r"at \$\[0\]: an integer is too long"),
    ],
)
def test_what_has_no_json_form_is_refused_with_its_path(value, message):
    with pytest.raises(SerializationError, match="result of step charge, " + message):
        encode(value, what="result of step charge")


def test_a_value_inside_itself_is_refused():
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(SerializationError, match="contains itself"):
        encode(loop, what="x")


def test_a_forgotten_await_is_recognised():
    async def forgotten() -> None: ...

    coroutine = forgotten()
    with pytest.raises(SerializationError, match=r"at \$\[0\]: found a coroutine: await it"):
        encode([coroutine], what="x")
    coroutine.close()


@pytest.mark.parametrize(
    ("data", "annotation", "message"),
    [
        (b'{"x":"1"}', Small, r"at \$\.x: expected int, found \"1\""),
        (b"{}", Small, r"at \$: the field 'x' of Small is missing"),
        (b"[]", Small, r"at \$: expected Small, found \[\]"),
        (b'{"id":1}', Order, r"at \$\.id: expected UUID"),
        (b'[{"sku":"a","price":"1"},{"sku":"a","price":"x"}]', list[Item], r"at \$\[1\]\.price: expected Decimal"),
        (b'{"a b":{"c":[1,"2"]}}', dict[str, dict[str, list[int]]], r'at \$\["a b"\]\.c\[1\]: expected int'),
        (b'{"x":1}', dict[int, int], r"at \$\.x: expected int"),
        (b'{"true":1}', dict[int, int], r"at \$\.true: expected int"),
        (b'{"01":1}', dict[int, int], r'at \$\["01"\]: expected int'),
        (b"[1,2,3]", tuple[int, int], "expected 2 items"),
        (b"[1]", Point, "expected 3 items for Point, found 1"),
        (b"{}", Address, "the key 'city' of Address is missing"),
        (b"[[1]]", set[Any], "unhashable"),
        (b'"green"', Colour, "expected Colour"),
        (b'"c"', Literal["a", "b"], "expected Literal"),
        (b"1.5", int, "expected int, found 1.5"),
        (b"1", bool, "expected bool"),
        (b"null", str, "expected str, found null"),
        (b"0", None, "expected None"),
        (b'"*"', bytes, "expected bytes"),
        (b'"x"', int | None, "expected int"),
        (b"[]", int | str, r"expected int \| str"),
        (b'{"n":"x"}', Model, "cannot make Model: n must be an int"),
        (b"NaN", Any, "not JSON"),
        (b"{", Any, "not JSON"),
        (b"1 2", Any, "not JSON"),
        (b"", Any, "not JSON"),
        (b"\xff", Any, "not JSON"),
        (b"[" * 100_000, Any, "not JSON"),
    ],
)
def test_what_does_not_fit_the_annotation_is_refused_with_its_path(data, annotation, message):
    with pytest.raises(SerializationError, match=message) as caught:
        decode(data, annotation, what="result of step charge")
    assert str(caught.value).startswith("result of step charge")


def test_json_written_by_others_may_have_spaces():
    assert decode(b' {"a" : [ 1 ]}\n', what="x") == {"a": [1]}


def test_without_the_c_encoder_the_bytes_are_the_same(monkeypatch):
    value = {"a": [ORDER, 1.5, None, "Zü\n"]}
    with_c = encode(value, what="x")
    monkeypatch.setattr(json.encoder, "c_make_encoder", None)
    slow = Codecs()
    assert slow.encode(value, what="x") == with_c
    with pytest.raises(SerializationError, match="nan is not JSON"):
        slow.encode([float("nan")], what="x")


def test_a_set_has_the_same_bytes_in_every_process():
    code = (
        "from shardflow.core.codec import encode\n"
        "print(encode([set('abcdefgh'), {('a', 1), ('b', 2), ('c', 3)}, {1, 'a', None}], what='x'))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).resolve().parents[2],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1


@pytest.mark.parametrize("value", [None, True, 5, "a", 1.5])
def test_plain_scalars_are_certain_to_come_back_the_same(value):
    assert same_after_roundtrip(value)


@pytest.mark.parametrize("value", [[], {}, (1,), Size.S, Kind.BOOK, Decimal(1), b"", float("nan"), ORDER])
def test_of_anything_else_it_is_not_certain(value):
    assert not same_after_roundtrip(value)


async def checkout(
    order: Order,
    count: int = 0,
    *rest: Colour,
    flag: bool = False,
    note: str = None,  # noqa: RUF013 - an implicit Optional is what is tested
    **more: Size,
) -> list[Order]: ...


def test_arguments_come_back_typed_by_their_parameters():
    calls = CallCodec(checkout)
    args, kwargs = (ORDER, 2, Colour.RED, Colour.PAIR), {"flag": True, "note": None, "z": Size.L}
    assert calls.decode_call(calls.encode_call(args, kwargs)) == (args, kwargs)
    assert calls.unresolved == ()


def test_the_order_of_keywords_does_not_change_the_bytes():
    calls = CallCodec(checkout)
    one = calls.encode_call((), {"order": ORDER, "count": 1})
    assert one == calls.encode_call((), {"count": 1, "order": ORDER})
    assert calls.decode_call(one) == ((), {"order": ORDER, "count": 1})


def test_a_call_without_arguments_is_a_constant():
    def tick() -> None: ...

    calls = CallCodec(tick)
    assert calls.encode_call() == EMPTY_CALL == b"[[],{}]"
    assert calls.decode_call(EMPTY_CALL) == ((), {})


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "missing a required argument: 'order'"),
        ((1,), {"order": 2}, "multiple values for argument 'order'"),
    ],
)
def test_a_wrong_call_is_refused_before_it_is_stored(args, kwargs, message):
    calls = CallCodec(checkout, name="workflow checkout")
    with pytest.raises(UsageError, match=rf"wrong call of workflow checkout\(.*{message}"):
        calls.encode_call(args, kwargs)


def test_keyword_only_parameters_and_too_many_arguments_are_checked():
    def pay(card: str, *, cents: int) -> None: ...

    def tick(a: int, /) -> None: ...

    for calls, args, kwargs in [
        (CallCodec(pay), ("c",), {}),
        (CallCodec(pay), ("c", 5), {}),
        (CallCodec(tick), (1, 2), {}),
        (CallCodec(tick), (), {"a": 1}),
    ]:
        with pytest.raises(UsageError):
            calls.encode_call(args, kwargs)
    assert CallCodec(pay).encode_call(("c",), {"cents": 5}) == b'[["c"],{"cents":5}]'
    assert CallCodec(tick).encode_call((1, 2), check=False) == b"[[1,2],{}]"


def test_an_argument_that_cannot_be_serialised_is_named_by_its_parameter():
    calls = CallCodec(checkout, name="workflow checkout")
    with pytest.raises(SerializationError, match=r"arguments of workflow checkout, at \$\.count\[0\]: cannot"):
        calls.encode_call((ORDER, [Opaque()]))
    with pytest.raises(SerializationError, match=r"at \$\.z: cannot serialise"):
        calls.encode_call((ORDER,), {"z": Opaque()})
    with pytest.raises(SerializationError, match=r"at \$\.args\[2\]: cannot serialise"):
        calls.encode_call((ORDER, 1, Opaque()))


def test_an_argument_with_keys_that_json_has_not_is_encoded_all_the_same():
    def count(by_id: dict[UUID, int]) -> None: ...

    calls = CallCodec(count)
    args = ({UUID(int=1): 1},)
    assert calls.decode_call(calls.encode_call(args)) == (args, {})


@pytest.mark.parametrize("data", [b"[]", b"{}", b"[1,2]", b"[[],[]]", b"[[],{},0]"])
def test_bytes_that_are_no_call_are_refused(data):
    with pytest.raises(SerializationError, match="arguments of"):
        CallCodec(checkout).decode_call(data)


def test_a_stored_argument_that_does_not_fit_is_named_by_its_parameter():
    with pytest.raises(SerializationError, match=r"at \$\.count: expected int"):
        CallCodec(checkout).decode_call(b'[[],{"count":"x"}]')


def test_results_come_back_typed_by_the_return_annotation():
    calls = CallCodec(checkout)
    assert calls.decode_result(calls.encode_result([ORDER])) == [ORDER]
    with pytest.raises(SerializationError, match=r"result of checkout, at \$\[0\]: expected Order"):
        calls.decode_result(b"[5]")


def test_the_result_of_a_plain_function_that_returns_an_awaitable_is_what_awaiting_gives():
    def awaitable() -> Awaitable[date]: ...

    def coroutine() -> Coroutine[Any, Any, date]: ...

    for function in (awaitable, coroutine):
        assert CallCodec(function).decode_result(b'"2026-01-02"') == date(2026, 1, 2)


def test_the_first_run_sees_the_result_that_replays_see():
    def untyped(): ...

    def text() -> str: ...

    result = {"when": date(2026, 1, 2), "pair": (1, 2)}
    data, seen = CallCodec(untyped).roundtrip_result(result)
    assert seen == CallCodec(untyped).decode_result(data) == {"when": "2026-01-02", "pair": [1, 2]}
    assert CallCodec(text).roundtrip_result("a") == (b'"a"', "a")
    assert CallCodec(untyped).roundtrip_result(None) == (b"null", None)


def test_a_result_against_its_annotation_fails_at_the_first_run():
    def text() -> str: ...

    with pytest.raises(SerializationError, match="expected str, found 5"):
        CallCodec(text).roundtrip_result(5)


def test_a_hint_that_cannot_be_resolved_spoils_no_other():
    def mixed(a: Unknown, b: date, c: Any) -> Missing: ...  # noqa: F821

    calls = CallCodec(mixed)
    assert calls.decode_call(b'[["x","2026-01-02",1],{}]') == (("x", date(2026, 1, 2), 1), {})
    assert calls.unresolved == ("a", "return")


def test_names_of_the_place_of_definition_can_be_given():
    @dataclass
    class Local:
        n: int

    def local(value: Local) -> Local: ...

    assert CallCodec(local).decode_call(b'[[{"n":1}],{}]') == (({"n": 1},), {})
    assert CallCodec(local, localns=locals()).decode_call(b'[[{"n":1}],{}]') == ((Local(1),), {})
