"""What the code inside a workflow can see of the worker that runs it.

The worker sets `current`; steps look at it. None means: not in a workflow, or inside a step, where everything is an
ordinary call.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from contextvars import ContextVar
from typing import Any, Protocol


class Runtime(Protocol):
    """One running workflow, as its steps need it; `step` is an `app.Step`, which stands above this module."""

    id: str
    attempt: int
    queue: str

    @property
    def name(self) -> str:
        """The workflow's name."""

    def value(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Records what `make` gives, or answers what is recorded; no step begins before the record has committed."""

    def step(self, step: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Coroutine[Any, Any, Any]:
        """Runs a step of an `async def` workflow and checkpoints its outcome, or answers the recorded one."""

    def step_blocking(self, step: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The same for a workflow that is a plain `def` and so has a thread of its own."""


current: ContextVar[Runtime | None] = ContextVar("shardflow_current", default=None)
