"""A payload codec that encrypts, good enough for tests: other bytes each time, and a wrong key is noticed."""

from __future__ import annotations

import hashlib
import hmac
import os


class Cipher:
    """Arguments: `name`, under which payloads are stored; `key`."""

    def __init__(self, name: str, key: bytes = b"secret") -> None:
        self.name = name
        self._key = key

    def encode(self, data: bytes) -> bytes:
        nonce = os.urandom(16)
        hidden = self._mixed(nonce, data)
        return nonce + hmac.digest(self._key, nonce + hidden, "sha256") + hidden

    def decode(self, data: bytes) -> bytes:
        nonce, tag, hidden = data[:16], data[16:48], data[48:]
        if not hmac.compare_digest(tag, hmac.digest(self._key, nonce + hidden, "sha256")):
            raise ValueError("wrong key, or changed bytes")
        return self._mixed(nonce, hidden)

    def _mixed(self, nonce: bytes, data: bytes) -> bytes:
        if not data:
            return b""
        stream = hashlib.shake_256(self._key + nonce).digest(len(data))
        return (int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(data), "big")
