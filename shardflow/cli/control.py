"""The commands of `shardflow workflow` that end workflows, begin them again and delete them, one by one or by
filter."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import click

from ..client.aio import AsyncClient
from ..model import Bulk
from .filters import age, asked_for, filter_options
from .output import OK, UNREACHABLE, emit_json, say, table
from .settings import Command, Settings, json_option, pass_settings

T = TypeVar("T")

_yes = click.option("--yes", is_flag=True, help="Do not ask.")


@click.command(cls=Command)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--reason", metavar="TEXT", help="What whoever awaits them is told.")
@filter_options
@_yes
@json_option
@pass_settings
def cancel(
    settings: Settings, /, ids: tuple[str, ...], reason: str | None, yes: bool, as_json: bool, **asked: Any
) -> None:
    """Cancel workflows and the children they have started: these, or all that the options mean.

    \b
    shardflow workflow cancel order-7 order-8 --reason "out of stock"
    shardflow workflow cancel --queue orders --since 2h
    """
    _several(
        settings,
        "cancelled",
        ids,
        asked,
        yes,
        as_json,
        lambda client, id: client.cancel(id, reason),
        lambda client, wanted: client.cancel_many(**wanted, reason=reason),
    )


@click.command(cls=Command)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filter_options
@_yes
@json_option
@pass_settings
def resume(settings: Settings, /, ids: tuple[str, ...], yes: bool, as_json: bool, **asked: Any) -> None:
    """Let workflows that failed, were cancelled or are dead go on from their checkpoints: these, or all that the
    options mean.

    \b
    shardflow workflow resume order-7
    shardflow workflow resume --status failed --name checkout --since 1d
    """
    _several(
        settings,
        "resumed",
        ids,
        asked,
        yes,
        as_json,
        lambda client, id: client.resume(id),
        lambda client, wanted: client.resume_many(**wanted),
    )


@click.command(cls=Command)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option(
    "--older-than",
    metavar="AGE",
    callback=age,
    help="Only those that ended so long ago: 90s, 15m, 2h, 7d.",
)
@filter_options
@_yes
@json_option
@pass_settings
def purge(
    settings: Settings, /, ids: tuple[str, ...], older_than: float | None, yes: bool, as_json: bool, **asked: Any
) -> None:
    """Delete workflows that have ended, with all that is recorded of them: these, or all that the options mean.

    Their ids are free then. What is to go by its age in any case belongs into `retention` of the configuration.

    \b
    shardflow workflow purge order-7
    shardflow workflow purge --older-than 30d --status succeeded --queue orders
    """
    if ids and older_than is not None:
        raise click.UsageError("name workflows, or say by options which ones are meant, not both")
    _several(
        settings,
        "deleted",
        ids,
        asked,
        yes,
        as_json,
        lambda client, id: client.purge(id),
        lambda client, wanted: client.purge_many(**wanted, older_than=older_than or 0.0),
        older_than is not None,
    )


@click.command(cls=Command)
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@_yes
@json_option
@pass_settings
def restart(settings: Settings, ids: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Run workflows that have ended from the beginning, under their ids; what was recorded is forgotten."""
    settings.log()
    if not yes:
        click.confirm(f"Forget what {len(ids)} workflow(s) have done, and run them again?", abort=True, err=True)
    _each(settings, "restarted", ids, as_json, lambda client, id: client.restart(id))


@click.command(cls=Command)
@click.argument("id")
@click.option(
    "--from-step",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="NUMBER",
    help="The step to begin with, as `workflow show` tells it.",
)
@click.option("--id", "new_id", metavar="ID", help="The new one's id, and idempotency key (default: one is made).")
@json_option
@pass_settings
def fork(settings: Settings, id: str, from_step: int, new_id: str | None, as_json: bool) -> None:
    """Make a new workflow that has done what ID did before a step, and goes on by itself; print its id."""
    handle = ask_client(settings, lambda client: client.fork(id, from_step, new_id=new_id))
    if as_json:
        emit_json({"id": handle.id, "workflow": handle.name, "shard": handle.shard})
    else:
        click.echo(handle.id)


def _several(
    settings: Settings,
    done: str,
    ids: Sequence[str],
    asked: dict[str, Any],
    yes: bool,
    as_json: bool,
    one: Callable[[AsyncClient, str], Awaitable[bool]],
    many: Callable[[AsyncClient, dict[str, Any]], Awaitable[Bulk]],
    filtered: bool = False,
) -> None:
    wanted = {name: value for name, value in asked_for(**asked).items() if value is not None}
    if bool(ids) == (bool(wanted) or filtered):
        raise click.UsageError("name workflows, or say by options which ones are meant" + (", not both" * bool(ids)))
    if ids:
        _each(settings, done, ids, as_json, one)
        return
    if not yes:
        click.confirm(f"Are all workflows that these options mean to be {done}?", abort=True, err=True)
    bulk = ask_client(settings, lambda client: many(client, wanted))
    tell(done, "workflow(s)", bulk, as_json)


def _each(
    settings: Settings,
    done: str,
    ids: Sequence[str],
    as_json: bool,
    change: Callable[[AsyncClient, str], Awaitable[bool]],
) -> None:
    async def all_of_them(client: AsyncClient) -> list[bool]:
        return [await change(client, id) for id in ids]

    changed = ask_client(settings, all_of_them)
    if as_json:
        emit_json({"workflows": [{"id": id, done: took} for id, took in zip(ids, changed, strict=True)]})
    else:
        table(("id", done), list(zip(ids, changed, strict=True)))


def tell(done: str, what: str, bulk: Bulk, as_json: bool) -> None:
    """Prints what an operation has changed, and ends the command: with another code where shards did not answer."""
    if as_json:
        away = [{"shard": name, "error": error} for name, error in bulk.unreachable.items()]
        emit_json({done: bulk.count, "unreachable": away})
    else:
        click.echo(f"{bulk.count} {what} {done}")
    for error in bulk.unreachable.values():
        say(f"Error: {error}")
    raise SystemExit(UNREACHABLE if bulk.unreachable else OK)


def ask_client(settings: Settings, ask: Callable[[AsyncClient], Awaitable[T]]) -> T:
    settings.log()
    config = settings.config()

    async def run() -> T:
        async with AsyncClient(config) as client:
            return await ask(client)

    return asyncio.run(run())
