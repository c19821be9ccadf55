"""How an exception is stored, and what becomes of it on the way: JSON text with type, message, traceback."""

from __future__ import annotations

import json
import traceback

from ..errors import StepFailed
from ..model import ErrorInfo

#: Characters kept of a message and of a traceback; the end of a traceback says most.
LIMIT = 16_384


def describe(error: BaseException) -> ErrorInfo:
    """The stored form of an exception; of a StepFailed that of the step's own error, with the step named."""
    if isinstance(error, StepFailed):
        return ErrorInfo(error.type, f"step {error.step!r}: {error.message}", error.traceback)
    text = "".join(traceback.format_exception(error))
    try:
        message = str(error)
    except Exception:
        message = "(the exception could not be turned into text)"
    return ErrorInfo(type_name(type(error)), message[:LIMIT], text[-LIMIT:])


def type_name(kind: type) -> str:
    """The class's qualified name, without the module where it is a builtin."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def to_json(error: ErrorInfo) -> str:
    """ASCII JSON text, which every server encoding takes, without NUL."""
    return json.dumps({"type": error.type, "message": error.message, "traceback": error.traceback})


def from_json(text: str) -> ErrorInfo:
    """The inverse of `to_json`."""
    data = json.loads(text)
    return ErrorInfo(data["type"], data["message"], data.get("traceback", ""))
