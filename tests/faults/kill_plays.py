"""What the kill tests play: workflows, a worker that dies at the stand's point, another one, what must be seen."""

from __future__ import annotations

import json
from typing import Any

from faults.kill_app import effects, family, listens, naps, node, parent, sends, tells, waits
from faults.kill_stand import NOTES, Stand, Wrong
from support.look import connect, until
from support.work import ids_on

from shardflow import ResultTimeout
from shardflow.core.topics import CHILD

MESSAGES = "SELECT count(*) FROM message WHERE topic = '{}'"
SLEPT = "SELECT count(*) FROM step WHERE name = 'shardflow.sleep' AND now() > finished_at + make_interval(secs => %s)"
TIMED = SLEPT.replace("sleep", "timer")
WAITING = "SELECT count(*) FROM wait WHERE reason LIKE 'message on%%'"


async def steps(stand: Stand, repeated: int, workflow: Any = effects) -> None:
    """`repeated` is how often the first effect is there; the values are the recorded ones."""
    stand.victim()
    handle = await stand.client.submit(workflow, 3)
    await stand.killed()
    stand.successor()
    await stand.ended_or(handle, lambda: len(stand.effects()) > repeated + 2)
    stand.expect_effects(*["0"] * repeated, "1", "2")
    values = await stand.result(handle)
    recorded = [json.loads(step.output or b"") for step in await handle.steps()]
    stand.expect("values", values, recorded)


async def retries(stand: Stand, workflow: Any, *args: Any) -> None:
    stand.victim()
    handle = await stand.client.submit(workflow, *args)
    await stand.killed()
    stand.successor()
    await stand.ended_or(handle, lambda: len(stand.effects()) > 3)
    stand.expect_effects("try", "try", "try")
    attempts = await stand.result(handle)
    stand.expect("attempts", attempts, 3)


async def sleeps(stand: Stand, seconds: float, suspensions: int | None, workflow: Any = naps) -> None:
    """With `suspensions` the successor comes when the time is over, and so often the workflow has left the memory of
    a worker; without, it comes at once."""
    stand.everywhere(*NOTES)
    stand.victim()
    handle = await stand.client.submit(workflow, seconds)
    await stand.killed()
    if suspensions is not None:
        await stand.until(SLEPT, 1, seconds)
    stand.successor()
    if suspensions is not None:
        await stand.ended_or(handle, lambda: stand.noted("wait") > suspensions)
        stand.expect("suspensions", stand.noted("wait"), suspensions)
    await stand.result(handle)
    stand.expect_effects("before", "after")
    query = """
        SELECT a.finished_at >= s.finished_at + make_interval(secs => %s) FROM step s JOIN step a ON a.seq = s.seq + 1
        WHERE s.name = 'shardflow.sleep'"""
    stand.expect("slept to its end", stand.rows(query, seconds), [(True,)])


async def times_out(stand: Stand, seconds: float) -> None:
    """The successor comes when the time is over."""
    stand.everywhere(*NOTES)
    stand.victim()
    handle = await stand.client.submit(waits, seconds)
    await stand.killed()
    await stand.until(TIMED, 1, seconds)
    stand.successor()
    await stand.ended_or(handle, lambda: stand.noted("wait") > 0)
    stand.expect("suspensions", stand.noted("wait"), 0)
    stand.expect("received", await stand.result(handle), None)


async def sent(stand: Stand) -> None:
    (receiver,) = ids_on(stand.config, 1, 1, "receiver")
    (sender,) = ids_on(stand.config, 0, 1, "sender")
    stand.victim()
    heard = await stand.client.submit(listens, id=receiver)
    await stand.until(WAITING, 1)
    handle = await stand.client.submit(sends, receiver, id=sender)
    await stand.killed()
    stand.successor()
    await stand.result(handle)
    stand.expect("heard", await stand.result(heard), [1])


async def received(stand: Stand, keys: bool, workflow: Any = listens) -> None:
    handle = await stand.client.submit(workflow, id="receiver")
    for n in range(3):
        await stand.client.send("receiver", "n", n, key=f"k{n}" if keys else None)
    await stand.client.send("receiver", "n", "end")
    stand.victim()
    await stand.killed()
    stand.successor()
    stand.expect("heard", await stand.result(handle), [0, 1, 2])
    stand.expect_effects("heard 0", "heard 1", "heard 2")
    stand.expect("messages left", stand.total("SELECT count(*) FROM message WHERE NOT taken"), 0)


async def events(stand: Stand) -> None:
    stand.everywhere(*NOTES)
    stand.victim()
    handle = await stand.client.submit(tells, id="teller")
    await stand.killed()
    try:
        stand.expect("the event after the kill", await stand.client.event("teller", "a", 0), 1)
    except ResultTimeout:
        raise Wrong("the event after the kill is not set") from None
    stand.successor()
    await stand.result(handle)
    stand.expect_effects("between")
    stand.expect("events", [await stand.client.event("teller", key, 0) for key in "ab"], [1, 2])
    stand.expect("times that they were set", [stand.noted("event a"), stand.noted("event b")], [1, 1])


async def started(stand: Stand, count: int, partly: bool = False, workflow: Any = family) -> None:
    """The victim, which runs no children, dies when all of them are there, or `partly` those of one shard."""
    there = "SELECT count(*) FROM workflow WHERE name = 'child'"
    stand.victim("default")
    handle = await stand.client.submit(workflow, count, id="parent")
    await stand.killed()
    if partly:
        reached = [k for k in range(len(stand.config.shards)) if stand.rows(there, shard=k) != [(0,)]]
        assert len(reached) == 1, "the kill was not between two shards"
    else:
        assert stand.total(there) == (count or 1), "the kill was not behind all of the children"
    assert stand.total("SELECT count(*) FROM step") == 0
    stand.successor()
    numbers = range(count or 1)
    stand.expect("children's answers", await stand.result(handle), list(numbers))
    stand.expect("children", stand.total(there), len(numbers))
    stand.expect_effects("got all", *(f"child {n}" for n in numbers))


async def child_ended(stand: Stand) -> None:
    """The victim runs the child alone; another worker, which lives on, the parent."""
    (id,) = ids_on(stand.config, 0, 1, "parent")
    stand.worker("parents", ("default",))
    handle = await stand.client.submit(parent, id=id)
    await stand.until("SELECT count(*) FROM wait WHERE missing = 1", 1)
    stand.victim("kids")
    await stand.killed()
    stand.successor()
    await stand.taken_over()
    await stand.expect_soon("left in the outbox", "SELECT count(*) FROM outbox", 0)
    stand.expect("times that the end was told", stand.total(MESSAGES.format(CHILD)), 1)
    await stand.client.send(id, "go")
    stand.expect("the child's answer", await stand.result(handle), 0)
    stand.expect_effects("child 0", "got it")


async def after(stand: Stand) -> None:
    """The victim dies when it has taken the registration over from the client, or when it has delivered it."""
    (watched,) = ids_on(stand.config, 0, 1, "watched")
    (behind,) = ids_on(stand.config, 1, 1, "behind")
    stand.victim()
    first = await stand.client.submit(node, watched, True, id=watched)
    await stand.until(WAITING, 1)
    second = await stand.client.submit(node, behind, id=behind, after=[watched])
    await stand.killed()
    stand.successor()
    await stand.taken_over()
    await stand.expect_soon("watchers", "SELECT count(*) FROM watcher", 1)
    await stand.expect_soon("left in the outbox", "SELECT count(*) FROM outbox", 0)
    stand.expect("watchers", stand.total("SELECT count(*) FROM watcher"), 1)
    await stand.client.send(watched, "go")
    await stand.result(first)
    await stand.result(second)
    stand.expect("order", stand.effects(), [watched, behind])


async def after_two(stand: Stand) -> None:
    """The victim dies when it has told of the first one's end; the dependent waits for the second one, too."""
    one, other = ids_on(stand.config, 0, 2, "watched")
    (behind,) = ids_on(stand.config, 1, 1, "behind")
    stand.victim()
    first = await stand.client.submit(node, one, True, id=one)
    second = await stand.client.submit(node, other, True, id=other)
    last = await stand.client.submit(node, behind, id=behind, after=[one, other])
    await stand.until(WAITING, 2)
    await stand.until("SELECT count(*) FROM outbox", 0)
    await stand.until("SELECT count(*) FROM watcher", 2)
    await stand.client.send(one, "go")
    await stand.killed()
    stand.successor()
    await stand.taken_over()
    await stand.expect_soon("left in the outbox", "SELECT count(*) FROM outbox", 0)
    stand.expect("ends still missing", stand.rows("SELECT missing FROM wait", shard=1), [(1,)])
    await stand.client.send(other, "go")
    for handle in (first, second, last):
        await stand.result(handle)
    stand.expect("order", stand.effects(), [one, other, behind])


async def after_racing(stand: Stand) -> None:
    """The watched one's end is in the middle of its COMMIT when the watcher is registered; then the worker dies."""
    (watched,) = ids_on(stand.config, 0, 1, "watched")
    (behind,) = ids_on(stand.config, 1, 1, "behind")
    with connect(stand.config) as conn:
        conn.execute(
            "CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END $$"
        )
        conn.execute(
            "CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON outcome DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION public.hold()"
        )
        conn.execute("SELECT pg_advisory_lock(7)")
        stand.victim()
        first = await stand.client.submit(node, watched, id=watched)
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted"
        await until(lambda: conn.execute(held).fetchone() == (1,), what="the end is in its COMMIT")
        second = await stand.client.submit(node, behind, id=behind, after=[watched])
        await stand.until("SELECT count(*) FROM watcher WHERE late", 1)
        stand.kill()
        conn.execute("SELECT pg_advisory_unlock(7)")
    await stand.until("SELECT count(*) FROM outcome", 1)
    assert stand.total("SELECT count(*) FROM watcher") == 1, "the end has seen the watcher: this was no race"
    stand.successor()
    await stand.taken_over()
    await stand.result(first)
    await stand.result(second)
    stand.expect("order", stand.effects(), [watched, behind])


async def delayed(stand: Stand) -> None:
    stand.victim()
    handle = await stand.client.submit(effects, 1, delay=0.3)
    await stand.killed()
    stand.expect_i1()
    stand.successor()
    await stand.result(handle)
    stand.expect_effects("0")
