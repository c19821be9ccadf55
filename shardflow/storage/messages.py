"""What is told to workflows of a shard from outside: messages, ends of others; and the events that they set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import psycopg

from ..errors import InvalidInput
from .arrays import Byteas, Texts
from .shard import Conn, Shard
from .turn import BEGIN, roll_back


class Letter(NamedTuple):
    """A message for the workflow `id`; with a `key` it arrives once, however often it is sent. `error` is JSON
    text."""

    id: str
    topic: str
    key: str | None
    value: bytes | None
    error: str | None = None


async def deliver(shard: Shard, conn: Conn, generation: int, letters: Sequence[Letter]) -> set[str]:
    """Takes the letters in, in one transaction; answers the ids that the shard does not have.

    Raises MapChanged where the shard is at another generation, ShardUnavailable where the connection failed.
    """
    columns = (
        Texts([letter.id for letter in letters]),
        Texts([letter.topic for letter in letters]),
        Texts([letter.key for letter in letters]),
        Byteas([letter.value for letter in letters]),
        Texts([letter.error for letter in letters]),
    )
    return await _admitted(shard, conn, generation, shard.statements("submit")["deliver"], columns)


async def watch(shard: Shard, conn: Conn, generation: int, pairs: Sequence[tuple[str, str]], topic: str) -> set[str]:
    """For each (id, watcher): the watcher is told on the topic when the workflow ends; answers the ids that are not
    here."""
    columns = (Texts([id for id, _ in pairs]), Texts([watcher for _, watcher in pairs]), topic)
    return await _admitted(shard, conn, generation, shard.statements("submit")["watch"], columns)


async def _admitted(
    shard: Shard, conn: Conn, generation: int, statement: bytes, parameters: tuple[object, ...]
) -> set[str]:
    sql = shard.statements("submit")
    try:
        with shard.translate():
            async with conn.pipeline():
                await conn.execute(BEGIN)
                await conn.execute(sql["admit"], (generation,))
                absent = await conn.execute(statement, parameters)
                ended = await conn.execute(b"COMMIT")
            if ended.statusmessage != "COMMIT":
                raise AssertionError(f"COMMIT answered {ended.statusmessage}")
            return {row[0] for row in await absent.fetchall() if row[0] is not None}
    except BaseException:
        await roll_back(conn)
        raise


def refusal(shard: str, error: Exception) -> Exception:
    """What a workflow is told where the server does not accept a row: an error of ours, which is recorded."""
    if not isinstance(error, psycopg.Error):
        return error
    return InvalidInput(f"shard {shard!r} refused it: {str(error).strip()}".replace("\0", "\\0"))


async def event(shard: Shard, conn: Conn, id: str, key: str) -> tuple[bool, bytes | None, bool]:
    """Whether the workflow is here; the event's latest value; whether it was set."""
    with shard.translate():
        cursor = await conn.execute(shard.statements("submit")["event"], (key, id), binary=True)
        row = await cursor.fetchone()
    return (False, None, False) if row is None else (True, row[0], row[1])
