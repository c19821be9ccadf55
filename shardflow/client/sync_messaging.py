"""The synchronous face of `Messaging`: the same methods, each one line."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..storage.caller import refuse_async

if TYPE_CHECKING:
    from .aio import AsyncClient
    from .sync import _Background


class SyncMessaging:
    """The part of the client that sends messages and reads events."""

    _background: _Background
    _client: AsyncClient

    def send(self, id: str, topic: str, value: Any = None, *, key: str | None = None, connection: Any = None) -> None:
        """See `AsyncClient.send`."""
        refuse_async(connection)
        self._background.run(self._client.send(id, topic, value, key=key, connection=connection))

    def event(self, id: str, key: str, timeout: float | timedelta | None = None, *, type: Any = Any) -> Any:
        """See `AsyncClient.event`."""
        return self._background.run(self._client.event(id, key, timeout, type=type))
