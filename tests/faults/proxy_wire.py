"""Where one message of Postgres' protocol ends and the next begins, in either direction; nothing else of it."""

from __future__ import annotations

import struct
from typing import NamedTuple

#: Codes that stand where the first packet of a connection has its version.
CODES = {80877102: "cancel", 80877103: "ssl", 80877104: "gss"}


class Message(NamedTuple):
    """One whole message: `kind` is its type's letter, or "startup", "cancel", "ssl" or "gss" for what has none."""

    kind: str
    data: bytes


class Frames:
    """Cuts a stream into messages.

    Arguments: `typed`, whether each message begins with its type's letter: always from the server; from the client
    behind its startup packet.
    """

    def __init__(self, *, typed: bool) -> None:
        self._typed = typed
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now; the beginning of another is kept."""
        rest = self._rest
        rest += data
        found: list[Message] = []
        at = 0
        while True:
            head = at + self._typed
            if len(rest) < head + 4:
                break
            end = head + struct.unpack_from("!I", rest, head)[0]
            if end < head + 4:
                raise ValueError(f"not a message of Postgres' protocol: {bytes(rest[at : at + 16])!r}")
            if len(rest) < end:
                break
            whole = bytes(rest[at:end])
            kind = chr(whole[0]) if self._typed else CODES.get(struct.unpack_from("!I", whole, 4)[0], "startup")
            self._typed = self._typed or kind == "startup"
            found.append(Message(kind, whole))
            at = end
        del rest[:at]
        return found


def application(startup: bytes) -> str:
    """The application's name in a startup packet, "" where it has none."""
    words = startup[8:].split(b"\0")
    return dict(zip(words[::2], words[1::2], strict=False)).get(b"application_name", b"").decode()
