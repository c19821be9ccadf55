"""What is recorded of a workflow that runs inline: what a shard would hold of it, in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.topics import CHILD
from ..definitions import Workflow
from ..model import Status
from ..storage.leases import Checkpoint, Tries
from ..storage.post import Message

if TYPE_CHECKING:
    from .run import InlineRun


class Pause(NamedTuple):
    """What one wait of a suspended workflow waits for: a time, topics, ends of children."""

    due: float | None
    topics: tuple[str, ...]
    ids: Collection[str]


@dataclass(eq=False)
class Record:
    """One workflow.

    `begins`: the time from which it may run; `after`: ids of those that it runs after; `deadline`: the time at which
    it is ended. `pauses` are what it waits for where it is suspended. `failure`: the exception behind its error;
    `checked`: whether it was replayed after its end.
    """

    wf: int
    id: str
    workflow: Workflow[..., Any]
    input: bytes
    queue: str
    options: Mapping[str, Any]
    parent: Record | None
    begins: float
    deadline: float | None
    after: frozenset[str] = frozenset()
    on_failure: str = "fail"
    checkpoints: dict[int, Checkpoint] = field(default_factory=dict)
    tries: dict[int, Tries] = field(default_factory=dict)
    mail: list[Message] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)
    events: dict[str, bytes] = field(default_factory=dict)
    status: Status = Status.READY
    output: bytes | None = None
    error: str | None = None
    failure: BaseException | None = None
    pauses: list[Pause] = field(default_factory=list)
    run: InlineRun | None = None
    checked: bool = False

    def add(self, topic: str, key: str | None, value: bytes | None, error: str | None) -> bool:
        """Puts a message in; False where the key has come before."""
        if key is not None and any(m.topic == topic and m.key == key for m in self.mail):
            return False
        self.mail.append(Message(self.wf, len(self.mail) + 1, topic, key, value, error))
        return True

    def unread(self, seen: int) -> list[Message]:
        """The messages behind the one that was seen last, without those that were received."""
        return [m for m in self.mail[seen:] if m.seq not in self.taken]

    def has_news(self, pause: Pause) -> bool:
        """Whether something has come that this pause waits for."""
        if pause.topics and any(m.topic in pause.topics for m in self.unread(0)):
            return True
        return bool(pause.ids) and {m.key for m in self.mail if m.topic == CHILD}.issuperset(pause.ids)

    def waits_for(self) -> str:
        """In words, for whoever looks for what keeps a test from going on."""
        waits = [Pause(w.due, w.topics, w.ids) for w in self.run.waits or ()] if self.run else self.pauses
        said = [f"a message on {topic!r}" for w in waits for topic in w.topics]
        said += [f"the end of {id!r}" for w in waits for id in w.ids]
        if self.run is None and self.status is Status.READY:
            said += [f"the end of {id!r}" for id in sorted(self.after)]
        return ", ".join(said[:3]) + (" and more" if len(said) > 3 else "") or "something that is not durable"
