"""More of what is wrong on purpose in workers of the kill tests, see `kill_mutants`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import shardflow.sql
from shardflow.app import App
from shardflow.core.payload import Payloads
from shardflow.storage import turn as turns
from shardflow.storage.turn import Answer, Turn
from shardflow.worker import control
from shardflow.worker.commit import CommitLoop
from shardflow.worker.operations import Operations
from shardflow.worker.run import Run


def write_the_first_with_the_second() -> None:
    """A workflow goes on before its first checkpoint is written, which goes along with the second."""
    real, held = CommitLoop.checkpoint, list[tuple[Any, ...]]()

    def checkpoint(self: CommitLoop, *args: Any) -> asyncio.Future[None]:
        held.append(args)
        if len(held) > 1:
            if len(held) == 2:
                real(self, *held[0])
            return real(self, *args)
        done: asyncio.Future[None] = self.loop.create_future()
        done.set_result(None)
        return done

    CommitLoop.checkpoint = checkpoint  # type: ignore[method-assign,assignment]


def read_ends_once() -> None:
    """The end of a child is gone when its parent has read it."""
    real = shardflow.sql.load
    taking = """
        WITH found AS ({}), gone AS (
            DELETE FROM {{schema}}.message m USING found f
            WHERE m.wf = f.wf AND m.seq = f.seq AND m.topic = 'shardflow.child'
        )
        SELECT * FROM found"""

    def load(asked: str) -> Any:
        found = real(asked)
        return {**found, "mail": taking.format(found["mail"])} if asked == "turn" else found

    shardflow.sql.load = load  # type: ignore[assignment]


def value_anew() -> None:
    """What is recorded of `now`, `uuid4` and `random` does not count."""
    real = Operations.value

    def value(self: Any, name: str, make: Callable[[], bytes]) -> bytes:
        real(self, name, make)
        return make()

    Operations.value = value  # type: ignore[method-assign,assignment]


def act_before_values_commit() -> None:
    """A step does not wait until the values that it may use have committed."""

    async def settled(self: Run) -> None: ...

    Run.settled = settled  # type: ignore[method-assign]


def free_keys_early() -> None:
    """What only one active workflow may have is given up before its end has committed."""
    real = turns.commit

    async def commit(shard: Any, conn: Any, fence: Any, turn: Turn) -> Answer:
        if turn.outcomes:
            await conn.execute("DELETE FROM shardflow.dedup")
        return await real(shard, conn, fence, turn)

    turns.commit = commit


def unsealed() -> None:
    """What was stored compressed, or by a codec, is taken as it is."""

    def open(self: Payloads, data: bytes, *_: Any) -> bytes:
        return data

    Payloads.open = open  # type: ignore[method-assign,assignment]


def patched_always() -> None:
    """A patch is active wherever it stands."""

    def patched(self: Any, id: str, deprecated: bool) -> bool:
        self.value(f"shardflow.patch.{id}", lambda: b"null")
        return True

    Operations.patched = patched  # type: ignore[method-assign,assignment]


def patched_never() -> None:
    """A patch is active in runs alone that have begun under it, as far as a replay remembers."""
    real = Operations.patched

    def patched(self: Any, id: str, deprecated: bool) -> bool:
        return not self.attempt and real(self, id, deprecated)

    Operations.patched = patched  # type: ignore[method-assign,assignment]


def any_version() -> None:
    """A worker takes what its code has another version of."""
    real, lanes = App.runner, App.lanes

    def runner(self: App, name: str, version: str | None) -> Any:
        return real(self, name, version) or self.workflows.get(name)

    App.runner = runner  # type: ignore[method-assign]
    App.lanes = lambda self, queues: [*lanes(self, queues), "default\x1f1"]  # type: ignore[method-assign]


def timeless() -> None:
    """Nobody looks at a workflow's time limit."""
    control.deadline_of = lambda options: None  # type: ignore[assignment]


WIDE_MUTANTS: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        write_the_first_with_the_second,
        read_ends_once,
        value_anew,
        act_before_values_commit,
        free_keys_early,
        unsealed,
        patched_always,
        patched_never,
        any_version,
        timeless,
    )
}
