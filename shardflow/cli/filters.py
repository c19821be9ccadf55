"""The options that say which workflows are meant, the same for every command that takes many."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from ..model import Status

F = TypeVar("F", bound=Callable[..., Any])

_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhdw])\Z")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """A time: so long ago, such as 15m, or a date and time in ISO 8601, which is local where it names no zone."""
    try:
        if value is None:
            return None
        if match := _AGO.match(value):
            return datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: float(match[1])})
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{value!r} is neither an age, such as 90s, 15m, 2h or 7d, nor a time, such as 2026-01-31T12:00"
        ) from None


def age(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """So long, such as 15m, in seconds."""
    if value is None:
        return None
    try:
        if match := _AGO.match(value):
            return timedelta(**{_UNITS[match[2]]: float(match[1])}).total_seconds()
    except OverflowError:
        pass
    raise click.BadParameter(f"{value!r} is no age, such as 90s, 15m, 2h or 7d")


def filter_options(function: F) -> F:
    """Adds the options. The command takes their values as **asked; `asked_for` makes a client's arguments of them."""
    options = (
        click.option(
            "--status",
            "statuses",
            multiple=True,
            type=click.Choice([s.value for s in Status]),
            help="Only those in this status; can be repeated.",
        ),
        click.option("--name", metavar="NAME", help="Only this workflow."),
        click.option("--queue", metavar="NAME", help="Only those submitted to this queue."),
        click.option(
            "--since",
            metavar="WHEN",
            callback=moment,
            help="Only those submitted since then: 15m, 2h, 7d ago, or a date and time.",
        ),
        click.option("--until", metavar="WHEN", callback=moment, help="Only those submitted before then."),
        click.option(
            "--attribute",
            "attributes",
            multiple=True,
            metavar="KEY=VALUE",
            help="Only those with this attribute; the value is JSON, or else text; can be repeated.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def asked_for(
    statuses: Sequence[str],
    name: str | None,
    queue: str | None,
    since: datetime | None,
    until: datetime | None,
    attributes: Sequence[str],
) -> dict[str, Any]:
    """The client's arguments for what the options say. Raises UsageError."""
    return {
        "status": list(statuses) or None,
        "name": name,
        "queue": queue,
        "since": since,
        "until": until,
        "attributes": dict(map(_attribute, attributes)) or None,
    }


def _attribute(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE", param_hint="--attribute")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
