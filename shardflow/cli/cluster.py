"""`shardflow cluster`: make shards into a cluster, and see how it is."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import click
from rich.console import Group as Stack
from rich.live import Live
from rich.text import Text

from ..core.slotmap import ShardView, merge_views
from ..errors import ClusterError
from ..model import ClusterConfig
from ..storage import cluster as storage
from ..storage import leases, submissions
from ..storage.shard import Conn, Shard
from .ask import Answers, ask_all, own_slots
from .output import ERROR, drawn, emit_json, say, table
from .settings import Group, Settings, json_option, pass_settings

Status = tuple[ShardView, dict[str, int]]

_COUNTS = ("workers", "ready", "running", "suspended", "succeeded", "failed")
_COLUMNS = ("shard", "state", "generation", "slots", *_COUNTS)


@click.group(cls=Group)
def cluster() -> None:
    """Make shards into a cluster, and see how it is."""


@cluster.command()
@json_option
@pass_settings
def init(settings: Settings, as_json: bool) -> None:
    """Migrate every shard and divide the slots among them.

    Running it again changes nothing. All shards must answer.
    """
    settings.log()
    config = settings.config()
    done = asyncio.run(storage.init(config))
    if as_json:
        emit_json({"cluster": config.name, "slots": config.slots, "shards": done})
        return
    rows = [(d.shard, "created" if d.created else "there", d.slots, d.migrations) for d in done]
    table(("shard", "state", "slots", "migrations applied"), rows)


@cluster.command()
@click.option("-w", "--watch", is_flag=True, help="Show it again and again, until interrupted.")
@click.option(
    "--interval", type=click.FloatRange(0.1), default=2.0, show_default=True, metavar="SECONDS", help="For --watch."
)
@json_option
@pass_settings
def status(settings: Settings, watch: bool, interval: float, as_json: bool) -> None:
    """Show every shard: whether it answers, its slots, and how many workflows are where."""
    settings.log()
    config = settings.config()
    if watch:
        try:
            _watch(config, interval, as_json)
        except KeyboardInterrupt:
            raise SystemExit(0) from None
    answers = ask_all(config, lambda shard, conn: _ask(config, shard, conn))
    conflict = _conflict(answers)
    if as_json:
        emit_json(_data(config, answers, conflict))
    else:
        table(_COLUMNS, _rows(config, answers))
    code = answers.report()
    if conflict:
        say(f"Error: {conflict}")
        code = ERROR
    raise SystemExit(code)


async def _ask(config: ClusterConfig, shard: Shard, conn: Conn) -> Status:
    view = await storage.view(shard, conn, config)
    counts = dict(await submissions.counts(shard, conn))
    held = await leases.all_leases(shard, conn)
    return view, counts | {"workers": len({row.worker for row in held if not row.expired})}


def _conflict(answers: Answers[Status]) -> str | None:
    """What the shards say that cannot be true together."""
    try:
        if answers.values:
            merge_views([view for view, _ in answers.values.values()])
    except ClusterError as error:
        return str(error)
    return None


def _rows(config: ClusterConfig, answers: Answers[Status]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for shard in config.shards:
        if shard.name in answers.values:
            view, counts = answers.values[shard.name]
            rows.append((shard.name, "ok", view.generation, own_slots(view), *(counts[c] for c in _COUNTS)))
        else:
            state = "unreachable" if Answers({}, {"": answers.errors[shard.name]}).code != ERROR else "error"
            rows.append((shard.name, state, *(None for _ in _COLUMNS[2:])))
    return rows


def _data(config: ClusterConfig, answers: Answers[Status], conflict: str | None) -> dict[str, Any]:
    shards = []
    for shard in config.shards:
        if shard.name in answers.values:
            view, counts = answers.values[shard.name]
            about = {"generation": view.generation, "slots": own_slots(view), "counts": counts}
            shards.append({"shard": shard.name, "reachable": True, **about})
        else:
            shards.append({"shard": shard.name, "reachable": False, "error": str(answers.errors[shard.name])})
    return {
        "cluster": config.name,
        "slots": config.slots,
        "shards": shards,
        "conflict": conflict,
        "unreachable": answers.unreachable,
    }


def _watch(config: ClusterConfig, interval: float, as_json: bool) -> None:
    """Never returns: shows the status until interrupted."""
    live = Live(auto_refresh=False) if sys.stdout.isatty() and not as_json else None
    with live or _Plain() as screen:
        while True:
            answers = ask_all(config, lambda shard, conn: _ask(config, shard, conn))
            if as_json:
                emit_json(_data(config, answers, _conflict(answers)), indent=None)
            elif isinstance(screen, Live):
                errors = [Text(f"Error: {error}") for error in answers.errors.values()]
                screen.update(Stack(drawn(_COLUMNS, _rows(config, answers)), *errors), refresh=True)
            else:
                table(_COLUMNS, _rows(config, answers))
                answers.report()
            time.sleep(interval)


class _Plain:
    """Stands for a screen where there is none."""

    def __enter__(self) -> _Plain:
        return self

    def __exit__(self, *_: object) -> None: ...
