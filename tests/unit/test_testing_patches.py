"""`patched` and `deprecate_patch`: new code meets what was recorded under old code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import shardflow
from shardflow import App, NonDeterminism, blocking, deprecate_patch, patched
from shardflow.core.branches import Branch, passed
from shardflow.model import StepInfo
from shardflow.testing import Inline

DAY = timedelta(days=1)

app = App()


@app.step
async def say(what: str) -> str:
    return what


@app.step(name="say_too")
async def say_too(what: str) -> str:
    return f"{what}!"


@app.step(name="say_plainly")
def say_plainly(what: str) -> str:
    return what


def workflow(function: Callable[[], Any]) -> Any:
    return App().workflow(name="work")(function)


async def meets(old: Callable[[], Any], new: Callable[[], Any], records: int) -> Any:
    """What the new code makes of a run that ended up with so many records under the old code; replayed as well."""
    async with Inline() as env:
        await env.run(workflow(old).call().set(id="w"))
        steps = env.steps("w")[:records]
    async with Inline() as env:
        handle = await env.restore(steps, workflow(new).call().set(id="w"))
        return await handle.result()


async def before() -> str:
    a = await say("a")
    b = await say("b")
    await shardflow.sleep(DAY)
    return a + b + await say("c")


async def after() -> str:
    a = await say("a")
    b = await (say_too("b") if patched("too") else say("b"))
    await shardflow.sleep(DAY)
    return a + b + await say("c")


async def test_a_run_keeps_the_way_that_it_went() -> None:
    found = [await meets(before, after, n) for n in range(5)]
    assert found == ["ab!c", "ab!c", "abc", "abc", "abc"]


async def test_the_answer_is_recorded() -> None:
    asked: list[bool] = []

    async def work() -> bool:
        answer = patched("p")
        asked.append(answer)
        await shardflow.sleep(DAY)
        return answer

    async with Inline() as env:
        assert await env.run(workflow(work)) is True
        assert [step.name for step in env.steps("work-1")] == ["shardflow.patch.p", "shardflow.sleep"]
    assert asked == [True, True, True]


async def test_without_patched_the_mismatch_names_the_step() -> None:
    async def new() -> str:
        return await say("a") + await say_too("b")

    with pytest.raises(NonDeterminism, match=r"step 1 is 'say_too' now, but 'say' is recorded"):
        await meets(before, new, 2)


async def test_a_later_patch_in_front_of_an_older_one() -> None:
    async def newest() -> str:
        a = await say("a")
        if patched("newer"):
            a = a.upper()
        b = await (say_too("b") if patched("too") else say("b"))
        await shardflow.sleep(DAY)
        return a + b + await say("c")

    assert [await meets(after, newest, n) for n in range(6)] == ["Ab!c", "Ab!c", "ab!c", "ab!c", "ab!c", "ab!c"]
    assert [await meets(before, newest, n) for n in range(5)] == ["Ab!c", "Ab!c", "abc", "abc", "abc"]


async def test_a_deprecated_patch() -> None:
    async def without() -> str:
        a = await say("a")
        deprecate_patch("too")
        b = await say_too("b")
        await shardflow.sleep(DAY)
        return a + b + await say("c")

    async def removed() -> str:
        a = await say("a")
        b = await say_too("b")
        await shardflow.sleep(DAY)
        return a + b + await say("c")

    assert {await meets(after, without, n) for n in range(6)} == {"ab!c"}
    assert {await meets(without, without, n) for n in range(5)} == {"ab!c"}
    assert {await meets(without, removed, n) for n in range(5)} == {"ab!c"}
    with pytest.raises(NonDeterminism, match="'say_too' now, but 'say' is recorded"):
        await meets(before, without, 2)
    with pytest.raises(NonDeterminism, match=r"'say_too' now, but 'shardflow\.patch\.too' is recorded"):
        await meets(after, removed, 3)


async def test_in_a_plain_workflow() -> None:
    def old() -> str:
        a = say_plainly("a")
        blocking.sleep(DAY)
        return a

    def new() -> str:
        a = say_plainly("a")
        if patched("p"):
            a += say_plainly("b")
        blocking.sleep(DAY)
        return a

    assert [await meets(old, new, n) for n in range(3)] == ["ab", "ab", "a"]
    assert [await meets(new, new, n) for n in range(5)] == ["ab"] * 5


async def test_the_records_of_other_tasks_say_nothing() -> None:
    async def one() -> str:
        await shardflow.sleep(DAY)
        return await say("one")

    async def patchable() -> str:
        await shardflow.sleep(2 * DAY)
        return "new" if patched("p") else "old"

    async def work() -> list[str]:
        return list(await asyncio.gather(patchable(), one()))

    assert [await meets(work, work, n) for n in range(6)] == [["new", "one"]] * 6


async def test_tasks_that_came_behind_the_place_count() -> None:
    async def nap(name: str) -> str:
        return await say(name)

    async def old() -> list[str]:
        return list(await asyncio.gather(nap("a"), nap("b")))

    async def new() -> list[str]:
        names = ["x", "y"] if patched("p") else ["a", "b"]
        return list(await asyncio.gather(*(nap(name) for name in names)))

    assert [await meets(old, new, n) for n in range(3)] == [["x", "y"], ["a", "b"], ["a", "b"]]


async def test_a_step_that_is_being_retried_counts() -> None:
    from shardflow.storage.leases import Tries
    from shardflow.testing.inline import InlineHandle

    async def new() -> str:
        return await (say_too("x") if patched("p") else say("x"))

    async with Inline() as env:
        world = env._world
        world._begin, begin = lambda record: None, world._begin  # type: ignore[method-assign]
        record = world.submit(workflow(new).call())
        record.tries[0] = Tries(2, world.now)
        begin(record)
        assert await InlineHandle[str](env, record.id).result() == "x"


async def test_elsewhere_it_is_true() -> None:
    assert patched("p")
    deprecate_patch("p")
    with pytest.raises(shardflow.InvalidInput):
        patched("")
    with pytest.raises(shardflow.InvalidInput):
        patched("p" * 201)


async def test_records_carry_over(tmp_path: object) -> None:
    async with Inline() as env:
        await env.run(workflow(before).call().set(id="w"))
        steps = env.steps("w")
        assert all(isinstance(step, StepInfo) for step in steps)
    async with Inline() as env:
        handle = await env.restore(steps[:3], workflow(before).call().set(id="w"))
        assert await handle.result() == "abc"
        assert [step.name for step in env.steps("w")] == [step.name for step in steps]


def test_passed() -> None:
    here = Branch()
    here.next()
    assert not passed(here, [])
    assert passed(here, [(1, 0.0)])
    assert not passed(here, [(0, 9.0)])  # it was called, and is not awaited yet
    other = here.child().next()
    assert passed(here, [(other, 0.0)])
    here.at = 5.0
    assert not passed(here, [(other, 5.0)])
    assert passed(here, [(other, 5.1)])
    assert not passed(here.child(), [(other, 5.0)])


async def test_what_followed_from_a_task_counts() -> None:
    """The task itself has nothing recorded behind the place, but whoever awaited it has."""

    async def part(new: bool) -> str:
        return "new" if new and patched("p") else "old"

    async def old() -> str:
        found = await asyncio.create_task(part(False))
        return await say(found)

    async def new() -> str:
        found = await asyncio.create_task(part(True))
        said = await say(found)
        assert said == found
        return said

    assert [await meets(old, new, n) for n in range(2)] == ["new", "old"]


async def test_operations_are_known_by_what_they_are_about() -> None:
    other = App()

    @other.workflow(name="ship")
    async def ship(n: int) -> int:
        return n

    @other.workflow(name="bill")
    async def bill(n: int) -> int:
        return n

    def event(key: str) -> Callable[[], Any]:
        async def work() -> None:
            await shardflow.set_event(key, 1)

        return work

    def talk(topic: str) -> Callable[[], Any]:
        async def work() -> None:
            await shardflow.send(shardflow.info().id, topic, 1)

        return work

    def listen(topic: str) -> Callable[[], Any]:
        async def work() -> None:
            await shardflow.receive(topic, timeout=1)

        return work

    def begin(child: Any, count: int) -> Callable[[], Any]:
        async def work() -> None:
            await shardflow.gather(await shardflow.start_many(child, range(count)))

        return work

    for old, new, now, recorded in (
        (event("a"), event("b"), "'shardflow.set_event.b'", "'shardflow.set_event.a'"),
        (talk("a"), talk("b"), "'shardflow.send.b'", "'shardflow.send.a'"),
        (listen("a"), listen("b"), "'shardflow.receive.b'", "'shardflow.receive.a'"),
        (begin(ship, 3), begin(bill, 3), "3 children of 'bill'", "3 children of 'ship'"),
        (begin(ship, 3), begin(ship, 2), "2 children of 'ship'", "3 children of 'ship'"),
    ):
        with pytest.raises(NonDeterminism, match=f"step 0 (is|starts) {now} now, but {recorded}"):
            await meets(old, new, 1)
