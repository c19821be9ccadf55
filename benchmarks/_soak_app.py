"""What `soak.py` and `horizon.py` run: a mixture of all that workflows do, and a probe in a queue of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import shardflow
from shardflow import Call, Queue

app = shardflow.App("soak")

#: Seconds that a nap lasts: long enough to be suspended.
NAP = 2.0
#: Children of a family.
CHILDREN = 2
#: Of each hundred submissions so many are of each kind.
MIXTURE = {"zero": 40, "one": 25, "three": 17, "nap": 5, "talk": 5, "family": 3, "limited": 5}


@app.step
async def echo(text: str) -> str:
    return text


@app.workflow
async def zero(text: str) -> str:
    return text


@app.workflow
async def one(text: str) -> str:
    return await echo(text)


@app.workflow
async def three(text: str) -> str:
    for _ in range(2):
        await echo(text)
    return await echo(text)


@app.workflow
async def nap(text: str) -> str:
    await shardflow.sleep(NAP)
    return text


@app.workflow
async def talk(text: str) -> str:
    heard: str = await shardflow.receive("word")
    return heard + text


@app.workflow
async def family(text: str) -> str:
    children = await shardflow.start_many(one, [text] * CHILDREN)
    return "".join(await shardflow.gather(children))


@app.workflow(queue=Queue("limited", concurrency=50))
async def limited(text: str) -> str:
    return await echo(text)


@app.workflow(queue="probe")
async def probe(text: str) -> str:
    return await echo(text)


KINDS = {"zero": zero, "one": one, "three": three, "nap": nap, "talk": talk, "family": family, "limited": limited}
_PLAN = [kind for place in range(max(MIXTURE.values())) for kind, many in MIXTURE.items() if place < many]


def batch(first: int, count: int, payload: int) -> tuple[list[Call[Any]], list[str], int]:
    """The submissions of these numbers: the calls, the ids of those to be sent a message, and how many workflows will
    come of it all."""
    calls, talks, come = [], [], 0
    for number, kind in zip(range(first, first + count), _kinds(first), strict=False):
        id = f"{kind}-{number}"
        calls.append(KINDS[kind].call(f"{number:010d}".ljust(payload, "x")).set(id=id))
        talks += [id] if kind == "talk" else []
        come += 1 + (CHILDREN if kind == "family" else 0)
    return calls, talks, come


def _kinds(first: int) -> Iterator[str]:
    plan: Sequence[str] = _PLAN
    number = first
    while True:
        yield plan[number % len(plan)]
        number += 1
