"""Runs that wait for something durable: wakes those whose time or message has come, and suspends those in which
nothing else goes on, so that whoever waits long costs no memory.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextvars import Context

from ..core.topics import SEPARATOR
from ..storage import post
from ..storage.post import MailWanted, Message
from ..storage.turn import WaitRow
from .mailbox import Mailbox
from .quiet import alone, is_quiet
from .run import Run

#: Seconds for which a run waits in memory at least: what comes within them is had without a replay.
LINGER = 0.02
#: A run whose time comes within so many seconds is not suspended.
SHORT = 1.0
#: Seconds between looks into the mail of a run that stays in memory: a step goes on in it, or a time comes soon.
MAIL_EVERY = 0.25
#: Turns of the event loop in which nothing moves before a run with several tasks counts as quiet, at the most.
MOST_TURNS = 50


class Idle:
    """The waiting runs of one shard.

    Arguments: `loop`; `suspend`, which takes a run out of memory with the row that says what it waits for; `wake`,
    called when mail is to be asked for.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        suspend: Callable[[Run, WaitRow], None],
        wake: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._suspend = suspend
        self._wake = wake
        self._runs: dict[Run, float] = {}
        self._asking: dict[int, Run] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def waiting(self, run: Run) -> None:
        """The run waits now, perhaps for more than before."""
        now = self._loop.time()
        self._runs[run] = now + LINGER
        self._look_at(now + LINGER)

    def forget(self, run: Run) -> None:
        """The run is gone from here."""
        self._runs.pop(run, None)
        self._asking.pop(run.wf, None)

    def clear(self) -> None:
        """All runs are gone from here."""
        self._runs.clear()
        self._asking.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- mail

    def ask_mail(self, run: Run) -> None:
        """The next turn asks for what has arrived for the run."""
        box = run.box = run.box or Mailbox()
        if not box.asked:
            box.asked = True
            box.looked = self._loop.time()
            self._asking[run.wf] = run
            self._wake()

    def asked(self) -> MailWanted | None:
        """What a turn is to ask for: what its runs wait for now."""
        if not self._asking:
            return None
        wanted = MailWanted([], [], [])
        for wf, run in list(self._asking.items()):
            waits = [w for w in run.waits or () if (w.topics or w.ids) and not w.ready.done()]
            assert run.box is not None
            if not waits:
                del self._asking[wf]
                run.box.asked = False
                continue
            topics, ends = run.box.want((t for w in waits for t in w.topics), (id for w in waits for id in w.ids))
            wanted.wfs.append(wf)
            wanted.topics.extend((wf, topic, read) for topic, read in topics)
            wanted.ends.extend((wf, id) for id in ends)
        return wanted if wanted.wfs else None

    def arrived(self, asked: MailWanted, messages: Sequence[Message]) -> None:
        """The answer of a turn that asked so."""
        cut, by_wf = incomplete(asked, messages), defaultdict[int, list[Message]](list)
        for message in messages:
            by_wf[message.wf].append(message)
        for wf in asked.wfs:
            run = self._asking.pop(wf, None)
            if run is None or run.box is None:
                continue
            last, *found = by_wf[wf]
            run.box.answer(found, last.seq, complete=wf not in cut)
            self._tell(run)
            if any(not w.ready.done() and not run.box.covers(w.topics, w.ids) for w in run.waits or ()):
                self.ask_mail(run)

    def _tell(self, run: Run) -> None:
        """Lets those waits of the run look again that have something to see now."""
        box = run.box
        assert box is not None
        for wait in run.waits or ():
            if (wait.topics or wait.ids) and not wait.ready.done():
                overdue = wait.due is not None and wait.due <= self._loop.time() and box.covers(wait.topics, wait.ids)
                if overdue or box.has(wait.topics) or (wait.ids and not box.missing(wait.ids)):
                    wait.ready.set_result(None)

    # -- looking

    def _look_at(self, when: float) -> None:
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_at(when, self._look, context=Context())  # it is no run's own

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        for run, until in list(self._runs.items()):
            if run.closed or not run.waits:
                self._runs.pop(run, None)
                continue
            due = self._ring(run, now)
            if self._next_mail(run) <= now:
                self.ask_mail(run)
            if until > now:
                continue
            if due is not None and due - now <= SHORT:
                self._runs[run] = max(due, now + LINGER / 10)
            elif self._mail_due(run):
                self.ask_mail(run)
                self._runs[run] = now + LINGER
            elif not is_quiet(run):
                self._runs[run] = now + MAIL_EVERY
            elif alone(run):
                self._take_out(run)
            else:
                self._runs[run] = now + SHORT
                turns = min(MOST_TURNS, 4 + 2 * len(run.tasks or ()))
                self._loop.call_soon(self._still_quiet, run, turns)
        if self._runs:
            nearest = min(self._next(run, until) for run, until in self._runs.items())
            self._look_at(max(nearest, now + LINGER / 10))

    @staticmethod
    def _next(run: Run, until: float) -> float:
        dues = [w.due for w in run.waits or () if w.due is not None and not w.ready.done()]
        return min([until, *dues, Idle._next_mail(run)])

    def _ring(self, run: Run, now: float) -> float | None:
        """Wakes the waits whose time has come; answers the next one's."""
        nearest = None
        for wait in run.waits or ():
            if wait.due is None or wait.ready.done():
                continue
            if wait.due <= now:
                if not wait.topics or not self._mail_due(run):
                    wait.ready.set_result(None)
            elif nearest is None or wait.due < nearest:
                nearest = wait.due
        return nearest

    @staticmethod
    def _mail_due(run: Run) -> bool:
        """Whether it waits for mail and the shard has not yet said what there is."""
        box = run.box
        waits = [w for w in run.waits or () if w.topics or w.ids]
        return bool(waits) and (box is None or box.asked or not all(box.covers(w.topics, w.ids) for w in waits))

    @staticmethod
    def _next_mail(run: Run) -> float:
        """When the shard is to be asked again for what one of its branches waits for, as long as the run stays in
        memory: another branch may sleep in short turns, or be at a step for hours."""
        box = run.box
        if box is None or box.asked or not any(w.topics or w.ids for w in run.waits or ()):
            return math.inf
        return box.looked + MAIL_EVERY

    def _still_quiet(self, run: Run, turns: int) -> None:
        """Callbacks between the workflow's tasks may be under way: only when nothing has moved for some turns of the
        event loop is nothing on its way."""
        if run.closed or run not in self._runs:
            return
        if not is_quiet(run) or self._mail_due(run):
            self.waiting(run)
        elif turns > 0:
            self._loop.call_soon(self._still_quiet, run, turns - 1)
        else:
            self._take_out(run)

    def _take_out(self, run: Run) -> None:
        self.forget(run)
        waits = run.waits or ()
        dues = [w.due for w in waits if w.due is not None]
        topics = sorted({topic for w in waits for topic in w.topics})
        missing = [run.box.missing(w.ids) for w in waits if w.ids and run.box]
        delay = max(0.0, min(dues) - self._loop.time()) if dues else None
        row: WaitRow = (
            run.wf,
            delay,
            run.attempt,
            _reason(bool(dues), topics, bool(missing)),
            run.box.seen if run.box else 0,
            SEPARATOR.join(topics) if topics else None,
            min(missing) if missing else None,
        )
        self._suspend(run, row)


def incomplete(asked: MailWanted, messages: Sequence[Message]) -> set[int]:
    """The workflows of which there may be more than was answered: too many on one topic, or all of it too much."""
    counts = Counter((message.wf, message.topic) for message in messages)
    cut = {wf for (wf, _), count in counts.items() if count >= post.MAIL}
    if messages and sum(message.size for message in messages) >= post.MAIL_BYTES:
        last = messages[-1].wf, messages[-1].topic
        place = next((n for n, row in enumerate(asked.topics) if row[:2] == last), len(asked.topics))
        cut |= {row[0] for row in asked.topics[place:]} | {wf for wf, _ in asked.ends}
    return cut


def _reason(timed: bool, topics: list[str], children: bool) -> str:
    """For whoever looks at suspended workflows."""
    reasons = [f"message on {topics[0]!r}" + (" and others" if len(topics) > 1 else "")] if topics else []
    reasons += ["children"] if children else []
    reasons += ["time"] if timed else []
    return ", ".join(reasons)
