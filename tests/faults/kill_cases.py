"""The table of the kill tests: what is played, where the worker dies, and the mutant that each case turns red."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from faults.kill_app import tries
from faults.kill_plays import (
    after,
    after_racing,
    after_two,
    child_ended,
    delayed,
    events,
    received,
    retries,
    sent,
    sleeps,
    started,
    steps,
    times_out,
)
from faults.kill_stand import Stand

from shardflow.core.topics import AFTER, CHILD, WATCH


@dataclass(frozen=True)
class Case:
    """Arguments: `play`; `point` where the victim dies; `mutant`, or a statement that spoils the shards, and a part
    of the message by which it is `red`; `mutated`, what is played then, where it is not the same; `later`: only the
    successor is a mutant; `waits`, seconds after which what a mutant never does counts as not done."""

    name: str
    play: Callable[[Stand], Awaitable[None]]
    point: str
    mutant: str
    red: str
    shards: int = 1
    mutated: Callable[[Stand], Awaitable[None]] | None = None
    later: bool = False
    waits: float = 60.0

    def __str__(self) -> str:
        return self.name


#: Seconds for what a mutant never does: no good case is measured by them.
SOON = 3.0
UNKEYED = "DROP INDEX message_key"

CASES = [
    Case(
        "step: effect | checkpoint",
        lambda stand: steps(stand, 2),
        "before step effect",
        "acknowledge_before_commit",
        "'1': 2",
    ),
    Case(
        "step: checkpoint | answer",
        lambda stand: steps(stand, 1),
        "after step effect",
        "forget_checkpoints",
        r"'0': ([2-9]|\d\d)",
    ),
    Case(
        "retry: failed try | next",
        lambda stand: retries(stand, tries, False),
        "after retry",
        "forget_tries",
        "'try': 4",
    ),
    Case(
        "retry: suspended",
        lambda stand: retries(stand, tries, True),
        "after suspended",
        "forget_tries",
        "'try': [45]",
    ),
    Case(
        "sleep: suspended",
        lambda stand: sleeps(stand, 1.5, 1),
        "after suspended",
        "sleep_anew",
        "suspensions: 2",
    ),
    Case(
        "sleep: checkpoint | suspension",
        lambda stand: sleeps(stand, 1.5, 0),
        "after step shardflow.sleep",
        "sleep_anew",
        "suspensions: 1",
    ),
    Case(
        "sleep: not early",
        lambda stand: sleeps(stand, 3.0, None),
        "after step shardflow.sleep",
        "sleep_over",
        "slept to its end",
        mutated=lambda stand: sleeps(stand, 300.0, None),
    ),
    Case(
        "receive: timer | suspension",
        lambda stand: times_out(stand, 1.5),
        "after step shardflow.timer",
        "timeout_anew",
        "suspensions: 1",
    ),
    Case(
        "send: delivered | checkpoint", sent, "before step shardflow.send", "send_without_key", r"\[1, 1\]", shards=2
    ),
    Case(
        "receive: taken | answer",
        lambda stand: received(stand, False),
        "after step shardflow.receive",
        "take_messages_later",
        r"heard: \[0, 0, 1",
    ),
    Case(
        "receive with key: taken | answer",
        lambda stand: received(stand, True),
        "after step shardflow.receive",
        "take_messages_later",
        r"heard: \[0, 0, 1",
    ),
    Case("set_event: set | answer", events, "after step shardflow.set_event", "set_events_later", "is not set"),
    Case(
        "start: there | checkpoint",
        lambda stand: started(stand, 0),
        "before step shardflow.start",
        "children_under_new_ids",
        "children: 2 instead of 1",
        shards=2,
    ),
    Case(
        "start_many: there | checkpoint",
        lambda stand: started(stand, 6),
        "before step shardflow.start",
        "children_under_new_ids",
        "children: 12 instead of 6",
        shards=3,
    ),
    Case(
        "start_many: one shard | the others",
        lambda stand: started(stand, 6, partly=True),
        "one shard has its children",
        "children_under_new_ids",
        "children: ([789]|1[012]) instead of 6",
        shards=3,
    ),
    Case(
        "child's end: outbox | delivery",
        child_ended,
        f"after told {CHILD}",
        "adopt_nothing",
        "left in the outbox: 1",
        shards=2,
        waits=SOON,
    ),
    Case(
        "child's end: delivery | deletion",
        child_ended,
        f"before relayed {CHILD}",
        UNKEYED,
        "told: 2 instead of 1",
        shards=2,
    ),
    Case(
        "after: outbox | registration",
        after,
        f"after told {WATCH}",
        "adopt_nothing",
        "watchers: 0",
        shards=2,
        later=True,
        waits=SOON,
    ),
    Case(
        "after: registration | deletion",
        after,
        f"before relayed {WATCH}",
        "ALTER TABLE watcher DROP CONSTRAINT watcher_pkey",
        "watchers: 2",
        shards=2,
    ),
    Case(
        "after: end told | deletion",
        after_two,
        f"before relayed {AFTER}",
        UNKEYED,
        "ends still missing",
        shards=2,
    ),
    Case(
        "after: end in its COMMIT",
        after_racing,
        "",
        "nothing_is_overdue",
        "behind.* has not ended",
        shards=2,
        waits=SOON,
    ),
    Case("delay: woken | begun", delayed, "after woken", "wake_in_two_turns", "not in exactly one place"),
]
