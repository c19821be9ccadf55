"""`cluster init`: makes shards into one cluster, harmless when repeated, never two owners of a slot."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from support.lab import Lab, with_pool
from support.look import one, rows, total

from shardflow import AsyncClient, ClusterConfig, ClusterError, ShardConfig, ShardUnavailable
from shardflow.core.slotmap import merge_views, plan_slots
from shardflow.storage import cluster
from shardflow.storage.shard import Shard

MakeCluster = Callable[..., ClusterConfig]


class Crash(BaseException):
    """The end of the process, as far as the code that runs can tell."""


def slot_rows(config: ClusterConfig) -> list[list[tuple[int, str, str]]]:
    return [
        rows(config, "SELECT slot, state, shard FROM slot ORDER BY slot", shard=k) for k in range(len(config.shards))
    ]


def assert_every_slot_has_one_owner(config: ClusterConfig) -> None:
    """Invariant I3's static half: each slot is active on one shard, and all shards agree which."""
    said = slot_rows(config)
    owners = Counter(slot for table in said for slot, state, _ in table if state == "active")
    assert owners == Counter(range(config.slots)), "a slot is active on no shard or on two"
    assert len({tuple((slot, shard) for slot, _, shard in table) for table in said}) == 1


async def test_init_divides_all_slots_and_every_shard_knows_the_whole_map(make_cluster: MakeCluster) -> None:
    config = make_cluster(shards=3, slots=100, init=False)
    done = await cluster.init(config)
    assert [(d.shard, d.created, d.slots) for d in done] == [("s0", True, 34), ("s1", True, 33), ("s2", True, 33)]
    assert all(d.migrations >= 2 for d in done)
    assert_every_slot_has_one_owner(config)
    identities = [
        rows(config, "SELECT cluster, name, ordinal, slots, generation FROM shard", shard=k) for k in range(3)
    ]
    assert identities == [[("test", f"s{k}", k + 1, 100, 1)] for k in range(3)]
    assert len({one(config, "SELECT cluster_id FROM shard", shard=k) for k in range(3)}) == 1


async def test_keys_of_different_shards_never_meet(cluster_config: ClusterConfig) -> None:
    firsts = [one(cluster_config, "SELECT nextval('key')", shard=k) for k in range(3)]
    assert [f // cluster.KEYS_PER_SHARD for f in firsts] == [1, 2, 3]


async def test_init_again_changes_nothing(make_cluster: MakeCluster) -> None:
    config = make_cluster(shards=2, init=False)
    await cluster.init(config)
    before = slot_rows(config), one(config, "SELECT cluster_id FROM shard"), one(config, "SELECT nextval('key')")
    done = await cluster.init(config)
    assert [(d.created, d.migrations) for d in done] == [(False, 0), (False, 0)]
    after = slot_rows(config), one(config, "SELECT cluster_id FROM shard"), one(config, "SELECT nextval('key')")
    assert after == (*before[:2], before[2] + 1)


async def test_weights_are_for_the_first_init_only(make_cluster: MakeCluster) -> None:
    config = make_cluster(shards=2, slots=40, init=False)
    heavy = replace(config, shards=(replace(config.shards[0], weight=3.0), config.shards[1]))
    assert [d.slots for d in await cluster.init(heavy)] == [30, 10]
    assert [d.slots for d in await cluster.init(config)] == [30, 10]
    assert_every_slot_has_one_owner(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, name="other"), "belongs to the cluster 'test', not to 'other'"),
        (lambda c: replace(c, slots=65), "made with 64 slots, the configuration says 65"),
        (
            lambda c: replace(c, shards=(replace(c.shards[0], name="renamed"), *c.shards[1:])),
            "'renamed'.* was initialised as 's0'",
        ),
        (
            lambda c: replace(
                c, shards=(replace(c.shards[1], name="s0"), replace(c.shards[0], name="s1"), c.shards[2])
            ),
            "initialised as",
        ),
    ],
)
async def test_what_belongs_elsewhere_is_refused(
    cluster_config: ClusterConfig, change: Callable[[ClusterConfig], ClusterConfig], message: str
) -> None:
    before = slot_rows(cluster_config)
    with pytest.raises(ClusterError, match=message):
        await cluster.init(change(cluster_config))
    async with AsyncClient(change(cluster_config)) as client:
        with pytest.raises(ClusterError, match=message):
            await client.submit("any", 1)
    assert slot_rows(cluster_config) == before


async def test_a_shard_of_a_second_cluster_with_the_same_name_is_refused(make_cluster: MakeCluster) -> None:
    ours, theirs = make_cluster(shards=2, init=False), make_cluster(shards=2, init=False)
    await cluster.init(ours)
    await cluster.init(theirs)
    mixed = replace(ours, shards=(ours.shards[0], theirs.shards[1]))
    with pytest.raises(ClusterError, match="two clusters that are both named 'test'"):
        await cluster.init(mixed)


async def test_a_crash_after_the_first_shard_is_mended_by_another_run(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_cluster(shards=3, init=False)
    join = cluster._join

    async def crash_at_the_second(shard: Shard, *rest: object) -> bool:
        if shard.name == "s1":
            raise Crash
        return await join(shard, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(cluster, "_join", crash_at_the_second)
        with pytest.raises(Crash):
            await cluster.init(config)
    first_view = rows(config, "SELECT slot, shard FROM slot ORDER BY slot")
    # Other weights now: the plan that the first shard knows must stay.
    heavier = replace(config, shards=(*config.shards[:2], replace(config.shards[2], weight=9.0)))
    done = await cluster.init(heavier)
    assert [d.created for d in done] == [False, True, True]
    assert rows(config, "SELECT slot, shard FROM slot ORDER BY slot") == first_view
    assert tuple(shard for _, shard in first_view) == plan_slots(64, {"s0": 1, "s1": 1, "s2": 1})
    assert_every_slot_has_one_owner(config)


async def add_a_shard(make_cluster: MakeCluster) -> None:
    """A scenario of invariant I3: a cluster of two is initialised again with a third."""
    config = make_cluster(shards=3, init=False)
    two = replace(config, shards=config.shards[:2])
    await cluster.init(two)
    done = await cluster.init(config)
    assert [(d.shard, d.created) for d in done] == [("s0", False), ("s1", False), ("s2", True)]
    # The first shards hear of the new one when slots move to it: all that counts is who is active where.
    said = slot_rows(config)
    owners = Counter(slot for table in said for slot, state, _ in table if state == "active")
    assert owners == Counter(range(config.slots)), "a slot is active on no shard or on two"
    assert all(state == "hint" for _, state, _ in said[2])
    assert done[2].slots == 0
    async with AsyncClient(config) as client:
        handles = await client.submit_many([])
        handles = [await client.submit("any", n) for n in range(20)]
        assert {h.shard for h in handles} == {"s0", "s1"}


async def test_a_shard_added_later_gets_no_slots(make_cluster: MakeCluster) -> None:
    await add_a_shard(make_cluster)


async def test_i3_mutant_dividing_the_slots_anew_gives_a_slot_two_owners(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "plan_init", lambda weights, views, slots, **_: plan_slots(slots, weights))
    with pytest.raises(AssertionError, match="on two"):
        await add_a_shard(make_cluster)


async def test_a_shard_that_holds_slots_cannot_be_left_out(cluster_config: ClusterConfig) -> None:
    fewer = replace(cluster_config, shards=cluster_config.shards[:2])
    with pytest.raises(ClusterError, match="'s2' is part of this cluster and not of the configuration"):
        await cluster.init(fewer)
    async with AsyncClient(fewer) as client:
        with pytest.raises(ClusterError, match="the configuration lacks: s2"):
            await client.submit("any", 1)


async def test_with_a_shard_away_nothing_is_written_anywhere(make_cluster: MakeCluster, lab: Lab) -> None:
    config = make_cluster(shards=2, init=False)
    gone = ShardConfig("s2", "postgresql://postgres@127.0.0.1:9/none")
    with pytest.raises(ShardUnavailable) as error:
        await cluster.init(replace(config, shards=(*config.shards, gone)))
    assert error.value.shard == "s2"
    for k in range(2):
        assert not one(config, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'shardflow')", shard=k)


async def test_a_client_of_shards_that_were_never_initialised_says_what_to_do(make_cluster: MakeCluster) -> None:
    async with AsyncClient(make_cluster(shards=2, init=False)) as client:
        with pytest.raises(ClusterError, match="run `shardflow cluster init`"):
            await client.submit("any", 1)


_INIT = """
import asyncio, sys, json
from shardflow import ClusterConfig, ShardConfig, ClusterError
from shardflow.storage import cluster
dsns = json.loads(sys.argv[1])
config = ClusterConfig("test", tuple(ShardConfig(f"s{k}", d) for k, d in enumerate(dsns)), 64)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    try:
        asyncio.run(cluster.init(config))
        break
    except ClusterError as error:
        if "try again" not in str(error):
            raise
else:
    sys.exit("never")
"""


async def test_two_processes_may_init_the_same_cluster_at_once(make_cluster: MakeCluster) -> None:
    import json

    config = make_cluster(shards=3, init=False)
    dsns = json.dumps([s.dsn for s in config.shards])
    pipe = asyncio.subprocess.PIPE
    both = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", _INIT, dsns, stdin=pipe, stdout=pipe, stderr=pipe)
        for _ in range(2)
    ]
    for each in both:
        assert each.stdout is not None
        assert await each.stdout.readline() == b"ready\n"
    answers = await asyncio.gather(*(each.communicate(b"go\n") for each in both))
    assert [each.returncode for each in both] == [0, 0], answers
    assert_every_slot_has_one_owner(config)
    assert [one(config, "SELECT ordinal FROM shard", shard=k) for k in range(3)] == [1, 2, 3]


async def test_the_map_is_merged_from_the_shards_that_answer(cluster_config: ClusterConfig) -> None:
    dead = replace(cluster_config.shards[1], dsn="postgresql://postgres@127.0.0.1:9/none")
    partial = replace(cluster_config, shards=(cluster_config.shards[0], dead, cluster_config.shards[2]))
    answers = await cluster.survey(partial, [Shard(s) for s in partial.shards])
    assert isinstance(answers["s1"], ShardUnavailable)
    merged = merge_views(cluster.heard(answers))
    assert merged.owners == plan_slots(64, {"s0": 1, "s1": 1, "s2": 1})
    assert set(merged.generations) == {"s0", "s2"}
    nobody = replace(partial, shards=(dead,))
    with pytest.raises(ShardUnavailable, match="no shard answers"):
        cluster.heard(await cluster.survey(nobody, [Shard(dead)]))


async def test_several_shards_may_share_a_database(make_cluster: MakeCluster) -> None:
    (one_shard,) = make_cluster(shards=1, init=False).shards
    config = ClusterConfig(
        "test", tuple(replace(one_shard, name=f"s{k}", schema=f"schema_{k}") for k in range(3)), slots=12
    )
    await cluster.init(config)
    async with AsyncClient(with_pool(config, max_size=2)) as client:
        handles = [await client.submit("any", n, id=f"n{n}") for n in range(30)]
        assert {h.shard for h in handles} == {"s0", "s1", "s2"}
        again = [await client.submit("any", n, id=f"n{n}") for n in range(30)]
        assert [h.shard for h in again] == [h.shard for h in handles]
    counts = [one(config, f"SELECT count(*) FROM schema_{k}.workflow") for k in range(3)]
    assert sum(counts) == 30


def test_total_counts_over_all_shards(cluster_config: ClusterConfig) -> None:
    assert total(cluster_config, "SELECT count(*) FROM slot WHERE state = 'active'") == cluster_config.slots
