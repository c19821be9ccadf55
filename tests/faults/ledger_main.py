"""The ledger's process: `ledger_main.py FILE SOCKET`. Ends with its standard input, and says how much it wrote.

Guarantee: all lines that have come are written, synced once, then acknowledged to whoever sent them, in the order in
which each has sent them. A line that came whole is written even if its sender has died since.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress

PIECE = 1 << 20
#: Seconds before an answer is tried again for which there was no room.
LOOK = 0.005


def serve(path: str, address: str) -> tuple[int, int]:
    """Serves until the standard input ends; answers how many lines were written, and in how many groups."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    door = socket.socket(socket.AF_UNIX)
    door.bind(address)
    door.listen(256)
    door.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(door, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    halves: dict[socket.socket, bytes] = {}
    owed: dict[socket.socket, int] = {}
    lines = groups = 0
    print("listening", flush=True)
    while True:
        group: list[bytes] = []
        ends = False
        # Whatever was readable when the select returned goes into this group: nobody's answer can overtake a line
        # that was sent before the question.
        ready = [key.fileobj for key, _ in selector.select(LOOK if owed else None)]
        if door in ready:
            for client in _accepted(door):
                selector.register(client, selectors.EVENT_READ)
                halves[client] = b""
                ready.insert(0, client)
        for client in ready:
            if client is sys.stdin:
                ends = True
            elif client is not door:
                data = _received(client)
                whole, newline, half = (halves[client] + (data or b"")).rpartition(b"\n")
                halves[client] = half
                if newline:
                    group.append(whole + newline)
                    owed[client] = owed.get(client, 0) + whole.count(b"\n") + 1
                if data == b"":
                    selector.unregister(client)
                    del halves[client]
                    client.close()
        if group:
            _write(file, b"".join(group))
            os.fdatasync(file)
            lines += sum(part.count(b"\n") for part in group)
            groups += 1
        for client in [client for client, number in owed.items() if _answered(client, number)]:
            del owed[client]
        if ends:
            return lines, groups


def _accepted(door: socket.socket) -> Iterator[socket.socket]:
    with suppress(BlockingIOError):
        while True:
            client, _ = door.accept()
            client.setblocking(False)
            yield client


def _received(client: socket.socket) -> bytes | None:
    """What has come, None where nothing has, nothing where the sender is gone."""
    try:
        return client.recv(PIECE)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _answered(client: socket.socket, number: int) -> bool:
    """Whether nothing is owed any more: the answer is sent, or the sender has died."""
    try:
        client.send(b"%d\n" % number)
    except BlockingIOError:  # it sends much and reads little
        return False
    except OSError:
        pass
    return True


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


if __name__ == "__main__":
    print(*serve(sys.argv[1], sys.argv[2]), flush=True)
