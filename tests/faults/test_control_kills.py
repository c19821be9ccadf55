"""Workers and answers that are lost while workflows are ended from outside or begin anew; and workflows that kill
their workers. Each case is red where the guard that it is about is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.control_app import busy, killer, loop, neighbour
from faults.kill_cases import SOON, Case
from faults.kill_stand import Stand, Wrong
from faults.nursery import Nursery
from support.look import assert_i1, rows, until
from support.work import ids_on

import shardflow
from shardflow import AsyncClient, ClusterConfig, ShardUnavailable, Status
from shardflow.core.topics import CANCEL
from shardflow.storage import control

MakeCluster = Callable[..., ClusterConfig]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs pidfd and /proc")

KIDS = 12
CANCELLED = "SELECT count(*) FROM outcome WHERE status = 'cancelled'"
STARTED = "SELECT count(*) FROM step WHERE name = 'shardflow.start'"


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    none = tmp_path_factory.mktemp("control")
    made = Nursery(none, none, none, (), 20, "faults.control_app")
    try:
        yield made
    finally:
        made.close()


async def cancelled(stand: Stand, suspended: bool) -> None:
    """The victim serves the parent alone; its children wait for nobody's worker."""
    stand.everywhere(
        "CREATE TABLE public.told (id text)",
        "CREATE FUNCTION public.told() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO public.told VALUES (NEW.wf::text); RETURN NULL; END $$",
        "CREATE TRIGGER told AFTER INSERT ON outcome FOR EACH ROW EXECUTE FUNCTION public.told()",
    )
    (parent,) = ids_on(stand.config, 0, 1, "parent")
    stand.victim("default")
    await stand.client.submit(busy, KIDS, suspended, id=parent)
    await stand.until(STARTED, 1)
    if suspended:
        await stand.until("SELECT count(*) FROM wait", 1)
    assert await stand.client.cancel(parent)
    await stand.killed()
    if not suspended:
        stand.expect("the parent", stand.total(CANCELLED), 1)
    stand.successor()
    await stand.taken_over()
    await stand.expect_soon("cancelled", CANCELLED, KIDS + 1)
    await stand.expect_soon("left in the outbox", "SELECT count(*) FROM outbox", 0)
    stand.expect("ends", stand.total("SELECT count(*) FROM public.told"), KIDS + 1)
    for table in ("cancel", "watcher", "ready", "wait"):
        await stand.expect_soon(f"left in {table}", f"SELECT count(*) FROM {table}", 0)
    stand.expect_i1()


async def anew(stand: Stand) -> None:
    stand.victim()
    handle = await stand.client.submit(loop, 0, [])
    await stand.killed()
    stand.successor()
    values = await stand.result(handle)
    stand.expect_effects("0", "1", "2")
    stand.expect("different values", len(set(values)), 3)
    stand.expect("records", stand.total("SELECT count(*) FROM step"), 2)
    await stand.expect_the_end()


CASES = [
    Case(
        "cancel: the parent's end | the children's cancels",
        lambda stand: cancelled(stand, False),
        "after ended cancelled",
        "cancel_children_later",
        "cancelled: 1 instead of 13",
        shards=3,
        waits=SOON,
    ),
    Case(
        "cancel: outbox | delivery",
        lambda stand: cancelled(stand, True),
        f"after told {CANCEL}",
        "adopt_nothing",
        "cancelled: 1 instead of 13",
        shards=3,
        later=True,
        waits=SOON,
    ),
    Case(
        "continue_as_new: not yet recorded",
        anew,
        "before step shardflow.continue",
        "acknowledge_before_commit",
        "'0': 2",
    ),
    Case(
        "continue_as_new: recorded | answer",
        anew,
        "after step shardflow.continue",
        "forget_later",
        "effects|ended so",
    ),
]


async def play(case: Case, mutated: bool, make_cluster: MakeCluster, nursery: Nursery, folder: Path) -> None:
    mutants = (case.mutant,) if mutated else ()
    given, later = ((), mutants) if case.later else (mutants, ())
    async with AsyncClient(make_cluster(shards=case.shards)) as client:
        patience = case.waits if mutated else 60.0
        stand = Stand(client.config, client, nursery, folder, case.point, given, later, patience)
        try:
            await case.play(stand)
        finally:
            stand.close()


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_killed_there(case: Case, make_cluster: MakeCluster, nursery: Nursery, tmp_path: Path) -> None:
    await play(case, False, make_cluster, nursery, tmp_path)


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_red_where(case: Case, make_cluster: MakeCluster, nursery: Nursery, tmp_path: Path) -> None:
    with pytest.raises(Wrong, match=case.red):
        await play(case, True, make_cluster, nursery, tmp_path)


@pytest.mark.parametrize("what", ["cancel", "resume", "restart", "fork"])
async def test_the_answer_of_a_commit_is_lost(
    what: str, shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost = control._admitted, [0]

    async def admitted(shard: Any, conn: Any, *rest: Any) -> Any:
        answer = await real(shard, conn, *rest)
        if not lost[0]:
            lost[0] += 1
            await conn.close()
            raise ShardUnavailable("the connection was cut", shard=shard.name)
        return answer

    async with AsyncClient(shard_config) as client:
        await client.submit("work", id="w")
        if what in ("resume", "restart"):
            await client.cancel("w")
        monkeypatch.setattr(control, "_admitted", admitted)
        if what == "fork":
            fork = await client.fork("w")
            assert await fork.status() is Status.READY
            assert len(rows(shard_config, "SELECT id FROM workflow")) == 2
        else:
            assert await getattr(client, what)("w")
            assert (await client.info("w")).status is (Status.CANCELLED if what == "cancel" else Status.READY)
        assert lost == [1]
        assert_i1(shard_config)


async def quarantine(stand: Stand, number: int) -> int:
    """Workers, one after the other, among whose workflows one kills them; answers how many it has killed."""
    neighbours = [await stand.client.submit(neighbour, n) for n in range(number // 2)]
    bad = await stand.client.submit(killer, id="killer")
    neighbours += [await stand.client.submit(neighbour, n) for n in range(number // 2, number)]
    deaths = 0
    worker = stand.worker("w0")

    async def over() -> bool:
        nonlocal deaths, worker
        if not worker.alive:
            deaths += 1
            worker = stand.worker(f"w{deaths}")
        return stand.total("SELECT count(*) FROM outcome") == number + 1

    await until(over, 120, "all have ended")
    with pytest.raises(shardflow.WorkflowDead, match="7 workers died"):
        await bad.result(30)
    for handle in neighbours:
        await stand.result(handle)
    stand.expect("effects", sorted({int(n) for n in stand.effects()}), [*range(number)])
    stand.expect_i1()
    return deaths


async def test_a_workflow_that_kills_its_workers_is_given_up_and_its_neighbours_are_not(
    shard_config: ClusterConfig, nursery: Nursery, tmp_path: Path
) -> None:
    async with AsyncClient(shard_config) as client:
        stand = Stand(shard_config, client, nursery, tmp_path, "")
        try:
            assert await quarantine(stand, 50) == 7
            assert await client.resume("killer")  # somebody has mended it, so they think
            await until(lambda: not all(worker.alive for worker in stand._processes[-1:]), what="it killed again")
        finally:
            stand.close()


async def test_it_takes_its_neighbours_along_where_suspects_run_together(
    shard_config: ClusterConfig, nursery: Nursery, tmp_path: Path
) -> None:
    async with AsyncClient(shard_config) as client:
        stand = Stand(shard_config, client, nursery, tmp_path, "", ("together",))
        try:
            with pytest.raises(Wrong, match="workers died"):
                await quarantine(stand, 50)
        finally:
            stand.close()
