"""Rough counts: exact where there are few; where there are many, by the server's statistics, and named as such."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.look import until
from support.many import ended, fill, plain

from shardflow import AsyncClient, ClusterConfig, InvalidInput, Status
from shardflow.cli.main import invoke
from shardflow.storage import queries

MakeCluster = Callable[..., ClusterConfig]


@pytest.fixture
def two(make_cluster: MakeCluster) -> ClusterConfig:
    """On one shard 40 ready, 3 suspended, 2 running, 30 succeeded and 2 failed, on another one 5 ready."""
    config = make_cluster(shards=2)
    fill(config, 0, plain([f"r{n}" for n in range(40)]))
    fill(config, 0, plain([f"s{n}" for n in range(3)], Status.SUSPENDED))
    fill(config, 0, plain([f"u{n}" for n in range(2)], Status.RUNNING))
    fill(config, 0, plain([f"d{n}" for n in range(30)], Status.SUCCEEDED))
    fill(config, 0, plain([f"f{n}" for n in range(2)], Status.FAILED))
    fill(config, 1, plain([f"o{n}" for n in range(5)]))
    return config


async def test_a_rough_count_of_few_is_exact(two: ClusterConfig) -> None:
    async with AsyncClient(two) as client:
        assert await client.count(exact=False) == await client.count()
        assert (await client.count(exact=False)).total == 82
        some = await client.count(exact=False, status=["failed", "succeeded", "dead"])
        assert (dict(some.by_status), some.rough) == (
            {Status.DEAD: 0, Status.FAILED: 2, Status.SUCCEEDED: 30},
            frozenset(),
        )


async def test_a_rough_count_of_many_is_told_by_the_statistics_and_says_so(
    two: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "COUNTED", 10)
    async with AsyncClient(two) as client:

        async def settled() -> bool:
            found = await client.count(exact=False)
            assert found.rough == {Status.READY, Status.SUCCEEDED}
            return found.total == 82

        await until(settled, what="the statistics follow the commits")
        ended(two, 0, *(f"r{n}" for n in range(35)), status="cancelled")

        async def followed() -> bool:
            found = await client.count(exact=False)
            assert found.by_status[Status.READY] == 10, "5 on each shard, which are counted"
            return found.by_status[Status.SUCCEEDED] >= 30 and found.total >= 82 - 35 + 10

        await until(followed)
        found = await client.count(exact=False)
        assert found.rough == {Status.CANCELLED, Status.SUCCEEDED}
        assert found.by_status[Status.CANCELLED] >= 10


async def test_a_rough_count_goes_by_status_only(two: ClusterConfig) -> None:
    async with AsyncClient(two) as client:
        with pytest.raises(InvalidInput, match="goes by status only"):
            await client.count(exact=False, name="work")


def test_the_command_line_says_what_is_rough(
    two: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.yaml"
    shards = [{"name": s.name, "dsn": s.dsn} for s in two.shards]
    path.write_text(yaml.safe_dump({"name": two.name, "slots": two.slots, "shards": shards}))
    monkeypatch.setenv("SHARDFLOW_CONFIG", str(path))
    monkeypatch.setattr(queries, "COUNTED", 20)

    def said(*words: str) -> str:
        assert invoke(["workflow", "count", *words]) == 0
        return capsys.readouterr().out

    assert "about" in said("--rough")
    assert "about" not in said()
    assert json.loads(said("--rough", "--json"))["rough"] == ["ready", "succeeded"]
    exact = json.loads(said("--json"))
    assert (exact["total"], "rough" in exact) == (82, False)
