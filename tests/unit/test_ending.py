"""Tasks end, also those that swallow a cancellation."""

from __future__ import annotations

import asyncio

from shardflow.storage.ending import end


async def test_a_task_that_swallows_a_cancellation_ends_all_the_same() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if swallowed == 2:
                    raise
                swallowed += 1

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await end([task], again=0.01)
    assert task.cancelled()
    assert swallowed == 2


async def test_what_a_task_raises_stays_in_it_and_a_done_one_is_left_alone() -> None:
    async def fails() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            raise ValueError("at its end")

    failing = asyncio.create_task(fails())
    done = asyncio.create_task(asyncio.sleep(0))
    await asyncio.sleep(0.001)
    await end([failing, done])
    assert isinstance(failing.exception(), ValueError)
    assert not done.cancelled()
