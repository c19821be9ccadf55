"""What `shardflow doctor` decides: a healthy cluster's facts, one of them changed, and the finding about that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from shardflow import ClusterConfig, PoolConfig, ShardConfig
from shardflow.core.checkup import examine
from shardflow.core.facts import (
    Ages,
    Away,
    Blocked,
    Clock,
    Connections,
    Facts,
    Keys,
    LeaseFact,
    Migrated,
    Misplaced,
    OldReceipt,
    Orphan,
    Outbox,
    Overdue,
    Places,
    Prepared,
    Queue,
    ReplicationSlot,
    Server,
    Session,
    Setting,
    Table,
)
from shardflow.core.finding import Finding, Severity, lasting
from shardflow.core.slotmap import ShardView

ERROR, WARNING, OK = Severity.ERROR, Severity.WARNING, Severity.OK
CONFIG = ClusterConfig("test", (ShardConfig("s0", "dbname=a"), ShardConfig("s1", "dbname=b")), slots=4)
SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "synchronous_standby_names": "",
    "autovacuum": "on",
    "track_counts": "on",
    "max_connections": "100",
    "superuser_reserved_connections": "3",
    "statement_timeout": "0",
    "lock_timeout": "10000",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "10000",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "session_replication_role": "origin",
}
LEASES = tuple(LeaseFact(n, f"w{n}", 8.0, True, 5, ("default",), True, 100 + n, None) for n in (1, 2))
READY = Table("ready", 100, 1000, 30.0, 1 << 20, 1 << 20, True, ())


def view(name: str = "s0", own: tuple[int, ...] = (0, 1), **changes: Any) -> ShardView:
    rows = [(n, "active", name) if n in own else (n, "hint", "s1" if n > 1 else "s0") for n in range(4)]
    return replace(ShardView(name, "test", "id", 4, 1, rows), **changes)


def healthy(name: str = "s0", own: tuple[int, ...] = (0, 1), **changes: Any) -> Facts:
    """The facts of a shard with nothing wrong, some of them changed; `settings` changes single settings."""
    changed = changes.pop("settings", {})
    settings = {key: Setting(value, "default") for key, value in SETTINGS.items()}
    facts = Facts(
        shard=name,
        schema="shardflow",
        pooler=False,
        clock=Clock(0.001, 0.0005, 0.001),
        server=Server(180004, False, "app", "db", 1000.0 + own[0], 5432, frozenset({42}), 42),
        settings=None if changed is None else settings | changed,
        connections=Connections(10, 10, -1, 10, -1, 0, 0.0),
        sessions=(),
        blocked=(),
        replication=(),
        prepared=(),
        ages=Ages(1000, 10),
        migrations=(),
        view=view(name, own),
        frozen=(),
        tables=(READY,),
        keys=Keys(1 << 44 | 10, 1 << 44 | 5, (1 << 44) + 1, (2 << 44) + 1),
        leases=LEASES,
        orphans=(),
        receipts=(),
        queues=(Queue("default", 7, 2.0),),
        overdue=Overdue(0, 0.0),
        places=Places(100, ()),
    )
    return replace(facts, **changes)


def pair(**changes: Any) -> list[Facts]:
    """A cluster of two, the first shard changed."""
    return [healthy(**changes), healthy("s1", (2, 3))]


def bad(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.severity is not OK]


def only(found: list[Finding]) -> Finding:
    """The one finding that is not well."""
    [finding] = bad(found)
    return finding


def test_a_healthy_cluster_has_nothing_but_well() -> None:
    found = examine(CONFIG, pair())
    assert bad(found) == []
    assert {finding.shard for finding in found} == {"s0", "s1", None}
    assert not any(finding.remedy or finding.command for finding in found)


@pytest.mark.parametrize("name", [f.name for f in fields(Facts) if f.default is None])
def test_a_fact_that_is_missing_silences_its_checks_and_no_other(name: str) -> None:
    """And a reason is told as a warning of its own."""
    told = {f.check for f in examine(CONFIG, pair()) if f.shard == "s0"}
    without = [f for f in examine(CONFIG, pair(**{name: None})) if f.shard == "s0"]
    assert len(told - {f.check for f in without}) <= 8
    if name != "view":
        assert bad(without) == []
    refused = examine(CONFIG, pair(**{name: None, "unreadable": {name: "permission denied for schema shardflow"}}))
    mine = [f for f in bad(refused) if f.check == name]
    assert [f.severity for f in mine] == [WARNING]
    role = "ROLE" if name == "server" else "app"
    assert mine[0].command.startswith(f"GRANT USAGE ON SCHEMA shardflow TO {role};")


def setting(name: str, value: str, source: str = "default") -> dict[str, Any]:
    return {"settings": {name: Setting(value, source)}}


def server(**changes: Any) -> dict[str, Any]:
    known = healthy().server
    assert known is not None
    return {"server": dataclasses.replace(known, **changes)}


def lease(**changes: Any) -> dict[str, Any]:
    return {"leases": (LEASES[0], replace(LEASES[1], **changes))}


def table(**changes: Any) -> dict[str, Any]:
    return {"tables": (replace(READY, **changes),)}


IDLE = Session(9, "psql", "joe", "idle in transaction", 4000.0, 50, False)
CASES: list[tuple[dict[str, Any], str, Severity, str, str]] = [
    # what is changed; check, severity, words of the finding, words of the command
    ({"clock": Clock(0.0, 0.1, 0.2)}, "latency", WARNING, "200 ms", ""),
    (server(version=140011), "version", ERROR, "14.11 is older", ""),
    (server(version=190000), "version", WARNING, "not tried on Postgres 19.0", "pip install"),
    (server(standby=True), "writable", ERROR, "standby", "pg_promote"),
    (setting("default_transaction_read_only", "on"), "writable", ERROR, "only read", "= off;"),
    (setting("fsync", "off"), "durability", ERROR, "fsync is off", 'SET fsync = "on"; SELECT pg_reload_conf();'),
    (setting("synchronous_commit", "off", "user"), "durability", ERROR, "acknow", "ALTER ROLE app RESET synchronous"),
    (setting("full_page_writes", "off"), "durability", WARNING, "full_page_writes", "full_page_writes"),
    (setting("autovacuum", "off"), "vacuuming", ERROR, "autovacuum is off", "autovacuum"),
    (setting("track_counts", "off", "database"), "vacuuming", ERROR, "track_counts", "ALTER DATABASE db RESET track"),
    (table(autovacuum=False), "vacuuming", WARNING, "shardflow.ready", "RESET (autovacuum_enabled)"),
    (setting("statement_timeout", "1000", "database user"), "session", WARNING, "1.0 s", "IN DATABASE db RESET"),
    (setting("idle_session_timeout", "500", "global"), "session", WARNING, "500 ms", "ALTER ROLE ALL RESET"),
    (setting("default_transaction_isolation", "serializable"), "session", ERROR, "serializable", "read committed"),
    (setting("session_replication_role", "replica"), "session", ERROR, "foreign keys", "origin"),
    (setting("idle_in_transaction_session_timeout", "0", "client"), "session", WARNING, "keeps its locks", ""),
    (server(backends=frozenset({1, 2})), "pooler", ERROR, "transaction pooler", ""),
    (server(announced=7), "pooler", WARNING, "a pooler stands in between", ""),
    (
        {"connections": Connections(9, 9, -1, 9, -1, 3, 20.0)},
        "commits",
        ERROR,
        "3 commits",
        "synchronous_standby_names",
    ),
    ({"blocked": (Blocked(8, "x", 9.0, (9,), "9 (psql)"),)}, "locks", WARNING, "9 (psql)", "terminate_backend(9)"),
    ({"sessions": (IDLE,)}, "horizon", WARNING, "process 9 (psql, role joe)", "pg_terminate_backend(9)"),
    ({"sessions": (replace(IDLE, xids=None),)}, "horizon", WARNING, "open for 67 min", "pg_terminate_backend(9)"),
    ({"sessions": (replace(IDLE, seconds=None, xids=2_000_000),)}, "horizon", WARNING, "2,000,000", "terminate"),
    ({"sessions": (replace(IDLE, standby=True),)}, "horizon", WARNING, "hot_standby_feedback", "feedback = off"),
    (
        {"replication": (ReplicationSlot("r", False, 2_000_000, 0),)},
        "horizon",
        WARNING,
        "inactive",
        "drop_replication",
    ),
    ({"replication": (ReplicationSlot("r", False, None, 20 << 30),)}, "horizon", WARNING, "20.0 GiB", "('r')"),
    ({"prepared": (Prepared("g'1", "joe", 900.0),)}, "horizon", WARNING, "g'1", "ROLLBACK PREPARED 'g''1'"),
    ({"ages": Ages(600_000_000, 0)}, "wraparound", WARNING, "600,000,000", "VACUUM (FREEZE)"),
    ({"ages": Ages(0, 1_600_000_000)}, "wraparound", ERROR, "1,600,000,000", "VACUUM (FREEZE)"),
    ({"migrations": (Migrated(3, "x", "pending"),)}, "migrations", ERROR, "0003_x", "shardflow migrate up"),
    ({"migrations": (Migrated(3, "x", "changed"),)}, "migrations", ERROR, "another text", ""),
    ({"migrations": (Migrated(9, "x", "unknown"),)}, "migrations", WARNING, "ahead", "pip install"),
    ({"frozen": (0, 1)}, "frozen", ERROR, "slots 0-1 frozen", "SET state = 'active' WHERE state = 'frozen'"),
    (table(missing=("INSERT", "UPDATE")), "rights", ERROR, "app lacks INSERT, UPDATE on ready", "GRANT SELECT"),
    ({"keys": Keys(5, 0, 11, 21)}, "keys", ERROR, "not of the shard's own range, 11 to 20", "greatest(11, "),
    ({"keys": Keys(21, 0, 11, 21)}, "keys", ERROR, "not of the shard's own range", "wf < 21"),
    ({"keys": Keys(15, 15, 11, 21)}, "keys", ERROR, "15 is in use", "setval"),
    ({"keys": Keys(20_000, 15, 1, 20_001)}, "keys", WARNING, "0.0 % of the shard's keys are left", ""),
    (lease(writer_idle=6.0), "leases", WARNING, "process 102", "pg_terminate_backend(102)"),
    ({"queues": (Queue("mail", 3, 1.0),)}, "workers", ERROR, "'mail', which no worker serves", "--queue mail"),
    (
        {"orphans": (Orphan(77, 1, 4),)},
        "claims",
        ERROR,
        "4 workflows claimed by leases that do not exist: 77",
        "'lost'",
    ),
    ({"receipts": (OldReceipt(1, "w1", 7300.0, 2, ("a", "b c")),)}, "claims", WARNING, "2 h: a, b c", "show a"),
    ({"places": Places(9, (Misplaced("a'b", False, 0, 0),))}, "places", ERROR, "neither", "ARRAY['a''b']"),
    ({"places": Places(None, (Misplaced("a", False, 1, 1),))}, "places", ERROR, "more than one", "DELETE FROM"),
    (
        {"places": Places(None, (Misplaced("a", True, 0, 1),))},
        "places",
        ERROR,
        "ended and still ready",
        "DELETE FROM",
    ),
    ({"queues": (Queue("default", 9, 301.0),)}, "ready", WARNING, "9 workflows", "worker run"),
    ({"overdue": Overdue(3, 90.0)}, "suspended", WARNING, "3 suspended workflows", ""),
    (
        table(dead=200_000, vacuumed=None),
        "bloat",
        WARNING,
        "200,000 dead rows and 100 live",
        "VACUUM shardflow.ready",
    ),
    (table(size=300 << 20), "bloat", WARNING, "301 MiB for 100 rows", "REINDEX TABLE CONCURRENTLY shardflow.ready"),
    ({"outbox": Outbox(4, 61.0)}, "outbox", WARNING, "4 rows", ""),
    (setting("max_connections", "20"), "connections", WARNING, "10 of the server's 17", "max_connections = 30"),
    ({"connections": Connections(9, 9, 10, 9, -1, 0, 0)}, "connections", WARNING, "the role's 10", "LIMIT -1"),
    ({"connections": Connections(9, 9, -1, 9, 12, 0, 0)}, "connections", WARNING, "the database's 12", "DATABASE db"),
]


@pytest.mark.parametrize(("changes", "check", "severity", "words", "command"), CASES)
def test_each_fault_is_the_only_finding_and_has_its_remedy(
    changes: dict[str, Any], check: str, severity: Severity, words: str, command: str
) -> None:
    finding = only(examine(CONFIG, pair(**changes)))
    assert (finding.check, finding.severity, finding.shard) == (check, severity, "s0")
    assert words in finding.found
    assert finding.remedy
    assert command in finding.command


HARMLESS: list[dict[str, Any]] = [
    {"clock": Clock(0.0, 0.04, 0.08)},
    setting("synchronous_commit", "remote_apply"),
    setting("synchronous_commit", "local"),
    setting("statement_timeout", "60000"),
    {"connections": Connections(9, 9, -1, 9, -1, 3, 0.5)},
    {"sessions": (replace(IDLE, seconds=20.0),)},
    {"sessions": (replace(IDLE, state="active", xids=None),)},
    {"sessions": (replace(IDLE, seconds=None, xids=5),)},
    {"replication": (ReplicationSlot("r", True, 5, 20 << 30),)},
    {"prepared": (Prepared("g", "joe", 3.0),)},
    lease(writer_idle=0.5),
    {"leases": (*LEASES, LeaseFact(3, "w3", -1.0, True, 5, (), True, None, None))},
    {"leases": tuple(replace(each, queues=()) for each in LEASES), "queues": (Queue("mail", 3, 1.0),)},
    {"receipts": (OldReceipt(99, "gone", 7300.0, 2, ("a",)),)},
    {"queues": ()},
    table(dead=90_000, vacuumed=None),
    table(dead=5_000_000, vacuumed=40.0),
    table(name="step", size=1 << 40, dead=10_000_000, vacuumed=None),
    table(size=300 << 20, vacuumed=None),
    table(size=300 << 20, live=1_000_000),
    {"outbox": Outbox(4, 1.0)},
    {"connections": Connections(85, 85, -1, 85, -1, 0, 0.0)},
]


@pytest.mark.parametrize("changes", HARMLESS)
def test_what_is_usual_is_no_finding(changes: dict[str, Any]) -> None:
    assert bad(examine(CONFIG, pair(**changes))) == []


def test_the_worst_comes_first() -> None:
    facts = pair(ages=Ages(600_000_000, 0), migrations=(Migrated(3, "x", "pending"),))
    assert [f.severity for f in examine(CONFIG, facts)][:3] == [ERROR, WARNING, OK]


def test_a_shard_without_workers_is_an_error_only_where_work_waits() -> None:
    dead = tuple(replace(each, alive=False) for each in LEASES)
    waiting = only(examine(CONFIG, pair(leases=dead)))
    assert (waiting.check, waiting.severity) == ("workers", ERROR)
    assert waiting.found == "7 workflows ready, and no worker claims here"
    idle = only(examine(CONFIG, pair(leases=(), queues=())))
    assert (idle.check, idle.severity) == ("workers", WARNING)
    alone = only(examine(CONFIG, pair(leases=LEASES[:1])))
    assert "1 worker here, fewer than min_group (2)" in alone.found
    leaving = only(examine(CONFIG, pair(leases=(LEASES[0], replace(LEASES[1], claiming=False)))))
    assert leaving.check == "workers"


def test_a_lease_that_nobody_ends_names_what_it_holds_and_who_would_do_it() -> None:
    old = LeaseFact(9, "w9", -60.0, None, 4, (), True, None, None)
    served = only(examine(CONFIG, pair(leases=(*LEASES, old))))
    assert "lease 9 of w9 ended 60 s ago, and nobody has taken back 4 workflows" in served.found
    assert (served.remedy, served.command) == ("take them back", "SELECT shardflow.end_lease(9, 1);")
    stuck = only(examine(CONFIG, pair(leases=(*LEASES, replace(old, writer=5, writer_idle=50.0)))))
    assert stuck.command == "SELECT pg_terminate_backend(5); SELECT shardflow.end_lease(9, 1);"
    alone = [f for f in examine(CONFIG, pair(leases=(old,))) if f.check == "leases" and f.shard == "s0"]
    assert alone[0].remedy.startswith("start a worker")


def test_dead_rows_that_a_transaction_keeps_send_to_that_transaction() -> None:
    found = bad(examine(CONFIG, pair(sessions=(IDLE,), **table(dead=200_000, vacuumed=5.0))))
    assert [f.check for f in found] == ["horizon", "bloat"]
    assert found[1].remedy.startswith("first end what horizon names")


def test_a_pooler_that_is_not_there_is_told() -> None:
    pooled = {"pooler": True, "settings": {"idle_in_transaction_session_timeout": Setting("10000", "user")}}
    assert only(examine(CONFIG, pair(**pooled))).check == "pooler"
    assert bad(examine(CONFIG, pair(**pooled, **server(announced=1)))) == []
    hung = pair(pooler=True, **server(announced=1), **setting("idle_in_transaction_session_timeout", "0"))
    assert only(examine(CONFIG, hung)).command.startswith("ALTER ROLE app SET idle_in_transaction")


def test_shards_on_one_server_share_its_connections() -> None:
    """Ten connections are wanted for each of them: 2 for a lease, 8 for a pool."""
    one = {"settings": {"max_connections": Setting("30", "default")}}
    assert bad(examine(CONFIG, [healthy(**one), healthy("s1", (2, 3), **one)])) == []
    same = healthy().server
    finding = only(examine(CONFIG, [healthy(**one), healthy("s1", (2, 3), server=same, **one)]))
    assert "take 20 more for s0, s1" in finding.found
    small = replace(CONFIG, pool=PoolConfig(max_size=1))
    assert bad(examine(small, [healthy(**one), healthy("s1", (2, 3), server=same, **one)])) == []


def clocks(*offsets: float, error: float = 0.01) -> list[Finding]:
    facts = [healthy(f"s{n}", clock=Clock(o, error, 2 * error), view=None) for n, o in enumerate(offsets)]
    config = replace(CONFIG, shards=tuple(ShardConfig(f.shard, "dbname=a") for f in facts))
    return [f for f in bad(examine(config, facts)) if f.check == "clock"]


def test_the_clock_that_differs_from_the_most_is_named() -> None:
    assert [(f.shard, f.severity) for f in clocks(0.0, 3.0, 0.1)] == [("s1", WARNING)]
    assert [(f.shard, f.severity) for f in clocks(0.0, -9.0, 0.1)] == [("s1", ERROR)]
    assert [(f.shard, f.severity) for f in clocks(20.0, 20.1, 19.9)] == [(None, ERROR)]
    assert "behind the shards'" in clocks(20.0, 20.1, 19.9)[0].found
    assert clocks(0.4, -0.4, 0.0) == []


def test_with_one_shard_it_cannot_be_told_whose_clock_is_wrong() -> None:
    [finding] = clocks(4.0)
    assert "4.0 s ahead of this machine's" in finding.found


def test_a_slow_round_trip_is_no_proof_of_skew() -> None:
    assert clocks(0.0, 2.0, 0.0, error=0.9) != []
    assert clocks(0.0, 1.8, 0.0, error=0.9) == []


def slots(one: ShardView | None, other: ShardView | None, away: bool = False) -> list[Finding]:
    facts = [healthy(view=one)] + ([] if away else [healthy("s1", (2, 3), view=other)])
    gone = [Away("s1", "does not answer", "host=x")] if away else []
    return [f for f in examine(CONFIG, facts, gone) if f.check == "slots"]


def test_slots_of_a_shard_that_does_not_answer_are_not_missed() -> None:
    [finding] = slots(view(), None, away=True)
    assert (finding.severity, "slots 2-3 lie on shards that do not answer" in finding.found) == (OK, True)


def test_slots_that_no_shard_holds_are_an_error() -> None:
    [finding] = slots(view(), view("s1", (3,)))
    assert (finding.severity, finding.found.startswith("slot 2 held by no shard")) == (ERROR, True)
    assert "WHERE n BETWEEN 2 AND 2 ON CONFLICT" in finding.command
    believed_here = view(own=(0,))
    [finding] = slots(believed_here, None, away=True)
    assert finding.found.startswith("slot 1 held by no shard")
    unknown = view(rows=[(0, "active", "s0")])
    [finding] = slots(unknown, None, away=True)
    assert (finding.severity, "no shard knows who owns slots 1-3" in finding.found) == (ERROR, True)


def test_slots_that_two_shards_hold_are_an_error() -> None:
    [finding] = slots(view(own=(0, 1, 2)), view("s1", (2, 3)))
    assert finding.found.startswith("slot 2 held by s0 and s1")
    assert "SELECT n, 'hint', 's0'" in finding.command


def test_a_slot_map_that_names_a_stranger_is_an_error() -> None:
    [finding] = slots(view(rows=[(0, "active", "s0"), (1, "moved", "s9")]), view("s1", (1, 2, 3)))
    assert "lacks: s9" in finding.found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: view(cluster="other"), "belongs to the cluster 'other', not to 'test'"),
        (lambda: view("s7"), "was initialised as shard 's7'"),
        (lambda: view(slots=8), "made with 8 slots, the configuration says 4"),
        (lambda: None, "is not initialised"),
    ],
)
def test_a_schema_that_is_not_what_the_configuration_means(
    change: Callable[[], ShardView | None], words: str
) -> None:
    found = [f for f in examine(CONFIG, pair(view=change())) if f.check == "identity" and f.severity is ERROR]
    assert words in found[0].found


def test_a_schema_that_is_not_initialised_is_not_told_of_its_migrations_too() -> None:
    facts = pair(view=None, migrations=(Migrated(1, "records", "pending"),), tables=(), leases=None, queues=None)
    told = {f.check for f in bad(examine(CONFIG, facts)) if f.shard == "s0"}
    assert told == {"identity"}


@pytest.mark.parametrize(
    ("away", "command"),
    [
        (Away("s1", "no", "host=x password='***'"), "pg_isready -d 'host=x password='\"'\"'***'\"'\"''"),
        (Away("s1", "no", "host=x", busy=True), "SELECT datname, usename"),
        (Away("s1", "FATAL:  sorry, too many clients already", "host=x"), "SELECT datname, usename"),
        (Away("s1", "no", "host=x", refuses=True), ""),
        (Away("s1", 'FATAL:  password authentication failed for user "a"', "host=x"), ""),
        (Away("s1", 'FATAL:  database "a" does not exist', "host=x"), ""),
    ],
)
def test_a_shard_that_does_not_answer_is_an_error(away: Away, command: str) -> None:
    finding = only(examine(CONFIG, [healthy()], [away]))
    assert (finding.check, finding.severity, finding.shard, finding.found) == ("reach", ERROR, "s1", away.why)
    assert finding.command.startswith(command)
    assert bool(finding.command) == bool(command)
    assert finding.remedy


def test_different_versions_are_well_and_told() -> None:
    [finding] = [f for f in examine(CONFIG, pair(**server(version=150018))) if f.check == "versions"]
    assert (finding.severity, "15 on s0; 18 on s1" in finding.found) == (OK, True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0004, "0.4 ms"), (0.25, "250 ms"), (3.21, "3.2 s"), (45, "45 s"), (600, "10 min"), (7300, "2 h")],
)
def test_durations_are_told_as_people_say_them(seconds: float, text: str) -> None:
    assert lasting(seconds) == text


def test_long_durations_are_told_in_days() -> None:
    assert lasting(260_000) == "3 days"
