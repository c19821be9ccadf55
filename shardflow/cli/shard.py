"""`shardflow shard`: the shards of the configuration, and what they say of themselves."""

from __future__ import annotations

import click

from ..core.redact import redact_dsn
from ..storage import cluster
from .ask import ask_all, own_slots
from .output import emit_json, table
from .settings import Group, Settings, json_option, pass_settings


@click.group(cls=Group)
def shard() -> None:
    """The shards of the cluster."""


@shard.command(name="list")
@json_option
@pass_settings
def list_(settings: Settings, as_json: bool) -> None:
    """Show every shard: where it is, whether it answers, how many slots it holds."""
    settings.log()
    config = settings.config()
    answers = ask_all(config, lambda shard, conn: cluster.view(shard, conn, config))
    shards = []
    for one in config.shards:
        view = answers.values.get(one.name)
        shards.append(
            {
                "shard": one.name,
                "dsn": redact_dsn(one.dsn),
                "schema": one.schema,
                "weight": one.weight,
                "pooler": one.pooler,
                "reachable": view is not None,
                "slots": None if view is None else own_slots(view),
            }
        )
    if as_json:
        emit_json({"shards": shards, "unreachable": answers.unreachable})
    else:
        table(list(shards[0]), [list(row.values()) for row in shards])
    raise SystemExit(answers.report())
