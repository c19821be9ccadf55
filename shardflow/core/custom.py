"""The user's own types: how a value of one becomes plain, and comes back by the annotation.

A type without a codec here has its built-in form, or none. No type name is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shardflow.core.hints import describe
from shardflow.core.plain import to_plain
from shardflow.core.records import Decoder, Mismatch
from shardflow.errors import InvalidInput, UsageError

# What the JSON encoder takes as it is, so that no codec would ever be asked about it.
_NATIVE = (str, int, float, list, tuple, dict, type(None))
_JSON = (*_NATIVE, bool)


@dataclass(frozen=True, slots=True)
class TypeCodec:
    """How values of `cls` are stored: as what `encode` gives, which is typed back by `form` before `decode`.

    With `subclasses` it is the codec of subclasses too, and `decode` gets the annotated class as second argument.
    """

    cls: type[Any]
    encode: Callable[[Any], Any]
    decode: Callable[..., Any]
    form: Any = Any
    subclasses: bool = False

    def plain(self, value: Any) -> Any:
        """The value's form; raises ValueError for whatever goes wrong."""
        try:
            form = self.encode(value)
        except Exception as error:
            raise ValueError(f"its codec cannot encode it: {type(error).__name__}: {error}") from error
        if isinstance(form, self.cls):
            raise ValueError(f"its codec gives back a {self.cls.__name__}: encode must give something plainer")
        if self.form is Any and not isinstance(form, _JSON):
            raise ValueError(
                f"its codec gives {type(form).__name__}, which is not JSON: say form={type(form).__name__} where the "
                "codec is added, so that decode gets that back"
            )
        return form

    def decoder(self, cls: Any, form: Decoder | None) -> Decoder:
        """The decoder of `cls`, whose form is decoded by `form`."""

        def decode(value: Any) -> Any:
            plain = value if form is None else form(value)
            try:
                made = self.decode(plain, cls) if self.subclasses else self.decode(plain)
            except Exception as error:
                raise Mismatch(f"cannot make {describe(cls)}: {type(error).__name__}: {error}") from error
            if not isinstance(made, cls):
                raise Mismatch(f"cannot make {describe(cls)}: its codec gave {type(made).__qualname__}")
            return made

        return decode


class Types:
    """The codecs of an app's own types."""

    __slots__ = ("_codecs",)

    def __init__(self) -> None:
        self._codecs: dict[type[Any], TypeCodec] = {}

    def add(self, codec: TypeCodec) -> None:
        """Raises InvalidInput for what can have no codec, UsageError for a type that has one."""
        cls = codec.cls
        if not isinstance(cls, type) or cls is object:
            raise InvalidInput(f"a codec is for a class, not for {cls!r}")
        if issubclass(cls, _NATIVE):
            raise InvalidInput(
                f"{cls.__qualname__} can have no codec: JSON takes str, int, float, list, tuple, dict and what is "
                "derived from them as it is; wrap it in a class of your own"
            )
        if not callable(codec.encode) or not callable(codec.decode):
            raise InvalidInput(f"encode and decode of {cls.__qualname__} must be functions")
        if cls in self._codecs:
            raise UsageError(f"{cls.__qualname__} has a codec already")
        self._codecs[cls] = codec

    def find(self, cls: type[Any]) -> TypeCodec | None:
        """The codec of a class: its own, or the nearest base's that is for subclasses too."""
        codecs = self._codecs
        if not codecs:
            return None
        found = codecs.get(cls)
        if found is not None:
            return found
        for base in getattr(cls, "__mro__", ()):
            found = codecs.get(base)
            if found is not None and found.subclasses:
                return found
        return None

    def plain(self, value: Any) -> Any:
        """See `core.plain.to_plain`, which it extends."""
        found = self.find(type(value))
        return to_plain(value, self.plain) if found is None else found.plain(value)
