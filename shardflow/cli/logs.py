"""Logging of the command line, to stderr: text with `key=value` behind the message, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """`TIME LEVEL LOGGER: message key=value`; a value with spaces or control characters is quoted as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        extra = "".join(f" {key}={_word(value)}" for key, value in _extra(record).items())
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {record.getMessage()}{extra}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the extras, and `exception` with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        data = {
            **_extra(record),
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        return json.dumps(data, default=str)


def _word(value: object) -> str:
    if not isinstance(value, str):
        return json.dumps(value, default=str, separators=(",", ":"))
    return value if value and value.isprintable() and not set(value) & set(' "=') else json.dumps(value)


def configure(form: str, level: str, *, verbose: int = 0, server: bool = False) -> None:
    """Sets the root logger up.

    Arguments: `form`, one of FORMATS; `level`, one of LEVELS ('': by `verbose` and `server`); `verbose`, how many
    levels more than usual; `server`, whether info is usual.
    """
    usual = logging.INFO if server else logging.WARNING
    number = logging.getLevelName(level.upper()) if level else max(logging.DEBUG, usual - 10 * verbose)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    # What it warns of, a shard that does not answer, is said by our own errors.
    logging.getLogger("psycopg").setLevel(logging.ERROR if number > logging.DEBUG else logging.NOTSET)
