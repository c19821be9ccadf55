"""Replays workflows that have ended inline, to find code that depends on something that is not recorded."""

from __future__ import annotations

import json

from ..core.failure import from_json
from ..errors import NonDeterminism
from ..model import Status
from .record import Record
from .world import World


async def verify(world: World, record: Record) -> None:
    """Replays a workflow that has ended. Raises NonDeterminism where not the same comes out."""
    record.checked = True
    run = world.resume(record, verify=True)
    await world.still(lambda: run.ended is not None, run)
    world.discard(run)
    await world.left()
    if run.ended is not None and _same(run.ended, record):
        return  # a step that is new then was called by a task that the workflow had left behind
    if run.broken is not None and not run.stray:
        raise run.broken
    if run.stray:
        what = f"calls {run.stray!r}, which it had not called"
    elif run.ended is None:
        what = "waits for something that it had not waited for"
    else:
        what = f"ends with {_said(*run.ended)}, and ended with {_said(record.status, record.output, record.error)}"
    raise NonDeterminism(
        f"workflow {record.id!r}: replayed over its records it {what}: its code depends on something that is not"
        " recorded",
        workflow_id=record.id,
    )


def _same(ended: tuple[Status, bytes | None, str | None], record: Record) -> bool:
    status, output, error = ended
    if status is not record.status or output != record.output:
        return False
    return error is None or record.error is None or from_json(error).type == from_json(record.error).type


def _said(status: Status, output: bytes | None, error: str | None) -> str:
    if error is not None:
        info = from_json(error)
        return f"{info.type}: {info.message}"
    try:
        return json.dumps(json.loads(output or b"null"))[:200]
    except ValueError:
        return f"{len(output or b'')} bytes"
