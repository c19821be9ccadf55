"""Schedules: what one is, which of its ticks are due, and the id of a tick's workflow.

The id is derived from schedule and tick, so whoever submits a tick, and however often, it runs once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from shardflow.core import cron
from shardflow.core.codec import CallCodec
from shardflow.core.codecs import Codecs
from shardflow.core.cron import Timing
from shardflow.core.options import NONE, Options, seconds_of
from shardflow.core.routing import check_name
from shardflow.core.suggest import did_you_mean
from shardflow.errors import InvalidInput, UsageError
from shardflow.model import PayloadConfig

#: A tick that is noticed later than this was missed; until then it is only late, as after the crash of a worker.
GRACE = timedelta(seconds=60)
#: Ticks of one schedule that are decided at once; the rest of many comes with the next look.
MOST = 1_000

#: Bytes of a schedule's name at the most.
MAX_NAME = 200

MISSED = ("skip", "latest", "all")
OVERLAP = ("allow", "skip")


@dataclass(frozen=True, slots=True)
class Definition:
    """A schedule as it is stored.

    `spec`: a cron expression or an interval, see `core.cron`. `input`: the workflow's encoded arguments; `pass_time`,
    whether the tick's time goes before them. `options`: those of the submissions that are not the usual ones, as
    JSON.
    """

    name: str
    spec: str
    zone: str
    workflow: str
    queue: str
    input: bytes
    pass_time: bool
    options: str
    missed: str
    overlap: str

    @property
    def timing(self) -> Timing:
        """Its rule. Raises InvalidInput, as where this machine lacks the time zone."""
        return cron.parse(self.spec, self.zone)


@dataclass(frozen=True, slots=True)
class Due:
    """Ticks that are to be submitted, in order; the time until which nothing is left to decide; and when to look
    again, None where no tick comes any more."""

    ticks: tuple[datetime, ...]
    decided_to: datetime
    next_at: datetime | None


def define(
    name: str,
    when: str | timedelta | float,
    zone: str,
    workflow: str,
    queue: str,
    call: CallCodec,
    args: Sequence[Any],
    options: Options,
    missed: str,
    overlap: str,
    pass_time: bool | None = None,
    limits: PayloadConfig | None = None,
) -> Definition:
    """A schedule, checked.

    Arguments: `when`, a cron expression, an interval as text, timedelta or seconds; `call`, the codec of the
    workflow, which gets `args`, and before them the tick's time where it cannot be called without. Raises
    InvalidInput, UsageError.
    """
    if isinstance(args, str | bytes) or not isinstance(args, Sequence):
        raise InvalidInput(f"args must be a tuple of the workflow's arguments, not {args!r}")
    if pass_time is None:
        pass_time = _takes_time(call, tuple(args))
    made = Definition(
        check_name("schedule", name, MAX_NAME),
        _spec(when),
        zone,
        workflow,
        queue if options.queue is None else options.queue,
        call.encode_call(tuple(args), check=False, limits=limits),
        pass_time,
        _stored(options),
        _one_of("missed", missed, MISSED),
        _one_of("overlap", overlap, OVERLAP),
    )
    cron.parse(made.spec, zone)
    return made


def _takes_time(call: CallCodec, args: tuple[Any, ...]) -> bool:
    try:
        call.check_call(args, {})
        return False
    except UsageError as error:
        try:
            call.check_call((None, *args), {})
            return True
        except UsageError:
            raise UsageError(
                f"{error}, nor with the tick's time before them: give it its other arguments as args"
            ) from None


def _spec(when: object) -> str:
    if isinstance(when, int | float) and not isinstance(when, bool):
        when = timedelta(seconds=seconds_of("an interval", when))
    if isinstance(when, timedelta):
        return cron.text_of(when)
    if not isinstance(when, str):
        raise InvalidInput(f"a schedule is a cron expression, a timedelta or seconds, not {type(when).__name__}")
    return " ".join(when.split())


def _one_of(what: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        hint = did_you_mean(str(value), known)
        raise InvalidInput(f"{what} must be one of {', '.join(map(repr, known))}, not {value!r}{hint}")
    return value


def _stored(options: Options) -> str:
    """The options that each submission gets, as JSON that is the same for equal ones."""
    if options.id is not None or options.after or options.routing is not None:
        raise InvalidInput(
            "a schedule's submissions have ids of their own, run after nothing and share no key: leave out id, after,"
            ' dedup_key and key_concurrency; overlap="skip" keeps them from overlapping'
        )
    said = {f.name: value for f in fields(options) if (value := getattr(options, f.name)) != getattr(NONE, f.name)}
    said.pop("queue", None)
    return json.dumps(said, sort_keys=True, default=dict)


def options_of(definition: Definition, id: str) -> Options:
    """The options of a submission that is to have this id."""
    said = json.loads(definition.options)
    return Options(id=id, queue=definition.queue, **said)


def input_of(definition: Definition, tick: datetime, codecs: Codecs, limits: PayloadConfig | None = None) -> bytes:
    """The encoded arguments of a tick's workflow; a time is told on the clock of the schedule's zone.

    Arguments: `codecs`, the workflow's. Raises SerializationError.
    """
    if not definition.pass_time:
        return definition.input
    what = f"arguments of schedule {definition.name}"
    args, kwargs = codecs.parse(definition.input, what, limits)
    called = [[tick.astimezone(cron.zone_of(definition.zone)), *args], kwargs]
    return codecs.encode(called, what=what, limits=limits)


def tick_id(name: str, tick: datetime) -> str:
    """The id of a tick's workflow."""
    return f"schedule:{name}:{tick.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def due(timing: Timing, decided_to: datetime, now: datetime, missed: str, most: int = MOST) -> Due:
    """What is to be done at `now` where all ticks until `decided_to` have been decided.

    Ticks of the last minute are submitted whatever the policy. Of those before, `missed` submits none, the latest
    (unless one of the last minute stands for it), or all.
    """
    late = now - GRACE
    spare: datetime | None = None
    start = decided_to
    if start < late and missed != "all":
        start = late
        if missed == "latest":
            spare = _last(timing, decided_to, late)
    ticks: list[datetime] = []
    following = timing.after(start)
    while following is not None and following <= now and len(ticks) < most:
        ticks.append(following)
        following = timing.after(following)
    if not ticks and spare is not None:
        ticks = [spare]
    full = following is not None and following <= now
    return Due(tuple(ticks), ticks[-1] if full else max(decided_to, now), following)


def without_overlap(found: Due, busy: bool) -> Due:
    """What is left of it where ticks must not overlap: the newest; nothing while an earlier one is not submitted."""
    return replace(found, ticks=() if busy else found.ticks[-1:])


def between(timing: Timing, start: datetime, end: datetime, most: int) -> list[datetime]:
    """The ticks from `start` until before `end`, which have time zones. Raises InvalidInput for more than `most`."""
    for what, moment in (("start", start), ("end", end)):
        if not isinstance(moment, datetime) or moment.tzinfo is None:
            raise InvalidInput(f"{what} must be a datetime with a time zone, not {moment!r}")
    found: list[datetime] = []
    tick = timing.after(start - timedelta(microseconds=1))
    while tick is not None and tick < end:
        if len(found) == most:
            raise InvalidInput(f"more than {most:,} ticks between {start} and {end}: ask for a shorter time")
        found.append(tick)
        tick = timing.after(tick)
    return found


def _last(timing: Timing, after: datetime, until: datetime) -> datetime | None:
    """The last tick in (after, until], looked for in ever larger steps back."""
    step = timedelta(minutes=1)
    while True:
        start = max(after, until - step)
        last: datetime | None = None
        tick = timing.after(start)
        while tick is not None and tick <= until:
            last, tick = tick, timing.after(tick)
        if last is not None or start == after:
            return last
        step *= 4
