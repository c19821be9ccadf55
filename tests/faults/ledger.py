"""The external witness: a process that appends lines to a file and answers when they are on disk (`ledger_main.py`).

Whoever writes a line waits for the answer before going on, so the file's order is true over all processes.
"""

from __future__ import annotations

import asyncio
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults import ledger_main

# The lines:
#   intend ID                            a submit is about to be sent
#   accept ID                            the submit was acknowledged
#   begin ID ATTEMPT LEASE WORKER        the workflow's code begins
#   start ID SEQ ATTEMPT LEASE WORKER    a step starts; a dash where the lease is not known
#   record ID SEQ VALUE WORKER           the workflow went on behind the step: its checkpoint was acknowledged
#   result ID VALUE                      the submitter was told the result
#   plan NUMBER FAULT                    a fault is planned
#   fire NUMBER LEFT                     it fired, while so much work was left

#: Seconds to wait for an answer before the ledger is taken for broken.
PATIENCE = 60.0
#: Seconds of one look whether a full socket takes more.
PIECE_OF_PATIENCE = 0.05


def _encoded(words: tuple[object, ...]) -> bytes:
    line = " ".join(map(str, words))
    if "\n" in line:
        raise ValueError(f"a line must be one line: {line!r}")
    return line.encode() + b"\n"


def _connected(address: str | Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(address))
    return made


class Ledger:
    """Writes lines from one event loop; one socket, however many write.

    A line is on its way when `line` is called, not a turn of the loop later: what a process did just before it was
    frozen would else seem to be done when it wakes up.
    """

    def __init__(self, address: str | Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = _connected(address)
        self._socket.setblocking(False)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._half = b""
        self._loop.add_reader(self._socket, self._answered)

    async def line(self, *words: object) -> None:
        """Returns when the line is on disk."""
        data = _encoded(words)
        answer: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(answer)
        while data:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                select.select([], [self._socket], [], PIECE_OF_PATIENCE)
        await answer

    def close(self) -> None:
        """Forgets the ledger; whoever waits is cancelled."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for answer in self._waiting:
            answer.cancel()

    def _answered(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            self._loop.remove_reader(self._socket)
            while self._waiting:
                if not (answer := self._waiting.popleft()).done():
                    answer.set_exception(ConnectionError("the ledger is gone"))
            return
        *numbers, self._half = (self._half + data).split(b"\n")
        for _ in range(sum(map(int, numbers))):
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_result(None)


class LedgerProcess:
    """A running ledger.

    Attributes: `path`, the file; `address`, the socket that `Ledger` takes; at the end `count` and `groups`, lines
    written and syncs that it took.
    """

    def __init__(self, path: Path, address: Path) -> None:
        self.path = path
        self.address = address
        self.count = self.groups = 0
        self._process = subprocess.Popen(
            [sys.executable, ledger_main.__file__, str(path), str(address)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "listening\n":
            raise RuntimeError("the ledger's process did not start")
        self._socket = _connected(address)
        self._socket.settimeout(PATIENCE)
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid

    def write(self, *words: object) -> None:
        """`Ledger.line` for code without an event loop; from any thread."""
        with self._lock:
            self._socket.sendall(_encoded(words))
            answer = self._socket.recv(16)
            if answer != b"1\n":
                raise ConnectionError(f"the ledger answered {answer!r}")

    def lines(self) -> Iterator[str]:
        """What it holds so far."""
        with self.path.open() as file:
            yield from file

    def stop(self) -> None:
        """Ends it in good order."""
        self._socket.close()
        try:
            said, _ = self._process.communicate(timeout=PATIENCE)
            self.count, self.groups = map(int, said.split())
        finally:
            self._process.kill()


@contextmanager
def start_ledger(path: Path) -> Iterator[LedgerProcess]:
    """A ledger that writes to `path`, for as long as the context lasts."""
    folder = tempfile.mkdtemp(prefix="ledger-")  # a socket's path must be short
    try:
        ledger = LedgerProcess(path, Path(folder) / "socket")
        try:
            yield ledger
        finally:
            ledger.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
