"""A row that the server refuses fails its own workflow, whatever else is in the batch."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from support.look import assert_i1, connect, one, rows, terminate, until
from support.work import Gate, running

import shardflow.storage.turn
from shardflow import App, AsyncClient, ClusterConfig, ShardUnavailable, WorkflowFailed

CHECK = """
ALTER TABLE {} ADD CONSTRAINT no_poison CHECK (coalesce(convert_from(output, 'UTF8') NOT LIKE '%poison%', true))
"""


def refuse_poison(config: ClusterConfig, table: str) -> None:
    with connect(config) as conn:
        conn.execute(CHECK.format(table))


class Batch:
    """Workflows that come to one step and are let out together, so that their checkpoints go in one turn."""

    def __init__(self, kind: str = "async") -> None:
        self.app = App()
        self.gate = Gate()
        self.ran: Counter[str] = Counter()
        loop = asyncio.get_running_loop()

        async def give(text: str) -> str:
            await self.gate.wait()
            return text

        def give_plain(text: str) -> str:
            asyncio.run_coroutine_threadsafe(self.gate.wait(), loop).result()
            return text

        async def after(text: str) -> None:
            self.ran[text] += 1

        def after_plain(text: str) -> None:
            self.ran[text] += 1

        if kind == "async":
            step, then = self.app.step(give), self.app.step(after)

            @self.app.workflow(name="work")
            async def work(text: str, times: int = 1) -> str:
                answers = await asyncio.gather(*(step(text) for _ in range(times)))
                await then(text)
                return str(answers[0])

        else:
            step_plain, then_plain = self.app.step(give_plain), self.app.step(after_plain)

            @self.app.workflow(name="work")
            def work_plain(text: str, times: int = 1) -> str:
                answer = step_plain(text)
                then_plain(text)
                return answer

    def call(self, text: str, times: int = 1) -> Any:
        return self.app.workflows["work"].call(text, times).set(id=text)


async def run_batch(config: ClusterConfig, batch: Batch, texts: list[str], times: int = 1) -> dict[str, str]:
    """Submits, lets all out together, and answers id → result, or the failure's message."""
    async with AsyncClient(config) as client, running(config, batch.app):
        handles = await client.submit_many(batch.call(t, times if "poison" in t else 1) for t in texts)
        extra = sum("poison" in t for t in texts) * (times - 1)
        await until(lambda: batch.gate.arrived == len(texts) + extra)
        lease = one(config, "SELECT lease FROM lease")
        batch.gate.open()
        answers: dict[str, str] = {}
        for handle in handles:
            try:
                answers[handle.id] = await handle.result(30)
            except WorkflowFailed as error:
                answers[handle.id] = f"failed with {error.type}: {error.message}"
        assert one(config, "SELECT lease FROM lease") == lease, "the lease was lost over it"
        assert_i1(config)
    assert_i1(config)
    assert one(config, "SELECT count(*) FROM ready") == 0
    assert one(config, "SELECT count(*) FROM claim") == 0
    return answers


def assert_only_poison_failed(answers: dict[str, str], what: str) -> None:
    for id, answer in answers.items():
        if "poison" in id:
            assert answer.startswith(f"failed with shardflow.errors.Refused: shard 's0' refused {what}: "), answer
            assert "no_poison" in answer
        else:
            assert answer == id


@pytest.mark.parametrize("kind", ["async", "plain"])
@pytest.mark.parametrize("poisons", [1, 2, 7])
async def test_refused_checkpoints_fail_their_own_workflows_only(
    shard_config: ClusterConfig, poisons: int, kind: str
) -> None:
    refuse_poison(shard_config, "step")
    batch = Batch(kind)
    texts = [f"w{n}" for n in range(20)]
    for n in range(poisons):
        texts.insert(n * 3, f"poison{n}")
    answers = await run_batch(shard_config, batch, texts)
    step = "give" if kind == "async" else "give_plain"
    assert_only_poison_failed(answers, f"the outcome of step 0 ({step!r})")
    assert batch.ran == Counter(f"w{n}" for n in range(20)), "a step ran twice or behind a refused checkpoint"
    assert one(shard_config, "SELECT count(*) FROM step") == 40


async def test_a_refused_result_fails_its_own_workflow_only(shard_config: ClusterConfig) -> None:
    refuse_poison(shard_config, "outcome")
    batch = Batch()
    answers = await run_batch(shard_config, batch, [*(f"w{n}" for n in range(20)), "poison"])
    assert_only_poison_failed(answers, "the workflow's result")
    assert one(shard_config, "SELECT count(*) FROM step") == 42


async def test_a_workflow_with_two_refused_checkpoints_in_one_batch_fails_once(shard_config: ClusterConfig) -> None:
    refuse_poison(shard_config, "step")
    batch = Batch()
    answers = await run_batch(shard_config, batch, [*(f"w{n}" for n in range(5)), "poison"], times=3)
    assert_only_poison_failed(answers, "the outcome of step 0 ('give')")


async def test_everything_refused_fails_everything(shard_config: ClusterConfig) -> None:
    refuse_poison(shard_config, "step")
    answers = await run_batch(shard_config, Batch(), [f"poison{n}" for n in range(5)])
    assert_only_poison_failed(answers, "the outcome of step 0 ('give')")


async def test_the_worker_serves_on_after_poison(shard_config: ClusterConfig) -> None:
    refuse_poison(shard_config, "step")
    batch = Batch()
    batch.gate.open()
    async with AsyncClient(shard_config) as client, running(shard_config, batch.app, concurrency=1):
        for n in range(3):
            with pytest.raises(WorkflowFailed):
                await (await client.submit_many([batch.call(f"poison{n}")]))[0].result(30)
            assert await (await client.submit_many([batch.call(f"w{n}")]))[0].result(30) == f"w{n}"


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "not committed"])
@pytest.mark.parametrize(("kind", "at"), [*(("async", n) for n in range(1, 9)), ("plain", 4), ("plain", 5)])
async def test_a_connection_lost_in_the_middle_of_bisecting_loses_nothing(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch, at: int, kind: str, committed: bool
) -> None:
    """The answer to the n-th transaction after the first refusal is lost, for every n."""
    refuse_poison(shard_config, "step")
    commit = shardflow.storage.turn.commit
    seen = 0

    async def flaky(shard: Any, conn: Any, fence: Any, what: Any) -> Any:
        nonlocal seen
        if seen or any(row[4] and b"poison" in row[4] for row in what.steps):
            seen += 1
        if seen == at + 1:
            seen += 1
            if committed:
                await commit(shard, conn, fence, what)
            await conn.close()
            raise ShardUnavailable("lost on the way", shard=shard.name)
        return await commit(shard, conn, fence, what)

    monkeypatch.setattr(shardflow.storage.turn, "commit", flaky)
    batch = Batch(kind)
    answers = await run_batch(shard_config, batch, ["w0", "w1", "poison", "w2", "w3"])
    step = "give" if kind == "async" else "give_plain"
    assert_only_poison_failed(answers, f"the outcome of step 0 ({step!r})")
    assert batch.ran == Counter(f"w{n}" for n in range(4))
    assert seen > at, "the connection was never lost"


async def test_a_connection_that_is_killed_while_bisecting_is_no_poison(shard_config: ClusterConfig) -> None:
    """A trigger ends the backend at every other checkpoint batch: an operator's kill is not the row's fault."""
    with connect(shard_config) as conn:
        conn.execute("CREATE SEQUENCE public.boom")
        conn.execute(
            "CREATE FUNCTION public.boom() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF nextval('public.boom') IN (2, 4) THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;"
            " RETURN NULL; END $$"
        )
        conn.execute("CREATE TRIGGER boom AFTER INSERT ON step FOR EACH STATEMENT EXECUTE FUNCTION public.boom()")
    refuse_poison(shard_config, "step")
    batch = Batch()
    answers = await run_batch(shard_config, batch, ["w0", "w1", "poison", "w2", "w3"])
    assert_only_poison_failed(answers, "the outcome of step 0 ('give')")
    assert one(shard_config, "SELECT last_value FROM public.boom") > 4
    assert rows(shard_config, "SELECT count(*), max(epoch) > 1 FROM lease") in ([(0, None)], [(1, True)])
    assert terminate(shard_config, "nobody") == 0
