"""One case of the kill tests: a cluster, worker processes of which one dies at its kill point, and looks at what is
there. What is not as it should be raises Wrong, so that a mutant's red can be told from any other.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from faults.kill_app import Orders
from faults.nursery import Nursery, Process
from support.look import assert_i1, connect, rows, total, until

from shardflow import AsyncClient, ClusterConfig, Handle, ResultTimeout, ShardflowError

#: Notes every row that comes into a table, for what must happen a known number of times.
NOTES = (
    "CREATE TABLE IF NOT EXISTS public.noted (what text)",
    """
    CREATE OR REPLACE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO public.noted VALUES (TG_TABLE_NAME || coalesce(' ' || (to_jsonb(NEW) ->> 'key'), ''));
        RETURN NULL;
    END $$
    """,
    "CREATE TRIGGER note AFTER INSERT OR UPDATE ON wait FOR EACH ROW EXECUTE FUNCTION public.note()",
    "CREATE TRIGGER note AFTER INSERT OR UPDATE ON event FOR EACH ROW EXECUTE FUNCTION public.note()",
)


class Wrong(AssertionError):
    """Something that the guarantees exclude."""


class Stand:
    """Arguments: `point` where the victim dies; `mutants` of all workers, `later` of the successor alone; `patience`,
    seconds for what has to come.

    Attributes: `mutated`, whether something is wrong on purpose; `failing`, ids of workflows that are to fail;
    `patience`.
    """

    def __init__(
        self,
        config: ClusterConfig,
        client: AsyncClient,
        nursery: Nursery,
        folder: Path,
        point: str,
        mutants: tuple[str, ...] = (),
        later: tuple[str, ...] = (),
        patience: float = 60.0,
    ) -> None:
        self.config = config
        self.client = client
        self.mutated = bool(mutants or later)
        self.failing: set[str] = set()
        self._nursery = nursery
        self._folder = folder
        self._point = point
        self._mutants = mutants
        self._later = later
        self.patience = patience
        self._victim: Process
        self._processes: list[Process] = []
        self._path = folder / "cluster.yaml"
        shards = [{"name": shard.name, "dsn": shard.dsn} for shard in config.shards]
        # Long leases: a live worker's is not lost on a busy machine. A dead one's is ended when its session closes.
        lease = {"ttl": 60.0, "renew": 0.5, "watch": 0.15}
        file = {"name": config.name, "slots": config.slots, "shards": shards, "lease": lease}
        self._path.write_text(yaml.safe_dump(file))

    # -- workers

    def worker(self, name: str, queues: tuple[str, ...] = (), point: str = "", code: tuple[str, ...] = ()) -> Process:
        """`code`, changes of the workflows' code, such as a deploy brings."""
        mutants = code + self._mutants + (self._later if name == "successor" else ())
        orders = Orders(str(self._path), str(self._folder), name, queues, point, mutants)
        made = self._nursery.worker(str(orders))
        self._processes.append(made)
        return made

    def victim(self, *queues: str, code: tuple[str, ...] = ()) -> None:
        """Starts the worker that dies at the kill point."""
        self._victim = self.worker("victim", queues, self._point, code)

    async def killed(self) -> None:
        """Returns when it is dead, by its own hand."""
        await until(lambda: not self._victim.alive, 60, f"the victim comes to {self._point!r}")
        assert (self._folder / "killed").exists(), f"the victim died elsewhere than at {self._point!r}"

    def kill(self) -> None:
        """Kills the victim from outside."""
        self._victim.kill()

    def successor(self, code: tuple[str, ...] = ()) -> None:
        self.worker("successor", code=code)

    async def taken_over(self) -> None:
        """Returns when the victim's leases have been ended and a successor has one on each shard."""
        gone = "SELECT count(*) FROM lease WHERE worker = 'victim'"
        there = "SELECT count(*) FROM lease WHERE worker = 'successor'"
        await until(lambda: self.total(gone) == 0 and self.total(there) == len(self.config.shards))

    def close(self) -> None:
        for process in self._processes:
            process.kill()

    # -- looks

    def rows(self, query: str, *parameters: Any, shard: int = 0) -> list[tuple[Any, ...]]:
        return rows(self.config, query, *parameters, shard=shard)

    def total(self, query: str, *parameters: Any) -> int:
        return total(self.config, query, *parameters)

    def everywhere(self, *statements: str) -> None:
        for k in range(len(self.config.shards)):
            with connect(self.config, k) as conn:
                for statement in statements:
                    conn.execute(statement)

    def noted(self, what: str) -> int:
        return self.total("SELECT count(*) FROM public.noted WHERE what = %s", what)

    def effects(self) -> list[str]:
        path = self._folder / "effects"
        return path.read_text().splitlines() if path.exists() else []

    async def until(self, query: str, number: int, *parameters: Any) -> None:
        """Returns when the sum of a query over the shards is the number."""
        await until(lambda: self.total(query, *parameters) == number, 60, f"{query} gives {number}")

    # -- what has to hold

    def expect(self, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            raise Wrong(f"{what}: {found!r} instead of {wanted!r}")

    def expect_effects(self, *wanted: str) -> None:
        """These effects, in any order; each as often as it is given here."""
        self.expect("effects", Counter(self.effects()), Counter(wanted))

    async def expect_soon(self, what: str, query: str, number: int) -> None:
        """The sum of a query over the shards becomes the number."""
        deadline = time.monotonic() + self.patience
        while (found := self.total(query)) != number and time.monotonic() < deadline:
            await until(lambda: self.total(query) != found or time.monotonic() >= deadline, self.patience + 60)
        self.expect(what, found, number)

    def expect_i1(self) -> None:
        try:
            assert_i1(self.config)
        except AssertionError as error:
            raise Wrong(str(error)) from error

    async def result(self, handle: Handle[Any]) -> Any:
        try:
            return await handle.result(self.patience)
        except ResultTimeout:
            raise Wrong(f"{handle.id} has not ended") from None
        except ShardflowError as error:
            raise Wrong(f"{handle.id} ended so: {error}") from error

    async def ended_or(self, handle: Handle[Any], wrong: Callable[[], bool]) -> None:
        """Returns when the workflow has ended, or something wrong is to be seen: there are mutants without an end."""
        ended = "SELECT count(*) FROM outcome JOIN workflow USING (wf) WHERE id = %s"
        await until(lambda: self.total(ended, handle.id) or wrong(), 60, f"{handle.id} ends")

    async def expect_the_end(self) -> None:
        """Nothing is left over anywhere."""
        await self.expect_soon("left in the outbox", "SELECT count(*) FROM outbox", 0)
        for table in ("watcher", "ready", "wait", "retry"):
            self.expect(f"left in {table}", self.total(f"SELECT count(*) FROM {table}"), 0)
        bad = """
            SELECT count(*) FROM workflow LEFT JOIN outcome USING (wf)
            WHERE coalesce(status, 'none') <> CASE WHEN id = ANY(%s) THEN 'failed' ELSE 'succeeded' END"""
        self.expect("not ended well", self.total(bad, list(self.failing)), 0)
        self.expect_i1()
