"""The synchronous face of `AsyncSchedules`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..core.options import NONE, Options
from ..definitions import Workflow
from ..model import ScheduleInfo
from .handle import AsyncHandle
from .schedules import AsyncSchedules, ScheduleList

if TYPE_CHECKING:
    from .sync import Handle

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Hold = Callable[[AsyncHandle[Any]], "Handle[Any]"]


class Schedules:
    """Makes, shows and controls schedules; `Client.schedules`. See `AsyncSchedules`."""

    def __init__(self, run: Run, hold: Hold, schedules: AsyncSchedules) -> None:
        self._run = run
        self._hold = hold
        self._schedules = schedules

    def create(
        self,
        name: str,
        when: str | timedelta | float,
        workflow: Workflow[..., Any] | str,
        args: Sequence[Any] = (),
        *,
        tz: str = "UTC",
        missed: str = "skip",
        overlap: str = "allow",
        options: Options = NONE,
        pass_time: bool = False,
        paused: bool = False,
        replace: bool = False,
    ) -> ScheduleInfo:
        """See `AsyncSchedules.create`."""
        made = self._schedules.create(
            name,
            when,
            workflow,
            args,
            tz=tz,
            missed=missed,
            overlap=overlap,
            options=options,
            pass_time=pass_time,
            paused=paused,
            replace=replace,
        )
        found: ScheduleInfo = self._run(made)
        return found

    def get(self, name: str) -> ScheduleInfo:
        """See `AsyncSchedules.get`."""
        found: ScheduleInfo = self._run(self._schedules.get(name))
        return found

    def list(self) -> ScheduleList:
        """See `AsyncSchedules.list`."""
        found: ScheduleList = self._run(self._schedules.list())
        return found

    def pause(self, name: str) -> None:
        """See `AsyncSchedules.pause`."""
        self._run(self._schedules.pause(name))

    def resume(self, name: str) -> None:
        """See `AsyncSchedules.resume`."""
        self._run(self._schedules.resume(name))

    def delete(self, name: str) -> None:
        """See `AsyncSchedules.delete`."""
        self._run(self._schedules.delete(name))

    def trigger(self, name: str, *, id: str | None = None) -> Handle[Any]:
        """See `AsyncSchedules.trigger`."""
        return self._hold(self._run(self._schedules.trigger(name, id=id)))

    def backfill(self, name: str, start: datetime, end: datetime) -> Sequence[Handle[Any]]:
        """See `AsyncSchedules.backfill`."""
        return [self._hold(handle) for handle in self._run(self._schedules.backfill(name, start, end))]
