"""`shardflow doctor` against real servers: each fault is made for real, found, mended by the very command that the
finding tells, and not found again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from support import memory
from support.lab import Lab, database, in_thread
from support.look import assert_i1, connect, one, rows, until
from support.raw import Hand, by_hand, done
from support.work import running

from shardflow import App, ClusterConfig, ShardUnavailable
from shardflow.cli.main import invoke
from shardflow.core import checkup_server, checkup_work
from shardflow.embedded import Servers
from shardflow.storage import checkup, cluster, migrate
from shardflow.storage.shard import Shard

MakeCluster = Callable[..., ClusterConfig]
DEBIAN = Path("/usr/lib/postgresql/15/bin")
#: What a cluster of one shard without workers is told, and nothing else.
IDLE = {"workers"}


@dataclass
class Answer:
    """What the doctor said of a cluster."""

    code: int
    data: Any
    err: str

    @property
    def bad(self) -> dict[str, dict[str, Any]]:
        """By check, the worst finding that is not well."""
        return {f["check"]: f for f in reversed(self.data["findings"]) if f["severity"] != "ok"}


Doctor = Callable[..., Answer]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Doctor]:
    """Runs `shardflow doctor` for a cluster, in a thread: a test's own event loop may be running."""
    with ThreadPoolExecutor(1) as pool:

        def run(config: ClusterConfig, *words: str) -> Answer:
            use(config, tmp_path, monkeypatch)
            capsys.readouterr()
            code = pool.submit(invoke, ["doctor", "--json", *words]).result()
            said = capsys.readouterr()
            return Answer(code, json.loads(said.out), said.err)

        yield run


def use(config: ClusterConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this cluster's configuration the one in use."""
    shards = [{"name": s.name, "dsn": s.dsn, "schema": s.schema, "pooler": s.pooler} for s in config.shards]
    pool = {"max_size": config.pool.max_size, "connect_timeout": "3s"}
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({"name": config.name, "slots": config.slots, "shards": shards, "pool": pool}))
    monkeypatch.setenv("SHARDFLOW_CONFIG", str(path))


@pytest.fixture(scope="module")
def own() -> Iterator[Lab]:
    """A server whose settings the tests may change."""
    settings = {"wal_level": "logical", "max_prepared_transactions": "5", "max_connections": "40"}
    with memory.servers(1, settings) as servers:
        yield Lab(servers)


@pytest.fixture
def shard(own: Lab) -> Iterator[ClusterConfig]:
    """A cluster of one shard on that server, whose settings are put back afterwards."""
    from support.lab import LEASE, POOL

    config = own.clone(1, 8, LEASE, POOL)
    yield config
    own.servers[0].start()
    with own.admin(0) as conn:
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fault'")
        conn.execute("ALTER SYSTEM RESET ALL")
        conn.execute("SELECT pg_reload_conf()")
    own.drop(config)


def run_sql(config: ClusterConfig, *statements: str) -> list[tuple[Any, ...]]:
    """Runs statements as the superuser in the shard's database; answers the last one's rows."""
    answer: list[tuple[Any, ...]] = []
    with connect(config) as conn:
        for statement in statements:
            cursor = conn.execute(statement)  # type: ignore[arg-type]
            answer = cursor.fetchall() if cursor.description else []
    return answer


def mend(config: ClusterConfig, finding: dict[str, Any]) -> None:
    """Does what the finding says, as one would in psql."""
    assert finding["command"], finding
    run_sql(config, *(part for part in finding["command"].split(";") if part.strip()))


def session(config: ClusterConfig) -> psycopg.Connection[Any]:
    """A stranger's session, ended with the test at the latest."""
    return psycopg.connect(config.shards[0].dsn, application_name="fault", options="-c search_path=shardflow")


@pytest.mark.parametrize(
    "binaries", [None, pytest.param(DEBIAN, marks=pytest.mark.skipif(not DEBIAN.is_dir(), reason="no Postgres 15"))]
)
async def test_a_healthy_cluster_is_well_to_an_ordinary_role(binaries: Path | None, doctor: Doctor) -> None:
    app = App("doctor")

    @app.workflow
    async def work(x: int) -> int:
        return x

    def begin() -> tuple[Servers, ClusterConfig]:
        servers = Servers(1, binaries=binaries)
        servers.start()
        lab = Lab(servers)
        config = lab.empty(1, 8)
        name = database(config.shards[0])
        with lab.admin(0) as conn:
            conn.execute("CREATE ROLE app LOGIN PASSWORD 'app'")
            conn.execute(f"ALTER DATABASE {name} OWNER TO app")  # type: ignore[arg-type]
        dsn = f"postgresql://app:app@{config.shards[0].dsn.split('@')[1]}"
        return servers, replace(config, shards=(replace(config.shards[0], dsn=dsn),))

    servers, config = await asyncio.to_thread(begin)
    try:
        await cluster.init(config)
        async with running(config, app), running(config, app):
            for words in ((), ("--deep",)):
                answer = await asyncio.to_thread(doctor, config, *words)
                assert (answer.code, answer.bad) == (0, {}), answer.bad
        told = {f["check"] for f in answer.data["findings"]}
        assert {c.__name__ for c in (*checkup_server.CHECKS, *checkup_work.CHECKS)} <= told
        assert {"clock", "connections", "slots"} <= told
    finally:
        await asyncio.to_thread(servers.stop)


def dead(config: ClusterConfig, shard: int) -> ClusterConfig:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    gone = replace(config.shards[shard], dsn=f"postgresql://u:secret@127.0.0.1:{port}/gone")
    return replace(config, shards=(*config.shards[:shard], gone, *config.shards[shard + 1 :]))


def test_a_shard_that_is_away_is_named_and_the_others_are_examined(
    cluster_config: ClusterConfig, doctor: Doctor
) -> None:
    answer = doctor(dead(cluster_config, 1))
    assert answer.code == 5
    assert answer.err.startswith("Error: shard 's1' does not answer")
    assert [u["shard"] for u in answer.data["unreachable"]] == ["s1"]
    assert answer.bad["reach"]["shard"] == "s1"
    assert answer.bad["reach"]["command"].startswith("pg_isready -d 'postgresql://u:***@")
    assert "secret" not in json.dumps(answer.data) + answer.err
    [slots] = [f for f in answer.data["findings"] if f["check"] == "slots"]
    assert (slots["severity"], "on shards that do not answer" in slots["found"]) == ("ok", True)
    assert {f["shard"] for f in answer.data["findings"] if f["check"] == "keys"} == {"s0", "s2"}
    run_sql(cluster_config, "UPDATE migration SET checksum = 'x' WHERE version = 1")
    assert doctor(dead(cluster_config, 1)).code == 1, "an error elsewhere is worse than a shard that is away"


def test_the_report_tells_the_remedy_and_with_all_what_is_well(
    shard_config: ClusterConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use(shard_config, tmp_path, monkeypatch)
    assert invoke(["doctor"]) == 0
    short = capsys.readouterr().out
    assert short.splitlines()[:4] == [
        "warning (1)",
        "  s0: workers: no worker claims here",
        "      start a worker:",
        "          shardflow worker run MODULE:ATTR",
    ]
    assert "0 errors, 1 warnings" in short.splitlines()[-1]
    for words in (["doctor", "--all"], ["doctor", "-v"]):
        assert invoke(words) == 0
        assert "\n  s0: version: Postgres 18." in capsys.readouterr().out


async def test_a_server_that_hangs_in_the_middle_counts_as_away(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "PATIENCE", -checkup.QUESTION + 0.5)
    shard = Shard(shard_config.shards[0])
    async with await shard.connect("test") as conn:
        backend = conn.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        try:
            with pytest.raises(ShardUnavailable, match="does not answer: nothing came back within"):
                await asyncio.wait_for(checkup.examine(shard, conn), 30)
        finally:
            os.kill(backend, signal.SIGCONT)


def test_a_schema_that_is_not_initialised(
    make_cluster: MakeCluster, doctor: Doctor, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_cluster(shards=1, init=False)
    answer = doctor(config)
    assert (answer.code, set(answer.bad)) == (1, {"identity"})
    assert invoke(answer.bad["identity"]["command"].split()[1:]) == 0
    assert set(doctor(config).bad) == IDLE


def test_the_schema_of_the_version_before_is_read_and_told_to_be_migrated(
    make_cluster: MakeCluster, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_cluster(shards=1, init=False)
    known = migrate.known()
    with monkeypatch.context() as before:
        before.setattr(migrate, "known", lambda: known[:2])
        in_thread(cluster.init(config))
    run_sql(config, "INSERT INTO lease (worker, expires_at, session) VALUES ('old', now() + interval '1 h', false)")
    answer = doctor(config)
    assert answer.code == 1
    assert set(answer.bad) == {"migrations", "workers"}
    assert invoke(answer.bad["migrations"]["command"].split()[1:]) == 0
    assert set(doctor(config).bad) == IDLE


def test_migrations_that_this_code_does_not_know(shard_config: ClusterConfig, doctor: Doctor) -> None:
    run_sql(shard_config, "INSERT INTO migration (version, name, checksum) VALUES (99, 'later', 'x')")
    answer = doctor(shard_config)
    assert (answer.code, answer.bad["migrations"]["severity"]) == (0, "warning")
    run_sql(shard_config, "UPDATE migration SET checksum = 'x' WHERE version = 1")
    answer = doctor(shard_config)
    assert (answer.code, answer.bad["migrations"]["severity"]) == (1, "error")


def test_the_schema_of_another_cluster(shard_config: ClusterConfig, doctor: Doctor) -> None:
    answer = doctor(replace(shard_config, name="other"))
    assert (answer.code, "belongs to the cluster 'test'" in answer.bad["identity"]["found"]) == (1, True)


FOR_ALL = "ALTER SYSTEM SET {} ; SELECT pg_reload_conf()"
SETTINGS = [
    ("durability", "error", FOR_ALL.format("fsync = off")),
    ("durability", "warning", FOR_ALL.format("full_page_writes = off")),
    ("durability", "error", FOR_ALL.format("synchronous_commit = off")),
    ("durability", "error", "ALTER ROLE postgres SET synchronous_commit = off"),
    ("durability", "error", "ALTER ROLE ALL SET synchronous_commit = off"),
    ("vacuuming", "error", FOR_ALL.format("autovacuum = off")),
    ("vacuuming", "error", FOR_ALL.format("track_counts = off")),
    ("vacuuming", "warning", "ALTER TABLE ready SET (autovacuum_enabled = off)"),
    ("writable", "error", "ALTER DATABASE {database} SET default_transaction_read_only = on"),
    ("session", "warning", "ALTER ROLE postgres IN DATABASE {database} SET statement_timeout = '2s'"),
    ("session", "error", "ALTER ROLE postgres SET session_replication_role = replica"),
    ("connections", "warning", "ALTER DATABASE {database} CONNECTION LIMIT 5"),
]


@pytest.mark.parametrize(("check", "severity", "fault"), SETTINGS, ids=[s[2] for s in SETTINGS])
async def test_settings_are_found_where_they_are_made_and_changed_back(
    check: str, severity: str, fault: str, shard: ClusterConfig, doctor: Doctor
) -> None:
    name = database(shard.shards[0])
    try:
        run_sql(shard, *fault.format(database=name).split(";"))
        answer: Answer = await until(lambda: check in (found := doctor(shard)).bad and found, what=fault)
        assert (answer.bad[check]["severity"], answer.code) == (severity, int(severity == "error"))
        assert set(answer.bad) == {check} | IDLE
        command = answer.bad[check]["command"]
        with psycopg.connect(shard.shards[0].dsn, autocommit=True) as conn:
            conn.execute("SET default_transaction_read_only = off")
            for part in command.split(";"):
                if part.strip():
                    conn.execute(part)
        await until(lambda: check not in doctor(shard).bad, what=command)
    finally:
        put_back = [f"ALTER ROLE {who} RESET ALL" for who in ("postgres", "ALL")]
        run_sql(shard, "SET default_transaction_read_only = off", *put_back)


async def test_too_few_connections(shard: ClusterConfig, own: Lab, doctor: Doctor) -> None:
    many = replace(shard, pool=replace(shard.pool, max_size=50))
    answer = doctor(many)
    assert (answer.code, set(answer.bad)) == (0, {"connections"} | IDLE)
    assert " of the server's 37 connections are used" in answer.bad["connections"]["found"]
    mend(shard, answer.bad["connections"])
    own.servers[0].stop()
    own.servers[0].start()
    # The embedded server's own file says max_connections too, and ALTER SYSTEM comes behind it.
    assert set(doctor(many).bad) == IDLE


@pytest.mark.parametrize("fault", ["none at all", "to use the schema", "to write"])
def test_a_role_without_rights_is_told_which(fault: str, shard: ClusterConfig, doctor: Doctor) -> None:
    name = database(shard.shards[0])
    run_sql(shard, f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    if fault == "to write":
        run_sql(
            shard,
            f"GRANT USAGE ON SCHEMA shardflow TO {name}",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA shardflow TO {name}",
        )
        run_sql(shard, f"GRANT ALL ON ALL SEQUENCES IN SCHEMA shardflow TO {name}")
    if fault == "to use the schema":
        run_sql(shard, f"GRANT ALL ON ALL TABLES IN SCHEMA shardflow TO {name}")
    theirs = f"postgresql://{name}:x@{shard.shards[0].dsn.split('@')[1]}"
    as_role = replace(shard, shards=(replace(shard.shards[0], dsn=theirs),))
    try:
        answer = doctor(as_role)
        check = "rights" if fault == "to write" else "identity"
        assert check in answer.bad, answer.bad
        assert answer.bad[check]["command"].startswith("GRANT ")
        mend(shard, answer.bad[check])
        assert set(doctor(as_role).bad) == IDLE
    finally:
        run_sql(shard, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


async def ready(hand: Hand, *ids: str) -> dict[str, int]:
    return await hand.submit(await hand.conn(), *ids)


async def test_claims_of_a_lease_that_does_not_exist(shard_config: ClusterConfig, doctor: Doctor) -> None:
    async with by_hand(shard_config) as hand:
        wfs = await ready(hand, "a", "b", "c")
        run_sql(
            shard_config,
            "SET session_replication_role = replica",
            "DELETE FROM ready",
            f"INSERT INTO claim (lease, batch, wfs, attempts) VALUES (77, 1, ARRAY{list(wfs.values())}, '{{0,0,0}}')",
        )
        answer = doctor(shard_config)
        assert (answer.code, set(answer.bad)) == (1, {"claims"} | IDLE)
        assert "3 workflows claimed by leases that do not exist: 77" in answer.bad["claims"]["found"]
        mend(shard_config, answer.bad["claims"])
        assert one(shard_config, "SELECT count(*) FROM ready WHERE replay AND attempt = 1") == 3
        assert "claims" not in doctor(shard_config).bad
        assert_i1(shard_config)


async def test_a_lease_that_nobody_ends(shard_config: ClusterConfig, doctor: Doctor) -> None:
    async with by_hand(shard_config) as hand:
        await ready(hand, "a", "b")
        holder = await hand.holder("w")
        await holder.claim()
        assert set(doctor(shard_config).bad) == {"workers"}
        run_sql(shard_config, "UPDATE lease SET expires_at = now() - interval '1 min'")
        answer = doctor(shard_config)
        assert set(answer.bad) == {"leases", "workers"}
        assert "nobody has taken back 2 workflows" in answer.bad["leases"]["found"]
        mend(shard_config, answer.bad["leases"])
        waiting = doctor(shard_config)
        assert (waiting.code, set(waiting.bad)) == (1, {"workers"})
        assert waiting.bad["workers"]["found"] == "2 workflows ready, and no worker claims here"
        assert_i1(shard_config)


async def test_a_lease_whose_session_is_closed_does_not_count_as_a_worker(
    shard_config: ClusterConfig, doctor: Doctor
) -> None:
    async with by_hand(shard_config) as hand:
        await ready(hand, "a")
        holder = await hand.holder("w")
        assert "1 worker here" in doctor(shard_config).bad["workers"]["found"]
        await holder.keeping.close()
        await until(lambda: not rows(shard_config, "SELECT FROM pg_locks WHERE locktype = 'advisory'"))
        assert "no worker claims here" in doctor(shard_config).bad["workers"]["found"]


async def test_a_commit_loop_that_hangs_in_a_transaction(
    shard_config: ClusterConfig, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup_work, "TAKEN", 0.0)
    async with by_hand(shard_config) as hand:
        holder = await hand.holder("w")
        await holder.writing.execute("BEGIN")
        answer = doctor(shard_config)
        assert f"(process {holder.writing.info.backend_pid})" in answer.bad["leases"]["found"]
        mend(shard_config, answer.bad["leases"])
        await until(lambda: "leases" not in doctor(shard_config).bad)


async def test_a_receipt_that_is_old(shard_config: ClusterConfig, doctor: Doctor) -> None:
    async with by_hand(shard_config) as hand:
        wfs = await ready(hand, "a", "b", "c")
        holder = await hand.holder("w")
        await holder.claim()
        await holder.turn(outcomes=[done(wfs["a"])])
        run_sql(shard_config, "UPDATE claim SET claimed_at = now() - interval '3 h'")
        answer = doctor(shard_config)
        assert answer.bad["claims"]["found"] == "w has held 2 workflows without a change for up to 3 h: b, c"
        assert answer.bad["claims"]["command"] == "shardflow workflow show b"
        assert await asyncio.to_thread(invoke, answer.bad["claims"]["command"].split()[1:]) == 0


async def test_workflows_that_are_nowhere_are_found_in_a_sample(shard_config: ClusterConfig, doctor: Doctor) -> None:
    """Those that came back stand in ready under another number, and so must be looked for again."""
    async with by_hand(shard_config) as hand:
        wfs = await ready(hand, *(f"w'{n}" for n in range(30)))
        holder = await hand.holder("w")
        await holder.claim(10)
        run_sql(shard_config, "SELECT end_lease(lease, 0) FROM lease")
        assert "places" not in doctor(shard_config).bad
        gone = ", ".join(str(wfs[f"w'{n}"]) for n in (3, 20))
        run_sql(shard_config, f"DELETE FROM ready WHERE wf IN ({gone})")
        for words in ((), ("--deep",)):
            answer = doctor(shard_config, *words)
            assert answer.code == 1
            assert (
                "2 workflows neither ready, claimed, suspended nor ended: w'3, w'20" in answer.bad["places"]["found"]
            )
        mend(shard_config, answer.bad["places"])
        assert "places" not in doctor(shard_config, "--deep").bad
        assert_i1(shard_config)


async def test_workflows_in_two_places_and_ended_ones_are_found_by_looking_at_all(
    shard_config: ClusterConfig, doctor: Doctor
) -> None:
    async with by_hand(shard_config) as hand:
        wfs = await ready(hand, *"abcdef")
        copy = (
            "INSERT INTO ready (seq, wf, priority, queue) SELECT nextval('key'), wf, priority, queue FROM workflow"
            " WHERE id IN ('a', 'b', 'c')"
        )
        run_sql(shard_config, copy)
        holder = await hand.holder("w")
        await holder.claim(1)  # a is claimed and ready
        run_sql(shard_config, f"INSERT INTO wait (wf, reason) VALUES ({wfs['b']}, 'test')")
        answer = doctor(shard_config, "--deep")
        assert "3 workflows in more than one place: a, b, c" in answer.bad["places"]["found"]
        mend(shard_config, answer.bad["places"])
        assert "places" not in doctor(shard_config, "--deep").bad
        assert rows(shard_config, "SELECT id FROM ready JOIN workflow USING (wf) ORDER BY 1") == [
            ("c",),
            ("d",),
            ("e",),
            ("f",),
        ]
        run_sql(
            shard_config,
            f"INSERT INTO outcome (wf, status) VALUES ({wfs['d']}, 'succeeded'), ({wfs['b']}, 'succeeded')",
        )
        answer = doctor(shard_config, "--deep")
        assert "2 workflows ended and still ready or suspended: b, d" in answer.bad["places"]["found"]
        mend(shard_config, answer.bad["places"])
        assert "places" not in doctor(shard_config, "--deep").bad
        assert_i1(shard_config)


async def test_work_that_waits_and_a_queue_that_nobody_serves(shard_config: ClusterConfig, doctor: Doctor) -> None:
    async with by_hand(shard_config) as hand:
        await ready(hand, "a", "b")
        await hand.holder("w")
        run_sql(
            shard_config,
            "UPDATE workflow SET submitted_at = now() - interval '1 h' WHERE id = 'b'",
            "UPDATE lease SET queues = '{mail,default}'",
        )
        answer = doctor(shard_config)
        assert set(answer.bad) == {"ready", "workers"}
        assert (
            answer.bad["ready"]["found"]
            == "the oldest of 2 workflows ready in the queue 'default' was submitted 60 min ago"
        )
        assert "fewer than min_group" in answer.bad["workers"]["found"]
        run_sql(shard_config, "UPDATE lease SET queues = '{mail}'")
        answer = doctor(shard_config)
        assert answer.code == 1
        assert answer.bad["workers"]["command"] == "shardflow worker run MODULE:ATTR --queue default"
        run_sql(shard_config, "UPDATE ready SET replay = true")
        assert "ready" not in doctor(shard_config).bad, "one that came back was submitted long ago"


async def test_every_queue_and_priority_is_seen(shard_config: ClusterConfig, doctor: Doctor) -> None:
    async with by_hand(shard_config) as hand:
        await ready(hand, *(f"w{n}" for n in range(60)))
        run_sql(
            shard_config,
            "UPDATE ready SET queue = 'q' || wf % 3, priority = wf % 4",
            "UPDATE workflow SET queue = 'q' || wf % 3, priority = wf % 4",
            "UPDATE workflow SET submitted_at = now() - interval '2 h' WHERE queue = 'q1' AND priority = 3",
            "INSERT INTO lease (worker, expires_at, session, queues)"
            " VALUES ('w', now() + interval '1 h', false, '{q0}')",
        )
        answer = doctor(shard_config)
        unserved = [f["found"] for f in answer.data["findings"] if "no worker serves" in f["found"]]
        assert [text.split("queue ")[1][:4] for text in unserved] == ["'q1'", "'q2'"]
        assert all(text.startswith("20 workflows") for text in unserved)
        assert "queue 'q1' was submitted 2 h ago" in answer.bad["ready"]["found"]


async def test_suspended_workflows_that_do_not_wake(shard_config: ClusterConfig, doctor: Doctor) -> None:
    async with by_hand(shard_config) as hand:
        wfs = await ready(hand, "a", "b")
        run_sql(
            shard_config,
            "DELETE FROM ready",
            f"INSERT INTO wait (wf, wake_at, reason) VALUES ({wfs['a']}, now() - interval '10 min', 'x'),"
            f" ({wfs['b']}, now() + interval '10 min', 'x')",
        )
        answer = doctor(shard_config)
        assert answer.bad["suspended"]["found"] == "1 suspended workflow should have woken, the first 10 min ago"


def test_a_sequence_that_is_behind_or_out_of_its_range(shard_config: ClusterConfig, doctor: Doctor) -> None:
    async def submit(*ids: str) -> None:
        async with by_hand(shard_config) as hand:
            await ready(hand, *ids)

    in_thread(submit("a", "b", "c"))
    first = one(shard_config, "SELECT min(wf) FROM workflow")
    for fault, words in ((first, "is in use"), (1, "not of the shard's own range")):
        run_sql(shard_config, f"SELECT setval('key', {fault})")
        answer = doctor(shard_config)
        assert answer.code == 1
        assert words in answer.bad["keys"]["found"]
        mend(shard_config, answer.bad["keys"])
        assert "keys" not in doctor(shard_config).bad
        assert one(shard_config, "SELECT nextval('key')") > first + 2
    in_thread(submit("d"))


def test_slots_that_are_frozen_held_twice_or_by_nobody(
    make_cluster: MakeCluster, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "FROZEN_SECONDS", 0.01)
    config = make_cluster(shards=2, slots=8)
    first, second = (replace(config, shards=(shard,)) for shard in config.shards)
    run_sql(first, "UPDATE slot SET state = 'frozen' WHERE slot IN (1, 2)")
    answer = doctor(config)
    assert "slots 1-2 frozen" in answer.bad["frozen"]["found"]
    mend(first, answer.bad["frozen"])
    assert set(doctor(config).bad) == IDLE
    run_sql(second, "UPDATE slot SET state = 'active', shard = 's1' WHERE slot = 3")
    answer = doctor(config)
    assert "slot 3 held by s0 and s1" in answer.bad["slots"]["found"]
    mend(second, answer.bad["slots"])
    assert set(doctor(config).bad) == IDLE
    run_sql(second, "DELETE FROM slot WHERE slot = 7")
    answer = doctor(config)
    assert "slot 7 held by no shard" in answer.bad["slots"]["found"]
    mend(first, answer.bad["slots"])
    assert set(doctor(config).bad) == IDLE
    assert (one(first, "SELECT generation FROM shard"), one(second, "SELECT generation FROM shard")) == (3, 2)


def test_a_transaction_that_keeps_dead_rows(
    shard: ClusterConfig, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup_server, "LONG", 0.0)
    with closing(session(shard)) as stranger:
        stranger.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        stranger.execute("SELECT 1 FROM ready")
        answer = doctor(shard)
        assert f"process {stranger.info.backend_pid} (fault, role postgres)" in answer.bad["horizon"]["found"]
        assert "idle in transaction; it keeps dead rows of the last" in answer.bad["horizon"]["found"]
        mend(shard, answer.bad["horizon"])
        assert "horizon" not in doctor(shard).bad
    with closing(session(shard)) as stranger:
        stranger.execute("SELECT 1 FROM ready")
        stranger.execute("PREPARE TRANSACTION 'a''b'")
    answer = doctor(shard)
    assert "a'b" in answer.bad["horizon"]["found"]
    mend(shard, answer.bad["horizon"])
    assert "horizon" not in doctor(shard).bad
    monkeypatch.setattr(checkup_server, "OLD_XIDS", -1)
    run_sql(shard, "SELECT pg_create_logical_replication_slot('gone', 'pgoutput')")
    answer = doctor(shard)
    assert "the inactive replication slot gone keeps dead rows" in answer.bad["horizon"]["found"]
    mend(shard, answer.bad["horizon"])
    assert "horizon" not in doctor(shard).bad


async def test_a_lock_that_is_waited_for(
    shard: ClusterConfig, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "OLD_WAIT", 0.0)
    with closing(session(shard)) as stranger, closing(session(shard)) as waiter:
        stranger.execute("LOCK TABLE wait")
        thread = threading.Thread(target=lambda: waiter.execute("LOCK TABLE wait"))
        thread.start()
        answer: Answer = await until(lambda: "locks" in (found := doctor(shard)).bad and found)
        found = answer.bad["locks"]["found"]
        assert found.startswith(f"process {waiter.info.backend_pid} (fault) has waited")
        assert f"{stranger.info.backend_pid} (fault, postgres, idle in transaction)" in found
        blocked = "overdue" in answer.bad and "lock timeout" in answer.bad["overdue"]["found"]
        assert blocked, "what cannot be read for the lock is told, and the rest is examined"
        mend(shard, answer.bad["locks"])
        await asyncio.to_thread(thread.join, 30)
        assert not thread.is_alive()
        waiter.rollback()
    await until(lambda: "locks" not in doctor(shard).bad)


async def test_commits_that_wait_for_a_standby(
    shard: ClusterConfig, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup_server, "HELD_UP", 0.0)
    run_sql(shard, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
    with closing(session(shard)) as writer:

        def write() -> None:
            with suppress(psycopg.Error):
                writer.execute("CREATE TABLE written ()")
                writer.commit()

        await until(lambda: one(shard, "SHOW synchronous_standby_names") == "nobody")
        thread = threading.Thread(target=write)
        thread.start()
        answer: Answer = await until(lambda: "commits" in (found := doctor(shard)).bad and found)
        assert answer.bad["commits"]["found"].startswith("1 commit waiting for a synchronous standby")
        mend(shard, answer.bad["commits"])
        await asyncio.to_thread(thread.join, 30)
        assert not thread.is_alive()
    assert "commits" not in doctor(shard).bad


async def test_dead_rows_that_no_vacuum_removes(
    shard: ClusterConfig, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_sql(
        shard,
        "ALTER TABLE ready SET (autovacuum_enabled = false)",
        "INSERT INTO ready (seq, wf, priority, queue) SELECT n, n, 0, 'q' FROM generate_series(1, 120000) AS n",
        "DELETE FROM ready",
    )
    answer: Answer = await until(lambda: "bloat" in (found := doctor(shard)).bad and found)
    assert set(answer.bad) == {"bloat", "vacuuming"} | IDLE
    assert "shardflow.ready has 120,000 dead rows and 0 live, never vacuumed" in answer.bad["bloat"]["found"]
    mend(shard, answer.bad["bloat"])
    mend(shard, answer.bad["vacuuming"])
    await until(lambda: set(doctor(shard).bad) == IDLE)
    monkeypatch.setattr(checkup_work, "LARGE", 1 << 20)
    answer = doctor(shard)
    assert answer.bad["bloat"]["found"].startswith("shardflow.ready takes")
    mend(shard, answer.bad["bloat"])
    await until(lambda: set(doctor(shard).bad) == IDLE)


def test_an_outbox_that_is_not_emptied(shard_config: ClusterConfig, doctor: Doctor) -> None:
    written = "INSERT INTO outbox (lease, target, topic, written_at) VALUES (0, 'w', 't', now() - interval '%s min')"
    run_sql(shard_config, written % 0)
    assert "outbox" not in doctor(shard_config).bad
    run_sql(shard_config, written % 5)
    assert doctor(shard_config).bad["outbox"]["found"] == "the oldest of 2 rows in the outbox is 5 min old"


class Pooler:
    """Stands between a client and a server as a pooler does, telling a process id of its own; one at a time."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._to = port
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                back = threading.Thread(target=self._answers, args=(server, client), daemon=True)
                back.start()
                with suppress(OSError), client, server:
                    while data := client.recv(65536):
                        server.sendall(data)
                    server.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _answers(server: socket.socket, client: socket.socket) -> None:
        """Everything as it is, but for the process id in the message that begins with K and its length, 12."""
        told = False
        with suppress(OSError):
            while data := server.recv(65536):
                if not told and (at := data.find(b"K\0\0\0\x0c")) >= 0:
                    data = data[: at + 5] + b"\0\0\0\x07" + data[at + 9 :]
                    told = True
                client.sendall(data)


def test_a_pooler_that_the_configuration_does_not_know(shard_config: ClusterConfig, doctor: Doctor) -> None:
    known = shard_config.shards[0]
    told = psycopg.conninfo.conninfo_to_dict(known.dsn)
    with closing(Pooler(int(str(told["port"])))) as between:
        dsn = psycopg.conninfo.make_conninfo(known.dsn, port=between.port, sslmode="disable", gssencmode="disable")
        answer = doctor(replace(shard_config, shards=(replace(known, dsn=dsn),)))
        assert set(answer.bad) == {"pooler"} | IDLE
        assert answer.bad["pooler"]["found"] == "a pooler stands in between"
        answer = doctor(replace(shard_config, shards=(replace(known, dsn=dsn, pooler=True),)))
        assert set(answer.bad) == {"session"} | IDLE
        mend(shard_config, answer.bad["session"])
        try:
            answer = doctor(replace(shard_config, shards=(replace(known, dsn=dsn, pooler=True),)))
            assert set(answer.bad) == IDLE
        finally:
            run_sql(shard_config, "ALTER ROLE postgres RESET ALL")
    answer = doctor(replace(shard_config, shards=(replace(known, pooler=True),)))
    assert "the server itself answers" in answer.bad["pooler"]["found"]
