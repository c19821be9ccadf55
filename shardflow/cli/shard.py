"""`shardflow shard`: the shards of the configuration, and what they say of themselves."""

from __future__ import annotations

import time

import click

from ..core.fleet import Report
from ..core.redact import redact_dsn
from ..core.slotmap import ShardView
from ..model import ClusterConfig
from ..storage import cluster, rebalance
from ..storage.shard import Conn, Shard
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
    """Show every shard: where it is, how quickly it answers, how many slots it holds and workers it has.

    The backlog is about how many workflows are ready, as the server's statistics know.
    """
    settings.log()
    config = settings.config()
    answers = ask_all(config, lambda shard, conn: _ask(config, shard, conn))
    shards = []
    for one in config.shards:
        view, report, seconds = answers.values.get(one.name, (None, None, None))
        claiming = [] if report is None else [lease for lease in report.leases if lease.claiming]
        shards.append(
            {
                "shard": one.name,
                "dsn": redact_dsn(one.dsn),
                "schema": one.schema,
                "weight": one.weight,
                "pooler": one.pooler,
                "labels": list(one.labels),
                "reachable": view is not None,
                "answers_in_ms": None if seconds is None else round(seconds * 1e3, 1),
                "slots": None if view is None else own_slots(view),
                "workers": None if report is None else len({lease.worker for lease in claiming}),
                "backlog": None if report is None else report.backlog,
            }
        )
    if as_json:
        emit_json({"shards": shards, "unreachable": answers.unreachable})
    else:
        table(list(shards[0]), [[value if value != [] else None for value in row.values()] for row in shards])
    raise SystemExit(answers.report())


async def _ask(config: ClusterConfig, shard: Shard, conn: Conn) -> tuple[ShardView, Report, float]:
    began = time.perf_counter()
    found = await cluster.view(shard, conn, config)
    seconds = time.perf_counter() - began
    return found, await rebalance.report(shard, conn), seconds
