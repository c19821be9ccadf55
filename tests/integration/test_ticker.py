"""Ticks of schedules: each is submitted once, whoever dies or is away; missed ones and overlaps go by the policy."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import MakeCluster
from support.lab import POOL
from support.look import connect, one, rows, terminate, total, until
from support.ticking import home, of_schedule, often, ran, set_back, ticking
from support.work import ids_on

from shardflow import App, AsyncClient, ClusterConfig, ShardUnavailable
from shardflow.core.cron import parse
from shardflow.core.schedule import Definition, tick_id
from shardflow.delivery.router import Router
from shardflow.delivery.sender import Item, Sender
from shardflow.errors import MapChanged
from shardflow.storage import schedules
from shardflow.storage.shard import Shard
from shardflow.worker.ticker import Ticker, _choose

__all__ = ["often"]

pytestmark = pytest.mark.usefixtures("often")


def expected(name: str, text: str, start: datetime, end: datetime) -> list[str]:
    """The ids of the ticks in (start, end]."""
    timing, found = parse(text, "UTC"), list[str]()
    tick = timing.after(start)
    while tick is not None and tick <= end:
        found.append(tick_id(name, tick))
        tick = timing.after(tick)
    return found


async def decided(config: ClusterConfig, name: str) -> datetime:
    """Waits until nothing of a schedule is due and all that was decided is submitted; until when that is."""
    query = (  # at one moment: the next tick may be due in the next one
        "SELECT decided_to FROM schedule s WHERE name = %s AND (next_at IS NULL OR next_at > now())"
        " AND NOT EXISTS (SELECT FROM tick t WHERE t.schedule = s.name)"
    )
    here = home(config, name)
    ((found,),) = await until(lambda: rows(config, query, name, shard=here))
    return found


async def test_several_tickers_submit_each_tick_once(cluster_config: ClusterConfig, client: AsyncClient) -> None:
    await client.schedules.create("beat", 1, "work")
    began = of_schedule(cluster_config, "beat", "decided_to")
    async with ticking(cluster_config), ticking(cluster_config), ticking(cluster_config):
        await until(lambda: len(ran(cluster_config, "beat")) >= 4, 30)
    found = ran(cluster_config, "beat")
    last = datetime.fromisoformat(found[-1].removeprefix("schedule:beat:"))
    assert found == expected("beat", "every 1s", began, last)
    assert total(cluster_config, "SELECT count(*) FROM workflow") == len(found)
    info = await client.schedules.get("beat")
    assert (info.last_id, info.last_at, info.state) == (found[-1], last, "active")


async def test_a_tick_comes_within_a_second_of_its_time_by_the_shards_clock(
    cluster_config: ClusterConfig, client: AsyncClient
) -> None:
    await client.schedules.create("beat", 2, "work")
    async with ticking(cluster_config):
        await until(lambda: len(ran(cluster_config, "beat")) >= 2, 30)
    late = [
        row[0]
        for k in range(3)
        for row in rows(
            cluster_config,
            "SELECT extract(epoch FROM submitted_at - substring(id FROM 'beat:(.*)')::timestamptz) FROM workflow",
            shard=k,
        )
    ]
    assert len(late) >= 2
    assert all(seconds >= 0 for seconds in late), "before its time"


@pytest.mark.parametrize("missed", ["skip", "latest", "all"])
async def test_after_a_time_without_workers_missed_ticks_go_by_the_policy(
    cluster_config: ClusterConfig, client: AsyncClient, missed: str
) -> None:
    # The next tick is far away, so that what comes is what was missed: the last one 2 to 4 hours ago.
    now = datetime.now(UTC)
    text = f"0 {(now.hour - 4) % 24},{(now.hour - 3) % 24} * * *"
    await client.schedules.create("reports", text, "work", missed=missed)
    began = set_back(cluster_config, "reports", 5 * 3600)
    async with ticking(cluster_config):
        until_then = await decided(cluster_config, "reports")
    all_of_them = expected("reports", text, began, until_then)
    assert len(all_of_them) >= 2
    wanted = {"skip": [], "latest": all_of_them[-1:], "all": all_of_them}[missed]
    assert ran(cluster_config, "reports") == wanted


async def test_a_crash_of_the_ticker_within_the_minute_is_no_missed_tick(
    cluster_config: ClusterConfig, client: AsyncClient
) -> None:
    await client.schedules.create("beat", 5, "work", missed="skip")
    began = set_back(cluster_config, "beat", 40)
    async with ticking(cluster_config):
        until_then = await decided(cluster_config, "beat")
    wanted = expected("beat", "every 5s", began, until_then)
    assert len(wanted) >= 8
    assert ran(cluster_config, "beat")[: len(wanted)] == wanted  # and perhaps one that came due since


async def test_a_ticker_that_dies_between_the_submit_and_its_note_is_followed_without_a_second_run(
    cluster_config: ClusterConfig, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.schedules.create("beat", 3600, "work")
    began = set_back(cluster_config, "beat", 3600 - 1e-3)
    ticks = expected("beat", "every 3600s", began, began + timedelta(hours=1))
    original, died = schedules.submitted, asyncio.Event()

    async def die(*_: Any) -> None:
        died.set()
        raise ShardUnavailable("died here")

    monkeypatch.setattr(schedules, "submitted", die)
    change = "UPDATE schedule SET missed = 'all' WHERE name = 'beat'"
    rows(cluster_config, change, shard=home(cluster_config, "beat"))
    async with ticking(cluster_config):
        await asyncio.wait_for(died.wait(), 30)
    assert ran(cluster_config, "beat") == ticks, "submitted, and not noted"
    here = home(cluster_config, "beat")
    assert one(cluster_config, "SELECT tries FROM tick", shard=here) >= 1
    monkeypatch.setattr(schedules, "submitted", original)
    rows(cluster_config, "UPDATE tick SET try_at = now()", shard=here)
    async with ticking(cluster_config):
        await decided(cluster_config, "beat")
    assert ran(cluster_config, "beat") == ticks
    assert total(cluster_config, "SELECT count(*) FROM workflow") == 1


async def test_a_ticker_that_dies_before_the_submit_loses_nothing(
    cluster_config: ClusterConfig, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is decided already; that somebody else submits it does not hang on the policy for missed ticks."""
    from shardflow.worker.ticker import Ticker

    await client.schedules.create("beat", 3600, "work", missed="all")
    began = set_back(cluster_config, "beat", 3600 - 1e-3)
    ticks = expected("beat", "every 3600s", began, began + timedelta(hours=1))
    died = asyncio.Event()

    async def die(*_: Any) -> None:
        died.set()

    with monkeypatch.context() as patch:
        patch.setattr(Ticker, "_submit", die)
        async with ticking(cluster_config):
            await asyncio.wait_for(died.wait(), 30)
    here = home(cluster_config, "beat")
    assert ran(cluster_config, "beat") == []
    assert one(cluster_config, "SELECT count(*) FROM tick", shard=here) == 1
    rows(cluster_config, "UPDATE schedule SET missed = 'skip'", shard=here)
    rows(cluster_config, "UPDATE tick SET try_at = now()", shard=here)
    async with ticking(cluster_config):
        await decided(cluster_config, "beat")
    assert ran(cluster_config, "beat") == ticks


async def test_connections_that_break_at_any_moment_cost_no_tick_and_repeat_none(make_cluster: MakeCluster) -> None:
    config = make_cluster(pool=replace(POOL, timeout=1.0))
    async with AsyncClient(config) as client:
        await client.schedules.create("beat", 1, "work", missed="all")
    began = of_schedule(config, "beat", "decided_to")
    async with ticking(config), ticking(config):
        broken = 0
        while len(ran(config, "beat")) < 5 or broken < 10:
            broken += terminate(config, "client", random.randrange(3))
            await asyncio.sleep(random.uniform(0.0, 0.3))
        until_then = await decided(config, "beat")
    wanted = expected("beat", "every 1s", began, until_then)
    assert ran(config, "beat")[: len(wanted)] == wanted


async def test_a_tick_for_a_shard_that_is_away_waits_for_it_and_no_other_does(
    cluster_config: ClusterConfig, client: AsyncClient, lab: Any
) -> None:
    names = ids_on(cluster_config, 0, 2, "away-")
    away = next(f"{name}{{{key}}}" for name, key in zip(names, ids_on(cluster_config, 2, 2, "k"), strict=True))
    # A name in braces keeps a schedule's workflows on the schedule's own shard; here it is the routing key of both.
    assert home(cluster_config, away) == 2
    here = ids_on(cluster_config, 0, 1, "here")[0]
    await client.schedules.create(f"{{{here}}}", 1, "work")
    others = [key for key in (f"m{n}" for n in range(40)) if home(cluster_config, key) == 0][:12]
    for name in others:
        await client.schedules.create(name, 3600, "work", missed="all")
        set_back(cluster_config, name, 3 * 3600)
    targets = {
        name: [home(cluster_config, id) for id in _hours(name, of_schedule(cluster_config, name, "decided_to"))]
        for name in others
    }
    assert any(2 in found for found in targets.values()), "no tick for the shard that is away"
    lab.server(2).stop("immediate")
    async with ticking(cluster_config, shards=(0,)):
        await until(lambda: _submitted_here(cluster_config, f"{{{here}}}") >= 3, 30)
        waiting = sum(found.count(2) for found in targets.values())
        left = "SELECT count(*) FROM tick"
        await until(lambda: one(cluster_config, left) == waiting, 30, "all but those of the shard that is away")
        lab.server(2).start()
        for name in others:
            await decided(cluster_config, name)
    for name in others:
        assert len(ran(cluster_config, name)) == len(targets[name])


async def test_a_shard_that_is_away_is_not_asked_for_each_tick_that_wants_no_overlap(
    cluster_config: ClusterConfig, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time would take as long as a connection may, and all the others wait."""
    names = ids_on(cluster_config, 0, 40)
    asked = 0

    async def away(shard: Shard, *_: Any) -> bool:
        nonlocal asked
        asked += 1
        raise ShardUnavailable("away", shard=shard.name)

    monkeypatch.setattr(schedules, "ended", away)
    for name in names:
        await client.schedules.create(name, 3600, "work", overlap="skip", missed="latest")
        set_back(cluster_config, name, 7200)
        rows(cluster_config, "UPDATE schedule SET last_id = 'before ' || name WHERE name = %s", name)
    async with ticking(cluster_config, shards=(0,)):
        await until(lambda: one(cluster_config, "SELECT count(*) FROM tick WHERE tries > 0") == len(names), 30)
    assert 0 < asked < len(names) // 2


async def test_a_submit_that_hangs_holds_up_no_tick_for_another_shard(
    cluster_config: ClusterConfig, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung, go, original = asyncio.Event(), asyncio.Event(), Sender.send

    async def send(self: Sender, items: Sequence[Item]) -> None:
        if any(home(cluster_config, item.id) == 2 for item in items):
            hung.set()
            await go.wait()
        await original(self, items)

    monkeypatch.setattr(Sender, "send", send)
    spread, here = ids_on(cluster_config, 0, 2)
    await client.schedules.create(spread, 1, "work")
    await client.schedules.create(f"{{{here}}}", 1, "work")
    async with ticking(cluster_config, shards=(0,)):
        await asyncio.wait_for(hung.wait(), 60)
        before = _submitted_here(cluster_config, f"{{{here}}}")
        await until(lambda: _submitted_here(cluster_config, f"{{{here}}}") >= before + 3)
        go.set()


def _hours(name: str, since: datetime) -> list[str]:
    return expected(name, "every 3600s", since, datetime.now(UTC))


def _submitted_here(config: ClusterConfig, name: str) -> int:
    return int(one(config, "SELECT count(*) FROM workflow WHERE id LIKE %s", f"schedule:{name}:%"))


async def test_without_overlap_a_tick_is_left_out_while_the_workflow_before_has_not_ended(
    cluster_config: ClusterConfig, client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "shardflow.worker")
    await client.schedules.create("beat", 1, "work", overlap="skip")
    async with ticking(cluster_config), ticking(cluster_config):
        await until(lambda: sum("left out" in record.message for record in caplog.records) >= 3, 30)
        first = ran(cluster_config, "beat")
        assert len(first) == 1
        here = home(cluster_config, first[0])
        end = "INSERT INTO outcome (wf, status) SELECT wf, 'succeeded' FROM workflow WHERE id = %s"
        rows(cluster_config, end, first[0], shard=here)
        await until(lambda: len(ran(cluster_config, "beat")) == 2, 30)
        await until(lambda: sum("left out" in record.message for record in caplog.records) >= 6, 30)
    assert len(ran(cluster_config, "beat")) == 2


async def test_a_schedule_that_cannot_be_understood_keeps_no_other_from_ticking(
    shard_config: ClusterConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncClient(shard_config) as client:
        await client.schedules.create("bad", 1, "work")
        await client.schedules.create("good", 1, "work")
    rows(shard_config, "UPDATE schedule SET zone = 'Mars/Base' WHERE name = 'bad'")
    async with ticking(shard_config):
        await until(lambda: len(ran(shard_config, "good")) >= 2, 30)
    assert ran(shard_config, "bad") == []
    assert "cannot be understood" in caplog.text


async def test_a_workflow_of_another_kind_under_a_ticks_id_does_not_stop_the_schedule(
    shard_config: ClusterConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncClient(shard_config) as client:
        await client.schedules.create("beat", 3600, "work", missed="all")
        began = set_back(shard_config, "beat", 3 * 3600)
        taken = expected("beat", "every 3600s", began, began + timedelta(hours=2))[0]
        await client.submit("another", id=taken)
    async with ticking(shard_config):
        await decided(shard_config, "beat")
    assert len(ran(shard_config, "beat")) == 3
    assert "submitted before as another one" in caplog.text


async def test_schedules_in_the_code_are_made_changed_and_found_again(shard_config: ClusterConfig) -> None:
    old, new = App("app"), App("app")
    for app, text in ((old, "0 3 * * *"), (new, "0 4 * * *")):
        app.schedule(text, name="nightly")(app.workflow(name="work")(_work))
    async with ticking(shard_config, old):
        await until(lambda: rows(shard_config, "SELECT spec FROM schedule") == [("0 3 * * *",)])
        rows(shard_config, "UPDATE schedule SET paused = true, next_at = NULL")
        async with ticking(shard_config, new):
            await until(lambda: rows(shard_config, "SELECT spec FROM schedule") == [("0 4 * * *",)])
            assert one(shard_config, "SELECT paused AND next_at IS NULL FROM schedule"), "a pause survives a change"


async def _work() -> None: ...


async def test_two_versions_of_the_code_do_not_fight_over_a_schedule(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardflow.worker.ticker.CONFIRM", 0.02)
    rows(shard_config, "CREATE TABLE change (spec text)")
    rows(
        shard_config,
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN IF OLD.spec <> NEW.spec THEN INSERT INTO shardflow.change VALUES (NEW.spec); END IF;"
        " RETURN NEW; END'",
    )
    rows(shard_config, "CREATE TRIGGER note BEFORE UPDATE ON schedule FOR EACH ROW EXECUTE FUNCTION note()")
    old, new = App("app"), App("app")
    for app, text in ((old, "0 3 * * *"), (new, "0 4 * * *")):
        app.schedule(text, name="nightly")(app.workflow(name="work")(_work))
    seen = "SELECT confirmed_at FROM schedule"
    async with ticking(shard_config, old):
        await until(lambda: rows(shard_config, seen))
        async with ticking(shard_config, new):
            await until(lambda: rows(shard_config, "SELECT spec FROM change"))
            for _ in range(4):
                before = one(shard_config, seen)
                await until(lambda before=before: one(shard_config, seen) > before)
            assert rows(shard_config, "SELECT spec FROM change") == [("0 4 * * *",)]
        # The new version is gone, as after a rollback that left an old worker running: its time comes again.
        rows(shard_config, "UPDATE schedule SET confirmed_at = now() - interval '1 hour'")
        await until(lambda: rows(shard_config, "SELECT spec FROM schedule") == [("0 3 * * *",)])


async def test_a_schedule_that_was_taken_out_of_the_code_rests_and_comes_back_with_it(
    shard_config: ClusterConfig, caplog: pytest.LogCaptureFixture
) -> None:
    app = App("app")
    app.schedule(1, name="beat")(app.workflow(name="work")(_work))
    async with ticking(shard_config, app):
        await until(lambda: len(ran(shard_config, "beat")) >= 1, 30)
    rows(shard_config, "UPDATE schedule SET confirmed_at = now() - interval '1 hour'")
    async with ticking(shard_config), AsyncClient(shard_config) as client:
        await until(lambda: one(shard_config, "SELECT next_at IS NULL FROM schedule"), 30)
        assert "no worker has it in its code" in caplog.text
        assert (await client.schedules.get("beat")).state == "no code"
        before = len(ran(shard_config, "beat"))
        async with ticking(shard_config, app):
            await until(lambda: len(ran(shard_config, "beat")) > before, 30)
            assert (await client.schedules.get("beat")).state == "active"


async def test_a_shard_without_schedules_is_asked_nothing(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the keeper sees is enough."""
    router = Router(shard_config)
    ticker = Ticker(shard_config, App("ticking"), router, Sender(router, shard_config))
    asked: list[Any] = []

    async def on(*errand: Any) -> list[Any]:
        asked.append(errand)
        return []

    monkeypatch.setattr(ticker, "_on", on)
    shard = Shard(shard_config.shards[0])
    async with await shard.connect("test") as conn:
        seen = await schedules.look(shard, conn)
    for _ in range(3):
        ticker.saw(shard, seen)
        await until(lambda: asyncio.get_running_loop().time() >= ticker._desks[shard.name].look_at)
    assert not ticker._tasks
    assert not asked
    ticker.saw(shard, replace(seen, tick_at=seen.now))
    await until(lambda: asked, what="a tick that is due is seen to")
    await ticker.close()
    await router.close()


async def test_who_was_overtaken_changes_nothing_of_a_tick_any_more(shard_config: ClusterConfig) -> None:
    async with AsyncClient(shard_config) as client:
        await client.schedules.create("beat", 3600, "work", missed="all")
    set_back(shard_config, "beat", 3600)
    shard = Shard(shard_config.shards[0])
    tick = "SELECT tries, try_at > now() FROM tick"
    async with await shard.connect("first") as first, await shard.connect("second") as second:
        assert await schedules.decide(shard, first, 1, _choose) == 1
        [slow] = await schedules.take(shard, first, 1, 0.0)
        [fast] = await schedules.take(shard, second, 1, 60.0)
        assert await schedules.take(shard, first, 1, 0.0) == [], "it is held"
        await schedules.skipped(shard, first, 1, slow)
        await schedules.submitted(shard, first, 1, [(slow, "slow")])
        await schedules.put_off(shard, first, 1, [(slow, -1.0)])
        assert rows(shard_config, tick) == [(2, True)]
        assert one(shard_config, "SELECT last_id FROM schedule") is None
        await schedules.submitted(shard, second, 1, [(fast, "fast")])
    assert rows(shard_config, tick) == []
    assert one(shard_config, "SELECT last_id FROM schedule") == "fast"


async def test_two_who_look_at_the_same_time_decide_a_schedule_once(shard_config: ClusterConfig) -> None:
    async with AsyncClient(shard_config) as client:
        await client.schedules.create("beat", 3600, "work", missed="all")
    set_back(shard_config, "beat", 3600)
    shard = Shard(shard_config.shards[0])
    with connect(shard_config) as other, other.transaction():
        other.execute("SELECT FROM schedule FOR UPDATE")
        async with await shard.connect("first") as conn:
            assert await schedules.decide(shard, conn, 1, _choose) == 0, "it is passed over, not waited for"


async def test_nothing_is_written_by_another_slot_map_and_tickers_follow_the_new_one(
    shard_config: ClusterConfig,
) -> None:
    async with AsyncClient(shard_config) as client:
        made = await client.schedules.create("beat", 1, "work")
        async with ticking(shard_config):
            await until(lambda: ran(shard_config, "beat"))
            rows(shard_config, "UPDATE shard SET generation = generation + 1")
            before = len(ran(shard_config, "beat"))
            await until(lambda: len(ran(shard_config, "beat")) > before + 1)
        await client.schedules.pause("beat")
        shard = Shard(shard_config.shards[0])
        definition = Definition("x", "every 1s", "UTC", "work", "default", made.input, False, "{}", "skip", "allow")
        async with await shard.connect("stale") as conn:
            for write in (
                schedules.create(shard, conn, 1, 0, definition, paused=False, replacing=False),
                schedules.register(shard, conn, 1, 0, definition, datetime.now(UTC)),
                schedules.set_paused(shard, conn, 1, "beat", False),
                schedules.delete(shard, conn, 1, "beat"),
                schedules.decide(shard, conn, 1, _choose),
                schedules.take(shard, conn, 1, 0.0),
            ):
                with pytest.raises(MapChanged):
                    await write
        assert (await client.schedules.get("beat")).state == "paused"
