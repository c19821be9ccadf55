"""The commands that end workflows, begin them again, and pause queues."""

from __future__ import annotations

import io

import pytest
from test_cli import Run, Write, run, without, write

from shardflow import Client, ClusterConfig

__all__ = ["run", "write"]  # fixtures


def test_workflows_are_cancelled_resumed_restarted_and_forked(
    cluster_config: ClusterConfig, write: Write, run: Run, monkeypatch: pytest.MonkeyPatch
):
    write(cluster_config)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # nobody is there to be asked
    with Client(cluster_config) as client:
        for n in range(4):
            client.submit("work", n, id=f"w{n}", queue="even" if n % 2 == 0 else None)
    answer = run("workflow", "cancel", "w0", "w1", "--reason", "no need", "--json")
    assert answer.data == {"workflows": [{"id": "w0", "cancelled": True}, {"id": "w1", "cancelled": True}]}
    assert run("workflow", "cancel", "w0", "--json").data == {"workflows": [{"id": "w0", "cancelled": False}]}
    assert "no need" in run("workflow", "result", "w0").err
    answer = run("workflow", "result", "w1", "--json")
    assert (answer.code, answer.data["status"]) == (3, "cancelled")
    assert run("workflow", "cancel").code == 2
    assert run("workflow", "cancel", "w2", "--queue", "even").code == 2
    assert run("workflow", "cancel", "--queue", "even").code != 0
    assert run("workflow", "cancel", "--queue", "even", "--yes").out == "1 workflow(s) cancelled\n"
    assert run("workflow", "resume", "w1").out.split() == ["ID", "RESUMED", "w1", "yes"]
    assert run("workflow", "resume", "--status", "cancelled", "--yes", "--json").data["resumed"] == 2
    assert run("workflow", "count", "--status", "ready", "--json").data["total"] == 4
    assert run("workflow", "cancel", "w3").code == 0
    assert run("workflow", "restart", "w3").code != 0
    assert run("workflow", "restart", "w3", "--yes", "--json").data == {
        "workflows": [{"id": "w3", "restarted": True}]
    }
    assert run("workflow", "fork", "w3", "--id", "w4").out == "w4\n"
    assert run("workflow", "fork", "nobody").code == 1
    assert run("workflow", "count", "--status", "ready", "--json").data["total"] == 5


def test_workflows_are_deleted_by_id_by_filter_and_by_age(
    cluster_config: ClusterConfig, write: Write, run: Run, monkeypatch: pytest.MonkeyPatch
):
    write(cluster_config)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with Client(cluster_config) as client:
        for n in range(5):
            client.submit("work", n, id=f"w{n}", queue="even" if n % 2 == 0 else None)
            client.cancel(f"w{n}")
        client.submit("work", id="active")
    assert run("workflow", "purge", "w0", "active", "--json").data == {
        "workflows": [{"id": "w0", "deleted": True}, {"id": "active", "deleted": False}]
    }
    assert run("workflow", "purge", "w0").code == 1
    assert run("workflow", "purge").code == 2
    assert run("workflow", "purge", "w1", "--older-than", "1h").code == 2
    assert run("workflow", "purge", "--older-than", "soon").code == 2
    assert run("workflow", "purge", "--queue", "even").code != 0
    assert run("workflow", "purge", "--queue", "even", "--yes").out == "2 workflow(s) deleted\n"
    assert run("workflow", "purge", "--older-than", "1h", "--yes", "--json").data == {"deleted": 0, "unreachable": []}
    assert run("workflow", "purge", "--older-than", "0s", "--yes").out == "2 workflow(s) deleted\n"
    assert run("workflow", "count", "--json").data["total"] == 1


def test_queues_are_paused_and_a_shard_that_is_away_is_named(cluster_config: ClusterConfig, write: Write, run: Run):
    write(cluster_config)
    with Client(cluster_config) as client:
        client.submit("work", queue="orders")
    assert run("queue", "pause", "orders").out == "3 shard(s) paused\n"
    (queue,) = run("queue", "list", "--json").data["queues"]
    assert (queue["name"], queue["ready"], sorted(queue["paused"])) == ("orders", 1, ["s0", "s1", "s2"])
    assert "s0, s1, s2" in run("queue", "list").out
    write(without(cluster_config, 1))
    answer = run("queue", "resume", "orders")
    assert (answer.code, answer.out) == (5, "2 shard(s) resumed\n")
    assert "'s1' does not answer" in answer.err
    answer = run("workflow", "cancel", "--name", "work", "--yes")
    assert answer.code == 5
    write(cluster_config)
    assert run("queue", "list", "--json").data["queues"][0]["paused"].keys() == {"s1"}
