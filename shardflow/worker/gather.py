"""What gathers for the next turn of a commit loop, while the last one is under way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..storage.turn import EventRow, OutcomeRow, RetryRow, StepRow, Turn, WaitRow

if TYPE_CHECKING:
    from .run import Run

#: A turn's caps. Beyond them more rows cost the same each and only delay those that wait.
MAX_ROWS = 2_000
MAX_BYTES = 8 << 20


class Extra(NamedTuple):
    """What goes along with a checkpoint, in the same turn: `received`, the number of a message that it takes;
    `event`, key and value that it sets; `tried`, whether failed tries were recorded, which are to be forgotten
    now; `anew`, that all that was recorded before is to be forgotten."""

    received: int | None = None
    event: tuple[str, bytes] | None = None
    tried: bool = False
    anew: bool = False


class Gathered:
    """The writes of one turn with whom to tell: `waiting`, a run and its future per step; `ended`, a run per outcome.

    `extras` are by the place of their step; `retries` by workflow and sequence number; `relayed`, entries of the
    outbox that were delivered; `unbegun`, ends of claimed workflows that did not begin; `heard`, workflows that
    succeed and have read messages; `severed`, workflows whose ends cancel their children, with those just being
    started. `room` is how many more rows it takes; where the bytes are too many already, none.
    """

    __slots__ = (
        "bytes",
        "ended",
        "extras",
        "heard",
        "outcomes",
        "relayed",
        "retries",
        "room",
        "severed",
        "steps",
        "unbegun",
        "waiting",
        "waits",
    )

    def __init__(self) -> None:
        self.steps: list[StepRow] = []
        self.extras: dict[int, Extra] = {}
        self.retries: dict[tuple[int, int], RetryRow] = {}
        self.relayed: list[int] = []
        self.waiting: list[tuple[Run, asyncio.Future[None]]] = []
        self.outcomes: list[OutcomeRow] = []
        self.ended: list[Run] = []
        self.waits: list[WaitRow] = []
        self.unbegun: list[OutcomeRow] = []
        self.heard: list[int] = []
        self.severed: dict[int, Sequence[str]] = {}
        self.bytes = 0
        self.room = MAX_ROWS

    def turn(self) -> Turn:
        """These writes as a turn, as yet without receipts and claim."""
        turn = Turn(steps=self.steps, outcomes=self.outcomes, waits=self.waits, relayed=self.relayed)
        if self.unbegun:
            turn.outcomes = self.outcomes + self.unbegun
        turn.heard = self.heard
        if self.severed:
            turn.severed = list(self.severed)
            turn.orphans = [id for ids in self.severed.values() for id in ids]
        if self.retries:
            turn.retries = list(self.retries.values())
        if self.extras:
            self._spread(turn)
        return turn

    def _spread(self, turn: Turn) -> None:
        tried, received, anew = [], [], []
        events: dict[tuple[int, str], EventRow] = {}
        for place, extra in self.extras.items():
            wf, seq = self.steps[place][:2]
            if extra.anew:
                anew.append(wf)
            if extra.tried:
                tried.append((wf, seq))
            if extra.received is not None:
                received.append((wf, extra.received))
            if extra.event is not None:
                events[wf, extra.event[0]] = (wf, *extra.event)
        turn.tried, turn.received, turn.events = tried, received, list(events.values())
        turn.anew = anew

    def add_step(self, run: Run, future: asyncio.Future[None], row: StepRow, extra: Extra | None = None) -> None:
        if extra is not None:
            self.extras[len(self.steps)] = extra
            if extra.event is not None:
                self._weigh(extra.event[1])
        self.steps.append(row)
        self.waiting.append((run, future))
        self._weigh(row[4])

    def add_outcome(self, run: Run, row: OutcomeRow) -> None:
        self.outcomes.append(row)
        self.ended.append(run)
        if run.box is not None and row[1] == "succeeded":
            self.heard.append(run.wf)
        self._weigh(row[2])

    def add_unbegun(self, row: OutcomeRow, severed: bool) -> None:
        self.unbegun.append(row)
        if severed:
            self.severed[row[0]] = ()
        self.room -= 1

    def add_retry(self, row: RetryRow) -> None:
        self.retries[row[0], row[1]] = row
        self.room -= 1

    def add_relayed(self, entries: list[int]) -> None:
        self.relayed += entries
        self.room -= len(entries)

    def add_wait(self, row: WaitRow) -> None:
        self.waits.append(row)
        self.room -= 1

    def _weigh(self, output: bytes | None) -> None:
        self.room -= 1
        if output is not None:
            self.bytes += len(output)
            if self.bytes > MAX_BYTES:
                self.room = 0

    def pieces(self) -> list[tuple[Gathered, str]]:
        """Every step and outcome alone, for finding the one that the server refuses; see `rest` for the others."""
        found = []
        for place, (row, (run, future)) in enumerate(zip(self.steps, self.waiting, strict=True)):
            one = Gathered()
            one.add_step(run, future, row, self.extras.get(place))
            found.append((one, f"the outcome of step {row[1]} ({row[3]!r})"))
        for end, run in zip(self.outcomes, self.ended, strict=True):
            one = Gathered()
            one.add_outcome(run, end)
            if end[0] in self.severed:
                one.severed[end[0]] = self.severed[end[0]]
            found.append((one, "the workflow's result"))
        return found

    def rest(self) -> Gathered:
        """What `pieces` leaves out, which nobody waits for."""
        rest = Gathered()
        rest.waits, rest.retries, rest.relayed = self.waits, self.retries, self.relayed
        rest.unbegun = self.unbegun
        rest.severed = {row[0]: self.severed[row[0]] for row in self.unbegun if row[0] in self.severed}
        return rest

    def singles(self) -> list[Single]:
        """Each row of a `rest` alone."""
        found = []
        for wait in self.waits:
            (one := Gathered()).add_wait(wait)
            found.append(Single(one, "the workflow's suspension", wait[0]))
        for retry in self.retries.values():
            (one := Gathered()).add_retry(retry)
            found.append(Single(one, f"a failed try of step {retry[1]} ({retry[3]!r})", retry[0]))
        for end in self.unbegun:
            (one := Gathered()).add_unbegun(end, end[0] in self.severed)
            found.append(Single(one, "the workflow's end", end[0]))
        for entry in self.relayed:
            (one := Gathered()).add_relayed([entry])
            found.append(Single(one, "the deletion of an entry of the outbox", None))
        return found

    def strip(self, wf: int) -> bool:
        """Takes out all that is about this workflow; answers whether it was to be suspended."""
        suspended = any(row[0] == wf for row in self.waits)
        if self.steps:
            places = [place for place, row in enumerate(self.steps) if row[0] != wf]
            for place in {*range(len(self.steps))}.difference(places):
                self.waiting[place][1].cancel()
            self.extras = {n: self.extras[place] for n, place in enumerate(places) if place in self.extras}
            self.steps, self.waiting = [self.steps[n] for n in places], [self.waiting[n] for n in places]
        self.outcomes = [row for row in self.outcomes if row[0] != wf]
        self.ended = [run for run in self.ended if run.wf != wf]
        self.retries = {key: row for key, row in self.retries.items() if row[0] != wf}
        self.waits = [row for row in self.waits if row[0] != wf]
        self.unbegun = [row for row in self.unbegun if row[0] != wf]
        self.heard = [each for each in self.heard if each != wf]
        self.severed.pop(wf, None)
        return suspended

    def cancel(self) -> None:
        """Tells those who wait for these checkpoints that there will be none."""
        for _, future in self.waiting:
            future.cancel()

    def absorb(self, other: Gathered) -> None:
        """Adds all that the other has."""
        first = len(self.steps)
        self.extras.update((first + place, extra) for place, extra in other.extras.items())
        self.retries.update(other.retries)
        self.relayed += other.relayed
        self.steps += other.steps
        self.waiting += other.waiting
        self.outcomes += other.outcomes
        self.ended += other.ended
        self.waits += other.waits
        self.unbegun += other.unbegun
        self.heard += other.heard
        self.severed.update(other.severed)
        self.bytes += other.bytes
        self.room = 0 if self.bytes > MAX_BYTES else self.room - (MAX_ROWS - other.room)


class Single(NamedTuple):
    """One row, in words, and the workflow that it is about."""

    gathered: Gathered
    what: str
    wf: int | None


@dataclass(slots=True)
class Doubt:
    """A turn whose answer was lost: committed or not."""

    gathered: Gathered
    turn: Turn


class Pending:
    """A queue of `Gathered`, the last of which is open for more."""

    def __init__(self) -> None:
        self._queue: deque[Gathered] = deque()

    def __bool__(self) -> bool:
        return bool(self._queue)

    def open(self) -> Gathered:
        """Where the next write goes."""
        queue = self._queue
        if not queue or queue[-1].room <= 0:
            queue.append(Gathered())
        return queue[-1]

    def take(self) -> Gathered | None:
        """The oldest, or None."""
        return self._queue.popleft() if self._queue else None

    def put_back(self, gathered: Gathered) -> None:
        """Returns what `take` gave, to be the next again."""
        self._queue.appendleft(gathered)

    def strip(self, wf: int) -> None:
        """Takes out all that is about this workflow."""
        for gathered in self._queue:
            gathered.strip(wf)

    def suspending(self) -> set[int]:
        """The claimed workflows without a run that a turn sees to: it suspends them, or ends them."""
        waits = {row[0] for gathered in self._queue for row in gathered.waits}
        return waits | {row[0] for gathered in self._queue for row in gathered.unbegun}

    def clear(self) -> None:
        """Forgets everything; whoever waits for a checkpoint of it is told that there will be none."""
        for gathered in self._queue:
            gathered.cancel()
        self._queue.clear()
