"""A TCP proxy in front of a Postgres server that spoils connections to order, at any message.

It runs in a thread with an event loop of its own, so that neither a blocked test nor a frozen worker stops it, and
can be told what to do at any time from any thread. What it is told has taken place when the call returns.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from faults.proxy_link import Flow, Lane, Link, Manner, Way
from faults.proxy_wire import Message
from psycopg.conninfo import conninfo_to_dict, make_conninfo

T = TypeVar("T")

#: What a trap does to the connection whose message it was.
Act = Callable[[Link], None]


def cut(link: Link) -> None:
    """Ends the connection at both ends; see `Link.cut`."""
    link.cut()


def silence(link: Link) -> None:
    """Makes the connection half-open; see `Link.silence`."""
    link.silence()


def reset(link: Link) -> None:
    """Ends the connection by RST; see `Link.reset`."""
    link.reset()


def kill(pid: int) -> Act:
    """Ends the process by SIGKILL, and what it had sent and not been answered goes no further."""

    def act(link: Link) -> None:
        os.kill(pid, signal.SIGKILL)
        link.cut()

    return act


@dataclass
class Trap:
    """Acts at one message, counted from 1 over the messages of one way since the trap was set.

    Arguments: `way`; `number` (0: only counts); `act`; `name`, how the application_name of the connections that count
    begins; `before`, whether to act before the message is passed on, or after; `where`, which messages count.
    Attributes: `seen`, messages so far; `kind`, of the message it acted at; `fired`.
    """

    way: Way
    number: int
    act: Act = cut
    name: str = ""
    before: bool = True
    where: Callable[[Message], bool] = lambda message: True
    seen: int = 0
    kind: str = ""
    fired: threading.Event = field(default_factory=threading.Event)

    def due(self, link: Link, lane: Lane, message: Message) -> bool:
        """Counts the message; whether it is the one."""
        if lane.way is not self.way or self.fired.is_set() or not link.name.startswith(self.name):
            return False
        if not self.where(message):
            return False
        self.seen += 1
        return self.seen == self.number

    def fire(self, link: Link, message: Message) -> None:
        self.kind = message.kind
        self.act(link)
        self.fired.set()


class Proxy:
    """Passes connections on to the server at `host` and `port`.

    `name` in its methods is how the application_name of the connections meant begins; "" means all of them.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.port = 0
        self._target = (host, port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._links: dict[Link, asyncio.Task[None]] = {}
        self._traps: list[Trap] = []
        self._manners: dict[tuple[str, Way], Manner] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        self.accept()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._await(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def dsn(self, dsn: str) -> str:
        """The way through this proxy to what `dsn` names."""
        parts = {k: v for k, v in conninfo_to_dict(dsn).items() if k not in ("hostaddr", "host", "port")}
        return make_conninfo(host="127.0.0.1", port=self.port, **parts)

    # -- what to do with messages

    def set(
        self, way: Way, flow: Flow | None = None, delay: float | None = None, *, name: str = "", present: bool = True
    ) -> None:
        """How one way is treated from now on: connections to come, and with `present` those that are there.

        Arguments: `flow` and `delay` (seconds) stay as they are where None.
        """

        def do() -> None:
            for known in {(name, way)} | {k for k in self._manners if k[1] is way and k[0].startswith(name)}:
                before = self._manners.get(known) or self._manner(name, way)
                self._manners[known] = Manner(
                    before.flow if flow is None else flow, before.delay if delay is None else delay
                )
            for link in self._named(name) if present else ():
                if (lane := link.lane(way)) is not None:
                    lane.set(flow, delay)

        self._do(do)

    def heal(self) -> None:
        """Everything passes without delay from now on; what was held comes through, what was dropped does not."""
        for way in Way:
            self.set(way, Flow.PASS, 0.0)

    def trap(self, trap: Trap) -> Trap:
        """Sets a trap, and answers it."""
        self._do(lambda: self._traps.append(trap))
        return trap

    # -- what to do with connections

    def cut(self, name: str = "") -> int:
        """Ends the connections in good order; answers how many."""
        return self._each(Link.cut, name)

    def silence(self, name: str = "") -> int:
        """Makes the connections that are there half-open for good; answers how many."""
        return self._each(Link.silence, name)

    def reset(self, name: str = "") -> int:
        """Ends the connections by RST; answers how many."""
        return self._each(Link.reset, name)

    def refuse(self) -> None:
        """Nobody listens any more; connections that are there stay."""

        def do() -> None:
            if self._server is not None:
                self._server.close()
                self._server = None

        self._do(do)

    def accept(self) -> None:
        """Listens, on the same port as before."""

        async def do() -> None:
            if self._server is None:
                self._server = await asyncio.start_server(self._come, "127.0.0.1", self.port, backlog=256)
                self.port = self._server.sockets[0].getsockname()[1]

        self._await(do())

    def names(self) -> list[str]:
        """The application names of the connections that are there."""
        return self._do(lambda: [link.name for link in self._links if link.lanes])

    def held(self, name: str = "") -> int:
        """Messages that have arrived and are neither passed on nor lost."""
        return self._do(lambda: sum(x.arrived - x.settled for link in self._named(name) for x in link.lanes))

    def lost(self, name: str = "") -> int:
        """Messages that were dropped, of the connections that are there."""
        return self._do(lambda: sum(lane.lost for link in self._named(name) for lane in link.lanes))

    # -- in the proxy's own thread

    def _named(self, name: str) -> list[Link]:
        return [link for link in self._links if link.lanes and link.name.startswith(name)]

    def _manner(self, name: str, way: Way) -> Manner:
        fitting = [key for key in self._manners if key[1] is way and name.startswith(key[0])]
        return self._manners[max(fitting, key=lambda key: len(key[0]))] if fitting else Manner()

    def _each(self, act: Act, name: str) -> int:
        def do() -> int:
            links = self._named(name)
            for link in links:
                act(link)
            return len(links)

        return self._do(do)

    def _watch(self, link: Link, lane: Lane, message: Message) -> tuple[bool, Act] | None:
        due = [trap for trap in self._traps if trap.due(link, lane, message)]
        if not due:
            return None
        trap = due[0]
        return trap.before, lambda link: trap.fire(link, message)

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self._links[link] = task
        try:
            await link.serve(*self._target, self._watch, lambda name: {way: self._manner(name, way) for way in Way})
        except OSError:
            link.reset()
        finally:
            link.close()
            del self._links[link]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        tasks = list(self._links.values())
        for link in list(self._links):
            link.reset()
        _, late = await asyncio.wait(tasks, timeout=2) if tasks else (set(), set())
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _do(self, act: Callable[[], T]) -> T:
        async def do() -> T:
            return act()

        return self._await(do())

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)
