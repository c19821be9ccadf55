"""The command line against real shards: what it prints, what it names, and its exit codes."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.look import connect
from support.work import running

from shardflow import App, ClusterConfig
from shardflow.cli.main import invoke
from shardflow.core.slotmap import plan_slots

Write = Callable[[ClusterConfig], Path]


class Answer:
    """An exit code and what was printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Answer]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a configuration file and makes it the one in use."""

    def write(config: ClusterConfig) -> Path:
        path = tmp_path / "cluster.yaml"
        shards = [{"name": s.name, "dsn": s.dsn, "schema": s.schema} for s in config.shards]
        data = {"name": config.name, "slots": config.slots, "shards": shards, "pool": {"timeout": "2s"}}
        path.write_text(yaml.safe_dump(data))
        monkeypatch.setenv("SHARDFLOW_CONFIG", str(path))
        return path

    return write


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command line in this process; beside a running event loop, in a thread."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*words: str) -> Answer:
        capsys.readouterr()
        code = invoke(words)
        found = capsys.readouterr()
        return Answer(code, found.out, found.err)

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


def without(config: ClusterConfig, shard: int) -> ClusterConfig:
    """The same cluster where nobody listens at the place of this shard."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dead = replace(config.shards[shard], dsn=f"postgresql://u:secret@127.0.0.1:{port}/gone")
    return replace(config, shards=(*config.shards[:shard], dead, *config.shards[shard + 1 :]))


def test_init_makes_the_cluster_and_changes_nothing_the_second_time(
    make_cluster: Callable[..., ClusterConfig], write: Write, run: Run
) -> None:
    write(make_cluster(shards=2, slots=64, init=False))
    pending = run("migrate", "list", "--json")
    assert pending.code == 0
    assert all(m["applied_at"] is None for m in pending.data["migrations"]["s0"])
    first = run("cluster", "init")
    assert first.code == 0
    assert [line.split()[:3] for line in first.out.splitlines()[1:]] == [
        ["s0", "created", "32"],
        ["s1", "created", "32"],
    ]
    again = run("cluster", "init", "--json")
    assert again.code == 0
    assert [(s["shard"], s["created"], s["slots"], s["migrations"]) for s in again.data["shards"]] == [
        ("s0", False, 32, 0),
        ("s1", False, 32, 0),
    ]
    assert all(m["applied_at"] for m in run("migrate", "list", "--json").data["migrations"]["s0"])


def test_migrate_up_goes_on_where_a_shard_is_away(
    make_cluster: Callable[..., ClusterConfig], write: Write, run: Run
) -> None:
    config = make_cluster(shards=2, init=False)
    write(without(config, 0))
    partial = run("migrate", "up", "--json")
    assert partial.code == 5
    assert [m["version"] for m in partial.data["applied"]["s1"]][:1] == [1]
    assert [u["shard"] for u in partial.data["unreachable"]] == ["s0"]
    write(config)
    rest = run("migrate", "up", "--json")
    assert rest.code == 0
    assert rest.data["applied"]["s0"]
    assert rest.data["applied"]["s1"] == []
    assert run("migrate", "up", "--shard", "s3").code == 2


def test_migrate_up_refuses_a_schema_of_another_cluster(shard_config: ClusterConfig, write: Write, run: Run) -> None:
    write(replace(shard_config, name="other"))
    refused = run("migrate", "up")
    assert refused.code == 1
    assert "belongs to the cluster 'test', not to 'other'" in refused.err


def test_status_counts_what_is_where(cluster_config: ClusterConfig, write: Write, run: Run) -> None:
    write(cluster_config)
    submitted = [run("workflow", "submit", "wf", str(n)) for n in range(5)]
    assert all(answer.code == 0 for answer in submitted)
    found = run("cluster", "status", "--json")
    assert found.code == 0
    assert sum(s["slots"] for s in found.data["shards"]) == cluster_config.slots
    assert sum(s["counts"]["ready"] for s in found.data["shards"]) == 5
    assert [line.split()[:3] for line in run("cluster", "status").out.splitlines()[1:]] == [
        [f"s{k}", "ok", "1"] for k in range(3)
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("cluster", "status"),
        ("workflow", "list"),
        ("worker", "list"),
        ("lease", "list"),
        ("shard", "list"),
        ("migrate", "list"),
    ],
    ids=" ".join,
)
def test_a_list_names_the_shard_that_does_not_answer(
    words: tuple[str, ...], cluster_config: ClusterConfig, write: Write, run: Run
) -> None:
    write(without(cluster_config, 1))
    plain = run(*words)
    assert plain.code == 5
    assert plain.err.startswith("Error: shard 's1' does not answer")
    assert plain.err.count("\n") == 1
    told = run(*words, "--json")
    assert told.code == 5
    assert [u["shard"] for u in told.data["unreachable"]] == ["s1"]
    assert "secret" not in plain.out + plain.err + told.out + told.err


def test_init_fails_where_a_shard_is_away(cluster_config: ClusterConfig, write: Write, run: Run) -> None:
    write(without(cluster_config, 1))
    answer = run("cluster", "init")
    assert answer.code == 5
    assert "shard 's1' does not answer" in answer.err


def test_a_shard_that_is_not_initialised_is_an_error_of_its_own(
    make_cluster: Callable[..., ClusterConfig], write: Write, run: Run
) -> None:
    write(make_cluster(shards=1, init=False))
    answer = run("cluster", "status")
    assert answer.code == 1
    assert "run `shardflow cluster init`" in answer.err
    assert answer.out.splitlines()[1].split()[:2] == ["s0", "error"]


def test_shards_that_hold_the_same_slot_are_a_conflict(cluster_config: ClusterConfig, write: Write, run: Run) -> None:
    write(cluster_config)
    with connect(cluster_config, 0) as conn:
        conn.execute("UPDATE slot SET state = 'active', shard = 's0'")
    answer = run("cluster", "status")
    assert answer.code == 1
    assert "both hold" in answer.err


def test_the_slot_of_an_id_needs_no_workflow(cluster_config: ClusterConfig, write: Write, run: Run) -> None:
    write(cluster_config)
    found = run("slot", "show", "{t}-1", "--json").data
    assert (found["key"], found["slot"]) == ("t", 13)
    owners = plan_slots(64, dict.fromkeys(("s0", "s1", "s2"), 1.0))
    assert found["shard"] == owners[13]
    other = run("slot", "show", "{t}-2", "--json").data
    assert (other["slot"], other["shard"]) == (found["slot"], found["shard"])
    assert run("slot", "show", "").code == 1


APP = App("cli")


@APP.step
async def double(value: int) -> int:
    return value * 2


@APP.workflow
async def twice(value: int) -> dict[str, int]:
    return {"ü": await double(value)}


@APP.workflow
async def broken(value: int) -> None:
    raise ValueError(f"no {value}\x1b[31m")


async def test_submit_result_and_show(cluster_config: ClusterConfig, write: Write, run: Run) -> None:
    write(cluster_config)

    async def cli(*words: str) -> Answer:
        return await asyncio.to_thread(run, *words)

    async with running(cluster_config, APP):
        made = await cli("workflow", "submit", "twice", "-21", "--id", "a", "--json")
        assert made.data == {"id": "a", "workflow": "twice", "shard": made.data["shard"]}
        assert (await cli("workflow", "submit", "twice", "-21", "--id", "a")).out == "a\n"
        conflict = await cli("workflow", "submit", "twice", "1", "--id", "a")
        assert conflict.code == 1
        assert "was submitted before with another input" in conflict.err

        done = await cli("workflow", "result", "a", "--timeout", "30")
        assert (done.code, json.loads(done.out)) == (0, {"ü": -42})
        told = (await cli("workflow", "result", "a", "--json")).data
        assert told == {"id": "a", "status": "succeeded", "result": {"ü": -42}}

        assert (await cli("workflow", "submit", "broken", "1", "--id", "b")).code == 0
        failed = await cli("workflow", "result", "b", "--timeout", "30")
        assert (failed.code, failed.out) == (3, "")
        assert failed.err.startswith("Error: workflow 'b' failed: ValueError: no 1\\x1b[31m\nTraceback")
        failed = await cli("workflow", "result", "b", "--json")
        assert (failed.code, failed.data["error"]["type"]) == (3, "ValueError")

        assert (await cli("workflow", "submit", "twice", "1", "--id", "c", "--queue", "unserved")).code == 0
        late = await cli("workflow", "result", "c", "--timeout", "0.2")
        assert (late.code, late.out) == (4, "")
        assert "has not ended within 0.2 s" in late.err
        missing = await cli("workflow", "result", "nobody")
        assert (missing.code, "no workflow has the id 'nobody'" in missing.err) == (1, True)

        shown = (await cli("workflow", "show", "a", "--json")).data
        assert shown["workflow"]["status"] == "succeeded"
        assert shown["input"] == [[-21], {}]
        assert [(s["seq"], s["name"], s["output"]) for s in shown["steps"]] == [(0, "double", -42)]
        assert shown["outcome"] == {"output": {"ü": -42}, "error": None}
        assert "error: ValueError: no 1\\x1b[31m\n" in (await cli("workflow", "show", "b")).out
        assert (await cli("workflow", "show", "c", "--json")).data["outcome"] is None

        latest = (await cli("workflow", "list", "--limit", "2", "--json")).data["workflows"]
        assert [w["id"] for w in latest] == ["c", "b"]
        workers = (await cli("worker", "list", "--json")).data["workers"]
        assert [w["serves"] for w in workers] == [["s0", "s1", "s2"]]
        held = (await cli("lease", "list", "--json")).data["leases"]
        assert sorted(lease["shard"] for lease in held) == ["s0", "s1", "s2"]
