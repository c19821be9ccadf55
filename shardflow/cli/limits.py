"""`shardflow queue limits`: what the queues are limited to, and what of it is in use."""

from __future__ import annotations

from collections import defaultdict

import click

from ..storage import limits as stored
from ..storage.limits import LimitRow
from .ask import ask_all
from .output import emit_json, table
from .settings import Command, Settings, json_option, pass_settings


@click.command(name="limits", cls=Command)
@json_option
@pass_settings
def limits(settings: Settings, as_json: bool) -> None:
    """Show the limits of the queues, how much of each is in use, and where its units are.

    A unit is one of the workflows that may run at once, or one of the starts within the time of a rate. Units that
    are on their way between two shards, or on one that does not answer, are missing from the sum.
    """
    settings.log()
    answers = ask_all(settings.config(), stored.all_limits)
    found: dict[tuple[str, str], dict[str, LimitRow]] = defaultdict(dict)
    for shard, rows in sorted(answers.values.items()):
        for row in rows:
            found[row.queue, row.kind][shard] = row
    shown = [
        {
            "queue": queue,
            "kind": kind,
            "limit": max(row.most for row in by_shard.values()),
            "seconds": next((row.seconds for row in by_shard.values() if row.seconds is not None), None),
            "in_use": sum(row.used for row in by_shard.values()),
            "shares": {shard: row.share for shard, row in by_shard.items()},
        }
        for (queue, kind), by_shard in sorted(found.items())
    ]
    if as_json:
        emit_json({"limits": shown, "unreachable": answers.unreachable})
    else:
        cells = [
            [one["queue"], one["kind"], one["limit"], one["seconds"], one["in_use"], _shares(by_shard)]
            for one, (_, by_shard) in zip(shown, sorted(found.items()), strict=True)
        ]
        table(["queue", "kind", "limit", "seconds", "in use", "shares"], cells)
    raise SystemExit(answers.report())


def _shares(by_shard: dict[str, LimitRow]) -> str:
    return ", ".join(f"{shard} {row.share}" for shard, row in by_shard.items())
