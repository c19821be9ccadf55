"""Messages and outboxes that are too much for one answer are read in pages: all of them, in order, in bounded memory;
and what is kept of messages that were received."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.look import assert_i1, one, rows, terminate, total, until
from support.work import ids_on, running

import shardflow
import shardflow.storage.turn as turns
from shardflow import App, AsyncClient, ClusterConfig, WorkflowFailed
from shardflow.storage import post
from shardflow.storage.turn import Answer, Turn
from shardflow.worker import mailbox

MIB = 1 << 20


class Watch:
    """Sees what each turn of any worker answers: the most bytes of messages and of entries, topics, and how the
    process grows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mail = self.entries = 0
        self.pages = 0
        self.topics: set[str] = set()
        self._before = self.peak = _resident()
        real = turns.commit

        async def commit(shard: Any, conn: Any, fence: Any, turn: Turn) -> Answer:
            answer = await real(shard, conn, fence, turn)
            self.mail = max(self.mail, sum(each.size for each in answer.mail))
            self.pages += bool(answer.mail)
            self.entries = max(self.entries, *(sum(e.size for e in some) for some in (answer.told, answer.page)))
            self.topics |= {each.topic for each in answer.mail}
            self.peak = max(self.peak, _resident())
            return answer

        monkeypatch.setattr(turns, "commit", commit)

    @property
    def grown(self) -> int:
        return self.peak - self._before


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def reader() -> App:
    app = App()

    async def read(topic: str, count: int) -> list[int]:
        return [(await shardflow.receive(topic))["n"] for _ in range(count)]

    @app.workflow
    async def in_turn(count: int) -> list[list[int]]:
        return [await read("b", count), await read("a", count)]

    @app.workflow
    async def at_once(count: int) -> list[list[int]]:
        return list(await asyncio.gather(read("b", count), read("a", count)))

    @app.workflow
    async def lengths(count: int) -> int:
        return sum([len(await shardflow.receive("a")) for _ in range(count)])

    return app


@pytest.mark.parametrize("workflow", ["in_turn", "at_once"])
@pytest.mark.parametrize("by", ["bytes", "rows"])
async def test_pages_come_in_order(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch, watch: Watch, workflow: str, by: str
) -> None:
    monkeypatch.setattr(post, *(("MAIL_BYTES", 10_000) if by == "bytes" else ("MAIL", 3)))
    async with AsyncClient(shard_config) as client:
        handles = [await client.submit(workflow, 12, id=f"w{n}") for n in range(3)]
        for n in range(12):
            for handle in handles:
                for topic in "ab":
                    await client.send(handle.id, topic, {"n": n, "x": "x" * 3_000})
        async with running(shard_config, reader()):
            for handle in handles:
                assert await handle.result(60) == [[*range(12)]] * 2
    assert watch.pages >= 4
    if by == "bytes":
        assert watch.mail < 10_000 + 3_100
    assert one(shard_config, "SELECT count(*) FROM message") == 0
    assert_i1(shard_config)


async def test_large_messages_do_not_come_all_at_once(shard_config: ClusterConfig, watch: Watch) -> None:
    async with AsyncClient(shard_config) as client:
        handle = await client.submit("lengths", 160)
        fill = "INSERT INTO message (wf, topic, value) SELECT wf, %s, %s FROM workflow, generate_series(1, %s) n"
        for topic, count in (("a", 80), ("unread", 80), ("a", 80)):
            rows(shard_config, fill, topic, json.dumps("x" * MIB).encode(), count)
        async with running(shard_config, reader()):
            assert await handle.result(120) == 160 * MIB
    print(f"grown by {watch.grown / MIB:.0f} MiB, {watch.mail / MIB:.1f} MiB at once")
    assert watch.grown < 120 * MIB
    assert "unread" not in watch.topics
    assert watch.mail < post.MAIL_BYTES + 2 * MIB


def family() -> App:
    app = App()

    @app.workflow
    async def child(size: int) -> str:
        return os.urandom(size // 2).hex()  # which cannot be compressed to less than half

    @app.workflow
    async def one_by_one(count: int, size: int) -> int:
        kids = await shardflow.start_many(child, [size] * count)
        twice = sum([len(await kid.result()) + len(await kid.result()) for kid in kids])
        return twice + sum([len(await kid.result()) for kid in reversed(kids)])

    @app.workflow
    async def all_at_once(count: int, size: int) -> int:
        kids = await shardflow.start_many(child, [size] * count)
        return sum([sum(map(len, await shardflow.gather(kids))) for _ in range(3)])

    return app


@pytest.mark.parametrize(("workflow", "count", "size"), [("one_by_one", 16, MIB), ("all_at_once", 110, 140_000)])
async def test_results_of_children_come_in_pages(
    cluster_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch, watch: Watch, workflow: str, count: int, size: int
) -> None:
    """They can be had again, also the large ones, which are not kept."""
    monkeypatch.setattr(post, "MAIL_BYTES", 2 * MIB)
    monkeypatch.setattr(mailbox, "HOLD", 2 * MIB)
    async with AsyncClient(cluster_config) as client, running(cluster_config, family()):
        handle = await client.submit(workflow, count, size)
        assert await handle.result(120) == 3 * count * size
    assert MIB < watch.mail <= 3 * MIB
    assert total(cluster_config, "SELECT count(*) FROM message") == 0
    assert_i1(cluster_config)


@pytest.mark.parametrize("whose", ["nobody's", "its own"])
async def test_an_outbox_is_read_in_pages(
    cluster_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch, watch: Watch, whose: str
) -> None:
    monkeypatch.setattr(post, "PAGE_BYTES", 3 * MIB)
    target = ids_on(cluster_config, 1, 1)[0]
    left = """
        INSERT INTO outbox (lease, target, topic, key, value)
        SELECT {}, %s, 'a', n::text, %s FROM generate_series(1, 30) n"""
    async with AsyncClient(cluster_config) as client:
        handle = await client.submit("lengths", 30, id=target)
        if whose == "nobody's":
            rows(cluster_config, left.format("0"), target, json.dumps("x" * MIB).encode())
        async with running(cluster_config, reader()):
            if whose == "its own":
                rows(cluster_config, left.format("lease") + ", lease", target, json.dumps("x" * MIB).encode())
                terminate(cluster_config, "commit")  # the lease is resumed, and its outbox read
            assert await handle.result(120) == 30 * MIB
            await until(lambda: one(cluster_config, "SELECT count(*) FROM outbox") == 0)
    assert watch.entries < 3 * MIB + 2 * MIB


async def test_what_runs_after_a_large_result_is_not_given_it(shard_config: ClusterConfig, watch: Watch) -> None:
    app = family()

    @app.workflow
    async def behind() -> str:
        return "behind"

    async with AsyncClient(shard_config) as client:
        first = await client.submit("child", MIB)
        others = [await client.submit(behind, after=[first]) for _ in range(20)]
        async with running(shard_config, app):
            for handle in others:
                assert await handle.result(60) == "behind"
    assert watch.entries < 100_000


# -- what is kept of messages that were received


KEPT = "SELECT count(*) FROM message WHERE taken"


async def test_keys_are_kept_until_the_workflow_has_succeeded(shard_config: ClusterConfig) -> None:
    app, failing = App(), [True]

    @app.step
    async def may_fail() -> None:
        if failing[0]:
            raise ValueError("no")

    @app.workflow
    async def listens() -> list[Any]:
        heard = [await shardflow.receive("n") for _ in range(2)]
        await may_fail()
        return [*heard, await shardflow.receive("n", timeout=0.2)]

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(listens, id="w")
        await client.send("w", "n", 1, key="k")
        await client.send("w", "n", 2)
        with pytest.raises(WorkflowFailed):
            await handle.result(30)
        assert one(shard_config, KEPT) == 2
        await client.send("w", "n", "again", key="k")
        failing[0] = False
        assert await client.resume("w")
        assert await (await client.get("w")).result(30) == [1, 2, None]
        assert one(shard_config, "SELECT count(*) FROM message") == 0


async def test_a_workflow_that_begins_anew_forgets_old_keys_that_were_drawn(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def on_and_on(n: int) -> int:
        if await shardflow.receive("n") != "end":
            shardflow.continue_as_new(n + 1)
        return n

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(on_and_on, 0, id="w")
        for key in ("given", None, None, None):
            await client.send("w", "n", "on", key=key)
        await until(lambda: one(shard_config, KEPT) == 4)
        rows(shard_config, "UPDATE message SET sent_at = sent_at - interval '2 days' WHERE taken")
        await client.send("w", "n", "on")
        await until(lambda: one(shard_config, KEPT) == 2)  # the given one, and the last one
        assert one(shard_config, "SELECT count(*) FROM message WHERE key = 'given'") == 1
        await client.send("w", "n", "again", key="given")
        await client.send("w", "n", "end")
        assert await handle.result(30) == 5
        assert one(shard_config, "SELECT count(*) FROM message") == 0


async def test_ends_of_children_that_nobody_waits_for_are_not_kept(cluster_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def child() -> None:
        await shardflow.receive("go")

    @app.workflow
    async def parent() -> list[str]:
        return [kid.id for kid in await shardflow.start_many(child.call() for _ in range(6))]

    async with AsyncClient(cluster_config) as client, running(cluster_config, app):
        kids = await (await client.submit(parent)).result(30)
        for kid in kids:
            await client.send(kid, "go")
        for kid in kids:
            await (await client.get(kid)).result(30)
        await until(lambda: total(cluster_config, "SELECT count(*) FROM outbox") == 0)
        assert total(cluster_config, "SELECT count(*) FROM message") == 0
