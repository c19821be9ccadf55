"""What a claim answers: one form, which two statements give, that of any queue and that of limits; and how much."""

from __future__ import annotations

from typing import Any

import pytest
from support.work import running

import shardflow.worker.claims
from shardflow import App, AsyncClient, ClusterConfig, Queue
from shardflow.storage import turn
from shardflow.storage.arrays import Int2s, Int8s, Texts
from shardflow.storage.shard import Shard
from shardflow.storage.turn import Claimed


@pytest.mark.parametrize("concern", ["turn", "limits"])
async def test_a_claim_answers_the_columns_of_a_claimed_row(shard_config: ClusterConfig, concern: str) -> None:
    shard = Shard(shard_config.shards[0])
    lanes = (Texts(["q"]), Int2s([0]), Int8s([0]))
    asked = (*lanes, 10, 10, 1, 1, 1_000) if concern == "turn" else (1_000, *lanes, 10, 1, 1)
    async with await shard.connect("test") as conn:
        cursor = await conn.execute(shard.statements(concern)["claim"], asked, binary=True)
    assert cursor.description is not None
    assert tuple(column.name for column in cursor.description) == Claimed._fields


@pytest.mark.parametrize("limited", [False, True])
async def test_inputs_that_are_too_much_at_once_come_one_after_the_other(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch, limited: bool
) -> None:
    """However many and large they are, a claim answers so many bytes, and an input more; the next ones take fewer."""
    seen: list[tuple[int, int]] = []
    real, app = turn.commit, App()
    monkeypatch.setattr(turn, "CLAIM_BYTES", 20_000)
    monkeypatch.setattr(shardflow.worker.claims, "BYTES", 20_000)

    async def watched(*given: Any) -> Any:
        answer = await real(*given)
        if answer.claimed:
            inputs = [row.input for row in answer.claimed]
            seen.append((len(inputs), sum(len(input) for input in inputs if input is not None)))
        return answer

    monkeypatch.setattr(turn, "commit", watched)

    @app.workflow(queue=Queue("q", concurrency=1_000) if limited else "q")
    async def work(text: str) -> int:
        return len(text)

    async with AsyncClient(shard_config) as client:
        small = await client.submit_many([work.call("x") for _ in range(100)])
        large = await client.submit_many([work.call("x" * 9_000) for _ in range(40)])
        async with running(shard_config, app):
            assert [await handle.result(60) for handle in small] == [1] * 100
            assert [await handle.result(60) for handle in large] == [9_000] * 40
    assert max(size for _, size in seen) < 20_000 + 10_000
    assert any(size > 18_000 for _, size in seen), "they were not too much at once"
    assert [count for count, size in seen if size > 15_000][-5:] == [2] * 5, (
        "as many as before are claimed and given back"
    )
