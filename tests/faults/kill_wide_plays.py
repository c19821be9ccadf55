"""More of what the kill tests play, see `kill_plays`: failures, events, keys, values, versions of the code."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

from faults.kill_app import effects, node, tells
from faults.kill_plays import MESSAGES, WAITING
from faults.kill_stand import NOTES, Stand, Wrong
from faults.kill_wide_app import (
    CODECS,
    LONG,
    deployed,
    draws,
    falls,
    guardian,
    overdue,
    plain_sends,
    shop_1,
    shop_2,
    weighs,
)
from support.work import ids_on

from shardflow import AsyncClient, Handle, ResultTimeout, ShardflowError, WorkflowFailed
from shardflow.core.topics import CHILD


async def failure(stand: Stand, handle: Handle[Any]) -> WorkflowFailed:
    """How the workflow failed."""
    try:
        value = await handle.result(stand.patience)
    except WorkflowFailed as error:
        return error
    except ResultTimeout:
        raise Wrong(f"{handle.id} has not ended") from None
    raise Wrong(f"{handle.id} did not fail: {value!r}")


async def child_failed(stand: Stand, dies: str) -> None:
    """The victim serves the queue `dies` alone, another worker, which lives on, the other one."""
    (parent,) = ids_on(stand.config, 0, 1, "parent")
    stand.failing.add(f"{parent}/0")
    other = "kids" if dies == "default" else "default"
    stand.worker("other", (other,)) if other == "default" else stand.victim(dies)
    handle = await stand.client.submit(guardian, id=parent)
    await stand.until("SELECT count(*) FROM wait WHERE missing = 1", 1)
    stand.worker("other", (other,)) if other == "kids" else stand.victim(dies)
    await stand.killed()
    stand.successor()
    await stand.taken_over()
    await stand.expect_soon("left in the outbox", "SELECT count(*) FROM outbox", 0)
    stand.expect("times that the end was told", stand.total(MESSAGES.format(CHILD)), 1)
    await stand.client.send(parent, "go")
    stand.expect("the parent's answer", await stand.result(handle), "ValueError: no")
    stand.expect_effects("child 0", "ValueError: no")


async def after_failed(stand: Stand) -> None:
    """The victim dies when the end is in the outbox; what was to run after it must end, and not run."""
    (watched,) = ids_on(stand.config, 0, 1, "watched")
    (behind,) = ids_on(stand.config, 1, 1, "behind")
    stand.failing |= {watched, behind}
    stand.victim()
    first = await stand.client.submit(falls, watched, True, id=watched)
    second = await stand.client.submit(node, behind, id=behind, after=[watched])
    await stand.until(WAITING, 1)
    await stand.until("SELECT count(*) FROM watcher", 1)
    await stand.until("SELECT count(*) FROM outbox", 0)
    await stand.client.send(watched, "go")
    await stand.killed()
    stand.successor()
    await stand.taken_over()
    stand.expect("what was watched", (await failure(stand, first)).type, "ValueError")
    error = await failure(stand, second)
    stand.expect("what was behind it", error.type, "shardflow.errors.DependencyFailed")
    stand.expect("its message", "ValueError: no" in str(error), True)
    stand.expect_effects(watched)


async def after_one_failed(stand: Stand) -> None:
    """It is to run nevertheless, when the other one that it waits for has ended too."""
    one, other = ids_on(stand.config, 0, 2, "watched")
    (behind,) = ids_on(stand.config, 1, 1, "behind")
    stand.failing.add(one)
    stand.victim()
    first = await stand.client.submit(falls, one, True, id=one)
    second = await stand.client.submit(node, other, True, id=other)
    last = await stand.client.submit(node, behind, id=behind, after=[one, other], on_failure="run")
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
    await failure(stand, first)
    for handle in (second, last):
        await stand.result(handle)
    stand.expect("order", stand.effects(), [one, other, behind])


async def sent_plainly(stand: Stand, listens: Any) -> None:
    (receiver,) = ids_on(stand.config, 1, 1, "receiver")
    (sender,) = ids_on(stand.config, 0, 1, "sender")
    stand.victim()
    heard = await stand.client.submit(listens, id=receiver)
    await stand.until(WAITING, 1)
    handle = await stand.client.submit(plain_sends, receiver, id=sender)
    await stand.killed()
    stand.successor()
    await stand.result(handle)
    stand.expect("heard", await stand.result(heard), [1])


async def event_not_set(stand: Stand) -> None:
    """The second event's turn never commits; what comes before it is not repeated, and it is set once."""
    stand.everywhere(*NOTES)
    stand.victim()
    handle = await stand.client.submit(tells, id="teller")
    await stand.killed()
    stand.successor()
    await stand.result(handle)
    stand.expect_effects("between")
    stand.expect("events", [await stand.client.event("teller", key, 0) for key in "ab"], [1, 2])
    stand.expect("times that they were set", [stand.noted("event a"), stand.noted("event b")], [1, 1])


async def out_of_time(stand: Stand) -> None:
    """The limit is over when nobody is there to see it, or the end is not yet committed."""
    stand.failing.add("late")
    stand.victim()
    handle = await stand.client.submit(overdue, id="late")
    await stand.killed()
    await stand.until("SELECT count(*) FROM workflow WHERE now() > submitted_at + interval '1.1 s'", 1)
    stand.expect("ends", stand.total("SELECT count(*) FROM outcome"), 0)
    stand.successor()
    stand.expect("the end", (await failure(stand, handle)).type, "shardflow.errors.WorkflowTimeout")
    stand.expect_effects("begun")


async def one_at_once(stand: Stand, ended: bool) -> None:
    """The victim dies around the end of the one workflow that has the key; `ended`: the end has committed."""
    stand.victim()

    async def ask() -> Handle[Any]:
        return await stand.client.submit(effects, 1, dedup_key="only")

    first = await ask()
    await stand.killed()
    second = await ask()
    stand.expect("the key is free", second.id != first.id, ended)
    if ended:
        stand.expect("whoever has it", (await ask()).id, second.id)
    stand.successor()
    for handle in (first, second):
        await stand.result(handle)
    third = await ask()
    stand.expect("the key is free after the end", third.id not in (first.id, second.id), True)
    await stand.result(third)
    stand.expect("keys", stand.total("SELECT count(*) FROM dedup"), 0)


async def drawn(stand: Stand, times: int) -> None:
    """What the step is given is the same at each of the `times` that it runs."""
    stand.victim()
    handle = await stand.client.submit(draws)
    await stand.killed()
    stand.successor()
    value = await stand.result(handle)
    stand.expect("values", dict(Counter(stand.effects())), {value: times})


async def sealed(stand: Stand) -> None:
    """What is encrypted and compressed comes out of a replay as it was."""
    stand.victim(code=("sealed",))
    async with AsyncClient(stand.config, codecs=CODECS) as client:
        handle = await client.submit(weighs, Fraction(1, 3))
        await stand.killed()
        assert stand.rows("SELECT octet_length(output) < 5000 AND get_byte(output, 0) = 2 FROM step") == [(True,)]
        stand.successor(code=("sealed",))
        stand.expect("the result", await stand.result(handle), Fraction(2, 3))
    stand.expect_effects("bulk", f"{LONG} 1/3")


async def patched_under_way(stand: Stand) -> None:
    """A deploy in which the old code's worker is killed: its run ends as it began, a new one under the new code."""
    stand.victim()
    old = await stand.client.submit(deployed, "old")
    await stand.killed()
    stand.successor(code=("patched_code",))
    await stand.result(old)
    await stand.result(await stand.client.submit(deployed, "new"))
    wanted = ["old opens", "old closes", "old ends", "new opens", "new is checked", "new closes", "new ends"]
    stand.expect("order", stand.effects(), wanted)


async def patched_and_killed(stand: Stand) -> None:
    """The new code's worker is killed behind the patch; the next one goes the same way."""
    stand.victim(code=("patched_code",))
    handle = await stand.client.submit(deployed, "new")
    await stand.killed()
    stand.successor(code=("patched_code",))
    await stand.result(handle)
    stand.expect("order", stand.effects(), ["new opens", "new is checked", "new closes", "new ends"])


async def versions(stand: Stand) -> None:
    """The last worker with the old version is killed: its run waits for that version, whatever others do."""
    stand.victim(code=("version_1",))
    old = await stand.client.submit(shop_1, "old")
    await stand.killed()
    stand.successor(code=("version_2",))
    await stand.taken_over()
    stand.expect("the new one", await stand.result(await stand.client.submit(shop_2, "new")), "2")
    try:
        stand.expect("the old one's state", str((await stand.client.info(old.id)).status), "ready")
    except ShardflowError as error:
        raise Wrong(str(error)) from error
    stand.worker("rollback", code=("version_1",))
    stand.expect("the old one", await stand.result(old), "1")
    stand.expect_effects("old by 1", "old closes", "new by 2")
