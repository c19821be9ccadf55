"""What a question about many workflows asks for: checked once, and the same on every page of its answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from ..errors import InvalidInput
from ..model import Status
from .routing import check_name
from .suggest import did_you_mean

#: Bytes of the attributes that are asked for, as JSON: they travel in every cursor.
MAX_ATTRIBUTES = 2_048

#: Nothing was submitted before, and nothing is after.
_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


class Order(StrEnum):
    """In which order workflows are listed: by the time of their submission."""

    NEWEST = "newest"
    OLDEST = "oldest"


@dataclass(frozen=True, slots=True)
class Filters:
    """Which workflows are meant; None and an empty tuple mean all of them.

    `statuses` are sorted; submitted at `since` or later, and before `until`; `attributes`, as JSON in one form only,
    is contained in the workflow's own.
    """

    statuses: tuple[Status, ...] = ()
    name: str | None = None
    queue: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    attributes: str | None = None

    @property
    def of_submission(self) -> bool:
        """Whether more than the status is asked for."""
        return any(v is not None for v in (self.name, self.queue, self.since, self.until, self.attributes))


def filters(
    status: Status | str | Iterable[Status | str] | None,
    name: str | None,
    queue: str | None,
    since: datetime | None,
    until: datetime | None,
    attributes: Mapping[str, Any] | None,
) -> Filters:
    """The filters of a call's arguments. Raises InvalidInput, which names the argument."""
    return Filters(
        _statuses(status),
        None if name is None else check_name("workflow name", name),
        None if queue is None else check_name("queue", queue),
        _moment("since", since),
        _moment("until", until),
        _attributes(attributes),
    )


def order_of(value: object) -> Order:
    """The order of that name. Raises InvalidInput."""
    return Order(_known("order", value, [o.value for o in Order]))


def check_limit(value: object, most: int) -> int:
    """Return `value` where it is a number of workflows from 1 to `most`. Raises InvalidInput."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InvalidInput(f"limit must be a number from 1 to {most}, not {value!r}: ask for more with the cursor")
    return value


def _known(what: str, value: object, known: list[str]) -> str:
    if not isinstance(value, str) or value not in known:
        hint = did_you_mean(value, known) if isinstance(value, str) else ""
        raise InvalidInput(f"{what} must be one of {', '.join(known)}, not {value!r}{hint}")
    return value


def _statuses(given: Status | str | Iterable[Status | str] | None) -> tuple[Status, ...]:
    if given is None:
        return ()
    several = [given] if isinstance(given, str) else list(given)
    if not several:
        raise InvalidInput("status must name one status at least: leave it out to mean all of them")
    known = [s.value for s in Status]
    return tuple(sorted({Status(_known("status", each, known)) for each in several}))


def _moment(what: str, value: datetime | None) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InvalidInput(
            f"{what} must be a datetime with a time zone, such as datetime.now(timezone.utc), not {value!r}"
        )
    if not _FIRST.year < value.year < _LAST.year:  # as good as for ever
        return _FIRST if value.year <= _FIRST.year else _LAST
    return value.astimezone(UTC)


def _attributes(given: Mapping[str, Any] | None) -> str | None:
    if given is None:
        return None
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise InvalidInput(f"attributes must be a mapping with text as its keys, not {given!r}")
    try:
        text = json.dumps(dict(given), allow_nan=False, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"attributes are not JSON: {error}") from None
    if "\\u0000" in text:
        raise InvalidInput("attributes contain a NUL character, which Postgres cannot store")
    if size > MAX_ATTRIBUTES:
        raise InvalidInput(f"attributes are {size} bytes of JSON, more than {MAX_ATTRIBUTES}")
    return text if given else None
