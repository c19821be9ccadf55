"""JSON to stored bytes and back: limits on their size, compression, and the user's payload codecs.

Bytes say themselves how they were made: JSON, or a marking byte that JSON cannot begin with. So what was stored
stays readable whatever is set today, and small JSON is stored as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from shardflow.core.compress import MARK as COMPRESSED
from shardflow.core.compress import compressed, decompressed
from shardflow.errors import InvalidInput, SerializationError
from shardflow.model import PayloadConfig

#: The first byte of what a payload codec gave; a byte with its name's length, the name, and that follow.
CODED = b"\x02"
#: JSON begins with a larger byte than any mark.
MARKS = 8

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}")


class PayloadCodec(Protocol):
    """What stands between an app's values and the database: encryption, or another format.

    `name` is stored with each payload, and `decode` is asked for what was stored under it. Both functions may be
    called in several threads at once.
    """

    @property
    def name(self) -> str: ...

    def encode(self, data: bytes, /) -> bytes: ...

    def decode(self, data: bytes, /) -> bytes: ...


class Payloads:
    """Seals JSON and opens what is stored.

    Arguments: `codecs`, of which the first writes and each reads what has its name. `limits` may be changed.
    Attribute `small`: JSON of up to so many bytes is stored as it is, and need not be sealed.
    """

    __slots__ = ("_codecs", "_limits", "_writes", "small")

    def __init__(self, codecs: Sequence[PayloadCodec] = ()) -> None:
        self._codecs: dict[str, PayloadCodec] = {}
        for codec in codecs:
            name = getattr(codec, "name", None)
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise InvalidInput(
                    f"the name of a payload codec must be 1 to 63 letters, digits, '_', '.', ':' or '-', not {name!r}"
                )
            if name in self._codecs:
                raise InvalidInput(f"two payload codecs are named {name!r}: give each key and format its own name")
            self._codecs[name] = codec
        self._writes = next(iter(self._codecs.values()), None)
        self.limits = PayloadConfig()

    @property
    def limits(self) -> PayloadConfig:
        """How large payloads may be, and from which size they are compressed."""
        return self._limits

    @limits.setter
    def limits(self, limits: PayloadConfig) -> None:
        self._limits = limits
        self.small = -1 if self._writes else min(limits.compress_above, limits.max_size, limits.max_decoded)

    def seal(self, data: bytes, what: str, limits: PayloadConfig | None = None) -> bytes:
        """The bytes to store for JSON. Raises `SerializationError`: too large, or the payload codec failed."""
        limits = limits or self._limits
        size = len(data)
        if size > limits.max_decoded:
            raise _too_large(what, f"{size:,} bytes of JSON", limits.max_decoded, "payload.max_decoded")
        stored = (compressed(data) if size > limits.compress_above else None) or data
        if self._writes is not None:
            stored = _coded(self._writes, stored, what)
        if len(stored) > limits.max_size:
            was = "" if len(stored) == size else f" (of {size:,} bytes of JSON)"
            raise _too_large(what, f"{len(stored):,} bytes{was}", limits.max_size, "payload.max_size")
        return stored

    def open(self, data: bytes, what: str, limits: PayloadConfig | None = None) -> bytes:
        """The JSON of stored bytes.

        Raises `SerializationError`: damaged, too large when decompressed, or of a payload codec that is not here.
        """
        if data[:1] == CODED:
            data = self._decoded(data, what)
        if data[:1] == COMPRESSED:
            try:
                data = decompressed(data, (limits or self._limits).max_decoded)
            except ValueError as error:
                raise SerializationError(f"{what}: compressed, and {error}") from None
        return data

    def _decoded(self, data: bytes, what: str) -> bytes:
        name, stored = split(data)
        codec = self._codecs.get(name)
        if codec is None:
            known = f"here are only {', '.join(self._codecs)}" if self._codecs else "here are none"
            raise SerializationError(
                f"{what}: was written by the payload codec {name!r}, and {known}: give it to Codecs(payload=[...]), "
                "also when another one writes now"
            )
        try:
            plain = codec.decode(stored)
        except Exception as error:
            raise SerializationError(
                f"{what}: the payload codec {name!r} cannot decode it: {type(error).__name__}: {error}"
            ) from error
        return _bytes(plain, name, "decode", what)


def split(data: bytes) -> tuple[str, bytes]:
    """The name of the payload codec that gave these bytes, and what it gave."""
    end = 2 + (data[1] if len(data) > 1 else 0)
    return data[2:end].decode("utf-8", "replace"), data[end:]


def _coded(codec: PayloadCodec, data: bytes, what: str) -> bytes:
    try:
        coded = codec.encode(data)
    except Exception as error:
        raise SerializationError(
            f"{what}: the payload codec {codec.name!r} cannot encode it: {type(error).__name__}: {error}"
        ) from error
    name = codec.name.encode()
    return CODED + bytes((len(name),)) + name + _bytes(coded, codec.name, "encode", what)


def _bytes(found: object, name: str, function: str, what: str) -> bytes:
    if not isinstance(found, (bytes, bytearray, memoryview)):
        raise SerializationError(f"{what}: {function} of the payload codec {name!r} gave {type(found)}, not bytes")
    return bytes(found)


def _too_large(what: str, found: str, most: int, key: str) -> SerializationError:
    return SerializationError(
        f"{what}: {found}; a payload may have {most:,} ({key}): store it elsewhere, pass a reference"
    )
