"""The client's part in messages and events."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from ..core.codecs import Codecs
from ..core.options import seconds_of
from ..core.routing import check_id, check_name
from ..core.topics import check_topic
from ..delivery import Delivery
from ..errors import ResultTimeout, ShardUnavailable, WorkflowNotFound
from ..model import ClusterConfig
from ..storage import messages
from ..storage.messages import Letter
from .transactional import Transactional

if TYPE_CHECKING:
    from .aio import AsyncClient

#: Seconds between two looks at an event that is waited for: the first time, and at the most.
FIRST_LOOK, LAST_LOOK = 0.01, 0.5


class Messaging:
    """Sends messages and reads events; part of `AsyncClient`."""

    config: ClusterConfig
    codecs: Codecs
    delivery: Delivery

    async def send(
        self, id: str, topic: str, value: Any = None, *, key: str | None = None, connection: Any = None
    ) -> None:
        """Sends a message to a workflow; returns when the workflow's shard has it. It may arrive before its receiver
        starts.

        Arguments: `id`; `topic`; `value`, of a kind that can be stored; `key`: of messages with the same key on the
        topic the receiver gets one. Without a key each call is one message, also where the connection was lost on the
        way. Raises WorkflowNotFound where no workflow has the id, ShardUnavailable where its shard does not answer:
        the message may have arrived, and can be sent again with the same key. With `connection` it is part of that
        connection's transaction, see `submit`; to a workflow of a shard elsewhere it is relayed, and nobody is told
        where there is no such id.
        """
        check_id(id)
        check_topic(topic)
        if key is not None:
            check_name("key", key)
        data = self.codecs.encode(value, what=f"message on {topic!r}", limits=self.config.payload)
        # By its form a drawn key says until when it may come again: see `begin_anew` in migrations/0013_mail.sql.
        key = key or f"\x1f{'' if connection is None else 'relayed '}{uuid.uuid4().hex}"
        if connection is not None:
            await Transactional(cast("AsyncClient", self), connection).send(id, topic, key, data)
            return
        letter = Letter(id, topic, key, data)
        await self.delivery.courier.deliver(letter, self.config.pool.timeout)

    async def event(self, id: str, key: str, timeout: float | timedelta | None = None, *, type: Any = Any) -> Any:
        """The latest value that a workflow has set for an event, while it runs or after.

        Arguments: `id`; `key`, the event's; `timeout`, seconds or timedelta to wait until it is set (None: for ever;
        0: only what is set); `type`, an annotation by which the value is typed. Raises ResultTimeout where it was not
        set in time, WorkflowNotFound where no workflow has the id.
        """
        check_id(id)
        check_name("event", key)
        limit = None if timeout is None else seconds_of("timeout", timeout)
        loop = asyncio.get_running_loop()
        began = loop.time()
        pause = FIRST_LOOK
        while True:
            try:
                there, value, was_set = await self._event(id, key)
            except ShardUnavailable:
                if limit is not None and loop.time() - began >= limit:
                    raise
                there, value, was_set = True, None, False
            if not there:
                raise WorkflowNotFound(f"no workflow has the id {id!r}", workflow_id=id)
            if was_set:
                return self.codecs.decode(value or b"null", type, what=f"event {key!r}", limits=self.config.payload)
            left = None if limit is None else limit - (loop.time() - began)
            if left is not None and left <= 0:
                raise ResultTimeout(f"workflow {id!r} has not set the event {key!r} within {limit:g} s")
            await asyncio.sleep(pause if left is None else min(pause, left))
            pause = min(pause * 1.3, LAST_LOOK)

    async def _event(self, id: str, key: str) -> tuple[bool, bytes | None, bool]:
        router = self.delivery.router
        pool = router.pool((await router.load()).shard_of(id))
        async with pool.connection() as conn:
            return await messages.event(pool.shard, conn, id, key)
