"""`shardflow schedule`: workflows that run by the clock."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from ..client.aio import AsyncClient
from ..core import cron
from ..core.schedule import MISSED, OVERLAP
from ..errors import InvalidInput
from ..model import ScheduleInfo
from .output import OK, UNREACHABLE, emit_json, payload, say, table
from .settings import Group, Settings, json_option, pass_settings

T = TypeVar("T")

_COLUMNS = ("name", "when", "time zone", "workflow", "queue", "state", "next at", "last at", "waiting", "shard")
#: Ticks to come that `show` names.
_AHEAD = 5


@click.group(cls=Group)
def schedule() -> None:
    """Workflows that run by the clock."""


@schedule.command(name="list")
@json_option
@pass_settings
def list_(settings: Settings, as_json: bool) -> None:
    """Show all schedules, and when each ticks next."""
    found = _with_client(settings, lambda client: client.schedules.list())
    if as_json:
        unreachable = [{"shard": name, "error": error} for name, error in found.unreachable.items()]
        emit_json({"schedules": [_data(info) for info in found.schedules], "unreachable": unreachable})
    else:
        table(_COLUMNS, [_row(info) for info in found.schedules])
    for error in found.unreachable.values():
        say(f"Error: {error}")
    raise SystemExit(UNREACHABLE if found.unreachable else OK)


@schedule.command()
@click.argument("name")
@json_option
@pass_settings
def show(settings: Settings, name: str, as_json: bool) -> None:
    """Show one schedule: its rule, what it runs, its last tick and the next ones."""
    info = _with_client(settings, lambda client: client.schedules.get(name))
    ahead = _ahead(info)
    if as_json:
        emit_json(_data(info) | {"ahead": ahead})
        return
    table(_COLUMNS, [_row(info)])
    click.echo(f"\ninput: {json.dumps(payload(info.input), ensure_ascii=False)}")
    made = "in the code of an app" if info.from_code else "by a client"
    click.echo(f"missed: {info.missed}, overlap: {info.overlap}, made {made}")
    if info.last_id is not None:
        click.echo(f"last workflow: {info.last_id}")
    for tick in ahead:
        click.echo(f"next: {tick.astimezone(cron.zone_of(info.zone)).isoformat(' ')}")


@schedule.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("when")
@click.argument("workflow")
@click.argument("args", nargs=-1, metavar="[JSON]...")
@click.option("--tz", default="UTC", show_default=True, metavar="ZONE", help="Whose clock the cron expression means.")
@click.option(
    "--missed", type=click.Choice(MISSED), default="skip", show_default=True, help="Ticks without a worker."
)
@click.option(
    "--overlap", type=click.Choice(OVERLAP), default="allow", show_default=True, help="Before the last ended."
)
@click.option("--queue", metavar="NAME", help='Where its workflows wait (default: "default").')
@click.option("--pass-time", is_flag=True, help="Give the workflow the tick's time before its other arguments.")
@click.option("--paused", is_flag=True, help="Make it, and leave it paused.")
@click.option("--replace", is_flag=True, help="Change the one that there is.")
@json_option
@pass_settings
def create(
    settings: Settings,
    name: str,
    when: str,
    workflow: str,
    args: tuple[str, ...],
    tz: str,
    missed: str,
    overlap: str,
    queue: str | None,
    pass_time: bool,
    paused: bool,
    replace: bool,
    as_json: bool,
) -> None:
    """Make the schedule NAME, which runs WORKFLOW; each further argument is one of its own, as JSON.

    \b
    shardflow schedule create nightly '0 3 * * *' report '"all"' --tz Europe/Vienna
    shardflow schedule create beat 'every 90s' ping
    """
    from ..core.options import Options
    from .workflow import argument

    arguments = [argument(i, text) for i, text in enumerate(args, 1)]
    info = _with_client(
        settings,
        lambda client: client.schedules.create(
            name,
            when,
            workflow,
            arguments,
            tz=tz,
            missed=missed,
            overlap=overlap,
            options=Options(queue=queue),
            pass_time=pass_time,
            paused=paused,
            replace=replace,
        ),
    )
    if as_json:
        emit_json(_data(info))
    else:
        table(_COLUMNS, [_row(info)])


@schedule.command()
@click.argument("name")
@json_option
@pass_settings
def pause(settings: Settings, name: str, as_json: bool) -> None:
    """Let a schedule tick no more until it is resumed; what it has started goes on."""
    _changed(settings, name, as_json, lambda client: client.schedules.pause(name))


@schedule.command()
@click.argument("name")
@json_option
@pass_settings
def resume(settings: Settings, name: str, as_json: bool) -> None:
    """Let a paused schedule go on with its next tick."""
    _changed(settings, name, as_json, lambda client: client.schedules.resume(name))


@schedule.command()
@click.argument("name")
@click.option("--id", help="The idempotency key (default: a new one).")
@json_option
@pass_settings
def trigger(settings: Settings, name: str, id: str | None, as_json: bool) -> None:
    """Run a schedule's workflow now, and print its id."""
    handle = _with_client(settings, lambda client: client.schedules.trigger(name, id=id))
    emit_json({"id": handle.id, "workflow": handle.name, "shard": handle.shard}) if as_json else click.echo(handle.id)


@schedule.command()
@click.argument("name")
@click.argument("start")
@click.argument("end")
@json_option
@pass_settings
def backfill(settings: Settings, name: str, start: str, end: str, as_json: bool) -> None:
    """Run the ticks from START until before END that have not run yet; prints the ids of all of them.

    Times are in ISO 8601, such as 2026-03-01 or 2026-03-01T12:00+01:00; without a time zone, UTC.
    """
    first, last = _moment("START", start), _moment("END", end)
    handles = _with_client(settings, lambda client: client.schedules.backfill(name, first, last))
    if as_json:
        emit_json({"workflows": [{"id": handle.id, "shard": handle.shard} for handle in handles]})
    else:
        for handle in handles:
            click.echo(handle.id)


@schedule.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_settings
def delete(settings: Settings, name: str, yes: bool, as_json: bool) -> None:
    """Delete a schedule; the workflows that it has started go on."""
    if not yes:
        click.confirm(f"Delete the schedule {name!r}?", abort=True, err=True)
    _with_client(settings, lambda client: client.schedules.delete(name))
    if as_json:
        emit_json({"deleted": name})
    else:
        say(f"Schedule {name!r} is deleted.")


def _changed(settings: Settings, name: str, as_json: bool, change: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def both(client: AsyncClient) -> ScheduleInfo:
        await change(client)
        return await client.schedules.get(name)

    info = _with_client(settings, both)
    if as_json:
        emit_json(_data(info))
    else:
        table(_COLUMNS, [_row(info)])


def _with_client(settings: Settings, ask: Callable[[AsyncClient], Awaitable[T]]) -> T:
    settings.log()
    config = settings.config()

    async def run() -> T:
        async with AsyncClient(config) as client:
            return await ask(client)

    return asyncio.run(run())


def _moment(name: str, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a time such as 2026-03-01T12:00+01:00", param_hint=name) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _ahead(info: ScheduleInfo) -> list[datetime]:
    """The next ticks, as this machine's time zones have them."""
    ahead: list[datetime] = []
    tick = info.next_at
    try:
        timing = cron.parse(info.spec, info.zone)
    except InvalidInput:
        return [] if tick is None else [tick]
    while tick is not None and len(ahead) < _AHEAD:
        ahead.append(tick)
        tick = timing.after(tick)
    return ahead


def _data(info: ScheduleInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "when": info.spec,
        "zone": info.zone,
        "workflow": info.workflow,
        "queue": info.queue,
        "input": payload(info.input),
        "missed": info.missed,
        "overlap": info.overlap,
        "state": info.state,
        "from_code": info.from_code,
        "created_at": info.created_at,
        "next_at": info.next_at,
        "last_at": info.last_at,
        "last_id": info.last_id,
        "waiting": info.waiting,
        "shard": info.shard,
    }


def _row(info: ScheduleInfo) -> tuple[object, ...]:
    return (
        info.name,
        info.spec,
        info.zone,
        info.workflow,
        info.queue,
        info.state,
        info.next_at,
        info.last_at,
        info.waiting,
        info.shard,
    )
