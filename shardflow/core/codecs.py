"""Values to stored bytes and back, never pickle: JSON in UTF-8, and what an app has added to it.

What has been encoded can be decoded by the annotation it was declared with; with `Any` it comes back as plain
JSON. Equal values have the same JSON in every process (sets are put in order).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from shardflow.core.custom import TypeCodec, Types
from shardflow.core.payload import MARKS, PayloadCodec, Payloads
from shardflow.core.records import Decoder, Mismatch
from shardflow.core.typed import Decoders
from shardflow.core.writer import Writer
from shardflow.errors import SerializationError, UsageError
from shardflow.model import PayloadConfig

V = TypeVar("V")


class Codecs:
    """How values are stored: give the same one to `App` and `Client`.

    Arguments: `payload`, payload codecs, which turn the bytes of every payload into others, such as encrypted ones:
    the first writes; each reads what was written under its name.
    """

    def __init__(self, *, payload: Sequence[PayloadCodec] = ()) -> None:
        self._types = Types()
        self._decoders = Decoders(self._types)
        self._in_use = False
        self.writer = Writer(self._types.plain)
        self.payloads = Payloads(payload)

    def add(
        self,
        cls: type[V],
        /,
        *,
        encode: Callable[[V], Any],
        decode: Callable[..., V],
        form: Any = Any,
        subclasses: bool = False,
    ) -> None:
        """Gives a type of yours a stored form; an annotation with that type brings it back.

        Arguments: `cls`, the type; `encode`, value to form: plain JSON, or whatever `form` annotates, such as bytes;
        equal values must have equal forms; `decode`, form to value; `subclasses`, whether it is also the codec of
        subclasses: then `decode` gets the annotated class as second argument. Built-in forms can be replaced. Raises
        InvalidInput for what JSON takes as it is (str, int, float, list, tuple, dict and their subclasses),
        UsageError for a type that has a codec, and once values have been decoded.
        """
        if self._in_use:
            raise UsageError("codecs are in use already: add them before the first workflow is run or submitted")
        self._types.add(TypeCodec(cls, encode, decode, form, subclasses))

    @property
    def limits(self) -> PayloadConfig:
        """How large payloads may be; a worker sets those of its cluster."""
        return self.payloads.limits

    @limits.setter
    def limits(self, limits: PayloadConfig) -> None:
        self.payloads.limits = limits

    def encode(self, value: Any, *, what: str, limits: PayloadConfig | None = None) -> bytes:
        """The bytes to store for a value.

        `what` names the value in an error: "result of step charge". `limits`: others than the own ones. Raises
        `SerializationError`: with the path of the part that has no JSON form (an unknown type, a float that is not
        finite, a lone surrogate, a value inside itself), or for a value that is too large. Keys that are no text
        become text, and come back by the annotation.
        """
        data = self.writer.encode(value, what)
        if limits is not None or len(data) > self.payloads.small:
            return self.payloads.seal(data, what, limits)
        return data

    def decode(self, data: bytes, annotation: Any = Any, *, what: str, limits: PayloadConfig | None = None) -> Any:
        """The value of stored bytes, typed by `annotation`; with `Any` the plain JSON value.

        Arms of a union are tried in declared order, exact ones first. A field that a class no longer has is left
        out. Raises `SerializationError`, with the path of the part that does not fit the annotation.
        """
        value = self.parse(data, what, limits)
        return value if annotation is Any else typed(value, self.decoder_of(annotation), what, "$")

    def open(self, data: bytes, *, what: str) -> bytes:
        """The JSON of stored bytes. Raises `SerializationError`."""
        return self.payloads.open(data, what)

    def readable(self, data: bytes) -> bytes:
        """The same for whoever only shows it: the stored bytes themselves where their JSON cannot be had here."""
        try:
            return self.payloads.open(data, "value")
        except SerializationError:
            return data

    def same(self, one: bytes, other: bytes, *, what: str) -> bool:
        """Whether two stored values are the same: zlib's bytes may differ, and a cipher's should.

        Raises `SerializationError` where one cannot be read here.
        """
        return one == other or self.payloads.open(one, what) == self.payloads.open(other, what)

    def decoder_of(self, annotation: Any) -> Decoder | None:
        """See `core.typed`."""
        self._in_use = True
        return self._decoders.of(annotation)

    def parse(self, data: bytes, what: str, limits: PayloadConfig | None = None) -> Any:
        """The plain JSON value of stored bytes. Raises `SerializationError`."""
        if data and data[0] < MARKS:
            data = self.payloads.open(data, what, limits)
        return parse(data, what)


def parse(data: bytes, what: str) -> Any:
    """The value of JSON; raises `SerializationError`."""
    try:
        text = str(data, "utf-8")
        try:
            value, end = _scan(text, 0)
        except StopIteration:
            return _parser.decode(text)
        return value if end == len(text) else _parser.decode(text)
    except (ValueError, RecursionError) as error:
        raise SerializationError(f"{what}: not JSON: {error}; found {bytes(data[:80])!r}") from error


def typed(value: Any, decoder: Decoder | None, what: str, root: str) -> Any:
    """A plain value by a decoder; raises `SerializationError` with the path, from `root`, of what does not fit."""
    if decoder is None:
        return value
    try:
        return decoder(value)
    except Mismatch as mismatch:
        path = root + "".join(reversed(mismatch.path))
        raise SerializationError(f"{what}, at {path}: {mismatch}") from mismatch
    except RecursionError as error:
        raise SerializationError(f"{what}: nested too deeply") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_parser = json.JSONDecoder(parse_constant=_refuse_constant)
_scan: Callable[[str, int], tuple[Any, int]] = vars(_parser)["scan_once"]
