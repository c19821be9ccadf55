"""`shardflow lease`: the leases that workers hold."""

from __future__ import annotations

import click

from ..core.lanes import said
from ..storage import leases
from .ask import ask_all
from .output import emit_json, table
from .settings import Group, Settings, json_option, pass_settings


@click.group(cls=Group)
def lease() -> None:
    """The leases that workers hold."""


@lease.command(name="list")
@json_option
@pass_settings
def list_(settings: Settings, as_json: bool) -> None:
    """Show every lease: whose it is, how long it lasts, how many workflows its receipts name."""
    settings.log()
    answers = ask_all(settings.config(), leases.all_leases)
    found = [(name, row) for name, rows in answers.values.items() for row in rows]
    if as_json:
        data = [
            {
                "lease": row.lease,
                "shard": name,
                "worker": row.worker,
                "epoch": row.epoch,
                "opened_at": row.opened_at,
                "expires_at": row.expires_at,
                "expired": row.expired,
                "claiming": row.claiming,
                "queues": [said(lane) for lane in row.queues],
                "claimed": row.claimed,
            }
            for name, row in found
        ]
        emit_json({"leases": data, "unreachable": answers.unreachable})
    else:
        table(
            (
                "lease",
                "shard",
                "worker",
                "epoch",
                "opened at",
                "expires at",
                "expired",
                "claiming",
                "queues",
                "claimed",
            ),
            [
                (
                    row.lease,
                    name,
                    row.worker,
                    row.epoch,
                    row.opened_at,
                    row.expires_at,
                    row.expired,
                    row.claiming,
                    [said(lane) for lane in row.queues],
                    row.claimed,
                )
                for name, row in found
            ],
        )
    raise SystemExit(answers.report())
