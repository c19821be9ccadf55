"""`shardflow queue limits`."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.look import one, until
from support.work import Gate, running

from shardflow import App, AsyncClient, ClusterConfig, Queue
from shardflow.cli.main import invoke


async def test_limits_are_shown_with_what_is_in_use_and_a_shard_that_is_away_is_named(
    cluster_config: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app, gate = App(), Gate()

    @app.workflow(queue=Queue("few", concurrency=5, rate=(50, 60)))
    async def work() -> None:
        await gate.wait()

    async def said(config: ClusterConfig, *arguments: str) -> tuple[int, str, str]:
        path = tmp_path / "cluster.yaml"
        shards = [{"name": shard.name, "dsn": shard.dsn} for shard in config.shards]
        path.write_text(yaml.safe_dump({"name": config.name, "slots": config.slots, "shards": shards}))
        monkeypatch.setenv("SHARDFLOW_CONFIG", str(path))
        code = await asyncio.to_thread(invoke, ["queue", "limits", *arguments])
        return code, *capsys.readouterr()

    async with AsyncClient(cluster_config) as client, running(cluster_config, app):
        await client.submit_many([work.call() for _ in range(9)])
        await until(lambda: gate.arrived == 5)
        await until(lambda: sum(one(cluster_config, "SELECT count(*) FROM granted", shard=k) for k in range(3)) == 0)
        code, out, _ = await said(cluster_config, "--json")
        assert code == 0
        running_, starts = json.loads(out)["limits"]
        assert (running_["queue"], running_["kind"], running_["limit"], running_["in_use"]) == (
            "few",
            "running",
            5,
            5,
        )
        assert sum(running_["shares"].values()) == 5
        assert (starts["kind"], starts["seconds"], starts["in_use"]) == ("starts", 60.0, 5)
        code, out, _ = await said(cluster_config)
        assert next(line.split()[:4] for line in out.splitlines() if "few" in line) == ["few", "running", "5", "-"]
        away = replace(cluster_config.shards[2], dsn="postgresql://127.0.0.1:1/postgres?connect_timeout=1")
        code, out, err = await said(replace(cluster_config, shards=(*cluster_config.shards[:2], away)))
        assert code == 5
        assert "s2" in err
        gate.open()
