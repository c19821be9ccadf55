"""The bench on real servers: its figures, and that its audit finds what is lost, there twice, or wrong."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from shardflow import AsyncClient, ClusterConfig, Worker
from shardflow.bench.audit import Found, audit, kept
from shardflow.bench.workload import Load, app
from shardflow.cli.bench import bench
from shardflow.embedded import Servers
from shardflow.storage.shard import Conn, Shard

LOAD = Load(60, 2, 100, 40)


@pytest.fixture
async def drained(make_cluster) -> ClusterConfig:
    """A cluster of two shards in which the load has been run."""
    config = make_cluster(shards=2)
    worker = Worker(config, app)
    await worker.start()
    async with AsyncClient(config) as client:
        handles = await client.submit_many(LOAD.calls(range(LOAD.workflows)))
        await asyncio.gather(*(handle.result(30) for handle in handles))
    await worker.stop()
    return config


async def _spoil(config: ClusterConfig, statement: str) -> Found:
    """Runs the statement on the first shard, and audits."""
    shard = Shard(config.shards[0])
    conn: Conn
    async with await shard.connect("spoiler") as conn:
        await conn.execute(f'SET search_path TO "{shard.config.schema}"'.encode())
        cursor = await conn.execute(statement.encode())
        assert cursor.rowcount == 1
    return await audit(config, LOAD)


async def test_a_good_run_is_found_whole(drained: ClusterConfig) -> None:
    assert await audit(drained, LOAD) == Found(workflows=60, steps=120)


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("DELETE FROM step WHERE (wf, seq) = (SELECT wf, seq FROM step LIMIT 1)", "lost"),
        ("DELETE FROM outcome WHERE wf = (SELECT wf FROM outcome LIMIT 1)", "lost"),
        ("UPDATE workflow SET id = 'bench-0000009999' WHERE wf = (SELECT max(wf) FROM workflow)", "lost"),
        ("UPDATE workflow SET id = 'bench-0000009999' WHERE wf = (SELECT max(wf) FROM workflow)", "duplicated"),
        ("INSERT INTO step (wf, seq, name, output) SELECT wf, 2, 'x', '1' FROM workflow LIMIT 1", "duplicated"),
        ("UPDATE step SET output = '1' WHERE (wf, seq) = (SELECT wf, seq FROM step LIMIT 1)", "wrong"),
        ("UPDATE outcome SET output = '1' WHERE wf = (SELECT wf FROM outcome LIMIT 1)", "wrong"),
        ("UPDATE outcome SET status = 'failed' WHERE wf = (SELECT wf FROM outcome LIMIT 1)", "wrong"),
        ("INSERT INTO wait (wf, reason) VALUES (1, 'x')", "left"),
    ],
)
async def test_a_fault_in_the_database_is_found(drained: ClusterConfig, statement: str, fault: str) -> None:
    found = await _spoil(drained, statement)
    assert asdict(found)[fault] >= 1


async def test_what_was_deleted_after_its_end_was_kept_until_then(drained: ClusterConfig) -> None:
    assert await kept(drained) == (60, 0, 0)
    await _spoil(drained, "UPDATE retention SET deleted = 3 WHERE status = 'succeeded'")
    assert await kept(drained) == (60, 0, 3)
    await _spoil(drained, "UPDATE outcome SET status = 'failed' WHERE wf = (SELECT wf FROM outcome LIMIT 1)")
    await _spoil(drained, "UPDATE retention SET deleted = 2 WHERE status = 'dead'")
    assert await kept(drained) == (60, 3, 5)


def _configured(path: Path, servers: Servers) -> Path:
    shards = [{"name": f"s{i}", "dsn": server.dsn} for i, server in enumerate(list(servers)[:2])]
    path.write_text(yaml.safe_dump({"name": "mine", "shards": shards}))
    return path


async def _schemas(servers: Servers) -> set[str]:
    from shardflow.model import ShardConfig

    found: set[str] = set()
    for server in servers:
        async with await Shard(ShardConfig("s", server.dsn)).connect("test") as conn:
            rows = await (await conn.execute(b"SELECT nspname FROM pg_namespace")).fetchall()
            found |= {row[0] for row in rows}
    return found


def test_throughput_on_configured_servers_leaves_nothing_behind(servers: Servers, tmp_path: Path) -> None:
    config = _configured(tmp_path / "cluster.yaml", servers)
    before = asyncio.run(_schemas(servers))
    out = tmp_path / "throughput.json"
    arguments = ["throughput", "--config", str(config), "--workflows", "600", "--workers", "2", "--json"]
    answer = CliRunner().invoke(bench, [*arguments, "--out", str(out)])
    assert answer.exit_code == 0, answer.output
    figures = json.loads(answer.stdout)
    kept = json.loads(out.read_text())
    assert kept["benchmark"] == "throughput"
    assert kept["figures"]["workflows_per_s"] == figures["workflows_per_s"]
    assert [kept[part] for part in ("options", "environment", "runs")] == [
        figures[part] for part in ("options", "environment", "runs")
    ]
    assert [figures[key] for key in ("lost", "duplicated", "wrong", "left")] == [0, 0, 0, 0]
    assert figures["verified"] is True
    assert (figures["options"]["shards"], figures["options"]["workers"]) == (2, 2)
    run = figures["runs"][0]
    assert (run["workflows_found"], run["steps_found"], run["overlapped_steps_found"]) == (600, 600, 600)
    assert figures["workflows_per_s"] > 0
    assert figures["overlapped_workflows_per_s"] > 0
    assert figures["ratio_to_floor"] > 0
    assert figures["postgres_cpu_us_per_workflow"] is None
    assert figures["wal_bytes_per_workflow"] > 100
    # A submission, a checkpoint, an end and an entry of the queue, which is gone; and parts of receipts for many.
    assert 4 <= figures["rows_per_workflow"] < 5
    assert 5 <= figures["index_entries_per_workflow"] < 6
    assert 1 <= figures["dead_rows_per_workflow"] < 2
    assert "retention_workflows_per_s" not in run
    assert asyncio.run(_schemas(servers)) == before


def test_latency_on_an_embedded_server_becomes_a_picture(tmp_path: Path) -> None:
    out = tmp_path / "latency.json"
    arguments = ["latency", "--rate", "50", "--seconds", "1", "--idle", "1", "--json", "--out", str(out)]
    answer = CliRunner().invoke(bench, arguments)
    assert answer.exit_code == 0, answer.output
    figures = json.loads(answer.stdout)
    reported = CliRunner().invoke(bench, ["report", str(out), "--out", str(tmp_path / "it.html"), "--json"])
    assert reported.exit_code == 0, reported.output
    assert json.loads(reported.stdout)["shown"] == [str(out)]
    assert figures["errors"] == 0
    assert figures["count"] == 50
    assert 0 < figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"] <= figures["max_ms"]
    assert figures["idle_queries_per_s"] >= 0


def test_latency_beside_a_backlog_that_drains(servers: Servers, tmp_path: Path) -> None:
    config = _configured(tmp_path / "cluster.yaml", servers)
    arguments = ["latency", "--config", str(config), "--rate", "50", "--seconds", "1", "--idle", "0", "--json"]
    answer = CliRunner().invoke(bench, [*arguments, "--backlog", "3000"])
    assert answer.exit_code == 0, answer.output
    figures = json.loads(answer.stdout)
    assert figures["backlog_ended"] == 3000, "some of it was lost"
    assert figures["backlog_claimed_per_s"] > 0
    assert figures["errors"] == 0
    assert figures["options"]["backlog"] == 3000


def test_throughput_with_retention_accounts_for_what_was_deleted(servers: Servers, tmp_path: Path) -> None:
    config = _configured(tmp_path / "cluster.yaml", servers)
    arguments = [
        "throughput",
        "--config",
        str(config),
        "--workflows",
        "400",
        "--no-floor",
        "--no-overlapped",
        "--json",
    ]
    answer = CliRunner().invoke(bench, [*arguments, "--retention", "0.1"])
    assert answer.exit_code == 0, answer.output
    figures = json.loads(answer.stdout)
    assert figures["verified"] is True
    assert figures["options"]["retention"] == 0.1
    assert figures["ratio_with_retention"] == pytest.approx(
        figures["retention_workflows_per_s"] / figures["workflows_per_s"], abs=0.001
    )
    assert 0 <= figures["retention_deleted_per_workflow"] <= 1
    assert [figures["runs"][0][f"retention_{key}"] for key in ("lost", "duplicated", "wrong", "left")] == [0] * 4


def test_a_table_is_for_people(servers: Servers, tmp_path: Path) -> None:
    config = _configured(tmp_path / "cluster.yaml", servers)
    arguments = ["throughput", "--config", str(config), "--shards", "1", "--workflows", "50", "--steps", "0"]
    answer = CliRunner().invoke(bench, [*arguments, "--no-floor", "--no-overlapped"])
    assert answer.exit_code == 0, answer.output
    assert "workflows/s, drained" in answer.stdout
    assert "floor" not in answer.stdout
