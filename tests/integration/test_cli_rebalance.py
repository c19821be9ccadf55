"""What the command line says of workers, leases, shards and the rebalancer, and its exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.group import elected, groups, nobody_decides, quick, registered, working
from support.look import one, rows, until
from support.raw import by_hand
from support.work import Gate, running

from shardflow import AsyncClient, ClusterConfig
from shardflow.cli.main import invoke
from shardflow.storage import leases, rebalance, registry
from shardflow.storage.rebalance import Note
from shardflow.storage.registry import Card, Pulse

MakeCluster = Callable[..., ClusterConfig]

__all__ = ["nobody_decides"]

MODULE = """\
import shardflow

app = shardflow.App()

@app.workflow(queue="mail")
async def work(value: int) -> int:
    return value
"""


class Answer:
    """An exit code and what was printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Any]


@pytest.fixture
def config(make_cluster: MakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterConfig:
    """A cluster of two shards whose configuration file is the one in use."""
    made = quick(make_cluster(shards=2))
    write(tmp_path, made, monkeypatch)
    return made


def write(folder: Path, config: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [{"name": s.name, "dsn": s.dsn, "labels": list(s.labels)} for s in config.shards]
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({"name": config.name, "slots": config.slots, "shards": shards}))
    monkeypatch.setenv("SHARDFLOW_CONFIG", str(path))


@pytest.fixture
def dead(config: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterConfig:
    """The same cluster, where the file names a place for s1 at which nobody listens."""
    gone = replace(config.shards[1], dsn="postgresql://u:secret@127.0.0.1:1/gone")
    write(tmp_path, replace(config, shards=(config.shards[0], gone)), monkeypatch)
    return config


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command line in a thread of this process."""
    import logging

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    async def run(*words: str) -> Answer:
        capsys.readouterr()
        code = await asyncio.to_thread(invoke, words)
        found = capsys.readouterr()
        return Answer(code, found.out, found.err)

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


# -- rebalance


async def test_a_plan_says_what_would_move_and_why_and_changes_nothing(
    config: ClusterConfig, run: Run, nobody_decides: None
) -> None:
    empty = await run("rebalance", "plan")
    assert (empty.code, empty.out) == (0, "")
    assert "Nothing to do" in empty.err
    async with AsyncExitStack() as stack:
        for name in ("w", "v", "third"):
            await stack.enter_async_context(running(config, working(), name=name, connected=name != "third"))
        await until(lambda: len(registered(config)) == 3)
        plan = (await run("rebalance", "plan", "--json")).data
        assert plan["unreachable"] == []
        assert sum(len(shards) for shards in plan["wanted"].values()) == 4
        (move,) = [m for m in plan["moves"] if m["worker"] == "third"]
        assert move["kind"] == "open"
        assert move["reason"]
        text = await run("rebalance", "plan")
        assert text.code == 0
        assert text.out.splitlines()[0].split() == ["KIND", "WORKER", "FROM", "TO", "REASON"]
        assert move["reason"] in text.out
        assert registered(config)["third"][1]["wanted"] is None
        assert groups(config) == {"s0": ["v", "w"], "s1": ["v", "w"]}


async def test_status_says_who_decides_and_whether_all_have_obeyed(config: ClusterConfig, run: Run) -> None:
    nobody = await run("rebalance", "status", "--json")
    assert nobody.data["rebalancer"] is None
    assert "Nobody is elected" in (await run("rebalance", "status")).err
    async with running(config, working(), name="w"), running(config, working(), name="v"):
        await until(lambda: elected(config))
        await until(lambda: all(row["aims"] == ["s0", "s1"] == row["held"] for _, row in registered(config).values()))
        found = (await run("rebalance", "status", "--json")).data
        assert found["rebalancer"]["holder"] == elected(config)
        assert (found["rebalancer"]["shard"], found["rebalancer"]["term"]) == ("s0", 1)
        assert found["settled"] is True
        assert found["pending"] == []
        assert found["limits"] == {"min_group": 2, "max_group": 16}
        assert [(s["shard"], s["reachable"], s["workers"], s["aimed_at_by"]) for s in found["shards"]] == [
            (name, True, ["v", "w"], ["v", "w"]) for name in ("s0", "s1")
        ]
        text = await run("rebalance", "status")
        assert f"Rebalancer: {elected(config)}, term 1 on shard s0." in text.err
        assert "Settled." in text.err
        assert text.out.splitlines()[1].split() == ["s0", "yes", "v,", "w", "v,", "w", "0"]


async def test_status_names_those_who_have_yet_to_obey(config: ClusterConfig, run: Run) -> None:
    async with by_hand(config) as hand:
        conn = await hand.conn("registrar")
        card = Card("slow", "host", 1, "app", "0.1.0", "", 10, 8, ["default"], [], False)
        await registry.beat(hand.shard, conn, card, Pulse(False, 1, 0, [], [], [], 0), 60, session=False)
        rows(config, "UPDATE worker SET wanted = ARRAY['s0'], decision = 1")
        found = await run("rebalance", "status", "--json")
        assert found.data["pending"] == ["slow"]
        assert found.data["settled"] is False
        assert "Under way; yet to obey: slow." in (await run("rebalance", "status")).err


async def test_the_log_is_of_all_shards_the_oldest_first(config: ClusterConfig, run: Run) -> None:
    assert "The journal is empty" in (await run("rebalance", "log")).err
    for number, (kind, reason) in enumerate([("open", "first"), ("move", "second"), ("close", "third")]):
        async with by_hand(config, number % 2) as hand:
            note = Note(kind, reason, "w", None if kind == "open" else "s0", None if kind == "close" else "s1")
            await rebalance.note(hand.shard, await hand.conn(), "boss", 4, [note])
    found = (await run("rebalance", "log", "--json")).data
    assert [(e["kind"], e["reason"], e["on"]) for e in found["entries"]] == [
        ("open", "first", "s0"),
        ("move", "second", "s1"),
        ("close", "third", "s0"),
    ]
    assert {key: found["entries"][1][key] for key in ("worker", "from", "to", "by", "term")} == {
        "worker": "w",
        "from": "s0",
        "to": "s1",
        "by": "boss",
        "term": 4,
    }
    text = await run("rebalance", "log", "-n", "1")
    assert text.code == 0
    (line,) = text.out.splitlines()[1:]
    assert line.split()[2:] == ["close", "w", "s0", "-", "third", "boss", "4", "s0"]


async def test_the_journal_keeps_its_newest_entries(config: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebalance, "JOURNAL_KEPT", 3)
    async with by_hand(config) as hand:
        conn = await hand.conn()
        for n in range(9):
            await rebalance.note(hand.shard, conn, "boss", 1, [Note("rest", str(n))])
        assert [entry.reason for entry in await rebalance.journal(hand.shard, conn, 9)][:3] == ["8", "7", "6"]
        assert one(config, "SELECT count(*) FROM journal") <= 4


@pytest.mark.parametrize("verb", ["plan", "status", "log"])
async def test_a_shard_that_is_away_is_named(dead: ClusterConfig, run: Run, verb: str) -> None:
    for words in ((), ("--json",)):
        found = await run("rebalance", verb, *words)
        assert found.code == 5
        assert "s1" in found.err
        assert "secret" not in found.err + found.out
    assert [each["shard"] for each in found.data["unreachable"]] == ["s1"]
    if verb == "status":
        assert [(s["shard"], s["reachable"], s["workers"]) for s in found.data["shards"]] == [
            ("s0", True, []),
            ("s1", False, None),
        ]


@pytest.mark.parametrize("words", [("log", "-n", "0"), ("plans",), ("status", "--jsn")])
async def test_wrong_usage_is_told_apart(config: ClusterConfig, run: Run, words: tuple[str, ...]) -> None:
    assert (await run("rebalance", *words)).code == 2


# -- worker, lease, shard


async def test_workers_are_listed_with_what_they_do(config: ClusterConfig, run: Run, nobody_decides: None) -> None:
    gate = Gate()
    options: dict[str, Any] = {"labels": ["big"], "code_version": "v7", "max_leases": 5, "concurrency": 9}
    async with (
        AsyncClient(config) as client,
        running(config, working(gate), name="w", **options),
        running(config, working(gate), name="pinned", shards=["s1"]),
        by_hand(config) as hand,
    ):
        await hand.holder("old")
        await client.submit("holds")
        await until(lambda: gate.arrived == 1)
        await until(lambda: sum(row["running"] for _, row in registered(config).values()) == 1)
        await until(lambda: len(registered(config)) == 2)
        found = {w["worker"]: w for w in (await run("worker", "list", "--json")).data["workers"]}
        assert list(found) == ["old", "pinned", "w"]
        assert {name: w["state"] for name, w in found.items()} == {"old": "unregistered", "pinned": "up", "w": "up"}
        assert found["w"]["serves"] == found["w"]["aims"] == ["s0", "s1"]
        assert (found["w"]["capacity"], found["w"]["code_version"], found["w"]["labels"]) == (9, "v7", ["big"])
        assert (found["w"]["pid"], found["w"]["queues"]) == (os.getpid(), ["default"])
        assert sum(w["running"] or 0 for w in found.values()) == 1
        assert sum(w["claimed"] for w in found.values()) == 1
        assert (found["pinned"]["pinned"], found["pinned"]["serves"]) == (True, ["s1"])
        assert (found["old"]["serves"], found["old"]["home"], found["old"]["aims"]) == (["s0"], None, None)
        text = await run("worker", "list")
        assert text.code == 0
        assert [line.split()[0] for line in text.out.splitlines()[1:]] == ["old", "pinned", "w"]


async def test_the_states_of_workers(config: ClusterConfig, run: Run) -> None:
    async with by_hand(config) as hand:
        conn = await hand.conn("registrar")
        for name in ("up", "draining", "late", "expired", "closed"):
            card = Card(name, "host", 1, "app", "0.1.0", "", 10, 8, ["default"], [], False)
            await registry.beat(
                hand.shard, conn, card, Pulse(name == "draining", 1, 0, [], [], [], 0), 60, session=False
            )
        rows(config, "UPDATE worker SET session = true WHERE worker = 'closed'")
        rows(config, "UPDATE worker SET seen_at = now() - interval '65 s' WHERE worker = 'late'")
        rows(config, "UPDATE worker SET expires_at = now() - interval '1 s' WHERE worker = 'expired'")
        found = (await run("worker", "list", "--json")).data["workers"]
        assert {w["worker"]: w["state"] for w in found} == {
            "closed": "gone",
            "draining": "draining",
            "expired": "gone",
            "late": "late",
            "up": "up",
        }


async def test_leases_are_listed_with_what_they_hold(config: ClusterConfig, run: Run) -> None:
    async with by_hand(config) as hand, by_hand(config, 1) as other:
        holder = await hand.holder("a")
        await leases.open_lease(other.shard, await other.conn(), "b", 60, queues=["mail", "x"])
        await hand.submit(holder.writing, "w1", "w2")
        await holder.claim()
        rows(config, "UPDATE lease SET claiming = false, expires_at = clock_timestamp()")
        found = (await run("lease", "list", "--json")).data
        assert found["unreachable"] == []
        assert [(x["shard"], x["worker"], x["claimed"], x["claiming"], x["expired"]) for x in found["leases"]] == [
            ("s0", "a", 2, False, True),
            ("s1", "b", 0, True, False),
        ]
        assert [x["queues"] for x in found["leases"]] == [[], ["mail", "x"]]
        text = await run("lease", "list")
        assert text.code == 0
        assert text.out.splitlines()[2].split()[-4:] == ["yes", "mail,", "x", "0"]


async def test_shards_are_listed_with_labels_workers_and_backlog(
    config: ClusterConfig, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = replace(config, shards=(config.shards[0], replace(config.shards[1], labels=("big", "ssd"))))
    write(tmp_path, labelled, monkeypatch)
    async with by_hand(config) as hand:
        await hand.holder("a")
        await hand.holder("b")
        rows(config, "UPDATE lease SET claiming = false WHERE worker = 'b'")
        async with await hand.shard.connect("submit") as conn:  # a session tells the statistics when it ends
            await hand.submit(conn, "w1", "w2", "w3")
        await until(lambda: one(config, "SELECT pg_stat_get_live_tuples('ready'::regclass)") == 3)
        first, second = (await run("shard", "list", "--json")).data["shards"]
        assert (first["workers"], first["backlog"], first["labels"]) == (1, 3, [])
        assert (second["workers"], second["backlog"], second["labels"]) == (0, 0, ["big", "ssd"])
        assert first["slots"] + second["slots"] == config.slots
        assert "big, ssd" in (await run("shard", "list")).out


@pytest.mark.parametrize("noun", ["worker", "lease", "shard"])
async def test_lists_name_a_shard_that_is_away(dead: ClusterConfig, run: Run, noun: str) -> None:
    for words in ((), ("--json",)):
        found = await run(noun, "list", *words)
        assert found.code == 5
        assert "s1" in found.err
        assert "secret" not in found.err + found.out
    assert [each["shard"] for each in found.data["unreachable"]] == ["s1"]


async def test_options_of_a_worker_reach_the_registry(config: ClusterConfig, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(MODULE)
    words = ["worker", "run", "--label", "big", "--label", "ssd", "--max-leases", "1", "--code-version", "v3"]
    words += ["--processes", "2", "shop:app"]
    made = await asyncio.create_subprocess_exec(
        os.sys.executable, "-m", "shardflow.cli", *words, cwd=tmp_path, stdin=asyncio.subprocess.DEVNULL
    )
    try:
        found = await until(lambda: len(registered(config)) == 2 and registered(config), 30, "two workers")
        for _, row in found.values():
            assert (row["labels"], row["max_leases"], row["code_version"]) == (["big", "ssd"], 1, "v3")
            assert row["queues"] == ["default", "mail"]
        await until(lambda: sorted(len(group) for group in groups(config).values()) == [1, 1])
        made.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(made.wait(), 60) == 0
        assert registered(config) == {}
        assert groups(config) == {"s0": [], "s1": []}
    finally:
        if made.returncode is None:
            made.kill()
        await made.wait()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--max-leases", "0"), "max-leases"),
        (("--label", ""), "label"),
        (("--shard", "s1"), "asks for workers with the label 'big'"),
    ],
)
async def test_a_worker_that_cannot_work_so_is_wrong_usage(
    config: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], complaint: str
) -> None:
    (tmp_path / "shop.py").write_text(MODULE)
    labelled = replace(config, shards=(config.shards[0], replace(config.shards[1], labels=("big",))))
    write(tmp_path, labelled, monkeypatch)
    command = (os.sys.executable, "-m", "shardflow.cli", "worker", "run", *words, "shop:app")
    made = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, stderr=asyncio.subprocess.PIPE)
    try:
        _, err = await asyncio.wait_for(made.communicate(), 60)
    finally:
        if made.returncode is None:
            made.kill()
    assert made.returncode == 2
    assert complaint in err.decode()
    assert "Traceback" not in err.decode()
