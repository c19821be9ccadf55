"""Texts that Postgres cannot hold, wherever somebody gives one: errors are stored and told of nevertheless, names and
keys are refused before they reach a server."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.look import connect, one
from support.work import running

import shardflow
from shardflow import App, AsyncClient, ClusterConfig, ShardflowError, WorkflowFailed
from shardflow.core.failure import to_json
from shardflow.model import ErrorInfo

TEXTS = {
    "NUL": "a\0b",
    "high surrogate": "a\ud800b",
    "low surrogate": "\udc00",
    "pair the wrong way round": "\udc00\ud800",
    "bytes that were no UTF-8": b"caf\xe9 \xff".decode(errors="surrogateescape"),
    "what looks like an escape": "\\u0000 \\\\u0000 \\ud800",
    "more than the basic plane": "\U0001f600 \U0010ffff",
}


def hostile() -> App:
    app = App()

    @app.step
    async def fails(text: str) -> None:
        raise ValueError(text.encode("latin-1").decode("unicode_escape"))

    @app.workflow
    async def bad(text: str) -> None:
        await fails(text)

    @app.workflow
    async def worse(text: str) -> None:
        raise ValueError(text.encode("latin-1").decode("unicode_escape"))

    @app.workflow
    async def parent(text: str) -> str:
        try:
            await (await shardflow.start(worse, text)).result()
        except WorkflowFailed as error:
            return ascii(error.message)
        return ""

    @app.workflow
    async def behind() -> str:
        return "behind"

    return app


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_an_error_with_any_text_is_told(cluster_config: ClusterConfig, text: str) -> None:
    escaped = text.encode("unicode_escape").decode("latin-1")
    async with AsyncClient(cluster_config) as client, running(cluster_config, hostile()):
        failing = {name: await client.submit(name, escaped, id=name) for name in ("bad", "worse")}
        fails = [await client.submit("behind", after=[handle]) for handle in failing.values()]
        runs = await client.submit("behind", after=list(failing.values()), on_failure="run")
        parent = await client.submit("parent", escaped)
        for handle in failing.values():
            with pytest.raises(WorkflowFailed) as failed:
                await handle.result(30)
            assert text in failed.value.message
        for each in fails:
            with pytest.raises(WorkflowFailed) as failed:
                await each.result(30)
            assert failed.value.type == "shardflow.errors.DependencyFailed"
            assert clean(text) in failed.value.message
        assert await runs.result(30) == "behind"
        assert await parent.result(30) == ascii(text)


def clean(text: str) -> str:
    """What SQL makes of it: pairs stay, halves and NUL do not."""
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")
    return joined.replace("\\u0000", "\\ufffd").replace("\\ud800", "\\ufffd")


@pytest.fixture(scope="module")
def module_config(lab: Any) -> ClusterConfig:
    from support.lab import LEASE, POOL

    config: ClusterConfig = lab.clone(1, 64, LEASE, POOL)
    return config


@settings(max_examples=200)
@given(
    texts=st.lists(
        st.text(st.characters(categories=["L", "Cs", "Cc", "So", "P"]), max_size=12), min_size=20, max_size=20
    )
)
def test_any_stored_error_is_readable_by_the_server(module_config: ClusterConfig, texts: list[str]) -> None:
    stored = [to_json(ErrorInfo("T", text)) for text in texts]
    with connect(module_config) as conn:
        found = conn.execute("SELECT readable(t) ->> 'message' FROM unnest(%s::text[]) t", (stored,)).fetchall()
    for text, (read,) in zip(texts, found, strict=True):
        assert "\0" not in read
        plain = "".join(c if not 0xD800 <= ord(c) <= 0xDFFF and c != "\0" else "\ufffd" for c in text)
        if "\\" not in text and not any(0xD800 <= ord(c) <= 0xDFFF for c in text):
            assert read == plain
        assert json.loads(json.dumps(read)) == read


BAD = ("a\0b", "a\ud800b")
CALLS: dict[str, Callable[[AsyncClient, str], Awaitable[Any]]] = {
    "submit id": lambda client, text: client.submit("behind", id=text),
    "submit name": lambda client, text: client.submit(text),
    "submit queue": lambda client, text: client.submit("behind", queue=text),
    "submit dedup_key": lambda client, text: client.submit("behind", dedup_key=text),
    "submit key_concurrency": lambda client, text: client.submit("behind", key_concurrency=(text, 1)),
    "submit version": lambda client, text: client.submit("behind", version=text),
    "submit after": lambda client, text: client.submit("behind", after=[text]),
    "submit attributes": lambda client, text: client.submit("behind", attributes={"a": text}),
    "submit attribute names": lambda client, text: client.submit("behind", attributes={text: 1}),
    "send id": lambda client, text: client.send(text, "n", 1),
    "send topic": lambda client, text: client.send("w", text, 1),
    "send key": lambda client, text: client.send("w", "n", 1, key=text),
    "event id": lambda client, text: client.event(text, "k", 0),
    "event key": lambda client, text: client.event("w", text, 0),
    "get": lambda client, text: client.get(text),
    "info": lambda client, text: client.info(text),
    "steps": lambda client, text: client.steps(text),
    "cancel id": lambda client, text: client.cancel(text),
    "cancel reason": lambda client, text: client.cancel("w", reason=text),
    "resume": lambda client, text: client.resume(text),
    "restart": lambda client, text: client.restart(text),
    "fork id": lambda client, text: client.fork(text),
    "fork new id": lambda client, text: client.fork("w", new_id=text),
    "list name": lambda client, text: client.list(name=text),
    "list queue": lambda client, text: client.list(queue=text),
    "list attributes": lambda client, text: client.list(attributes={"a": text}),
    "list cursor": lambda client, text: client.list(cursor=text),
    "count name": lambda client, text: client.count(name=text),
    "wait": lambda client, text: client.wait([text]),
    "pause": lambda client, text: client.queues.pause(text),
    "unpause": lambda client, text: client.queues.resume(text),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_text_that_no_server_takes_is_refused(
    shard_config: ClusterConfig, call: Callable[[AsyncClient, str], Awaitable[Any]]
) -> None:
    async with AsyncClient(shard_config) as client:
        await client.submit("behind", id="w")
        for text in BAD:
            with pytest.raises(ShardflowError):
                await call(client, text)
        assert one(shard_config, "SELECT count(*) FROM workflow") == 1
