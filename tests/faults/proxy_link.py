"""One connection through the proxy: two lanes, each of which passes messages on, late, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from faults.proxy_wire import Frames, Message, application

#: What a server answers to a client that asks for encryption: the proxy has to read what it passes on.
NO = b"N"


class Way(enum.Enum):
    """From the client to the server, or back."""

    UP = "up"
    DOWN = "down"


class Flow(enum.Enum):
    """What becomes of messages: passed on; kept until the flow is PASS again, as while a network is parted; or lost
    for ever with both TCP connections open, as where the other end is gone without a word."""

    PASS = "pass"
    HOLD = "hold"
    DROP = "drop"


@dataclass(frozen=True)
class Manner:
    """How one way is treated; `delay` is the seconds by which each message is late."""

    flow: Flow = Flow.PASS
    delay: float = 0.0


#: Looks at a message that is about to be written. Answers None, or (whether to act before it is written, the act).
Watch = Callable[["Link", "Lane", Message], tuple[bool, Callable[["Link"], None]] | None]


class Lane:
    """One way of a connection. Once it has dropped anything it drops all that follows: the rest would be noise.

    Arguments: `link` that it belongs to; `way`; `reader` and `writer`, its ends; `frames`; `watch`.
    Attributes, in messages: `arrived`; `settled`, passed on or lost; `lost`.
    """

    def __init__(
        self,
        link: Link,
        way: Way,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        frames: Frames,
        watch: Watch,
    ) -> None:
        self.manner = Manner()
        self.way = way
        self.arrived = 0
        self.settled = 0
        self.lost = 0
        self._link = link
        self._reader = reader
        self._writer = writer
        self._frames = frames
        self._watch = watch
        self._dead = False
        self._queue: asyncio.Queue[tuple[float, Sequence[Message] | None]] = asyncio.Queue()
        self._changed = asyncio.Event()

    def set(self, flow: Flow | None = None, delay: float | None = None) -> None:
        if flow is not None:
            self.manner = replace(self.manner, flow=flow)
        if delay is not None:
            self.manner = replace(self.manner, delay=delay)
        self._changed.set()

    def silence(self) -> None:
        """From now on nothing comes through, whatever the flow is set to later."""
        self._dead = True
        self._changed.set()

    def end(self) -> None:
        """Tells the receiver, behind what was written, that nothing more comes."""
        self.silence()
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write_eof()

    async def run(self, first: Sequence[Message] = ()) -> None:
        """Passes messages on, `first` before all others, until the sender has ended and the receiver knows it."""
        loop = asyncio.get_running_loop()
        if first:
            self.arrived += len(first)
            self._queue.put_nowait((loop.time() + self.manner.delay, first))
        sending = asyncio.create_task(self._send())
        try:
            while data := await self._reader.read(65_536):
                if messages := self._frames.feed(data):
                    self.arrived += len(messages)
                    self._queue.put_nowait((loop.time() + self.manner.delay, messages))
        except OSError:
            pass
        finally:
            self._queue.put_nowait((loop.time() + self.manner.delay, None))
            await sending

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, messages = await self._queue.get()
            if (early := due - loop.time()) > 0:
                await asyncio.sleep(early)
            if messages is None:
                await self._held()
                if not self._dead:
                    self._writer.close()
                return
            try:
                await self._write(messages)
            except OSError:
                self.silence()

    async def _held(self) -> None:
        while self.manner.flow is Flow.HOLD and not self._dead:
            self._changed.clear()
            await self._changed.wait()
        if self.manner.flow is Flow.DROP:
            self._dead = True

    async def _write(self, messages: Sequence[Message]) -> None:
        for message in messages:
            await self._held()
            if self._writer.transport.is_closing():
                self._dead = True
            due = None if self._dead else self._watch(self._link, self, message)
            self.settled += 1
            if due and due[0]:
                due[1](self._link)
            if self._dead:
                self.lost += 1
                continue
            self._writer.write(message.data)
            if due and not due[0]:
                due[1](self._link)
        await self._writer.drain()


class Link:
    """A client's connection and the proxy's own to the server in its place.

    Attributes: `name`, the client's application_name; `up` and `down`, the lanes; `opened`, whether it has them yet.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.name = ""
        self.up: Lane | None = None
        self.down: Lane | None = None
        self._reader = reader
        self._writers = [writer]

    @property
    def lanes(self) -> list[Lane]:
        return [lane for lane in (self.up, self.down) if lane is not None]

    def lane(self, way: Way) -> Lane | None:
        return self.up if way is Way.UP else self.down

    async def serve(self, host: str, port: int, watch: Watch, manners: Callable[[str], dict[Way, Manner]]) -> None:
        """Reads who calls, connects to the server, passes on until both ends are closed; `manners` by name."""
        frames = Frames(typed=False)
        first = await self._greet(frames)
        if first is None:
            return
        self.name = application(first[0].data) if first[0].kind == "startup" else ""
        server_reader, server_writer = await asyncio.open_connection(host, port)
        self._writers.append(server_writer)
        self.up = Lane(self, Way.UP, self._reader, server_writer, frames, watch)
        self.down = Lane(self, Way.DOWN, server_reader, self._writers[0], Frames(typed=True), watch)
        for way, manner in manners(self.name).items():
            lane = self.lane(way)
            assert lane is not None
            lane.set(manner.flow, manner.delay)
        await asyncio.gather(self.up.run(first), self.down.run())

    async def _greet(self, frames: Frames) -> list[Message] | None:
        """The client's startup packet, with encryption declined; None where it left before."""
        while data := await self._reader.read(65_536):
            messages = frames.feed(data)
            while messages and messages[0].kind in ("ssl", "gss"):
                self._writers[0].write(NO)
                messages.pop(0)
            if messages:
                return messages
        return None

    def cut(self) -> None:
        """Ends the connection in good order at both ends, behind what was passed on so far."""
        for lane in self.lanes:
            lane.end()

    def silence(self) -> None:
        """Nothing more in either way, and nobody is told: half-open."""
        for lane in self.lanes:
            lane.silence()

    def reset(self) -> None:
        """Ends the connection by RST at both ends, at once."""
        for lane in self.lanes:
            lane.silence()
        for writer in self._writers:
            raw = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
