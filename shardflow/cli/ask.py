"""Asks all shards of a cluster the same thing at once; a shard that fails is named, never left out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..core.slotmap import ShardView
from ..errors import ShardflowError, ShardUnavailable
from ..model import ClusterConfig, ShardConfig
from ..storage import cluster
from ..storage.shard import Conn, Shard
from .output import ERROR, OK, UNREACHABLE, say

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answers(Generic[T]):
    """What the shards answered, by name, and the errors of those that did not."""

    values: dict[str, T]
    errors: dict[str, ShardflowError]

    @property
    def unreachable(self) -> list[dict[str, str]]:
        """The shards without an answer, for JSON."""
        return [{"shard": name, "error": str(error)} for name, error in self.errors.items()]

    @property
    def code(self) -> int:
        """The exit code: 0 where all answered, 5 where some are away, 1 where one is not what it should be."""
        if not self.errors:
            return OK
        away = all(isinstance(error, ShardUnavailable) for error in self.errors.values())
        return UNREACHABLE if away else ERROR

    def report(self) -> int:
        """Names the shards without an answer on stderr; answers the exit code."""
        for error in self.errors.values():
            say(f"Error: {error}")
        return self.code


def ask_all(
    config: ClusterConfig,
    question: Callable[[Shard, Conn], Awaitable[T]],
    shards: Iterable[ShardConfig] | None = None,
) -> Answers[T]:
    """Asks every shard (default: all of the configuration) on a connection of its own; see `ask_each`."""
    return asyncio.run(ask_each(config, question, shards))


async def ask_each(
    config: ClusterConfig,
    question: Callable[[Shard, Conn], Awaitable[T]],
    shards: Iterable[ShardConfig] | None = None,
) -> Answers[T]:
    """What the shards answer to `question`; an error of shardflow stands for a shard that did not."""

    async def ask(shard: Shard) -> T | ShardflowError:
        try:
            conn = await shard.connect("cli", connect_timeout=config.pool.connect_timeout)
            async with conn:
                return await question(shard, conn)
        except ShardflowError as error:
            return error

    asked = [Shard(s) for s in (config.shards if shards is None else shards)]
    found = await asyncio.gather(*(ask(shard) for shard in asked))
    answers: Answers[T] = Answers({}, {})
    for shard, answer in zip(asked, found, strict=True):
        if isinstance(answer, ShardflowError):
            answers.errors[shard.name] = answer
        else:
            answers.values[shard.name] = answer
    return answers


def own_slots(view: ShardView) -> int:
    """How many slots the shard says that it holds."""
    return sum(state in ("active", "frozen") for _, state, _ in view.rows)


async def expected(config: ClusterConfig, shard: Shard, conn: Conn) -> cluster.Identity:
    """The shard's identity. Raises ClusterError where it is not the configured one."""
    return await cluster.expect(shard, conn, config)
