"""docker-compose.yml, read by a compose implementation (podman-compose, which needs no engine to parse)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardflow import config

TOP = Path(__file__).resolve().parents[2]


def parsed(tmp_path: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    engine = tmp_path / "podman"  # podman-compose asks it for its version even to parse
    engine.write_text("#!/bin/sh\necho podman version 5.0.0\n")
    engine.chmod(0o755)
    tool = Path(sys.executable).with_name("podman-compose")
    return subprocess.run(
        [str(tool), "-f", str(TOP / "docker-compose.yml"), "config"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def services(tmp_path: Path) -> dict[str, Any]:
    done = parsed(tmp_path, {"SHARDFLOW_PG_PASSWORD": "secret"})
    assert done.returncode == 0, done.stderr
    return dict(yaml.safe_load(done.stdout)["services"])


def test_there_are_four_servers_with_health_checks_on_loopback(services: dict[str, Any]) -> None:
    servers = [s for name, s in services.items() if name.startswith("pg")]
    assert len(servers) == 4
    for server in servers:
        assert "pg_isready" in " ".join(server["healthcheck"]["test"])
        assert all(port.startswith("127.0.0.1:") for port in server["ports"])


def test_workers_wait_for_the_init_and_the_init_for_healthy_servers(services: dict[str, Any]) -> None:
    assert services["worker"]["depends_on"]["init"]["condition"] == "service_completed_successfully"
    assert {d["condition"] for d in services["init"]["depends_on"].values()} == {"service_healthy"}
    assert set(services["init"]["depends_on"]) == {"pg1", "pg2", "pg3", "pg4"}
    assert services["init"]["restart"] == "no"


def test_the_configuration_finds_every_server_by_its_name_in_the_network(services: dict[str, Any]) -> None:
    environment = services["worker"]["environment"]
    cluster = config.load(TOP / "config" / "compose.yaml", environment)
    assert [f"@pg{i}:5432/" in shard.dsn for i, shard in enumerate(cluster.shards, 1)] == [True] * 4
    assert all(":secret@" in shard.dsn for shard in cluster.shards)


def test_the_configuration_finds_every_published_port_from_the_host(services: dict[str, Any]) -> None:
    cluster = config.load(TOP / "config" / "compose.yaml", {"SHARDFLOW_PG_PASSWORD": "secret"})
    published = [services[f"pg{i}"]["ports"][0].rsplit(":", 1)[0] for i in range(1, 5)]
    assert [f"@{port}/" in shard.dsn for port, shard in zip(published, cluster.shards, strict=True)] == [True] * 4


def test_no_password_is_an_error_that_says_so(tmp_path: Path) -> None:
    done = parsed(tmp_path, {})
    assert done.returncode != 0
    assert "set SHARDFLOW_PG_PASSWORD" in done.stderr
