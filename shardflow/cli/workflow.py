"""`shardflow workflow`: submit workflows and look at them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from ..client.aio import AsyncClient
from ..core.routing import check_id
from ..delivery.router import Router
from ..errors import WorkflowCancelled, WorkflowDead, WorkflowFailed, WorkflowNotFound
from ..model import ClusterConfig, Counts, Page, Status, StepInfo, WorkflowInfo
from ..storage import submissions
from ..storage.waiting import Waiting, waiting
from .control import cancel, fork, purge, restart, resume
from .filters import asked_for, filter_options
from .output import FAILED, OK, UNREACHABLE, emit_json, payload, printable, say, table
from .settings import Group, Settings, json_option, pass_settings

_COLUMNS = ("id", "workflow", "queue", "status", "shard", "submitted at", "finished at", "attempt")


@click.group(cls=Group)
def workflow() -> None:
    """Submit workflows, look at them, end them and begin them again."""


for _command in (cancel, resume, restart, fork, purge):
    workflow.add_command(_command)


@workflow.command(name="list")
@filter_options
@click.option("--oldest", is_flag=True, help="The oldest first.")
@click.option("-n", "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@click.option("--cursor", metavar="TEXT", help="Go on where a list ended; brings its options along.")
@json_option
@pass_settings
def list_(settings: Settings, /, oldest: bool, limit: int, cursor: str | None, as_json: bool, **asked: Any) -> None:
    """Show workflows of all shards in the order of their submission, the newest first."""
    settings.log()
    wanted = asked_for(**asked) | {"order": "oldest" if oldest else "newest", "limit": limit, "cursor": cursor}
    page = asyncio.run(_page(settings.config(), wanted))
    if as_json:
        emit_json({"workflows": page.workflows, "cursor": page.cursor, "unreachable": _unreachable(page.unreachable)})
    else:
        table(_COLUMNS, [_row(info) for info in page.workflows])
        if page.cursor is not None:
            say(f"more: --cursor {page.cursor}")
    raise SystemExit(_report(page.unreachable))


@workflow.command()
@filter_options
@click.option("--rough", is_flag=True, help="About right, by status only, and quick however many there are.")
@json_option
@pass_settings
def count(settings: Settings, /, rough: bool, as_json: bool, **asked: Any) -> None:
    """Count workflows of all shards, by status."""
    settings.log()
    found = asyncio.run(_count(settings.config(), asked_for(**asked) | {"exact": not rough}))
    if as_json:
        by_status = {status.value: number for status, number in found.by_status.items()}
        about = {"rough": sorted(found.rough)} if rough else {}
        away = _unreachable(found.unreachable)
        emit_json({"total": found.total, "by_status": by_status, **about, "unreachable": away})
    else:
        rows = [(s.value, f"{'about ' if s in found.rough else ''}{number}") for s, number in found.by_status.items()]
        table(("status", "workflows"), [*rows, ("total", f"{'about ' if found.rough else ''}{found.total}")])
    raise SystemExit(_report(found.unreachable))


@workflow.command()
@click.argument("id")
@json_option
@pass_settings
def show(settings: Settings, id: str, as_json: bool) -> None:
    """Show one workflow: where it is, its input, its steps and how it ended."""
    settings.log()
    record = asyncio.run(_record(settings.config(), id))
    outcome = record.outcome
    error = None if outcome is None else outcome.error
    if as_json:
        steps = [
            {"seq": s.seq, "name": s.name, "finished_at": s.finished_at, "attempts": s.attempts}
            | ({"output": payload(s.output)} if s.error is None else {"error": s.error})
            for s in record.steps
        ]
        ended = None if outcome is None else {"output": payload(outcome.output), "error": error}
        emit_json(
            {
                "workflow": record.info,
                "input": payload(record.input),
                "steps": steps,
                "waiting": record.waiting,
                "outcome": ended,
            }
        )
        return
    table(_COLUMNS, [_row(record.info)])
    click.echo(f"\ninput: {_line(payload(record.input))}")
    if record.steps:
        click.echo()
        rows = [
            (s.seq, s.name, s.finished_at, s.attempts, _line(payload(s.output)) if s.error is None else s.error.type)
            for s in record.steps
        ]
        table(("step", "name", "finished at", "attempts", "outcome"), rows)
    _tell_waiting(record.waiting)
    if error is not None:
        click.echo(f"\nerror: {printable(f'{error.type}: {error.message}')}")
        if error.traceback:
            click.echo(printable(error.traceback.rstrip(), keep="\n\t"))
    elif outcome is not None:
        click.echo(f"\noutput: {_line(payload(outcome.output))}")


def _tell_waiting(found: Waiting) -> None:
    """What it waits for, and what has failed and is tried again."""
    if found.reason is not None:
        until = f", wakes at {found.wakes_at}" if found.wakes_at else ""
        missing = f", {found.missing} end(s) missing" if found.missing else ""
        click.echo(f"\nwaits for: {printable(found.reason)}{until}{missing}")
    if found.unread:
        click.echo(f"\nmessages not received: {found.unread}")
    if found.tries:
        click.echo()
        rows = [(t.seq, t.name, t.attempts, t.due_at, f"{t.error.type}: {t.error.message}") for t in found.tries]
        table(("step", "name", "failed tries", "next at", "last error"), rows)


@workflow.command()
@click.argument("id")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="How long to wait (default: for ever).")
@json_option
@pass_settings
def result(settings: Settings, id: str, timeout: float | None, as_json: bool) -> None:
    """Wait for the end of a workflow and print its result as JSON.

    Exits with 3 where it failed, with 4 where it has not ended in time.
    """
    settings.log()
    try:
        value = asyncio.run(_result(settings.config(), id, timeout))
    except WorkflowFailed as error:
        if as_json:
            told = {"type": error.type, "message": error.message, "traceback": error.traceback}
            emit_json({"id": id, "status": _ended_as(error), "error": told})
        say(f"Error: {error}")
        if error.traceback and not as_json:
            say(error.traceback.rstrip())
        raise SystemExit(FAILED) from None
    emit_json({"id": id, "status": "succeeded", "result": value} if as_json else value)


@workflow.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("args", nargs=-1, metavar="[JSON]...")
@click.option("--id", help="The idempotency key (default: a new one, on a shard that answers).")
@click.option(
    "--queue", metavar="NAME", help='Where it waits (default: "default"; code that has the app knows better).'
)
@json_option
@pass_settings
def submit(
    settings: Settings, name: str, args: tuple[str, ...], id: str | None, queue: str | None, as_json: bool
) -> None:
    """Submit the workflow NAME and print its id; each further argument is one of its own, as JSON.

    \b
    shardflow workflow submit checkout '"card-1"' 1200 '{"gift": true}' --id order-7 --queue orders
    """
    settings.log()
    arguments = [argument(i, text) for i, text in enumerate(args, 1)]
    handle = asyncio.run(_submit(settings.config(), name, arguments, id, queue))
    if as_json:
        emit_json({"id": handle[0], "workflow": name, "shard": handle[1]})
    else:
        click.echo(handle[0])


def _ended_as(error: WorkflowFailed) -> str:
    kinds = {WorkflowCancelled: Status.CANCELLED, WorkflowDead: Status.DEAD}
    return kinds.get(type(error), Status.FAILED).value


def argument(number: int, text: str) -> Any:
    """An argument of a workflow, as JSON on a command line."""
    try:
        return json.loads(text)
    except ValueError as error:
        if text.startswith("-"):
            hint = ": is it an option that this command lacks?"
        else:
            quoted = json.dumps(text, ensure_ascii=False)
            hint = f": text needs its own quotes, as in '{quoted}'" if text.isprintable() else ""
        raise click.UsageError(f"argument {number} is not JSON, {text!r} ({error}){hint}") from None


async def _submit(
    config: ClusterConfig, name: str, args: list[Any], id: str | None, queue: str | None
) -> tuple[str, str]:
    async with AsyncClient(config) as client:
        handle = await client.submit(name, *args, id=id, queue=queue)
        return handle.id, handle.shard


async def _page(config: ClusterConfig, asked: dict[str, Any]) -> Page:
    async with AsyncClient(config) as client:
        return await client.list(**asked)


async def _count(config: ClusterConfig, asked: dict[str, Any]) -> Counts:
    async with AsyncClient(config) as client:
        return await client.count(**asked)


def _unreachable(away: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"shard": name, "error": error} for name, error in away.items()]


def _report(away: Mapping[str, str]) -> int:
    """Names the shards without an answer on stderr; answers the exit code."""
    for error in away.values():
        say(f"Error: {error}")
    return UNREACHABLE if away else OK


async def _result(config: ClusterConfig, id: str, timeout: float | None) -> Any:
    async with AsyncClient(config) as client:
        return await (await client.get(id)).result(timeout)


@dataclass(frozen=True, slots=True)
class _Record:
    info: WorkflowInfo
    input: bytes
    steps: list[StepInfo]
    waiting: Waiting
    outcome: submissions.Outcome | None


async def _record(config: ClusterConfig, id: str) -> _Record:
    check_id(id)
    router = Router(config)
    try:
        name = (await router.load()).shard_of(id)
        pool = router.pool(name)
        async with pool.connection() as conn:
            found = await submissions.find(pool.shard, conn, id)
            if found is None:
                raise WorkflowNotFound(f"no workflow has the id {id!r} (looked on shard {name!r})", workflow_id=id)
            wf, info = found
            _, _, input = (await submissions.existing(pool.shard, conn, [id]))[id]
            steps = await submissions.steps(pool.shard, conn, id)
            waits = await waiting(pool.shard, conn, wf)
            ended = await submissions.outcomes(pool.shard, conn, [wf])
            return _Record(info, input, steps, waits, ended[0] if ended else None)
    finally:
        await router.close()


def _row(info: WorkflowInfo) -> tuple[object, ...]:
    return (
        info.id,
        info.name,
        info.queue,
        info.status.value,
        info.shard,
        info.submitted_at,
        info.finished_at,
        info.attempt,
    )


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
