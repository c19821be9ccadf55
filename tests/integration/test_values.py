"""Values on their way through a cluster: an app's own types, encrypted, compressed, within limits."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
from support.cipher import Cipher
from support.look import one, rows, until
from support.work import Gate, running

import shardflow
from shardflow import (
    App,
    AsyncClient,
    ClusterConfig,
    Codecs,
    PayloadConfig,
    SerializationError,
    WorkflowConflict,
    WorkflowFailed,
)
from shardflow.core.payload import split
from shardflow.model import NEVER

SECRET = "top secret"


@dataclass
class Doc:
    text: str
    share: Fraction


DOC = Doc(SECRET, Fraction(1, 3))


def codecs_of(*payload: Cipher) -> Codecs:
    codecs = Codecs(payload=payload)
    codecs.add(Fraction, encode=str, decode=Fraction)
    return codecs


def signing(codecs: Codecs, gate: Gate | None = None) -> App:
    app = App("signing", codecs=codecs)

    @app.step
    async def sign(doc: Doc, by: str) -> Doc:
        assert type(doc) is Doc
        return Doc(f"{doc.text}, signed by {by}", doc.share * 2)

    @app.step
    async def pause() -> None:
        if gate is not None:
            await gate.wait()

    @app.workflow
    async def work(doc: Doc) -> Doc:
        once = await sign(doc, "a")
        await pause()
        return await sign(once, "b")

    return app


TWICE = Doc(f"{SECRET}, signed by a, signed by b", Fraction(4, 3))


def stored(config: ClusterConfig, shards: Iterable[int] = (0,)) -> list[bytes]:
    """The bytes of every value in the tables."""
    query = """
        SELECT input FROM workflow UNION ALL SELECT output FROM step WHERE output IS NOT NULL
        UNION ALL SELECT output FROM outcome WHERE output IS NOT NULL
    """
    return [bytes(row[0]) for shard in shards for row in rows(config, query, shard=shard)]


async def test_encrypted_values_are_nowhere_to_be_read(shard_config: ClusterConfig) -> None:
    app = signing(codecs_of(Cipher("k1")))
    async with AsyncClient(shard_config, codecs=app.codecs) as client, running(shard_config, app):
        assert await (await client.submit(app.find("work"), DOC)).result(30) == TWICE
        by_name = await client.submit("work", DOC)
        assert await by_name.result(30) == {"text": TWICE.text, "share": "4/3"}
        steps = await client.steps(by_name.id)
        assert json.loads(steps[0].output or b"") == {"text": f"{SECRET}, signed by a", "share": "2/3"}
    values = stored(shard_config)
    assert len(values) == 2 * 5
    assert all(split(data)[0] == "k1" and data[0] == 2 for data in values)
    assert not any(SECRET.encode() in data for data in values)


async def test_what_an_older_key_has_written_is_read_after_a_change_of_keys_and_of_workers(
    shard_config: ClusterConfig,
) -> None:
    old, new = Cipher("2025", b"a"), Cipher("2026", b"b")
    gate = Gate()
    async with AsyncClient(shard_config) as client:
        async with running(shard_config, signing(codecs_of(old), gate)) as first:
            handle = await client.submit(signing(codecs_of(old)).find("work"), DOC, id="a")
            await until(lambda: gate.arrived == 1)
            await first.leave()
        gate.open()
        later = signing(codecs_of(new, old), gate)
        async with running(shard_config, later):
            assert await (await client.get("a", later.find("work"))).result(30) == TWICE
            with pytest.raises(SerializationError, match="payload codec '2026', and here are only 2025"):
                await handle.result(30)
    assert [split(data)[0] for data in stored(shard_config)] == ["2025", "2025", "2026", "2026", "2026"]


async def test_a_worker_without_the_key_fails_the_workflow_and_says_why(shard_config: ClusterConfig) -> None:
    async with AsyncClient(shard_config) as client, running(shard_config, signing(codecs_of())):
        handle = await client.submit(signing(codecs_of(Cipher("k1"))).find("work"), DOC)
        with pytest.raises(WorkflowFailed, match=r"arguments of .*work: was written by the payload codec 'k1'"):
            await handle.result(30)


async def test_the_same_input_again_is_the_same_however_it_was_stored(shard_config: ClusterConfig) -> None:
    """Each encryption gives other bytes, and so do other versions and settings of zlib."""
    codecs, large = codecs_of(Cipher("k1")), Doc(SECRET * 10_000, Fraction(1))
    plain = replace(shard_config, payload=PayloadConfig(compress_above=NEVER))
    sealed, compressed = signing(codecs).find("work"), signing(codecs_of()).find("work")
    async with AsyncClient(shard_config) as client, AsyncClient(plain) as other:
        for workflow, id in ((sealed, "a"), (compressed, "b")):
            await client.submit(workflow, large, id=id)
            assert (await other.submit(workflow, large, id=id)).id == id
            await client.submit_many([workflow.call(large).set(id=id)] * 2)
            with pytest.raises(WorkflowConflict, match="another input"):
                await other.submit(workflow, DOC, id=id)
        unreadable = r"an input that cannot be compared \(the input: was written by the payload codec 'k1'"
        with pytest.raises(WorkflowConflict, match=unreadable):
            await client.submit(compressed, large, id="a")
    assert one(shard_config, "SELECT count(*) FROM workflow") == 2


async def test_what_is_large_is_stored_compressed(shard_config: ClusterConfig) -> None:
    app, large = signing(codecs_of()), Doc(SECRET * 10_000, Fraction(1))
    async with AsyncClient(shard_config) as client, running(shard_config, app):
        done = await (await client.submit(app.find("work"), large)).result(30)
        assert done.text == large.text + ", signed by a, signed by b"
    sizes = [len(data) for data in stored(shard_config)]
    assert max(sizes) < 10_000
    assert sum(size > 500 for size in sizes) == 4


async def test_limits_hold_at_submit_and_at_the_step(shard_config: ClusterConfig) -> None:
    limited = replace(shard_config, payload=PayloadConfig(max_size=4096, compress_above=NEVER))
    app = signing(codecs_of())

    @app.step
    async def grow(size: int) -> str:
        return "x" * size

    @app.workflow
    async def growing(size: int) -> int:
        return len(await grow(size))

    async with AsyncClient(limited) as client, running(limited, app):
        with pytest.raises(SerializationError, match=r"arguments of .*work: 50,\d+ bytes; a payload may have 4,096"):
            await client.submit(signing(codecs_of()).find("work"), Doc("x" * 50_000, Fraction(1)))
        assert await (await client.submit(growing, 4000)).result(30) == 4000
        with pytest.raises(WorkflowFailed, match=r"result of .*grow: 5,002 bytes; a payload may have 4,096"):
            await (await client.submit(growing, 5000)).result(30)
    assert one(shard_config, "SELECT count(*) FROM workflow") == 2


async def test_a_limit_above_the_default_lets_larger_values_through(shard_config: ClusterConfig) -> None:
    roomy = replace(shard_config, payload=PayloadConfig(max_size=16 << 20, compress_above=NEVER))
    app = App()

    @app.workflow
    async def echo(text: str) -> str:
        return text

    async with AsyncClient(roomy) as client, running(roomy, app):
        text = "x" * (12 << 20)
        assert await (await client.submit(echo, text)).result(60) == text


async def test_messages_events_and_children_are_stored_as_the_app_says(cluster_config: ClusterConfig) -> None:
    app = App(codecs=codecs_of(Cipher("k1")))

    @app.workflow
    async def child(doc: Doc) -> Doc:
        return Doc(doc.text, doc.share * 3)

    @app.workflow
    async def parent() -> Doc:
        doc = await shardflow.receive("doc", type=Doc)
        await shardflow.set_event("seen", doc)
        typed = await (await shardflow.start(child, doc)).result()
        plain = await (await shardflow.start("child", doc)).result()
        assert plain == {"text": SECRET, "share": "1"}
        return typed

    @app.workflow
    async def forward(to: str, doc: Doc) -> None:
        await shardflow.send(to, "doc", doc)

    async with AsyncClient(cluster_config, codecs=app.codecs) as client, running(cluster_config, app):
        handle = await client.submit(parent, id="p")
        await client.submit(forward, "p", DOC)
        assert await client.event("p", "seen", 30, type=Doc) == DOC
        assert await handle.result(30) == Doc(SECRET, Fraction(1))
        other = await client.submit(parent, id="q")
        await client.send("q", "doc", DOC)
        assert await other.result(30) == Doc(SECRET, Fraction(1))
    query = "SELECT value FROM message WHERE value IS NOT NULL UNION ALL SELECT value FROM event"
    values = stored(cluster_config, range(3))
    values += [bytes(row[0]) for shard in range(3) for row in rows(cluster_config, query, shard=shard)]
    assert len(values) > 10
    assert not any(SECRET.encode() in data for data in values)


@pytest.mark.parametrize("limit", ["client", "worker"])
async def test_a_message_that_is_too_large_is_refused_where_it_comes_from(
    shard_config: ClusterConfig, limit: str
) -> None:
    limited = replace(shard_config, payload=PayloadConfig(max_size=4096, compress_above=NEVER))
    app = App()

    @app.workflow
    async def receiver() -> str:
        return str(await shardflow.receive("text"))

    @app.workflow
    async def sender(to: str) -> str:
        await shardflow.send(to, "text", "x" * 5000)
        return "sent"

    async with AsyncClient(limited) as client, running(limited, app):
        await client.submit(receiver, id="r")
        if limit == "client":
            with pytest.raises(SerializationError, match=r"message on 'text': 5,002 bytes; a payload may have 4,096"):
                await client.send("r", "text", "x" * 5000)
        else:
            with pytest.raises(WorkflowFailed, match=r"message on 'text': 5,002 bytes; a payload may have 4,096"):
                await (await client.submit(sender, "r")).result(30)
