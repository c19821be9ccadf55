"""What has arrived for one running workflow, as far as it was read from the shard.

Guarantee: messages of a topic are given out in the order of their arrival, each once; an end of a child is given out
as often as it is asked for, since it never changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ..core.topics import CHILD
from ..storage.turn import Message


class Mailbox:
    """`seen` is the last message that was read; `asked` says that the shard is being asked for more; `loaded`, that
    it has answered once; `looked` is when it was asked last, by the event loop's clock."""

    __slots__ = ("_ends", "_topics", "asked", "loaded", "looked", "seen")

    def __init__(self) -> None:
        self.seen = 0
        self.asked = False
        self.loaded = False
        self.looked = 0.0
        self._topics: dict[str, deque[Message]] = {}
        self._ends: dict[str, Message] = {}

    def add(self, messages: Iterable[Message]) -> None:
        """What the shard answered, in the order of arrival."""
        for message in messages:
            self.seen = message.seq
            if message.topic == CHILD:
                self._ends[message.key or ""] = message
            else:
                self._topics.setdefault(message.topic, deque()).append(message)

    def take(self, topic: str) -> Message | None:
        """The first message of the topic, which is gone then."""
        queue = self._topics.get(topic)
        return queue.popleft() if queue else None

    def has(self, topics: Iterable[str]) -> bool:
        """Whether there is a message of one of these topics."""
        return any(self._topics.get(topic) for topic in topics)

    def end(self, id: str) -> Message | None:
        """How the child with that id ended, if it is known."""
        return self._ends.get(id)

    def missing(self, ids: Iterable[str]) -> int:
        """How many of these children are not known to have ended."""
        ends = self._ends
        return sum(id not in ends for id in ids)
