"""When a schedule ticks: cron expressions on the clock of a time zone, and intervals.

A tick is an instant, so a clock that is put back makes none of them twice. What an expression means is what Debian's
cron takes it for, by the library cronsim, which sees no zones here: the way from a zone's clock to instants is ours.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from shardflow.errors import InvalidInput

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)

_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_UNITS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
_EVERY = re.compile(r"@?every\s+(.+)", re.IGNORECASE)
_PART = re.compile(r"(\d+)\s*([wdhms])[a-z]*\s*", re.IGNORECASE)
_LONGEST = timedelta(days=366 * 10)


class Timing(Protocol):
    """A rule for ticks."""

    def after(self, moment: datetime) -> datetime | None:
        """The first tick later than `moment`, in UTC; None where there is none within fifty years."""


class Every:
    """Ticks at all multiples of an interval since 1970-01-01 00:00 UTC, so that everybody counts the same ones.

    Arguments: `interval`, whole seconds.
    """

    def __init__(self, interval: timedelta) -> None:
        if not _SECOND <= interval <= _LONGEST or interval % _SECOND:
            raise InvalidInput(f"an interval must be whole seconds from 1 s to ten years, not {interval}")
        self.interval = interval

    def after(self, moment: datetime) -> datetime | None:
        return _EPOCH + ((moment - _EPOCH) // self.interval + 1) * self.interval


class Cron:
    """Ticks where a zone's clock shows what a cron expression says.

    Arguments: `text`, five fields, or six with seconds in front; `zone`. Where minute and hour are both named
    (neither begins with a star), a tick that the clock leaves out comes when it goes on, and one that it shows twice
    comes the first time only; other expressions follow the clock as it goes. Source: cron(8) of Debian.
    """

    def __init__(self, text: str, zone: ZoneInfo) -> None:
        try:
            fields = CronSim(text, datetime(2000, 1, 1)).parts
        except CronSimError as error:
            raise InvalidInput(f"the schedule {text!r} is not a cron expression: {str(error).lower()}") from None
        self._text = text
        self._zone = zone
        self._named = not (fields[1].startswith("*") or fields[2].startswith("*"))

    def after(self, moment: datetime) -> datetime | None:
        try:
            return self._named_after(moment) if self._named else self._shown_after(moment)
        except (StopIteration, OverflowError):
            return None

    def _named_after(self, moment: datetime) -> datetime:
        """Each time of the clock has one instant, and these go up with it."""
        times = CronSim(self._text, _clock(moment, self._zone))
        while True:
            if (tick := self._instant(next(times))) > moment:
                return tick

    def _shown_after(self, moment: datetime) -> datetime:
        """From one change of the clock to the next, instants and times differ by the same offset."""
        since, clock = moment, _clock(moment, self._zone)
        while True:
            offset = _offset(since, self._zone)
            tick = (next(CronSim(self._text, clock)) - offset).replace(tzinfo=UTC)
            change = _change(since, tick, self._zone)
            if change is None:
                return tick
            since, clock = change, _clock(change, self._zone) - _SECOND

    def _instant(self, clock: datetime) -> datetime:
        """The first instant at which the clock shows this time, or has passed it."""
        local = clock.replace(tzinfo=self._zone)
        tick = local.astimezone(UTC)
        if _clock(tick, self._zone) == clock:
            return tick
        change = _change(local.replace(fold=1).astimezone(UTC), tick, self._zone)
        return tick if change is None else change


def parse(text: str, zone: str) -> Timing:
    """The rule that a schedule's text says: a cron expression, one of its names such as "@daily", or "every 1h 30m".

    Arguments: `zone`, the name of a time zone of the IANA's database. Raises InvalidInput.
    """
    if not isinstance(text, str):
        raise InvalidInput(f"a schedule must be text such as '*/5 * * * *' or 'every 90s', not {type(text).__name__}")
    known = zone_of(zone)
    if match := _EVERY.fullmatch(text.strip()):
        return Every(_interval(match[1], text))
    if text.strip().startswith("@") and text.strip().lower() not in _ALIASES:
        raise InvalidInput(f"the schedule {text!r} is unknown: one of {', '.join(_ALIASES)}, or '@every 90s'")
    timing = Cron(_ALIASES.get(text.strip().lower(), text), known)
    if timing.after(datetime(2000, 1, 1, tzinfo=UTC)) is None:
        raise InvalidInput(f"the schedule {text!r} names days that never come")
    return timing


def text_of(interval: timedelta) -> str:
    """An interval as a schedule's text. Raises InvalidInput."""
    Every(interval)
    return f"every {interval // _SECOND}s"


def zone_of(name: str) -> ZoneInfo:
    """The time zone of this name. Raises InvalidInput."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError):
        raise InvalidInput(
            f"there is no time zone named {name!r}: a name of the IANA's database such as 'Europe/Vienna', or 'UTC'"
        ) from None


def _interval(text: str, whole: str) -> timedelta:
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text).strip():
        raise InvalidInput(
            f"the schedule {whole!r} is not understood: write an interval as in 'every 1h 30m' or 'every 90s'"
        )
    try:
        return timedelta(seconds=sum(int(number) * _UNITS[unit.lower()] for number, unit in parts))
    except OverflowError:
        raise InvalidInput(f"the schedule {whole!r} has too long an interval") from None


def _clock(moment: datetime, zone: ZoneInfo) -> datetime:
    """What the zone's clock shows, to the second."""
    return moment.astimezone(zone).replace(tzinfo=None, fold=0, microsecond=0)


def _offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def _change(low: datetime, high: datetime, zone: ZoneInfo) -> datetime | None:
    """The first instant in (low, high] at which the zone's offset is not that of `low`; None where there is none.

    Looked for by days, as no zone changes its clock to and fro within one.
    """
    offset = _offset(low, zone)
    while low < high:
        after = min(low + _DAY, high)
        if _offset(after, zone) != offset:
            low, high = low.replace(microsecond=0), after
            while high - low > _SECOND:
                middle = low + (high - low) // 2 // _SECOND * _SECOND
                low, high = (middle, high) if _offset(middle, zone) == offset else (low, middle)
            return high
        low = after
    return None
