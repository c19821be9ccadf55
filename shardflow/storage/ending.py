"""Ending asyncio tasks for certain.

Before Python 3.12 `asyncio.wait_for`, which psycopg and its pool use, swallows a cancellation that comes together
with what it waits for: a task that is cancelled once may go on for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

#: Seconds after which a task that is still there is cancelled again; what it does at its end needs a moment.
AGAIN = 1.0


async def end(tasks: Iterable[asyncio.Task[Any]], again: float = AGAIN) -> None:
    """Cancels the tasks, every `again` seconds, until all of them are done; what they raise is left in them."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=again)
