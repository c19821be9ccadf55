"""What a claim answers has one form, which two statements give: that of any queue, and that of queues with limits."""

from __future__ import annotations

import pytest

from shardflow import ClusterConfig
from shardflow.storage.arrays import Int2s, Int8s, Texts
from shardflow.storage.shard import Shard
from shardflow.storage.turn import Claimed


@pytest.mark.parametrize("concern", ["turn", "limits"])
async def test_a_claim_answers_the_columns_of_a_claimed_row(shard_config: ClusterConfig, concern: str) -> None:
    shard = Shard(shard_config.shards[0])
    lanes = (Texts(["q"]), Int2s([0]), Int8s([0]))
    limit = (10, 10) if concern == "turn" else (10,)
    async with await shard.connect("test") as conn:
        cursor = await conn.execute(shard.statements(concern)["claim"], (*lanes, *limit, 1, 1), binary=True)
    assert cursor.description is not None
    assert tuple(column.name for column in cursor.description) == Claimed._fields
