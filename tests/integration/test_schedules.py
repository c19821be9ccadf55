"""Schedules as users meet them: in the code of an app, through the client, and when a worker is killed."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import MakeCluster
from support.lab import LEASE, POOL
from support.look import one, rows, total, until
from support.ticking import home, often, ran, set_back, ticking
from support.work import running

from shardflow import (
    App,
    AsyncClient,
    AsyncHandle,
    Client,
    ClusterConfig,
    InvalidInput,
    ScheduleConflict,
    ScheduleNotFound,
    Status,
    UsageError,
    WorkflowConflict,
)
from shardflow.client.schedules import AsyncSchedules
from shardflow.client.sync_schedules import Schedules
from shardflow.core.options import Options

__all__ = ["often"]

pytestmark = pytest.mark.usefixtures("often")

TOP = Path(__file__).resolve().parents[2]


def an_app() -> tuple[App, list[Any]]:
    """An app with workflows "work", which takes nothing, and "report", which takes the tick's time and a name."""
    app, seen = App("scheduled"), list[Any]()

    @app.workflow
    async def work() -> None:
        seen.append("work")

    @app.workflow(queue="reports")
    async def report(when: datetime, name: str) -> str:
        seen.append(when)
        return f"{name} at {when:%H:%M:%S %z}"

    return app, seen


async def test_a_schedule_in_the_code_runs_its_workflow_with_the_ticks_time(cluster_config: ClusterConfig) -> None:
    app, seen = an_app()
    app.schedule(1, tz="Asia/Kolkata", name="beat", args=("all",))(app.workflows["report"])
    async with running(cluster_config, app), running(cluster_config, app), AsyncClient(cluster_config) as client:
        await until(lambda: len(seen) >= 3)
        first = ran(cluster_config, "beat")[0]
        assert await (await client.get(first)).result(30) == f"all at {_kolkata(first)}"
        info = await client.schedules.get("beat")
        assert (info.spec, info.zone, info.queue, info.from_code) == ("every 1s", "Asia/Kolkata", "reports", True)
        with pytest.raises(ScheduleConflict, match="take it out there, or pause it"):
            await client.schedules.delete("beat")
        await client.schedules.pause("beat")
    found = ran(cluster_config, "beat")
    assert len(set(seen)) == len(seen), "a tick ran twice"
    assert len(found) >= len(seen)


def _kolkata(id: str) -> str:
    tick = datetime.fromisoformat(id.removeprefix("schedule:beat:"))
    return f"{tick + timedelta(hours=5, minutes=30):%H:%M:%S} +0530"


async def test_a_schedule_of_a_client_runs_until_it_is_paused_or_deleted(cluster_config: ClusterConfig) -> None:
    app, seen = an_app()
    async with AsyncClient(cluster_config) as client, running(cluster_config, app):
        info = await client.schedules.create("beat", timedelta(seconds=1), app.workflows["work"])
        assert (info.state, info.from_code, info.last_id) == ("active", False, None)
        assert info.shard == cluster_config.shards[home(cluster_config, "beat")].name
        await until(lambda: len(seen) >= 2)
        await client.schedules.pause("beat")
        assert (await client.schedules.get("beat")).next_at is None
        await client.schedules.resume("beat")
        before = len(ran(cluster_config, "beat"))
        await until(lambda: len(ran(cluster_config, "beat")) > before)
        await client.schedules.delete("beat")
        with pytest.raises(ScheduleNotFound):
            await client.schedules.get("beat")
        assert (await client.schedules.list()).schedules == []


async def test_the_ticks_of_a_pause_do_not_come_when_it_is_over(
    cluster_config: ClusterConfig, client: AsyncClient
) -> None:
    await client.schedules.create("beat", 3600, "work", missed="all", paused=True)
    set_back(cluster_config, "beat", 5 * 3600)
    rows(cluster_config, "UPDATE schedule SET next_at = NULL", shard=home(cluster_config, "beat"))
    async with ticking(cluster_config):
        await client.schedules.resume("beat")
        await client.schedules.create("other", 1, "work")
        await until(lambda: len(ran(cluster_config, "other")) >= 2)
    assert ran(cluster_config, "beat") == []
    following = (await client.schedules.get("beat")).next_at
    assert following is not None
    assert following > datetime.now(UTC) - timedelta(minutes=1)


async def test_a_trigger_runs_the_workflow_now_also_while_paused(cluster_config: ClusterConfig) -> None:
    app, seen = an_app()
    async with AsyncClient(cluster_config) as client, running(cluster_config, app):
        await client.schedules.create(
            "nightly", "0 3 * * *", app.workflows["report"], ("x",), tz="Europe/Vienna", paused=True
        )
        one_of_them = await client.schedules.trigger("nightly")
        another = await client.schedules.trigger("nightly", id="once")
        assert await another.result(30) is not None
        await until(lambda: datetime.now(UTC) - seen[-1] > timedelta(seconds=1))
        again = await client.schedules.trigger("nightly", id="once")
        await client.submit("work", id="taken")
        with pytest.raises(WorkflowConflict):
            await client.schedules.trigger("nightly", id="taken")
        assert one_of_them.id.startswith("schedule:nightly:")
        assert await one_of_them.result(30) is not None
        assert await again.result(30) is not None
        assert [again.id, len(seen) - seen.count("work")] == ["once", 2]
        assert all(abs(datetime.now(UTC) - when) < timedelta(minutes=2) for when in seen if when != "work")


async def test_a_backfill_runs_what_has_not_run_yet(
    cluster_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardflow.client.schedules.MOST", 3)
    app, seen = an_app()
    start = datetime(2026, 3, 28, tzinfo=UTC)
    async with AsyncClient(cluster_config) as client, running(cluster_config, app):
        await client.schedules.create(
            "nightly", "30 2 * * *", app.workflows["report"], ("x",), tz="Europe/Vienna", paused=True
        )
        first = await client.schedules.backfill("nightly", start, start + timedelta(days=1))
        handles = await client.schedules.backfill("nightly", start, start + timedelta(days=3))
        assert [h.id for h in first] == [h.id for h in handles[:1]]
        assert [await handle.result(30) for handle in handles] == [
            "x at 02:30:00 +0100",
            "x at 03:00:00 +0200",
            "x at 02:30:00 +0200",
        ]
        with pytest.raises(InvalidInput, match="more than 3 ticks"):
            await client.schedules.backfill("nightly", start, start + timedelta(days=5))
        with pytest.raises(ScheduleNotFound):
            await client.schedules.backfill("nightl", start, start)
    assert len(seen) == 3


async def test_a_large_backfill_is_one_workflow_for_each_tick(
    cluster_config: ClusterConfig, client: AsyncClient
) -> None:
    await client.schedules.create("beat", 60, "work", paused=True)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    handles = await client.schedules.backfill("beat", start, start + timedelta(minutes=2_500))
    assert len({handle.id for handle in handles}) == 2_500
    assert total(cluster_config, "SELECT count(*) FROM workflow") == 2_500


async def test_the_same_schedule_again_is_harmless_and_another_one_a_conflict(client: AsyncClient) -> None:
    made = await client.schedules.create("beat", "0 3 * * *", "work", ("x",), missed="latest")
    assert await client.schedules.create("beat", "0  3 * * *", "work", ("x",), missed="latest") == made
    for changes in ({"missed": "all"}, {"args": ("y",)}, {"tz": "Europe/Vienna"}, {"options": Options(priority=1)}):
        wanted: dict[str, Any] = {"args": ("x",), "missed": "latest", **changes}
        with pytest.raises(ScheduleConflict, match="replace"):
            await client.schedules.create("beat", "0 3 * * *", "work", **wanted)
    changed = await client.schedules.create("beat", "0 4 * * *", "work", replace=True)
    assert (changed.spec, changed.missed) == ("0 4 * * *", "skip")
    assert (await client.schedules.get("beat")).spec == "0 4 * * *"


async def test_a_changed_rule_counts_from_now_and_the_same_rule_loses_no_tick(
    cluster_config: ClusterConfig, client: AsyncClient
) -> None:
    await client.schedules.create("beat", 3600, "work", missed="all")
    began = set_back(cluster_config, "beat", 3 * 3600)
    await client.schedules.create("beat", 3600, "work", ("x",), missed="all", replace=True)
    here = home(cluster_config, "beat")
    assert one(cluster_config, "SELECT decided_to FROM schedule", shard=here) == began
    await client.schedules.create("beat", 1800, "work", missed="all", replace=True)
    assert one(cluster_config, "SELECT decided_to > now() - interval '1 minute' FROM schedule", shard=here)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("x", "* *", "work"), "not a cron expression"),
        (("x" * 300, 5, "work"), "more than 200"),
        (("x", 5, 7), "not int"),
        (("x", 5, "work", "text"), "args must be"),
    ],
)
async def test_what_cannot_be_a_schedule_is_refused_at_once(
    client: AsyncClient, arguments: tuple[Any, ...], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        await client.schedules.create(*arguments)


async def test_a_workflow_that_does_not_take_the_arguments_is_refused_at_once(client: AsyncClient) -> None:
    app, _ = an_app()
    with pytest.raises(UsageError, match="tick's time"):
        await client.schedules.create("x", 5, app.workflows["report"], (1, 2, 3))


async def test_the_options_of_a_schedule_are_those_of_its_workflows(
    cluster_config: ClusterConfig, client: AsyncClient
) -> None:
    options = Options(queue="slow", priority=-5, attributes={"tenant": "a"})
    await client.schedules.create("beat", 1, "work", options=options)
    async with ticking(cluster_config):
        await until(lambda: ran(cluster_config, "beat"))
    id = ran(cluster_config, "beat")[0]
    query = "SELECT queue, priority, attributes FROM workflow WHERE id = %s"
    assert rows(cluster_config, query, id, shard=home(cluster_config, id)) == [("slow", -5, {"tenant": "a"})]


async def test_a_list_names_the_shards_that_do_not_answer(
    cluster_config: ClusterConfig, client: AsyncClient, lab: Any
) -> None:
    for n in range(9):
        await client.schedules.create(f"s{n}", 60, "work")
    assert [info.name for info in (await client.schedules.list()).schedules] == [f"s{n}" for n in range(9)]
    lab.server(1).stop("immediate")
    short = replace(cluster_config, pool=replace(cluster_config.pool, timeout=1.0))
    async with AsyncClient(short) as other:
        found = await other.schedules.list()
    lost = [f"s{n}" for n in range(9) if home(cluster_config, f"s{n}") == 1]
    assert lost
    assert [info.name for info in found.schedules] == [f"s{n}" for n in range(9) if f"s{n}" not in lost]
    assert list(found.unreachable) == ["s1"]
    lab.server(1).start()


async def test_a_schedule_in_the_code_and_one_of_a_client_do_not_share_a_name(
    shard_config: ClusterConfig, caplog: pytest.LogCaptureFixture
) -> None:
    app, _ = an_app()
    app.schedule("0 3 * * *", name="nightly")(app.workflows["work"])
    async with AsyncClient(shard_config) as client:
        await client.schedules.create("nightly", "0 5 * * *", "work")
        async with ticking(shard_config, app):
            await until(lambda: "cannot be registered" in caplog.text)
        assert (await client.schedules.get("nightly")).spec == "0 5 * * *"
        await client.schedules.delete("nightly")
        async with ticking(shard_config, app):
            await until(lambda: rows(shard_config, "SELECT spec FROM schedule") == [("0 3 * * *",)])
        with pytest.raises(ScheduleConflict, match="from an app's code"):
            await client.schedules.create("nightly", "0 5 * * *", "work", replace=True)


def public(kind: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(kind) if not name.startswith("_") and callable(value)}


def test_both_faces_have_the_same_methods_and_signatures() -> None:
    ours, theirs = public(AsyncSchedules), public(Schedules)
    assert ours.keys() == theirs.keys()
    for name, method in ours.items():
        one_side, other_side = inspect.signature(method), inspect.signature(theirs[name])
        assert str(one_side).replace("Async", "") == str(other_side), name


def test_the_synchronous_client_answers_the_same(cluster_config: ClusterConfig) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    with Client(cluster_config) as client:
        made = client.schedules.create("beat", 60, "work")
        assert client.schedules.get("beat") == made
        assert client.schedules.list().schedules == [made]
        client.schedules.pause("beat")
        client.schedules.resume("beat")
        handle = client.schedules.trigger("beat", id="now")
        assert (handle.id, handle.status()) == ("now", Status.READY)
        handles = client.schedules.backfill("beat", start, start + timedelta(minutes=2))
        assert [type(each) for each in handles] == [type(handle)] * 2
        assert not isinstance(handle, AsyncHandle)
        client.schedules.delete("beat")
        with pytest.raises(ScheduleNotFound):
            client.schedules.pause("beat")


MORTAL = '''
"""A worker that is killed when its first ticks are submitted and nobody has noted it."""
import asyncio, os, signal, sys
import shardflow
from shardflow.core import schedule
from shardflow.storage import schedules

app = shardflow.App("mortal")

@app.schedule(1, name="beat", missed="all")
@app.workflow
async def work() -> None: ...

async def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)

async def serve() -> None:
    if "random_ids" in sys.argv:  # mutant: the id does not follow from the tick
        import uuid
        schedule.tick_id = lambda name, tick: f"schedule:{name}:{uuid.uuid4()}"
    if "mortal" in sys.argv:
        schedules.submitted = die
    worker = shardflow.Worker(shardflow.load_config(sys.argv[1]), app)
    await worker.start()
    await worker.wait()

asyncio.run(serve())
'''


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Any]:
    """Starts worker processes; ends them with the test."""
    made: list[subprocess.Popen[bytes]] = []
    (tmp_path / "mortal.py").write_text(MORTAL)

    def start(config: ClusterConfig, *words: str) -> subprocess.Popen[bytes]:
        file = tmp_path / "cluster.yaml"
        data = {
            "name": config.name,
            "slots": config.slots,
            "shards": [{"name": s.name, "dsn": s.dsn} for s in config.shards],
            "pool": {"timeout": config.pool.timeout},
            "lease": {"ttl": config.lease.ttl},
        }
        file.write_text(yaml.safe_dump(data))
        env = {**os.environ, "PYTHONPATH": str(TOP)}
        made.append(subprocess.Popen([sys.executable, str(tmp_path / "mortal.py"), str(file), *words], env=env))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()


async def killed_and_followed(config: ClusterConfig, mortal: Any, *mutants: str) -> tuple[list[str], int]:
    """The ids of the ticks after a worker was killed between a submit and its note, and another one has followed; and
    how many ticks there were."""
    here = home(config, "beat")
    victim = mortal(config, "mortal", *mutants)
    code = await asyncio.to_thread(victim.wait, 60)
    assert code == -signal.SIGKILL
    submitted, left = ran(config, "beat"), rows(config, "SELECT at FROM tick", shard=here)
    assert submitted, "nothing was submitted before the kill"
    assert left, "the kill came after the note"
    mortal(config, *mutants)
    await until(lambda: len(ran(config, "beat")) >= len(submitted) + 3)
    rows(config, "UPDATE schedule SET paused = true, next_at = NULL", shard=here)
    await until(lambda: not rows(config, "SELECT at FROM tick", shard=here))
    ticks = "SELECT floor(date_part('epoch', decided_to)) - floor(date_part('epoch', created_at)) FROM schedule"
    return ran(config, "beat"), one(config, ticks, shard=here)


async def test_a_worker_killed_between_submit_and_note_has_each_tick_run_once(
    make_cluster: MakeCluster, mortal: Any
) -> None:
    config = make_cluster(lease=LEASE, pool=replace(POOL, timeout=2.0))
    found, ticks = await killed_and_followed(config, mortal)
    assert len(found) == ticks
    times = [datetime.fromisoformat(id.removeprefix("schedule:beat:")) for id in found]
    assert times == [times[0] + timedelta(seconds=n) for n in range(len(times))], "a tick is missing, or there twice"
    ended = "SELECT count(*) FROM outcome WHERE status = 'succeeded'"
    await until(lambda: total(config, ended) >= len(found))


async def test_if_ids_did_not_follow_from_ticks_a_tick_would_run_twice(
    make_cluster: MakeCluster, mortal: Any
) -> None:
    """The positive control of the test before."""
    config = make_cluster(lease=LEASE, pool=replace(POOL, timeout=2.0))
    found, ticks = await killed_and_followed(config, mortal, "random_ids")
    assert len(found) > ticks
