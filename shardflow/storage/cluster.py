"""Who a shard is and which slots it holds; and `cluster init`, which makes shards into a cluster."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ..core.slotmap import ShardView, plan_init
from ..errors import ClusterError, ShardflowError, ShardUnavailable
from ..model import ClusterConfig, SlotState
from . import migrate
from .arrays import Int4s, Texts
from .shard import Conn, Shard

#: Each shard draws its keys from a range of this many, so that rows which move to another shard keep theirs.
KEYS_PER_SHARD = 1 << 44


@dataclass(frozen=True, slots=True)
class Identity:
    """Which cluster and shard a schema is, and the generation of the slots it holds."""

    cluster: str
    cluster_id: str
    name: str
    ordinal: int
    slots: int
    generation: int


async def identity(shard: Shard, conn: Conn) -> Identity | None:
    """Who the shard says it is; None where it was never made part of a cluster."""
    sql = shard.statements("cluster")
    with shard.translate():
        found = await (await conn.execute(sql["table_exists"], (shard.config.schema, "shard"))).fetchone()
        if not found or not found[0]:
            return None
        row = await (await conn.execute(sql["identity"])).fetchone()
    return Identity(*row) if row else None


async def expect(shard: Shard, conn: Conn, config: ClusterConfig) -> Identity:
    """The shard's identity. Raises ClusterError where it is not the one that the configuration means."""
    found = await identity(shard, conn)
    if found is None:
        raise ClusterError(
            f"shard {shard.name!r} (schema {shard.config.schema!r}) is not initialised: run `shardflow cluster init`"
        )
    _check(shard, found, config)
    return found


def _check(shard: Shard, found: Identity, config: ClusterConfig) -> None:
    if found.cluster != config.name:
        raise ClusterError(
            f"shard {shard.name!r} (schema {shard.config.schema!r}) belongs to the cluster {found.cluster!r}, not to"
            f" {config.name!r}: give it another schema, or correct the name in the configuration"
        )
    if found.name != shard.name:
        raise ClusterError(
            f"the configuration's shard {shard.name!r} (schema {shard.config.schema!r}) was initialised as"
            f" {found.name!r}: correct its name or its dsn"
        )
    if found.slots != config.slots:
        raise ClusterError(
            f"shard {shard.name!r} was made with {found.slots} slots, the configuration says {config.slots}: the"
            f" number can never change, so set slots to {found.slots}"
        )


async def view(shard: Shard, conn: Conn, config: ClusterConfig) -> ShardView:
    """What the shard says of itself and of all slots. Raises as `expect` does."""
    found = await expect(shard, conn, config)
    with shard.translate():
        rows = await (await conn.execute(shard.statements("cluster")["slots"])).fetchall()
    return _as_view(found, [(int(r[0]), str(r[1]), str(r[2])) for r in rows])


def _as_view(found: Identity, rows: Sequence[tuple[int, str, str]]) -> ShardView:
    return ShardView(found.name, found.cluster, found.cluster_id, found.slots, found.generation, rows)


@dataclass(frozen=True, slots=True)
class Initialised:
    """What `init` did on one shard."""

    shard: str
    created: bool
    slots: int
    migrations: int


async def init(config: ClusterConfig) -> list[Initialised]:
    """Migrates every shard and makes it part of the cluster; running it again changes nothing.

    All shards must answer: a slot map is written on each of them. Raises ShardUnavailable or ClusterError before
    anything is written where one is away or belongs elsewhere; a crash on the way is mended by another run.
    """
    # In the order of their names, so that of two runs at once one finds the first shard taken before it writes any.
    shards = [Shard(s) for s in sorted(config.shards, key=lambda s: s.name)]
    results = await asyncio.gather(*(s.connect("init") for s in shards), return_exceptions=True)
    conns: list[Conn] = [r for r in results if not isinstance(r, BaseException)]
    try:
        for result in results:
            if isinstance(result, BaseException):
                raise result
        found = [await identity(s, c) for s, c in zip(shards, conns, strict=True)]
        for shard, known in zip(shards, found, strict=True):
            if known is not None:
                _check(shard, known, config)
        views = [await view(s, c, config) for s, c, f in zip(shards, conns, found, strict=True) if f is not None]
        owners = plan_init({s.name: s.weight for s in config.shards}, views, config.slots, cluster=config.name)
        cluster_id = views[0].cluster_id if views else str(uuid.uuid4())
        taken = {f.ordinal for f in found if f is not None}
        free = (n for n in range(1, 1 << 18) if n not in taken)
        done = []
        for shard, conn, known in zip(shards, conns, found, strict=True):
            applied = await migrate.up(shard, conn)
            ordinal = known.ordinal if known else next(free)
            created = await _join(shard, conn, config, cluster_id, ordinal, owners)
            done.append(Initialised(shard.name, created, owners.count(shard.name), len(applied)))
        return done
    finally:
        await asyncio.gather(*(c.close() for c in conns))


async def _join(
    shard: Shard, conn: Conn, config: ClusterConfig, cluster_id: str, ordinal: int, owners: Sequence[str]
) -> bool:
    sql = shard.statements("cluster")
    with shard.translate():
        async with conn.transaction():
            await conn.execute(sql["lock_shard"])
            known = await identity(shard, conn)
            if known is not None and known.cluster_id != cluster_id:
                raise ClusterError(f"shard {shard.name!r} was initialised by somebody else just now: try again")
            if known is None:
                row = (config.name, cluster_id, shard.name, ordinal, config.slots)
                await conn.execute(sql["write_identity"], row)
                await conn.execute(sql["start_keys"], (ordinal * KEYS_PER_SHARD + 1,))
            own, hint = SlotState.ACTIVE.value, SlotState.HINT.value
            states = [own if owner == shard.name and known is None else hint for owner in owners]
            columns = (Int4s(range(len(owners))), Texts(states), Texts(list(owners)))
            await conn.execute(sql["write_slots"], columns)
    return known is None


async def survey(
    config: ClusterConfig, shards: Sequence[Shard], also: Callable[[Shard, Conn], Awaitable[None]] | None = None
) -> dict[str, ShardView | ShardflowError]:
    """Asks every shard at once what it says; an error stands for one that is away or not what it should be.

    `also`, asked of each on the same connection: one more costs a server more than most questions do.
    """

    async def ask(shard: Shard) -> ShardView | ShardflowError:
        try:
            conn = await shard.connect("survey", connect_timeout=config.pool.connect_timeout)
            async with conn, shard.deadline(conn, config.pool.timeout, "a survey of the slots"):
                found = await view(shard, conn, config)
                if also is not None:
                    await also(shard, conn)
                return found
        except ShardflowError as error:
            return error

    answers = await asyncio.gather(*(ask(shard) for shard in shards))
    return {shard.name: answer for shard, answer in zip(shards, answers, strict=True)}


def heard(answers: dict[str, ShardView | ShardflowError]) -> list[ShardView]:
    """The shards that answered; raises what is not a matter of reachability, and ShardUnavailable where none did."""
    views = [a for a in answers.values() if isinstance(a, ShardView)]
    for answer in answers.values():
        if isinstance(answer, ShardflowError) and not isinstance(answer, ShardUnavailable):
            raise answer
    if not views:
        first = next(a for a in answers.values() if isinstance(a, ShardflowError))
        raise ShardUnavailable(f"no shard answers; the first: {first}")
    return views
