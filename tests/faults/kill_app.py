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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import shardflow
import shardflow.sql
from shardflow import Retry
from shardflow.core.childids import Children
from shardflow.delivery import Delivery
from shardflow.storage import leases, submissions
from shardflow.storage import turn as turns
from shardflow.storage.leases import Recorded
from shardflow.storage.messages import Letter
from shardflow.storage.turn import Answer, Turn
from shardflow.worker import steps
from shardflow.worker.commit import CommitLoop
from shardflow.worker.operations import Operations
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
    """ "before step NAME", "after told TOPIC" and so on, or "one shard has its children"."""
    if point == "one shard has its children":
        when_one_shard_has_children()
    elif point:
        moment, kind, *name = point.split(" ")
        before_or_after(moment, kind, " ".join(name))


# -- mutants


def acknowledge_before_commit() -> None:
    """A workflow goes on before its checkpoint has committed."""
    real = CommitLoop.checkpoint

    def checkpoint(self: CommitLoop, *args: Any) -> asyncio.Future[None]:
        real(self, *args)
        done: asyncio.Future[None] = self.loop.create_future()
        done.set_result(None)
        return done

    CommitLoop.checkpoint = checkpoint  # type: ignore[method-assign,assignment]


def _recorded(change: Callable[[Recorded], Recorded]) -> None:
    real = leases.recorded

    async def recorded(*args: Any) -> Any:
        found, clock = await real(*args)
        return {wf: change(each) for wf, each in found.items()}, clock

    leases.recorded = recorded


def forget_checkpoints() -> None:
    """Checkpoints are not read on replay."""
    _recorded(lambda found: found._replace(checkpoints={}))


def forget_tries() -> None:
    """Nor are the tries of steps that have failed."""
    _recorded(lambda found: found._replace(tries={}))


def _sleep(at: Callable[[Any], float]) -> None:
    real = Operations._sleep

    def sleep(self: Any, seq: int, recorded: Any, seconds: float | None, until: float | None) -> Any:
        recorded = None if recorded is None else replace(recorded, at=at(self))
        return real(self, seq, recorded, seconds, until)

    Operations._sleep = sleep  # type: ignore[method-assign,assignment]


def sleep_anew() -> None:
    """On replay a sleep begins again."""
    _sleep(lambda run: float(run.sink.server_time()))


def timeout_anew() -> None:
    """On replay the time for which a message is waited for begins again."""
    real = Operations._receive

    def receive(self: Any, seq: int, topic: str, recorded: Any, timer: int, timeout: Any, timed: Any) -> Any:
        timed = None if timed is None else replace(timed, at=self.sink.server_time())
        return real(self, seq, topic, recorded, timer, timeout, timed)

    Operations._receive = receive  # type: ignore[method-assign,assignment]


def sleep_over() -> None:
    """On replay a sleep is over."""
    _sleep(lambda run: 0.0)


def send_without_key() -> None:
    """What a workflow sends has no key."""

    async def send(self: Delivery, id: str, topic: str, value: bytes, key: str) -> None:
        await self.courier.deliver(Letter(id, topic, None, value))

    Delivery.send = send  # type: ignore[method-assign]


def _in_a_turn_of_its_own(part: str) -> None:
    real = turns.commit

    async def commit(shard: Any, conn: Any, fence: Any, turn: Turn) -> Answer:
        if not getattr(turn, part):
            return await real(shard, conn, fence, turn)
        answer = await real(shard, conn, fence, replace(turn, **{part: ()}))
        await real(shard, conn, fence, Turn(**{part: getattr(turn, part)}))
        return answer

    turns.commit = commit


def take_messages_later() -> None:
    """A message is taken behind the turn with its checkpoint."""
    _in_a_turn_of_its_own("received")


def set_events_later() -> None:
    """An event is set behind the turn with its checkpoint."""
    _in_a_turn_of_its_own("events")


def children_under_new_ids() -> None:
    """Children's ids are drawn."""
    real = Children.of.__func__  # type: ignore[attr-defined]

    def of(cls: type[Children], parent: str, *rest: Any) -> Children:
        made: Children = real(cls, parent + uuid.uuid4().hex[:6], *rest)
        return made

    Children.of = classmethod(of)  # type: ignore[assignment,method-assign]


def _statement(concern: str, name: str, old: str, new: str) -> None:
    real = shardflow.sql.load

    def load(asked: str) -> Any:
        found = real(asked)
        if asked != concern:
            return found
        assert old in found[name], f"the mutant finds no {old!r} in {name!r}"
        return {**found, name: found[name].replace(old, new)}

    shardflow.sql.load = load  # type: ignore[assignment]


def adopt_nothing() -> None:
    """What dead holders and clients have left in the outbox stays there."""
    _statement("turn", "adopt", "WHERE ctid = ANY", "WHERE false AND ctid = ANY")


def nothing_is_overdue() -> None:
    """Ends that were under way when their watcher was registered are not looked for."""
    _statement("turn", "overdue", "WHERE r.late AND", "WHERE false AND")


def wake_in_two_turns() -> None:
    """What wakes is taken from its place in one transaction and made ready in the next one."""
    _statement("turn", "wake", "ON w.wf = due.wf\n", "ON w.wf = due.wf AND false\n")
    real = turns.commit
    nowhere = """
        INSERT INTO shardflow.ready (seq, wf, priority, replay, queue)
        SELECT w.wf, w.wf, w.priority, true, w.queue FROM shardflow.workflow w
        WHERE w.wf NOT IN (SELECT wf FROM shardflow.wait UNION ALL SELECT wf FROM shardflow.ready
            UNION ALL SELECT wf FROM shardflow.outcome UNION ALL SELECT unnest(wfs) FROM shardflow.claim)"""

    async def commit(shard: Any, conn: Any, fence: Any, turn: Turn) -> Answer:
        answer = await real(shard, conn, fence, turn)
        if answer.woken:
            await conn.execute(nowhere)
        return answer

    turns.commit = commit


MUTANTS: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        acknowledge_before_commit,
        forget_checkpoints,
        forget_tries,
        sleep_anew,
        timeout_anew,
        sleep_over,
        send_without_key,
        take_messages_later,
        set_events_later,
        children_under_new_ids,
        adopt_nothing,
        nothing_is_overdue,
        wake_in_two_turns,
    )
}


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
