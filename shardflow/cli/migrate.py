"""`shardflow migrate`: bring the shards' schemas up to date, one after the other."""

from __future__ import annotations

import click

from ..model import ClusterConfig
from ..storage import cluster
from ..storage import migrate as storage
from ..storage.shard import Conn, Shard
from .ask import ask_all
from .output import emit_json, table
from .settings import Group, Settings, chosen_shards, json_option, pass_settings

_shard_option = click.option("--shard", "shards", multiple=True, metavar="NAME", help="Only this one; repeatable.")


@click.group(cls=Group)
def migrate() -> None:
    """Bring the shards' schemas up to date."""


@migrate.command()
@_shard_option
@json_option
@pass_settings
def up(settings: Settings, shards: tuple[str, ...], as_json: bool) -> None:
    """Apply what is not applied yet, on every shard.

    A shard that does not answer is named and the others are migrated; run it again for the rest. It is safe while
    workers of the previous version run.
    """
    settings.log()
    config = settings.config()

    async def migrated(shard: Shard, conn: Conn) -> list[storage.Migration]:
        await _check(config, shard, conn)
        return await storage.up(shard, conn)

    answers = ask_all(config, migrated, chosen_shards(config, shards))
    if as_json:
        applied = {
            name: [{"version": m.version, "name": m.name} for m in done] for name, done in answers.values.items()
        }
        emit_json({"applied": applied, "unreachable": answers.unreachable})
    else:
        table(
            ("shard", "applied"),
            [(name, [_label(m.version, m.name) for m in done] or None) for name, done in answers.values.items()],
        )
    raise SystemExit(answers.report())


@migrate.command(name="list")
@_shard_option
@json_option
@pass_settings
def list_(settings: Settings, shards: tuple[str, ...], as_json: bool) -> None:
    """Show every migration and when it was applied, per shard."""
    settings.log()
    config = settings.config()
    answers = ask_all(config, storage.status, chosen_shards(config, shards))
    if as_json:
        emit_json({"migrations": answers.values, "unreachable": answers.unreachable})
    else:
        rows = [
            (name, _label(a.version, a.name), a.applied_at or "pending")
            for name, states in answers.values.items()
            for a in states
        ]
        table(("shard", "migration", "applied at"), rows)
    raise SystemExit(answers.report())


async def _check(config: ClusterConfig, shard: Shard, conn: Conn) -> None:
    """Raises ClusterError where the schema is another shard's; one that is nobody's yet may be migrated."""
    if await cluster.identity(shard, conn) is not None:
        await cluster.expect(shard, conn, config)


def _label(version: int, name: str) -> str:
    return f"{version:04d}_{name}"
