"""`shardflow queue`: what waits in the queues, and pausing them."""

from __future__ import annotations

import click

from .control import ask_client, tell
from .limits import limits
from .output import OK, UNREACHABLE, emit_json, say, table
from .settings import Group, Settings, json_option, pass_settings


@click.group(cls=Group)
def queue() -> None:
    """What waits in the queues, and pausing them."""


queue.add_command(limits)


@queue.command(name="list")
@json_option
@pass_settings
def list_(settings: Settings, as_json: bool) -> None:
    """Show the queues in which something is ready, or which are paused."""
    found = ask_client(settings, lambda client: client.queues.list())
    if as_json:
        away = [{"shard": name, "error": error} for name, error in found.unreachable.items()]
        emit_json({"queues": found.queues, "unreachable": away})
    else:
        rows = [
            (q.name, q.ready, min(q.paused.values(), default=None), ", ".join(sorted(q.paused)) or None)
            for q in found.queues
        ]
        table(("queue", "ready", "paused since", "paused on"), rows)
    for error in found.unreachable.values():
        say(f"Error: {error}")
    raise SystemExit(UNREACHABLE if found.unreachable else OK)


@queue.command()
@click.argument("name")
@json_option
@pass_settings
def pause(settings: Settings, name: str, as_json: bool) -> None:
    """Let nothing more of the queue NAME begin, on any shard; what runs goes on."""
    tell("paused", "shard(s)", ask_client(settings, lambda client: client.queues.pause(name)), as_json)


@queue.command()
@click.argument("name")
@json_option
@pass_settings
def resume(settings: Settings, name: str, as_json: bool) -> None:
    """Let the workflows of a paused queue begin again."""
    tell("resumed", "shard(s)", ask_client(settings, lambda client: client.queues.resume(name)), as_json)
