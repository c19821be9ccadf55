"""Decoders of records: dataclasses, TypedDict, NamedTuple, pydantic models.

`of` gives the decoder of a field's annotation. `strict` refuses what a record does not know; else a field
that a class no longer has is left out, so that stored values outlive it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from shardflow.core.hints import class_hints, describe, required_keys
from shardflow.core.plain import path_key

Decoder = Callable[[Any], Any]
DecoderOf = Callable[[Any], Decoder | None]


class Mismatch(Exception):
    """A plain value does not fit the annotation; `path` is gathered from the inside out."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.path: list[str] = []


def at(piece: str, decoder: Decoder | None, value: Any) -> Any:
    """Decode the part of a value that lies at `piece`, which a `Mismatch` takes up into its path."""
    if decoder is None:
        return value
    try:
        return decoder(value)
    except Mismatch as mismatch:
        mismatch.path.append(piece)
        raise


def unfit(annotation: Any, value: Any) -> Mismatch:
    """The `Mismatch` of a plain value that an annotation does not take."""
    shown = json.dumps(value, ensure_ascii=False, default=repr)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return Mismatch(f"expected {describe(annotation)}, found {shown}")


def dataclass_decoder(cls: Any, bound: Mapping[Any, Any], of: DecoderOf, strict: bool) -> Decoder:
    hints = class_hints(cls, bound)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    decoders = {name: of(hints.get(name, Any)) for name in fields}
    required = [
        field.name
        for field in fields.values()
        if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]

    def decode(value: Any) -> Any:
        if type(value) is not dict:
            raise unfit(cls, value)
        given: dict[str, Any] = {}
        computed: dict[str, Any] = {}
        for name, each in value.items():
            field = fields.get(name)
            if field is None:
                if strict:
                    raise Mismatch(f"unknown field {name!r} for {describe(cls)}")
                continue
            decoder = decoders[name]
            decoded = each if decoder is None else at("." + name, decoder, each)
            (given if field.init else computed)[name] = decoded
        for name in required:
            if name not in given:
                raise Mismatch(f"the field {name!r} of {describe(cls)} is missing")
        try:
            made = cls(**given)
        except Exception as error:
            raise Mismatch(f"cannot make {describe(cls)}: {type(error).__name__}: {error}") from error
        for name, each in computed.items():
            object.__setattr__(made, name, each)
        return made

    return decode


def typed_dict_decoder(cls: Any, bound: Mapping[Any, Any], of: DecoderOf, strict: bool) -> Decoder:
    hints = class_hints(cls, bound)
    decoders = {name: of(hint) for name, hint in hints.items()}
    required = required_keys(cls)

    def decode(value: Any) -> Any:
        if type(value) is not dict:
            raise unfit(cls, value)
        for name in required:
            if name not in value:
                raise Mismatch(f"the key {name!r} of {describe(cls)} is missing")
        if strict and not value.keys() <= decoders.keys():
            raise Mismatch(f"unknown keys for {describe(cls)}")
        return {name: at(path_key(name), decoders.get(name), each) for name, each in value.items()}

    return decode


def named_tuple_decoder(cls: Any, bound: Mapping[Any, Any], of: DecoderOf, strict: bool) -> Decoder:
    hints = class_hints(cls, bound)
    names: tuple[str, ...] = cls._fields
    decoders = [of(hints.get(name, Any)) for name in names]
    least = len(names) - len(cls._field_defaults)

    def decode(value: Any) -> Any:
        if type(value) is not list:
            raise unfit(cls, value)
        if not least <= len(value) <= len(names):
            raise Mismatch(f"expected {len(names)} items for {describe(cls)}, found {len(value)}")
        return cls(*(at("." + names[i], decoders[i], each) for i, each in enumerate(value)))

    return decode


def model_decoder(cls: Any) -> Decoder:
    def decode(value: Any) -> Any:
        try:
            return cls.model_validate(value)
        except ValueError as error:
            raise Mismatch(f"cannot make {describe(cls)}: {error}") from error

    return decode
