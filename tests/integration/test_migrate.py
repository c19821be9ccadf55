"""Migrations: applied once, in order, whole, and only where the shard is what the code thinks it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support.look import one, rows

from shardflow import ClusterConfig, MigrationError
from shardflow.storage import migrate
from shardflow.storage.migrate import Migration
from shardflow.storage.shard import Conn, Shard

MakeCluster = Callable[..., ClusterConfig]


@pytest.fixture
def empty(make_cluster: MakeCluster) -> ClusterConfig:
    return make_cluster(shards=1, init=False)


@asynccontextmanager
async def opened(config: ClusterConfig) -> AsyncIterator[tuple[Shard, Conn]]:
    shard = Shard(config.shards[0])
    async with await shard.connect("test") as conn:
        yield shard, conn


def extra(version: int, *statements: str, checksum: str = "c0ffee") -> Migration:
    return Migration(version, f"extra_{version}", checksum, {f"part_{n}": s for n, s in enumerate(statements)})


async def test_up_applies_all_once_and_status_tells(empty: ClusterConfig) -> None:
    async with opened(empty) as (shard, conn):
        assert [a.applied_at for a in await migrate.status(shard, conn)] == [None] * len(migrate.known())
        assert [m.version for m in await migrate.up(shard, conn)] == [m.version for m in migrate.known()]
        assert await migrate.up(shard, conn) == []
        after = await migrate.status(shard, conn)
    assert [a.version for a in after] == list(range(1, len(after) + 1))
    assert all(a.applied_at is not None for a in after)
    assert rows(empty, "SELECT version, checksum FROM migration ORDER BY 1") == [
        (m.version, m.checksum) for m in migrate.known()
    ]


async def test_a_changed_file_is_refused(empty: ClusterConfig) -> None:
    async with opened(empty) as (shard, conn):
        await migrate.up(shard, conn)
        changed = [replace(migrate.known()[0], checksum="0" * 16), *migrate.known()[1:]]
        with pytest.raises(MigrationError, match=r"migration 1 \(records\) was applied with another text"):
            await migrate.up(shard, conn, changed)


async def test_a_shard_that_is_ahead_of_the_code_is_refused(empty: ClusterConfig) -> None:
    async with opened(empty) as (shard, conn):
        newer = [*migrate.known(), extra(len(migrate.known()) + 1, "SELECT 1")]
        await migrate.up(shard, conn, newer)
        with pytest.raises(MigrationError, match="this code knows 2: upgrade shardflow"):
            await migrate.up(shard, conn, migrate.known()[:2])
        assert (await migrate.status(shard, conn))[-1].name == newer[-1].name


async def test_a_migration_that_fails_leaves_nothing_and_the_next_run_goes_on_there(empty: ClusterConfig) -> None:
    next_ = len(migrate.known()) + 1
    broken = [
        *migrate.known(),
        extra(next_, "CREATE TABLE {schema}.half (x integer)", "SELECT 1 / 0"),
    ]
    async with opened(empty) as (shard, conn):
        with pytest.raises(Exception, match="division by zero"):
            await migrate.up(shard, conn, broken)
        assert one(empty, "SELECT max(version) FROM migration") == next_ - 1
        assert one(empty, "SELECT to_regclass('shardflow.half')") is None
        mended = [*migrate.known(), extra(next_, "CREATE TABLE {schema}.half (x integer)")]
        assert await migrate.up(shard, conn, mended) == [mended[-1]]
    assert one(empty, "SELECT to_regclass('shardflow.half')::text") == "half"


async def test_many_at_once_apply_each_file_once(empty: ClusterConfig) -> None:
    async def up() -> list[int]:
        async with opened(empty) as (shard, conn):
            return [m.version for m in await migrate.up(shard, conn)]

    answers = await asyncio.gather(*(up() for _ in range(6)))
    assert sorted(v for each in answers for v in each) == [m.version for m in migrate.known()]


async def test_a_migrated_schema_needs_nothing_outside_of_it(empty: ClusterConfig) -> None:
    async with opened(empty) as (shard, conn):
        await migrate.up(shard, conn)
    assert rows(empty, "SELECT extname FROM pg_extension WHERE extname <> 'plpgsql'") == []
    assert one(empty, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 0


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.sql").write_text(text)
    return folder


GOOD = "-- name: a\n-- Why.\nSELECT 1\n"


def test_read_gives_the_files_in_order(tmp_path: Path) -> None:
    found = migrate.read(write(tmp_path, **{"0002_second": GOOD, "0001_first": GOOD}))
    assert [(m.version, m.name, m.statements) for m in found] == [
        (1, "first", {"a": "SELECT 1"}),
        (2, "second", {"a": "SELECT 1"}),
    ]
    assert found[0].checksum == found[1].checksum
    assert len(found[0].checksum) == 16


def test_a_changed_text_has_another_checksum(tmp_path: Path) -> None:
    first = migrate.read(write(tmp_path, **{"0001_a": GOOD}))[0].checksum
    assert migrate.read(write(tmp_path, **{"0001_a": GOOD + "\n"}))[0].checksum != first


@pytest.mark.parametrize("name", ["1_short", "0001", "0001_Capital", "0001-dash", "first"])
def test_read_refuses_a_file_with_another_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(MigrationError, match="is named like"):
        migrate.read(write(tmp_path, **{name: GOOD}))


@pytest.mark.parametrize("names", [("0002_a",), ("0001_a", "0003_b"), ("0001_a", "0001_b"), ("0000_a",)])
def test_read_refuses_a_gap_or_a_number_used_twice(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(MigrationError, match="numbers"):
        migrate.read(write(tmp_path, **dict.fromkeys(names, GOOD)))


def test_read_names_the_file_with_a_malformed_block(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0001_a\.sql: 'a' lacks its comment"):
        migrate.read(write(tmp_path, **{"0001_a": "-- name: a\nSELECT 1\n"}))


def test_the_migrations_that_are_shipped_fill_in_the_schema_everywhere() -> None:
    for migration in migrate.known():
        for name, text in migration.statements.items():
            assert "{schema}" in text, f"{migration.name}: {name}"
