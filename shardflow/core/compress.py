"""Compression of stored bytes, marked by a first byte that JSON cannot begin with.

What does not become clearly smaller stays as it is. Nothing is promised of the compressed bytes, which differ between
versions of zlib: compare what they decompress to.
"""

from __future__ import annotations

import zlib

#: The first byte of compressed bytes; a zlib stream follows.
MARK = b"\x01"

# Higher levels take one and a half to four times as long, and save a twentieth to a fifth of what is left.
_LEVEL = 1
# It must become this much smaller: base64 and what is compressed already do not, at several times the cost of text.
_WORTH = 0.7
# So many bytes from the middle of something large tell whether it is worth to compress all of it.
_PROBE = 4096


def compressed(data: bytes) -> bytes | None:
    """The marked compressed bytes; None where they would be hardly smaller."""
    if len(data) > 8 * _PROBE:
        middle = len(data) // 2
        probe = memoryview(data)[middle : middle + _PROBE]
        if len(zlib.compress(probe, _LEVEL)) > _PROBE * _WORTH:
            return None
    packed = MARK + zlib.compress(data, _LEVEL)
    return packed if len(packed) <= len(data) * _WORTH else None


def decompressed(data: bytes, most: int) -> bytes:
    """What was compressed. Raises ValueError where it is damaged, or has more than `most` bytes."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(memoryview(data)[len(MARK) :], most + 1)
    except zlib.error as error:
        raise ValueError(f"damaged: {error}") from None
    if len(plain) > most:
        raise ValueError(f"more than {most:,} bytes when decompressed (payload.max_decoded)")
    if not stream.eof or stream.unused_data:
        raise ValueError("damaged: it is cut off, or something follows it")
    return plain
