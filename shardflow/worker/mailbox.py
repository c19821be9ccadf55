"""What has arrived for one running workflow, as far as it was read from the shard: no more than what it waits for.

Guarantee: messages of a topic are given out in the order of their arrival, each once; an end of a child is given out
as often as it is asked for, since it never changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..core.topics import CHILD
from ..storage.post import Message

#: Bytes of ends of children from which on no others are read ahead: those that are wanted are asked for one by one.
HOLD = 8 << 20
#: Where so many are wanted at the most; of more, all ends that there are.
FEW = 100
#: Bytes of an end from which on it need not be kept when it has been given out.
LARGE = 64 << 10


class Wanted(NamedTuple):
    """What is asked for: topics, each with the last message that was read; ends of these children alone."""

    topics: Sequence[tuple[str, int]]
    ends: Sequence[str]


class Mailbox:
    """`seen`: of what was asked for last, all is here that had arrived up to this message; `asked` says that the
    shard is being asked for more; `loaded`, that it has answered, with all that there was; `looked` is when it was
    asked last, by the event loop's clock."""

    __slots__ = (
        "_asked",
        "_bounded",
        "_complete",
        "_dropped",
        "_ends",
        "_held",
        "_read",
        "_topics",
        "asked",
        "loaded",
        "looked",
        "seen",
    )

    def __init__(self) -> None:
        self.seen = 0
        self.asked = False
        self.loaded = False
        self.looked = 0.0
        self._topics: dict[str, deque[Message]] = {}
        self._ends: dict[str, Message] = {}
        self._read: dict[str, int] = {}
        self._asked: frozenset[str] = frozenset()
        self._complete: frozenset[str] | None = None
        self._bounded = False
        self._held = 0
        self._dropped: set[str] = set()

    # -- reading

    def want(self, topics: Iterable[str], ids: Iterable[str]) -> Wanted:
        """What the shard is to be asked for, where the run waits for this. Ends of other children come along, as the
        next ones are wanted soon, until there are enough of them here."""
        asked = sorted(set(topics))
        missing = [id for id in ids if id not in self._ends]
        again = any(id in self._dropped for id in missing)
        few = missing if len(missing) <= FEW and (again or self._held >= HOLD) else []
        if missing and not few:
            if again:
                self._read.pop(CHILD, None)
                self._dropped.clear()
            asked.append(CHILD)
        self._asked = frozenset((*asked, *(_end(id) for id in few)))
        return Wanted([(topic, self._read.get(topic, 0)) for topic in asked], few)

    def answer(self, messages: Iterable[Message], last: int, *, complete: bool) -> None:
        """What the shard has answered, in the order of arrival; `last` is the workflow's last message of all,
        `complete` says that there was nothing else of what it was asked for."""
        self.add(messages)
        self._bounded = True
        self.asked = False
        self.loaded = complete
        self._complete = self._asked if complete else None
        if complete:
            self.seen = max(self.seen, last)

    def covers(self, topics: Iterable[str], ids: Iterable[str]) -> bool:
        """Whether the last answer was about all of this."""
        known = self._complete
        if known is None or not known.issuperset(topics):
            return False
        every = CHILD in known
        return all(id in self._ends or (id not in self._dropped and (every or _end(id) in known)) for id in ids)

    def add(self, messages: Iterable[Message]) -> None:
        """Messages, in the order of arrival."""
        for message in messages:
            self.seen = max(self.seen, message.seq)
            if message.topic != CHILD:
                self._topics.setdefault(message.topic, deque()).append(message)
            elif (id := message.key or "") not in self._ends:
                self._ends[id] = message
                self._dropped.discard(id)
                self._held += message.size
            if message.topic != CHILD or CHILD in self._asked:
                self._read[message.topic] = message.seq

    # -- what the run takes

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

    def had(self, ids: Iterable[str]) -> None:
        """The ends of these children were given out: of large ones no more is kept than there is room for; they are
        read again where they are asked for again."""
        for id in ids if self._bounded else ():
            if self._held >= HOLD // 2 and (end := self._ends.get(id)) is not None and end.size >= LARGE:
                del self._ends[id]
                self._dropped.add(id)
                self._held -= end.size

    def missing(self, ids: Iterable[str]) -> int:
        """How many of these children are not known to have ended."""
        ends = self._ends
        return sum(id not in ends for id in ids)


def _end(id: str) -> str:
    """Stands for the end of a child among topics."""
    return f"{CHILD}\0{id}"
