"""How large an encoded value may be."""

from __future__ import annotations

from shardflow.errors import SerializationError

#: Bytes of an encoded call or result at the most. Far larger ones would end the server's connection, not only fail.
MAX_PAYLOAD = 8 << 20


def checked_size(data: bytes, what: str) -> bytes:
    """`data` itself. Raises `SerializationError` where it is larger than a payload may be."""
    if len(data) > MAX_PAYLOAD:
        raise SerializationError(
            f"{what}: {len(data):,} bytes; a payload may have {MAX_PAYLOAD:,}: store it elsewhere, pass a reference"
        )
    return data
