"""`shardflow rebalance`: what the rebalancer would do, is doing, and has done."""

from __future__ import annotations

from typing import Any

import click

from ..core.assignment import assign
from ..core.assignment_model import Limits, Move
from ..core.fleet import Report, gather, seen_gone
from ..storage import rebalance as storage
from ..storage.shard import Conn, Shard
from .ask import Answers, ask_all
from .output import emit_json, say, table
from .settings import Group, Settings, json_option, pass_settings

Seat = tuple[storage.Elected | None, Report]


@click.group(cls=Group)
def rebalance() -> None:
    """Which worker is to serve which shard, and why."""


@rebalance.command()
@json_option
@pass_settings
def plan(settings: Settings, as_json: bool) -> None:
    """Show which leases would be opened and closed now. Nothing is changed."""
    settings.log()
    config = settings.config()
    answers = ask_all(config, storage.report)
    fleet = gather(config.shards, answers.values, seen_gone(answers.values))
    limits = Limits(config.rebalance.min_group, config.rebalance.max_group)
    decision = assign(fleet.workers, fleet.shards, fleet.intended, limits)
    moves = [_move(move) for move in decision.moves]
    if as_json:
        wanted = {worker: sorted(shards) for worker, shards in decision.wanted.items()}
        emit_json({"moves": moves, "wanted": wanted, "unreachable": answers.unreachable})
    elif moves:
        table(list(moves[0]), [list(move.values()) for move in moves])
    else:
        say("Nothing to do: every lease is where it is wanted.")
    raise SystemExit(answers.report())


def _move(move: Move) -> dict[str, str | None]:
    kind = "move" if move.source and move.target else "open" if move.target else "close"
    return {"kind": kind, "worker": move.worker, "from": move.source, "to": move.target, "reason": move.reason}


@rebalance.command()
@json_option
@pass_settings
def status(settings: Settings, as_json: bool) -> None:
    """Show who is elected, how many workers each shard has and is to have, and who has yet to obey."""
    settings.log()
    config = settings.config()
    answers = ask_all(config, _ask)
    reports = {name: report for name, (_, report) in answers.values.items()}
    fleet = gather(config.shards, reports, seen_gone(reports))
    aimed = {s.name: sorted(w for w, shards in fleet.intended.items() if s.name in shards) for s in config.shards}
    leader = _leader(config.shards, answers)
    pending = sorted(
        name for name, (_, row) in fleet.rows.items() if row.wanted is not None and row.decision > row.obeyed
    )
    shards: list[dict[str, Any]] = []
    for shard in config.shards:
        report = reports.get(shard.name)
        shards.append(
            {
                "shard": shard.name,
                "reachable": report is not None,
                "workers": None if report is None else sorted(fleet.holders[shard.name]),
                "aimed_at_by": aimed[shard.name],
                "backlog": None if report is None else report.backlog,
            }
        )
    limits = {"min_group": config.rebalance.min_group, "max_group": config.rebalance.max_group}
    settled = not pending and all(s["workers"] == s["aimed_at_by"] for s in shards if s["reachable"])
    if as_json:
        about = {"rebalancer": leader, "limits": limits, "settled": settled, "pending": pending}
        emit_json({**about, "shards": shards, "unreachable": answers.unreachable})
    else:
        if leader is None:
            say("Nobody is elected: workers serve shards that are left alone, and nothing is balanced.")
        else:
            say(f"Rebalancer: {leader['holder']}, term {leader['term']} on shard {leader['shard']}.")
        say("Settled." if settled else f"Under way; yet to obey: {', '.join(pending) or 'nobody'}.")
        columns = ("shard", "reachable", "workers", "aimed at by", "backlog")
        table(columns, [[value if value != [] else None for value in s.values()] for s in shards])
    raise SystemExit(answers.report())


def _leader(shards: Any, answers: Answers[Seat]) -> dict[str, object] | None:
    """The one elected on the first shard that has somebody elected."""
    for shard in shards:
        if shard.name in answers.values:
            found, _ = answers.values[shard.name]
            if found is not None and not found.vacant:
                return {"holder": found.holder, "shard": shard.name, "term": found.term, "since": found.since}
    return None


async def _ask(shard: Shard, conn: Conn) -> Seat:
    return await storage.elected(shard, conn), await storage.report(shard, conn)


@rebalance.command()
@click.option("-n", "--lines", type=click.IntRange(1), default=50, show_default=True, help="The newest so many.")
@json_option
@pass_settings
def log(settings: Settings, lines: int, as_json: bool) -> None:
    """Show the journal: every decision with its reason, the oldest first."""
    settings.log()
    answers = ask_all(settings.config(), lambda shard, conn: storage.journal(shard, conn, lines))
    entries = sorted(
        ((entry, shard) for shard, found in answers.values.items() for entry in found), key=lambda pair: pair[0].at
    )[-lines:]
    rows = [
        {
            "at": entry.at,
            "kind": entry.kind,
            "worker": entry.worker,
            "from": entry.source,
            "to": entry.target,
            "reason": entry.reason,
            "by": entry.rebalancer,
            "term": entry.term,
            "on": shard,
        }
        for entry, shard in entries
    ]
    if as_json:
        emit_json({"entries": rows, "unreachable": answers.unreachable})
    elif rows:
        table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        say("The journal is empty: no rebalancer has decided anything yet.")
    raise SystemExit(answers.report())
