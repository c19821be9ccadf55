"""What a fork takes over of a workflow's record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol, TypeVar

from ..errors import InvalidInput
from .branches import CALL_BITS
from .childids import Children


class Entry(Protocol):
    """A checkpoint: its number, its name, and when it was written."""

    @property
    def seq(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def at(self) -> float: ...


E = TypeVar("E", bound=Entry)


def kept(record: Sequence[E], from_step: int) -> list[E]:
    """The checkpoints before the step `from_step`: the last new beginning; those of the workflow's own task with
    lower numbers; and those of its other tasks that were there when the last of these was.

    Where `from_step` is a step of another task, what was there before it is kept. Raises InvalidInput where it is
    not in the record.
    """
    if isinstance(from_step, bool) or not isinstance(from_step, int) or from_step < 0:
        raise InvalidInput(f"from_step must be the number of a step, as steps() tells it, not {from_step!r}")
    begun = [entry for entry in record if entry.seq < 0]
    past = [entry for entry in record if entry.seq >= 0]
    if from_step >> CALL_BITS:
        cut = next((entry for entry in past if entry.seq == from_step), None)
        if cut is None:
            raise InvalidInput(f"from_step {from_step} is not the number of a step that is recorded")
        return begun + [e for e in past if e.at < cut.at and not (_same(e, cut) and e.seq > cut.seq)]
    own = [entry for entry in past if entry.seq < from_step]
    last = max((entry.at for entry in own), default=0.0)
    others = [entry for entry in past if entry.seq >> CALL_BITS and entry.at <= last]
    return begun + own + others


def _same(one: Entry, other: Entry) -> bool:
    return one.seq >> CALL_BITS == other.seq >> CALL_BITS


def borrowed(output: bytes) -> tuple[bytes, Sequence[str]]:
    """The output of a checkpoint that started children, for a workflow that has not started them itself: it hears of
    their ends but does not cancel them. And their ids."""
    record = json.loads(output)
    return json.dumps(record | {"borrowed": True}).encode(), Children.from_json(output).ids
