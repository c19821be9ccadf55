"""benchmarks/scaleout.py on real servers: its figures, that its throttles hold the servers, and what they leave."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
import yaml

from shardflow.embedded import Servers
from shardflow.resources import folder

#: Two processes that spin until whoever started them is gone.
BURN = "import os\nos.fork()\nparent = os.getppid()\nwhile os.getppid() == parent: pass"


@pytest.fixture
def throttles(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(folder("benchmarks")))
    return importlib.import_module("_scaleout_throttle")


def scaleout(*arguments: str) -> dict[str, Any]:
    """What the benchmark answers, when nothing was lost, there twice or wrong."""
    script = folder("benchmarks") / "scaleout.py"
    done = subprocess.run(
        [sys.executable, str(script), "--json", *arguments], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["figures"]["verified"] is True
    assert [run[fault] for run in answer["runs"] for fault in ("lost", "duplicated", "wrong", "left")] == [0] * (
        4 * len(answer["runs"])
    )
    return answer


@pytest.mark.slow
def test_the_quick_form_measures_all_loads_on_one_and_two_shards(tmp_path: Path, throttles: ModuleType) -> None:
    groups, before, out = _can_make_groups(throttles), _groups(throttles), tmp_path / "scaleout.json"
    answer = scaleout("--quick", "--out", str(out))
    kept = json.loads(out.read_text())
    assert (kept["benchmark"], kept["runs"]) == ("scaleout", answer["runs"])
    loads = [("drained", 1), ("open", 1), ("drained", 2), ("apart", 2), ("open", 2), ("drained", 1)]
    assert [(run["load"], run["shards"]) for run in answer["runs"]] == loads
    assert [run["workflows_found"] for run in answer["runs"] if run["load"] != "open"] == [600, 1200, 1200, 600]
    assert answer["runs"][3]["workflows_by_shard"] == [600, 600]
    assert answer["series"]["drained"][1]["of_apart_percent"] > 0
    drained = [run for run in answer["runs"] if run["load"] != "open"]
    assert all(run["start_up_seconds"] > 0 and 0 <= run["tail_seconds"] < run["seconds"] for run in drained)
    # From letting go to the last commit is longer than from the first end to the last.
    assert all(max(run["seconds_by_shard"]) - 0.02 <= run["seconds"] for run in drained)
    assert all(len(run["workflows_by_shard"]) == run["shards"] for run in answer["runs"] if run["load"] == "drained")
    assert all(run["steps_found"] == run["workflows_found"] > 0 for run in answer["runs"])
    assert all(run["results"] > 0 for run in answer["runs"] if run["load"] == "open")
    assert all(point["workflows_per_s"] > 0 for points in answer["series"].values() for point in points)
    if groups:
        assert answer["options"]["throttle"].startswith("cgroup")
        assert all(run["quota_used_up_percent"] >= 0 for run in answer["runs"] if "quota_used_up_percent" in run)
    assert not _groups(throttles) - before


def _groups(throttles: ModuleType) -> set[Path]:
    """The groups that processes which have ended made."""
    controller = throttles.find_controller()
    return set(throttles.stale(controller)) if controller else set()


@pytest.mark.slow
def test_without_quotas_each_commit_waits(tmp_path: Path) -> None:
    answer = scaleout("--quick", "--loads", "drained", "--throttle", "delay", "--shards", "1")
    assert (answer["options"]["throttle"], answer["options"]["concurrency"]) == ("commit_delay", 200)
    # 600 workflows, at most 100 claimed by a turn, of 0.1 s at least each.
    assert all(run["seconds"] >= 0.6 for run in answer["runs"])


def test_a_cluster_of_ones_own_is_measured_as_it_is_and_left_as_it_was(servers: Servers, tmp_path: Path) -> None:
    config = tmp_path / "cluster.yaml"
    shards = [{"name": f"s{n}", "dsn": server.dsn, "labels": ["ours"]} for n, server in enumerate(list(servers)[:2])]
    config.write_text(yaml.safe_dump({"name": "mine", "shards": shards}))
    before = _schemas(servers)
    arguments = ["--config", str(config), "--shards", "1,2", "--loads", "drained", "--workflows", "100", "--shared"]
    answer = scaleout(*arguments)
    assert [run["workflows_found"] for run in answer["runs"]] == [100, 200, 100]
    assert (answer["options"]["throttle"], answer["options"]["settings"]) == ("none", {})
    assert "server_cpu_percent" not in answer["runs"][0]
    assert _schemas(servers) == before


def _schemas(servers: Servers) -> list[tuple[Any, ...]]:
    found = []
    for server in servers:
        with psycopg.connect(server.dsn) as conn:
            found += conn.execute(
                "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'shardflow_bench_%'"
            ).fetchall()
    return found


def test_a_delay_is_there_while_held_and_gone_afterwards(throttles: ModuleType) -> None:
    def now() -> str:
        with psycopg.connect(servers[0].dsn) as conn:
            row = conn.execute(
                "SELECT current_setting('commit_delay') || current_setting('commit_siblings')"
            ).fetchone()
        assert row is not None
        return str(row[0])

    def becomes(wanted: str) -> bool:
        """A server reads its settings again a moment after it is told to."""
        until = time.monotonic() + 20
        while now() != wanted and time.monotonic() < until:
            time.sleep(0.02)
        return now() == wanted

    with Servers(1) as servers:
        usual = now()
        with throttles.DelayedCommits(servers.dsns).held():
            assert becomes(f"{throttles.DELAY_MICROSECONDS}0")
        assert becomes(usual)


def _can_make_groups(throttles: ModuleType) -> bool:
    controller = throttles.find_controller()
    try:
        controller.remove(controller.make(f"shardflow-scaleout-{os.getpid()}-probe"))
    except (AttributeError, OSError):
        return False
    return True


def test_a_quota_holds_a_process_and_its_children_and_ends(throttles: ModuleType) -> None:
    if not _can_make_groups(throttles):
        pytest.skip("no control groups can be made here")
    controller = throttles.find_controller()
    with subprocess.Popen([sys.executable, "-c", BURN]) as parent:
        try:
            until = time.monotonic() + 20
            while not (children := throttles._children(parent.pid)) and time.monotonic() < until:
                time.sleep(0.01)
            with throttles.quotas(controller, [parent.pid], 0.1) as made:
                (group,) = made._groups
                assert sorted(map(int, (group / "cgroup.procs").read_text().split())) == sorted(
                    [parent.pid, *children]
                )
                with made.held():
                    before, began = _cpu(parent.pid, *children), time.monotonic()
                    while made.periods(1).used_up < 10:
                        assert time.monotonic() < began + 60
                        time.sleep(0.05)
                    used, took = _cpu(parent.pid, *children) - before, time.monotonic() - began
                counted = made.periods(1)
            # Up to what was there for one period may have been left over, and each core stops at a tick.
            assert used <= 0.1 * took + 0.1
            assert 10 <= counted.used_up <= counted.all
            assert not group.exists()
            assert parent.poll() is None
        finally:
            parent.kill()


def _cpu(*pids: int) -> float:
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")
