"""Workers of the kill tests, by fork: each line is the JSON of `Orders`. One with a kill point ends itself there by
SIGKILL, once; points and mutants are wrapped around the product in the process that they are for.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from faults.kill_mutants import MUTANTS

import shardflow
from shardflow import Retry
from shardflow.storage import submissions
from shardflow.storage import turn as turns
from shardflow.storage.turn import Answer, Turn
from shardflow.worker import steps
from shardflow.worker.worker import tune_process

app = shardflow.App("kills")
#: Where the effects of steps are written, and the mark of the kill.
folder = Path()

#: Seconds of a pause before the next try that is longer than what counts as short here.
PAUSE = 1.2


@app.step
async def effect(what: str) -> str:
    """A line in a file that survives the process; gives another value at each run."""
    value = uuid.uuid4().hex[:8]
    _write(what)
    return value


@app.step(retry=Retry(attempts=3, initial=0.05, factor=1.0, jitter=0.0))
async def flaky() -> None:
    _write("try")
    raise ValueError("no")


@app.step(retry=Retry(attempts=3, initial=PAUSE, factor=1.0, jitter=0.0))
async def patient() -> None:
    _write("try")
    raise ValueError("no")


def _write(what: str) -> None:
    handle = os.open(folder / "effects", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(handle, f"{what}\n".encode())
    os.fsync(handle)
    os.close(handle)


@app.workflow
async def effects(count: int) -> list[str]:
    """Each effect's value as it was given to the workflow."""
    return [await effect(str(n)) for n in range(count)]


@app.workflow
async def tries(long: bool) -> int:
    try:
        await (patient() if long else flaky())
    except shardflow.StepFailed as error:
        return error.attempts
    return 0


@app.workflow
async def naps(seconds: float) -> None:
    await effect("before")
    await shardflow.sleep(seconds)
    await effect("after")


@app.workflow
async def waits(seconds: float) -> object:
    return await shardflow.receive("never", timeout=seconds)


@app.workflow
async def listens() -> list[Any]:
    """What comes on "n", with an effect each, until the end is said."""
    heard: list[Any] = []
    while (said := await shardflow.receive("n")) != "end":
        await effect(f"heard {said}")
        heard.append(said)
    return heard


@app.workflow
async def sends(id: str) -> None:
    await shardflow.send(id, "n", 1)
    await shardflow.send(id, "n", "end")


@app.workflow
async def tells() -> None:
    await shardflow.set_event("a", 1)
    await effect("between")
    await shardflow.set_event("b", 2)


@app.workflow(queue="kids")
async def child(n: int) -> int:
    await effect(f"child {n}")
    return n


@app.workflow
async def family(count: int) -> list[int]:
    """Starts children, or one alone where `count` is 0, and has what they gave."""
    if count:
        answers = await shardflow.gather(await shardflow.start_many(child, range(count)))
    else:
        answers = [await (await shardflow.start(child, 0)).result()]
    await effect("got all")
    return answers


@app.workflow
async def parent() -> int:
    """Starts a child, has what it gave, and goes on when it is told to."""
    answer: int = await (await shardflow.start(child, 0)).result()
    await effect("got it")
    await shardflow.receive("go")
    return answer


@app.workflow
async def node(name: str, waits: bool = False) -> str:
    """One of a graph; it goes on when it is told to, where it `waits`."""
    if waits:
        await shardflow.receive("go")
    await effect(name)
    return name


@dataclass(frozen=True)
class Orders:
    """What a worker process is to do: the cluster's file, its folder, its name, the queues that it serves (all of
    them where none is given), where it dies, and what is wrong in it."""

    config: str
    folder: str
    name: str
    queues: tuple[str, ...] = ()
    point: str = ""
    mutants: tuple[str, ...] = ()

    def __str__(self) -> str:
        return json.dumps(asdict(self))


# -- kill points


def die() -> None:
    """Ends the process here and now, if none has died before."""
    with suppress(FileExistsError):
        os.close(os.open(folder / "killed", os.O_CREAT | os.O_EXCL))
        os.kill(os.getpid(), signal.SIGKILL)


#: Topics of the outbox's entries that this worker has had.
_topics: dict[int, str] = {}

#: Whether a turn, with its answer once there is one, is the one that a point is about, which may name something.
TURNS: dict[str, Callable[[Turn, Answer, str], object]] = {
    "step": lambda turn, _, name: any(f"{row[3]}.".startswith(f"{name}.") for row in turn.steps),
    "retry": lambda turn, *_: turn.retries,
    "suspended": lambda turn, *_: turn.waits,
    "relayed": lambda turn, _, topic: any(_topics.get(entry) == topic for entry in turn.relayed),
    "told": lambda _, answer, topic: any(row.topic == topic for row in answer.told),
    "woken": lambda _, answer, name: answer.woken,
}


def before_or_after(moment: str, kind: str, name: str) -> None:
    """Kills before a turn is sent, or when its commit has been answered and nobody has been told."""
    real, sees = turns.commit, TURNS[kind]

    async def commit(shard: Any, conn: Any, fence: Any, turn: Turn) -> Answer:
        if moment == "before" and sees(turn, Answer(), name):
            die()
        answer = await real(shard, conn, fence, turn)
        _topics.update((row.entry, row.topic) for row in [*answer.told, *answer.page])
        if moment == "after" and sees(turn, answer, name):
            die()
        return answer

    turns.commit = commit


def when_one_shard_has_children() -> None:
    """Kills when the first shard has its part of the children; the others get theirs after that."""
    real, one = submissions.submit, asyncio.Lock()

    async def submit(shard: Any, conn: Any, generation: int, new: Any, seconds: float = 0.0) -> Any:
        if any(each.name == "child" for each in new):
            async with one:
                await real(shard, conn, generation, new, seconds)
                die()
        return await real(shard, conn, generation, new, seconds)

    submissions.submit = submit


def set_point(point: str) -> None:
    """One of "before step NAME", "after told TOPIC" and so on, or "one shard has its children"."""
    if point == "one shard has its children":
        when_one_shard_has_children()
    elif point:
        moment, kind, *name = point.split(" ")
        before_or_after(moment, kind, " ".join(name))


async def serve(orders: Orders) -> None:
    """Works until it dies."""
    config = shardflow.load_config(orders.config)
    pinned: Sequence[str] = [shard.name for shard in config.shards]
    worker = shardflow.Worker(
        config, app, name=orders.name, concurrency=20, queues=orders.queues or None, shards=pinned
    )
    tune_process()
    await worker.start()
    await worker.wait()


def main() -> None:
    from faults.nursery import _log_to
    from faults.nursery import main as fork

    def one(line: str) -> None:
        global folder
        orders = Orders(**json.loads(line))
        folder = Path(orders.folder)
        _log_to(folder / f"{orders.name}.log")
        steps.LONG_PAUSE = 1.0
        set_point(orders.point)  # within the mutants: these may do in two turns what is one
        for mutant in orders.mutants:
            MUTANTS[mutant]()
        asyncio.run(serve(orders))

    fork(one)


if __name__ == "__main__":
    # The module's own functions are the ones that workflows call, so it must not be there twice.
    sys.modules["faults.kill_app"] = sys.modules["__main__"]
    main()
