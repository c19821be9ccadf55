"""What is wrong on purpose in workers of the kill tests: each takes one guard away, in the process that calls it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import shardflow.sql
from shardflow.core.childids import Children
from shardflow.delivery import Delivery
from shardflow.storage import leases
from shardflow.storage import turn as turns
from shardflow.storage.leases import Recorded
from shardflow.storage.messages import Letter
from shardflow.storage.turn import Answer, Turn
from shardflow.worker.commit import CommitLoop
from shardflow.worker.operations import Operations


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


def in_a_turn_of_its_own(part: str) -> None:
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
    in_a_turn_of_its_own("received")


def set_events_later() -> None:
    """An event is set behind the turn with its checkpoint."""
    in_a_turn_of_its_own("events")


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
    nothing = "'{{}}'::text[], '{{}}'::smallint[], '{{}}'::bigint[]"
    answered = (
        "array_agg(queue), array_agg(priority), array_agg(seq),"
        " date_part('epoch', clock_timestamp() - statement_timestamp())\nFROM first"
    )
    _statement("turn", "wake", answered, nothing + ", 0::float8")
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
