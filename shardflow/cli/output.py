"""What commands print: data to stdout, as a table or as JSON; messages to stderr; and the exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ..core import compress
from ..core import payload as payloads
from ..core.codec import DEFAULT
from ..errors import ResultTimeout, ShardUnavailable, WorkflowFailed

OK, ERROR, USAGE, FAILED, TIMED_OUT, UNREACHABLE = range(6)

Row = Sequence[object]


def exit_code(error: BaseException) -> int:
    """The exit code that stands for an error."""
    if isinstance(error, click.UsageError):
        return USAGE
    if isinstance(error, WorkflowFailed):
        return FAILED
    if isinstance(error, ResultTimeout):
        return TIMED_OUT
    return UNREACHABLE if isinstance(error, ShardUnavailable) else ERROR


def say(message: str) -> None:
    """A message, to stderr."""
    click.echo(printable(message, keep="\n\t"), err=True)


def table(columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Rows under headings: a drawn table on a terminal, elsewhere aligned text that is never cut."""
    cells = [[_cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        Console().print(drawn(columns, cells))
        return
    lines = [[name.upper() for name in columns], *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def drawn(columns: Sequence[str], rows: Iterable[Row]) -> RichTable:
    """The same as something that rich draws."""
    made = RichTable()
    for name in columns:
        made.add_column(name, overflow="fold")
    for row in rows:
        made.add_row(*(Text(_cell(value)) for value in row))
    return made


def emit_json(data: object, *, indent: int | None = 2) -> None:
    """Data as JSON: dataclasses as objects, times in ISO 8601."""
    click.echo(json.dumps(data, indent=indent, default=_plain, ensure_ascii=False))


def printable(text: str, keep: str = "") -> str:
    """The text with what would steer a terminal written as escapes."""
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def payload(encoded: bytes | None) -> Any:
    """An input or output: what its JSON says; of what only the app's codecs can read, who wrote how much."""
    if encoded is None:
        return None
    data = DEFAULT.readable(encoded)
    if data[:1] == payloads.CODED:
        name, stored = payloads.split(data)
        return f"<{len(stored):,} bytes of the payload codec {name}>"
    if data[:1] == compress.MARK:
        return f"<{len(data):,} compressed bytes>"
    try:
        return json.loads(data)
    except ValueError:
        return data.decode("utf-8", "backslashreplace")


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case str():
            return printable(value)
        case list() | tuple():
            return ", ".join(_cell(item) for item in value)
        case _:
            return printable(str(value))


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, bytes):
        return payload(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
