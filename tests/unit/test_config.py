from __future__ import annotations

from pathlib import Path

import pytest

from shardflow.config import load, parse
from shardflow.core.redact import redact_dsn
from shardflow.core.suggest import did_you_mean
from shardflow.errors import ConfigError
from shardflow.model import NEVER, ClusterConfig, LeaseConfig, PayloadConfig, PoolConfig, RetentionConfig, ShardConfig

CONFIG = Path(__file__).resolve().parents[2] / "config"
SHARD = {"name": "s1", "dsn": "postgresql://u@h/d"}


def config(**changes: object) -> dict[str, object]:
    return {"name": "orders", "shards": [SHARD], **changes}


def shard(**changes: object) -> dict[str, object]:
    return config(shards=[{**SHARD, **changes}])


def test_what_is_left_out_has_the_default():
    assert parse(config(), "c.yaml", {}) == ClusterConfig("orders", (ShardConfig("s1", "postgresql://u@h/d"),))


def test_every_key_is_read():
    data = {
        "name": "orders",
        "slots": 64,
        "shards": [
            {"name": "a", "dsn": "host=h dbname=d", "schema": "sf", "weight": 2, "pooler": True},
            {"name": "b", "dsn": "host=h dbname=d", "schema": "sf2", "weight": 0.5},
        ],
        "lease": {"ttl": "1m", "renew": "500ms", "watch": 2},
        "pool": {"min_size": 1, "max_size": 3, "timeout": "1.5s", "connect_timeout": 7},
    }
    assert parse(data, "c.yaml", {}) == ClusterConfig(
        "orders",
        (
            ShardConfig("a", "host=h dbname=d", "sf", 2.0, True),
            ShardConfig("b", "host=h dbname=d", "sf2", 0.5, False),
        ),
        64,
        LeaseConfig(60.0, 0.5, 2.0),
        PoolConfig(1, 3, 1.5, 7.0),
    )


def test_a_short_lease_is_renewed_and_watched_more_often():
    assert parse(config(lease={"ttl": 2}), "c", {}).lease == LeaseConfig(2.0, 0.5, 0.5)
    assert parse(config(lease=None), "c", {}).lease == LeaseConfig()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "c.yaml: must be a mapping"),
        ([], "c.yaml: must be a mapping"),
        ({"shards": [SHARD]}, "c.yaml: name: is missing"),
        (config(nmae="x"), r'c\.yaml: nmae: unknown key \(did you mean "name"\?\)'),
        (
            config(xyzzy=1),
            r"xyzzy: unknown key \(known: name, slots, shards, lease, pool, rebalance, payload, retention\)",
        ),
        (shard(shcema="x"), r'c\.yaml: shards\[0\]\.shcema: unknown key \(did you mean "schema"\?\)'),
        (config(lease={"tttl": 1}), r'lease\.tttl: unknown key \(did you mean "ttl"\?\)'),
        (config(pool={"maxsize": 1}), r'pool\.maxsize: unknown key \(did you mean "max_size"\?\)'),
        (config(pool=5), "pool: must be a mapping"),
        (config(name=5), "name: must be text, not 5: put it in quotes"),
        (config(name="a b"), "name: must be 1 to 63"),
        (config(slots=0), "slots: must be an integer from 1 to 65536, not 0"),
        (config(slots=65537), "slots: must be"),
        (config(slots=True), "slots: must be an integer from 1 to 65536, not True"),
        (config(slots=2.0), "slots: must be"),
        (config(slots="64"), "slots: must be an integer from 1 to 65536, not '64'"),
        (config(shards=[]), "shards: must be a list of at least one"),
        (config(shards={"a": 1}), "shards: must be a list"),
        (config(shards=["postgresql://u@h/d"]), r"shards\[0\]: must be a mapping"),
        (config(shards=[SHARD, SHARD]), r"shards\[1\]\.name: 's1' is the name of shards\[0\] already"),
        (config(shards=[SHARD, {**SHARD, "name": "s2"}]), r"shards\[1\]: has the dsn and schema of shards\[0\]"),
        (config(shards=[{"name": "a"}]), r"shards\[0\]\.dsn: is missing"),
        (shard(dsn=""), r"shards\[0\]\.dsn: must be a connection string"),
        (shard(dsn="mysql"), r"shards\[0\]\.dsn: must be a connection string"),
        (shard(schema="pg_x"), r"shards\[0\]\.schema: must be a schema name .* not 'pg_x'"),
        (shard(schema="Upper"), r"shards\[0\]\.schema: must be"),
        (shard(schema="a" * 64), r"shards\[0\]\.schema: must be"),
        (shard(schema="a;drop"), r"shards\[0\]\.schema: must be"),
        (shard(schema="information_schema"), r"shards\[0\]\.schema: must be"),
        (shard(weight=-1), r"shards\[0\]\.weight: must be a number of at least 0, not -1"),
        (shard(weight=float("nan")), r"shards\[0\]\.weight: must be"),
        (shard(weight=True), r"shards\[0\]\.weight: must be"),
        (shard(weight=0), "every weight is 0"),
        (shard(pooler="yes"), r"shards\[0\]\.pooler: must be true or false, not 'yes'"),
        (shard(pooler=1), r"shards\[0\]\.pooler: must be true or false"),
        (config(lease={"ttl": "10"}), r"lease\.ttl: must be seconds above 0, or text such as"),
        (config(lease={"ttl": "10 days"}), r"lease\.ttl: must be seconds"),
        (config(lease={"ttl": 0}), r"lease\.ttl: must be seconds above 0"),
        (config(lease={"ttl": -1}), r"lease\.ttl: must be seconds above 0"),
        (config(lease={"ttl": 10, "renew": 5}), r"lease\.renew: must be less than half of ttl \(10 s\)"),
        (config(lease={"ttl": 10, "watch": 11}), r"lease\.watch: must not be more than ttl"),
        (config(pool={"min_size": 9}), r"pool\.max_size: is 8, less than min_size \(9\)"),
        (config(pool={"max_size": 0}), r"pool\.max_size: must be an integer from 1"),
        (config(payload={"size": 1}), r"payload\.size: unknown key"),
        (config(retention={"successful": "7d"}), r"retention\.successful: unknown key"),
        (config(retention={"failed": 0}), r"retention\.failed: must be seconds above 0"),
        (config(retention={"failed": "for ever"}), r"retention\.failed: must be seconds above 0"),
        (config(retention="7d"), "retention: must be a mapping"),
        (
            config(payload={"max_size": "8 GB"}),
            r'payload\.max_size: must be bytes, or text such as "512KiB".*, not \'8 GB',
        ),
        (
            config(payload={"max_size": 1023}),
            r"payload\.max_size: must be bytes, .* from 1,024 to 134,217,728, not 1023",
        ),
        (config(payload={"max_size": "129MiB"}), r"payload\.max_size: must be bytes"),
        (config(payload={"max_size": True}), r"payload\.max_size: must be bytes"),
        (config(payload={"max_size": "never"}), r"payload\.max_size: must be bytes"),
        (
            config(payload={"max_decoded": "4MiB"}),
            r"payload\.max_decoded: is 4,194,304, less than max_size \(8,388,608",
        ),
        (config(payload={"compress_above": False}), r"payload\.compress_above: must be bytes"),
    ],
)
def test_what_is_wrong_is_refused_with_its_path(data, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse(data, "c.yaml", {})
    assert str(caught.value).startswith("c.yaml: ")


def test_variables_are_expanded_from_the_environment():
    env = {"PW": "p$w", "SLOTS": "64", "TTL": "20s", "POOLER": "true", "EMPTY": ""}
    data = config(
        name="${NAME:-orders}${EMPTY:--x}",
        slots="${SLOTS}",
        shards=[{**SHARD, "dsn": "host=h password=${PW}$$1$", "pooler": "${POOLER}", "weight": "${W:-3}"}],
        lease={"ttl": "${TTL}"},
    )
    read = parse(data, "c.yaml", env)
    assert read.name == "orders-x"
    assert read.slots == 64
    assert read.shards[0] == ShardConfig("s1", "host=h password=p$w$1$", weight=3.0, pooler=True)
    assert read.lease.ttl == 20.0


def test_a_variable_that_is_not_set_is_named_with_its_path():
    with pytest.raises(ConfigError, match=r"c: shards\[0\]\.dsn: the environment variable PW is not set"):
        parse(shard(dsn="host=h password=${PW}"), "c", {})
    with pytest.raises(ConfigError, match=r"dsn: has a \$\{ that is no"):
        parse(shard(dsn="host=h password=${P W}"), "c", {})


def test_the_process_environment_is_used_where_none_is_given(monkeypatch):
    monkeypatch.setenv("SHARDFLOW_TEST_NAME", "from-env")
    assert parse(config(name="${SHARDFLOW_TEST_NAME}"), "c").name == "from-env"


@pytest.mark.parametrize(
    "data",
    [
        shard(schema="postgresql://u:hunter2@h/d"),
        shard(weight="host=h password=hunter2"),
        shard(name="${PW} x"),
        config(slots="${PW}"),
        shard(dsn="hunter2"),
        shard(dsn="${PW}"),
        config(shards=["postgresql://u:hunter2@h/d"]),
    ],
)
def test_no_message_contains_a_secret(data):
    with pytest.raises(ConfigError) as caught:
        parse(data, "c", {"PW": "hunter2"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", 'line 2, column 1: the key "name" is given twice'),
        ("shards:\n  - dsn: a=b\n    dsn: a=c\n", 'line 3, column 5: the key "dsn" is given twice'),
        ("dsn: [postgresql://u:hunter2@h\n", "line 2, column 1: "),
        ("dsn: 'hunter2\x07'\n", "not valid YAML"),
        ("name: 2026-99-99\n", "not valid YAML"),
        ("? [a]\n: b\n", "unhashable"),
        ("", "must be a mapping"),
        ("!!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
    ],
)
def test_yaml_that_cannot_be_meant_is_refused(tmp_path, text, message):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(path, {})
    assert str(caught.value).startswith(f"{path}: ")
    assert "hunter2" not in str(caught.value)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"no-such\.yaml: there is no such file: copy config/cluster\.example"):
        load(tmp_path / "no-such.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


def test_what_ended_is_kept_for_ever_where_nothing_else_is_said():
    assert parse(config(), "c", {}).retention == RetentionConfig(None, None, None, None)
    ages = {"succeeded": "7d", "failed": "1.5h", "dead": "never"}
    assert parse(config(retention=ages), "c", {}).retention == RetentionConfig(604_800.0, 5400.0, None, None)


def test_the_example_loads_once_its_secret_is_set():
    read = load(CONFIG / "cluster.example.yaml", {"SHARDFLOW_PG_PASSWORD": "hunter2"})
    assert len(read.shards) == 4
    assert all("hunter2" in shard.dsn for shard in read.shards)
    assert len({shard.dsn for shard in read.shards}) == 4
    assert (read.lease, read.pool, read.retention) == (LeaseConfig(), PoolConfig(), RetentionConfig())
    with pytest.raises(ConfigError, match="SHARDFLOW_PG_PASSWORD is not set"):
        load(CONFIG / "cluster.example.yaml", {})


def test_the_development_configuration_needs_no_environment():
    read = load(CONFIG / "dev.yaml", {})
    assert [shard.dsn.rpartition("@")[2] for shard in read.shards] == [
        f"localhost:{port}/postgres" for port in (5433, 5434, 5435)
    ]


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://u:pw@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("postgres://u:p@w/x@h/d", "postgres://u:***@h/d"),
        ("postgresql://u:p?w@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u@h/d?password=pw&sslmode=require", "postgresql://u@h/d?password=***&sslmode=require"),
        ("postgresql://u@h/d?sslmode=a&sslpassword=pw", "postgresql://u@h/d?sslmode=a&sslpassword=***"),
        ("host=h password=pw dbname=d", "host=h password=*** dbname=d"),
        (r"host=h password = 'p \' w' dbname=d", "host=h password = *** dbname=d"),
        (r"password=p\ w dbname=d", "password=*** dbname=d"),
        ("host=h password='p w", "host=h password=***"),
        ("host=h sslpassword=pw", "host=h sslpassword=***"),
        ("host=h passfile=/a/b user=u", "host=h passfile=/a/b user=u"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
    ],
)
def test_a_shown_dsn_hides_its_secrets_and_nothing_else(dsn, shown):
    assert redact_dsn(dsn) == shown


def test_the_closest_word_is_suggested_and_a_distant_one_is_not():
    assert did_you_mean("Shcema", ["name", "schema"]) == ' (did you mean "schema"?)'
    assert did_you_mean("xyzzy", ["name", "schema"]) == ""
    assert did_you_mean("x", []) == ""


def test_limits_of_payloads_are_bytes_or_text_with_a_unit():
    assert parse(config(), "c", {}).payload == PayloadConfig(8 << 20, 32 << 20, 16 << 10)
    given = {"max_size": "1.5 MiB", "max_decoded": 2_000_000, "compress_above": "64kB"}
    assert parse(config(payload=given), "c", {}).payload == PayloadConfig(1_572_864, 2_000_000, 64_000)
    assert parse(config(payload={"compress_above": "never"}), "c", {}).payload.compress_above == NEVER
    assert parse(config(payload={"max_size": "64MiB"}), "c", {}).payload.max_decoded == 64 << 20
    assert parse(config(payload={"max_size": "${SIZE}"}), "c", {"SIZE": "2048"}).payload.max_size == 2048
