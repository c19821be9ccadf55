"""`shardflow slot`: where a workflow id belongs."""

from __future__ import annotations

import asyncio

import click

from ..core.routing import check_id, routing_key, slot_of
from ..delivery.router import Router
from ..model import ClusterConfig
from .output import emit_json, table
from .settings import Group, Settings, json_option, pass_settings


@click.group(cls=Group)
def slot() -> None:
    """Where a workflow id belongs."""


@slot.command()
@click.argument("id")
@click.option("--offline", is_flag=True, help="Ask no shard: only the slot is told.")
@json_option
@pass_settings
def show(settings: Settings, id: str, offline: bool, as_json: bool) -> None:
    """Show the routing key of ID, its slot, and the shard that holds it.

    The workflow need not exist: an id alone says where it belongs.
    """
    settings.log()
    config = settings.config()
    check_id(id)
    owner = None if offline else asyncio.run(_owner(config, id))
    found = {"id": id, "key": routing_key(id), "slot": slot_of(id, config.slots), "shard": owner}
    if as_json:
        emit_json(found)
    else:
        table(list(found), [list(found.values())])


async def _owner(config: ClusterConfig, id: str) -> str:
    router = Router(config)
    try:
        return (await router.load()).shard_of(id)
    finally:
        await router.close()
