"""Load for the timed scenarios, from a thread: a backlog that is kept up, or a steady stream with timed results."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from faults.timing_app import brief, paced
from faults.timing_rig import Look, Rig

import shardflow
from shardflow.errors import ShardflowError

#: One workflow of so many is of the kind whose steps take a while.
PACED = 20
#: Workflows to one submit of a backlog.
CHUNK = 1000
#: Seconds between two submits of a stream.
TICK = 0.05


class Load:
    """Something that submits until it is told to stop; an error in it is raised then."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self._ends = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Submits no more, and returns when what was under way is over."""
        self._ends.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self._error = error

    async def _main(self) -> None:
        async with shardflow.AsyncClient(self.rig.config) as client:
            await self.submit(client)

    async def submit(self, client: shardflow.AsyncClient) -> None:
        raise NotImplementedError


class Backlog(Load):
    """Keeps `depth` workflows ready on each shard, so that workers always have more than they can do."""

    def __init__(self, rig: Rig, depth: int = 3000) -> None:
        super().__init__(rig)
        self.depth = depth
        self.accepted = 0

    async def submit(self, client: shardflow.AsyncClient) -> None:
        await asyncio.gather(*(self._keep(client, shard) for shard in self.rig.shards))

    async def _keep(self, client: shardflow.AsyncClient, shard: int) -> None:
        tag, number = self.rig.tag(shard), 0
        query = f"SELECT count(*) FROM (SELECT FROM {{s}}.ready LIMIT {self.depth}) few"
        look = Look(self.rig.config.shards[shard].dsn)
        while not self._ends.is_set():
            found = await asyncio.to_thread(look.rows, query)
            if found is None or found[0][0] >= self.depth:
                await asyncio.sleep(0.02)
                continue
            ids = [f"{tag}{number + n}" for n in range(CHUNK)]
            calls = [(paced if n % PACED == 0 else brief).call(id).set(id=id) for n, id in enumerate(ids)]
            try:
                await client.submit_many(calls)
            except ShardflowError:
                await asyncio.sleep(0.1)  # the same ids again are harmless
                continue
            number += CHUNK
            self.accepted += CHUNK
        look.close()


@dataclass(eq=False, frozen=True)
class Plan:
    """A stream: workflows a second, on which shard (None: wherever the client likes), and one of how many is of the
    kind whose steps take a while."""

    rate: float
    shard: int | None = None
    paced: int = PACED


@dataclass
class Sample:
    """One workflow of a plan: when it was to be submitted (time of day), seconds until the submit was acknowledged
    and until its result was there; None for what has not come, with the error."""

    plan: Plan
    at: float
    accepted: float | None = None
    answered: float | None = None
    error: str = ""


class Stream(Load):
    """Submits at a steady rate, whatever becomes of what was submitted before, and awaits every result.

    Each plan has a client of its own, and one submit a tick. Arguments: `rig`; `plans`; `patience`, seconds for the
    results that are missing when it stops.
    """

    def __init__(self, rig: Rig, plans: Sequence[Plan], patience: float = 30.0) -> None:
        super().__init__(rig)
        self.samples: list[Sample] = []
        self._plans = plans
        self._patience = patience

    def of(self, *plans: Plan) -> list[Sample]:
        """The samples of these plans."""
        return [sample for sample in self.samples if sample.plan in plans]

    async def _main(self) -> None:
        await asyncio.gather(*(self._flow(n, plan) for n, plan in enumerate(self._plans)))

    async def _flow(self, stream: int, plan: Plan) -> None:
        loop = asyncio.get_running_loop()
        tag = None if plan.shard is None else self.rig.tag(plan.shard)
        waiting: set[asyncio.Task[None]] = set()
        began, number = loop.time(), 0
        async with shardflow.AsyncClient(self.rig.config) as client:
            while not self._ends.is_set():
                # A loop that is late catches up: the rate is what was promised.
                if due := int((loop.time() - began) * plan.rate) - number:
                    words = [f"s{stream}-{number + n}" for n in range(due)]
                    calls = [
                        (brief if (number + n) % plan.paced else paced).call(word).set(id=tag and tag + word)
                        for n, word in enumerate(words)
                    ]
                    task = asyncio.create_task(self._tick(client, plan, calls))
                    waiting.add(task)
                    task.add_done_callback(waiting.discard)
                    number += due
                await asyncio.sleep(TICK)
            if waiting:
                _, late = await asyncio.wait(waiting, timeout=self._patience)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)

    async def _tick(self, client: shardflow.AsyncClient, plan: Plan, calls: Sequence[shardflow.Call]) -> None:
        began = time.monotonic()
        samples = [Sample(plan, time.time()) for _ in calls]
        self.samples += samples
        try:
            handles = await client.submit_many(calls)
        except ShardflowError as error:
            for sample in samples:
                sample.error = f"{type(error).__name__}: {error}"
            return
        for sample in samples:
            sample.accepted = time.monotonic() - began

        async def wait(handle: shardflow.AsyncHandle[str], sample: Sample) -> None:
            try:
                await handle.result()
                sample.answered = time.monotonic() - began
            except ShardflowError as error:
                sample.error = f"{type(error).__name__}: {error}"

        await asyncio.gather(*map(wait, handles, samples))
