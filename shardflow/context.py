"""What the code inside a workflow can see of the worker that runs it.

The worker sets `current`; steps look at it. None means: not in a workflow, or inside a step, where everything is an
ordinary call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

if TYPE_CHECKING:
    from .core.branches import Branch
    from .core.codecs import Codecs

T = TypeVar("T")


class Runtime(Protocol):
    """One running workflow, as its steps need it; `step` is an `app.Step` and a call an `app.Call`, which stand above
    this module. Each operation takes its number when it is called, and happens when its coroutine is awaited."""

    id: str
    branch: Branch
    attempt: int
    queue: str
    blocking: bool

    @property
    def codecs(self) -> Codecs:
        """How the app's values are stored."""

    @property
    def name(self) -> str:
        """The workflow's name."""

    def adopt(self, task: Any) -> None:
        """A task that the workflow's code has made."""

    def set_timer(self, timer: Any) -> None:
        """A timer of the event loop's that the workflow's code has set."""

    def value(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Records what `make` gives, or answers what is recorded; no step begins before the record has committed."""

    def patched(self, id: str, deprecated: bool) -> bool:
        """Whether the run is to go the way of the patch, see `versions.patched`; `deprecated`: there is no other."""

    def step(self, step: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Coroutine[Any, Any, Any]:
        """Runs a step of an `async def` workflow and checkpoints its outcome, or answers the recorded one."""

    def step_blocking(self, step: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The same for a workflow that is a plain `def` and so has a thread of its own."""

    def sleep(self, seconds: float | None, until: float | None) -> Coroutine[Any, Any, None]:
        """Waits for seconds from the first call on, or until a time in seconds since 1970, by the server's clock."""

    def receive(self, topic: str, timeout: float | None) -> Coroutine[Any, Any, bytes | None]:
        """The next message of the topic; None when `timeout` seconds have passed."""

    def send(self, id: str, topic: str, value: bytes, key: str | None) -> Coroutine[Any, Any, None]:
        """Sends a message to another workflow, exactly once."""

    def set_event(self, key: str, value: bytes) -> Coroutine[Any, Any, None]:
        """Sets the value that others can ask for."""

    def start_children(
        self, calls: Sequence[Any], *, colocate: bool, many: bool
    ) -> Coroutine[Any, Any, Sequence[str]]:
        """Starts workflows whose parent this one is; answers their ids."""

    def ends(self, ids: Sequence[str]) -> Coroutine[Any, Any, list[tuple[bytes | None, BaseException | None]]]:
        """How these children ended, when all of them have: output, or the error."""

    def continue_as_new(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> NoReturn:
        """Ends this run of the code; the workflow begins anew with these arguments."""

    def block_on(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs an operation for a workflow that is a plain `def`, and waits for it in its thread."""


current: ContextVar[Runtime | None] = ContextVar("shardflow_current", default=None)
#: The clock of the code outside of any shard, in seconds since 1970; `shardflow.testing` sets one that jumps.
clock: ContextVar[Callable[[], float]] = ContextVar("shardflow_clock", default=time.time)
