"""What an app adds to JSON: codecs of its own types."""

from __future__ import annotations

import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum, StrEnum
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

import pytest

from shardflow import App, Codecs
from shardflow.core.codec import CallCodec
from shardflow.core.codec import encode as encode_plain
from shardflow.errors import InvalidInput, SerializationError, UsageError

K = TypeVar("K")
T = TypeVar("T")


class Money:
    """Like many a library's class: no dataclass, knows its own text."""

    def __init__(self, cents: int, currency: str) -> None:
        self.cents, self.currency = cents, currency

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and (self.cents, self.currency) == (other.cents, other.currency)

    def __hash__(self) -> int:
        return hash((self.cents, self.currency))

    def __repr__(self) -> str:
        return f"{self.cents} {self.currency}"

    @classmethod
    def parse(cls, text: str) -> Money:
        cents, currency = text.split()
        return cls(int(cents), currency)


class Message:
    """What protobuf's messages look like from outside."""

    def __init__(self, body: bytes = b"") -> None:
        self.body = body

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, Message) and other.body == self.body

    __hash__ = None  # type: ignore[assignment]

    def dump(self) -> bytes:
        return self.body

    @classmethod
    def load(cls, data: bytes) -> Message:
        return cls(data)


class Ping(Message): ...


class Pong(Message): ...


class Tensor(Generic[T]):
    """What numpy's arrays look like from outside: numbers in a row, with a shape, generic in their kind."""

    def __init__(self, numbers: array.array[float], shape: tuple[int, ...]) -> None:
        self.numbers, self.shape = numbers, shape

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tensor) and (self.numbers, self.shape) == (other.numbers, other.shape)

    __hash__ = None  # type: ignore[assignment]


class Table(Mapping[str, T]):
    """A mapping of its own kind."""

    def __init__(self, rows: dict[str, T]) -> None:
        self.rows = rows

    def __getitem__(self, key: str) -> T:
        return self.rows[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class Grid(Table[T], Generic[K, T]):
    """One that is generic in its keys too."""


class Packed(NamedTuple):
    shape: tuple[int, ...]
    data: bytes


@dataclass
class Account:
    owner: str
    balance: Money
    history: list[Money | None]


class Limit(Enum):
    LOW = Money(5, "EUR")
    HIGH = Money(500, "EUR")


def _tensor(packed: Packed) -> Tensor[Any]:
    return Tensor(array.array("d", packed.data), packed.shape)


def shop() -> Codecs:
    codecs = Codecs()
    codecs.add(Money, encode=str, decode=Money.parse)
    codecs.add(Message, encode=Message.dump, decode=lambda data, cls: cls.load(data), form=bytes, subclasses=True)
    codecs.add(Tensor, encode=lambda t: Packed(t.shape, t.numbers.tobytes()), decode=_tensor, form=Packed)
    codecs.add(Table, encode=lambda t: t.rows, decode=lambda rows, cls: cls(rows), subclasses=True)
    codecs.add(Path, encode=str, decode=lambda text, cls: cls(text), subclasses=True)
    return codecs


TENSOR: Tensor[float] = Tensor(array.array("d", [1.5, -2.0]), (1, 2))


@pytest.mark.parametrize(
    ("value", "annotation", "text"),
    [
        (Money(5, "EUR"), Money, '"5 EUR"'),
        (Account("a", Money(1, "EUR"), [None, Money(2, "CHF")]), Account, None),
        ({Money(5, "EUR"): date(2026, 1, 2)}, dict[Money, date], '{"5 EUR":"2026-01-02"}'),
        ({Money(5, "EUR"), Money(4, "EUR")}, set[Money], '["4 EUR","5 EUR"]'),
        ((Money(5, "EUR"), 1), tuple[Money, int], None),
        (None, Money | None, "null"),
        (Money(5, "EUR"), int | Money, None),
        (5, Money | int, "5"),
        (Limit.HIGH, Limit, '"500 EUR"'),
        (Ping(b"\x00\xff"), Ping, '"AP8="'),
        ([Pong(b"x")], list[Pong], None),
        (Message(b"x"), Message, None),
        (TENSOR, Tensor, None),
        (TENSOR, Tensor[float], None),
        ({"a": [TENSOR]}, Mapping[str, list[Tensor[float]]], None),
        (Grid({"a": 1}), Grid[str, int], '{"a":1}'),
        (Table({"a": 1}), Table[int], None),
        (Path("/a/b"), Path, '"/a/b"'),
        (Path("a"), type(Path()), None),
    ],
)
def test_a_type_with_a_codec_comes_back_by_its_annotation(value, annotation, text):
    codecs = shop()
    data = codecs.encode(value, what="x")
    assert codecs.decode(data, annotation, what="x") == value
    assert type(codecs.decode(data, annotation, what="x")) is type(value)
    assert text is None or data.decode() == text


def test_without_an_annotation_its_plain_form_comes_back():
    codecs = shop()
    assert codecs.decode(codecs.encode([Money(5, "EUR")], what="x"), what="x") == ["5 EUR"]


def test_a_built_in_form_can_be_replaced():
    codecs = Codecs()
    codecs.add(Decimal, encode=lambda d: list(d.as_integer_ratio()), decode=lambda pair: Decimal(pair[0]) / pair[1])
    codecs.add(Account, encode=lambda a: a.owner, decode=lambda owner: Account(owner, Money(0, "EUR"), []))
    assert codecs.encode([Decimal("0.5")], what="x") == b"[[1,2]]"
    assert codecs.decode(b"[[1,2]]", list[Decimal], what="x") == [Decimal("0.5")]
    assert codecs.decode(b'"a"', Account, what="x").owner == "a"
    assert encode_plain([Decimal("0.5")], what="x") == b'["0.5"]'  # nobody else's has changed


def test_the_nearest_base_with_a_codec_for_subclasses_counts():
    codecs = Codecs()
    codecs.add(Message, encode=lambda m: "message", decode=lambda text, cls: cls(), subclasses=True)
    codecs.add(Ping, encode=lambda m: "ping", decode=lambda text: Ping())
    assert codecs.encode([Message(), Ping(), Pong()], what="x") == b'["message","ping","message"]'


def test_a_subclass_needs_a_codec_of_its_own_unless_it_is_said_otherwise():
    class Gold(Money): ...

    with pytest.raises(SerializationError, match=r"at \$\[0\]: cannot serialise .*Gold.*Codecs\.add"):
        shop().encode([Gold(1, "XAU")], what="x")


def test_what_a_codec_cannot_do_is_told_with_the_path():
    def broken(value: Any) -> Any:
        raise KeyError("no")

    codecs = Codecs()
    codecs.add(Money, encode=broken, decode=broken)
    codecs.add(Fraction, encode=lambda f: f, decode=Fraction)
    codecs.add(Message, encode=Message.dump, decode=Message.load)
    codecs.add(PurePosixPath, encode=str, decode=str)
    for value, message in [
        ({"a": [Money(1, "EUR")]}, r"x, at \$\.a\[0\]: .*Money.*: its codec cannot encode it: KeyError: 'no'"),
        ({Money(1, "EUR"): 1}, r"x, at \$: a key of .*Money.*: its codec cannot encode it"),
        ({Money(1, "EUR"), Money(2, "EUR")}, r"x, at \$: .*its codec cannot encode it"),
        ([Fraction(1)], r"x, at \$\[0\]: .*its codec gives back a Fraction"),
        ({Fraction(1): 1}, r"x, at \$: .*its codec gives back a Fraction"),
        ([Message()], r"x, at \$\[0\]: .*its codec gives bytes, which is not JSON: say form=bytes"),
    ]:
        with pytest.raises(SerializationError, match=message):
            codecs.encode(value, what="x")
    with pytest.raises(SerializationError, match=r"x, at \$\[1\]: cannot make Money: KeyError: 'no'"):
        codecs.decode(b"[null,1]", list[Money | None], what="x")
    with pytest.raises(SerializationError, match=r"x, at \$: cannot make PurePosixPath: its codec gave str"):
        codecs.decode(b'"a"', PurePosixPath, what="x")


@pytest.mark.parametrize(
    ("data", "annotation", "message"),
    [
        (b'"5"', Money, r"at \$: cannot make Money: ValueError"),
        (b'{"balance":"x","owner":"a","history":[]}', Account, r"at \$\.balance: cannot make Money"),
        (b'"*"', Ping, r"at \$: expected bytes"),
        (b'[[1],"*"]', Tensor, r"at \$\.data: expected bytes"),
        (b'{"5":1}', dict[Money, int], r'at \$\["5"\]: cannot make Money'),
    ],
)
def test_what_does_not_fit_is_refused_with_its_path(data, annotation, message):
    with pytest.raises(SerializationError, match=message):
        shop().decode(data, annotation, what="x")


class Text(str): ...


class Pair(NamedTuple):
    a: int


class Colour(StrEnum):
    RED = "red"


@pytest.mark.parametrize("cls", [str, int, bool, float, list, tuple, dict, type(None), Text, Pair, Colour])
def test_what_json_takes_as_it_is_can_have_no_codec(cls):
    with pytest.raises(InvalidInput, match="can have no codec: JSON takes"):
        Codecs().add(cls, encode=str, decode=str)


def test_a_codec_is_for_one_class_with_two_functions_and_added_once():
    codecs = shop()
    with pytest.raises(UsageError, match="Money has a codec already"):
        codecs.add(Money, encode=str, decode=Money.parse)
    for cls in (object, list[Money], Money | None, "Money"):
        with pytest.raises(InvalidInput, match="a codec is for a class"):
            codecs.add(cls, encode=str, decode=str)
    with pytest.raises(InvalidInput, match="must be functions"):
        codecs.add(UUID, encode="hex", decode=UUID)


def test_codecs_are_added_before_they_are_in_use():
    codecs = Codecs()
    codecs.encode(1, what="x")
    codecs.add(Money, encode=str, decode=Money.parse)
    codecs.decode(b'"5 EUR"', Money, what="x")
    with pytest.raises(UsageError, match="in use already"):
        codecs.add(Message, encode=str, decode=str)


def test_an_apps_functions_use_its_codecs_whenever_they_were_added():
    app = App("shop")

    @app.step
    async def double(money: Money) -> Money:
        return Money(money.cents * 2, money.currency)

    @app.workflow
    async def pay(money: Money) -> Money:
        return await double(money)

    app.codecs.add(Money, encode=str, decode=Money.parse)
    data = pay.codec.encode_call((Money(5, "EUR"),))
    assert data == b'[["5 EUR"],{}]'
    assert pay.codec.decode_call(data) == ((Money(5, "EUR"),), {})
    assert double.codec.roundtrip_result(Money(10, "EUR")) == (b'"10 EUR"', Money(10, "EUR"))
    with pytest.raises(SerializationError, match=r"arguments of .*pay, at \$\.money: cannot serialise .*Message"):
        pay.codec.encode_call((Message(),))


def test_two_apps_may_store_a_type_differently():
    def step(money: Money) -> Money: ...

    def coded(encode: Callable[[Money], Any]) -> CallCodec:
        codecs = Codecs()
        codecs.add(Money, encode=encode, decode=lambda form: Money(5, "EUR"))
        return CallCodec(step, codecs=codecs)

    for calls, data in [(coded(str), b'"5 EUR"'), (coded(lambda m: m.cents), b"5")]:
        assert calls.roundtrip_result(Money(5, "EUR")) == (data, Money(5, "EUR"))
