"""What a submission may ask for beside its arguments, checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any, Self

from ..errors import InvalidInput
from .lanes import check_part
from .routing import check_id, check_name, routing_key

#: Bytes of a submission's attributes as JSON at the most: they are for searching, not for storing.
MAX_ATTRIBUTES = 16_384
#: Workflows that one may be submitted to run after.
MAX_AFTER = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a submission.

    `id`: the idempotency key (None: one is made). `queue`: None for the workflow's own. `priority`: -32768 to 32767,
    the least first. `delay`: seconds or timedelta until it may begin. `after`: ids of workflows to run after (handles
    are taken too). `on_failure`: "fail" or "run", when one of those did not succeed. `dedup_key`: of workflows with
    the same one only one is active at a time; another submission gives its handle, or with `on_duplicate="reject"`
    raises WorkflowConflict. `key_concurrency`: (key, n): of workflows with the same key at most n are active at a
    time, the suspended ones among them; the others wait. An id that is given with one of these keys has it as its
    routing key, as `{key}/order-1` has.
    `attributes`: to search by, JSON. `timeout`: seconds or timedelta from the submission until it is ended as failed.
    `version`: of the code, for a workflow that is submitted by name. Raises InvalidInput.
    """

    id: str | None = None
    queue: str | None = None
    priority: int = 0
    delay: float | timedelta | None = None
    after: Sequence[Any] = ()
    on_failure: str = "fail"
    dedup_key: str | None = None
    on_duplicate: str = "return"
    key_concurrency: tuple[str, int] | None = None
    attributes: Mapping[str, Any] | None = None
    timeout: float | timedelta | None = None
    version: str | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        if self.id is not None:
            check_id(self.id)
        if self.queue is not None:
            check_part("queue", self.queue)
        if (
            isinstance(self.priority, bool)
            or not isinstance(self.priority, int)
            or not -32768 <= self.priority <= 32767
        ):
            raise InvalidInput(
                f"priority must be an integer from -32768 to 32767, the least first, not {self.priority!r}"
            )
        if self.delay is not None:
            set_(self, "delay", seconds_of("delay", self.delay))
        if self.timeout is not None:
            set_(self, "timeout", seconds_of("timeout", self.timeout))
        if self.after:
            set_(self, "after", _ids(self.after))
            if self.delay is not None:
                raise InvalidInput("delay and after exclude each other: sleep in the workflow instead")
        if self.on_failure not in ("fail", "run"):
            raise InvalidInput(f'on_failure must be "fail" or "run", not {self.on_failure!r}')
        if self.dedup_key is not None:
            check_name("dedup_key", self.dedup_key)
        if self.on_duplicate not in ("return", "reject"):
            raise InvalidInput(f'on_duplicate must be "return" or "reject", not {self.on_duplicate!r}')
        if self.version is not None:
            check_part("version", self.version)
        if self.key_concurrency is not None:
            _check_key_concurrency(self.key_concurrency)
            if self.delay is not None or self.after:
                raise InvalidInput("key_concurrency does not go with delay or after: sleep in the workflow instead")
        if self.routing is not None:
            _check_routing(self)
        if self.attributes is not None:
            _check_attributes(self.attributes)

    def changed(self, **changes: Any) -> Self:
        """The same with other values. Raises InvalidInput for an option that there is none of."""
        if unknown := changes.keys() - _NAMES:
            raise InvalidInput(f"there is no option {min(unknown)!r}; the options are {', '.join(sorted(_NAMES))}")
        return type(self)(**changes) if self is NONE else replace(self, **changes)  # the first costs a third

    @property
    def routing(self) -> str | None:
        """What the id's routing key has to be, where an option asks for it."""
        return self.dedup_key if self.key_concurrency is None else self.key_concurrency[0]

    @property
    def plain(self) -> bool:
        """Whether nothing but id, queue and priority is asked for."""
        return (
            self.delay is None
            and not self.after
            and self.dedup_key is None
            and self.key_concurrency is None
            and self.attributes is None
            and self.timeout is None
            and self.version is None
        )


NONE = Options()
_NAMES = frozenset(field.name for field in fields(Options))


def seconds_of(what: str, value: object) -> float:
    """Seconds, from a number or a timedelta. Raises InvalidInput for anything else, and for less than 0."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, (int, float))
        or not math.isfinite(seconds)
        or seconds < 0
    ):
        raise InvalidInput(f"{what} must be seconds, 0 or more, or a timedelta, not {value!r}")
    if seconds > MAX_SECONDS:
        raise InvalidInput(f"{what} must be at most {MAX_SECONDS:,} seconds (a thousand years), not {value!r}")
    return float(seconds)


#: Longer than anybody waits, and still a time that Postgres can add to the present.
MAX_SECONDS = 1000 * 365 * 86400


def _ids(after: object) -> tuple[str, ...]:
    if isinstance(after, str) or hasattr(after, "id"):
        after = (after,)
    if not isinstance(after, Sequence):
        raise InvalidInput(f"after must be handles or ids, not {type(after).__name__}")
    if len(after) > MAX_AFTER:
        raise InvalidInput(f"after may have {MAX_AFTER:,} workflows, not {len(after):,}: put one in between")
    return tuple(dict.fromkeys(check_id(getattr(each, "id", each)) for each in after))


def _check_routing(options: Options) -> None:
    key = options.routing
    assert key is not None
    if options.dedup_key not in (None, key):
        raise InvalidInput(
            f"dedup_key {options.dedup_key!r} and the key of key_concurrency, {key!r}, must be the same: all that"
            " share a key lie on one shard"
        )
    if "}" in key:
        raise InvalidInput(f"the key {key!r} contains a closing brace, which a routing key cannot have")
    if options.id is not None and routing_key(options.id) != key:
        raise InvalidInput(
            f"the id {options.id!r} has the routing key {routing_key(options.id)!r}, but the key is {key!r}: all that"
            f" share a key lie on one shard, so give it an id such as {f'{{{key}}}/{options.id}'!r}, or none"
        )


def _check_key_concurrency(value: object) -> None:
    if not isinstance(value, tuple) or len(value) != 2 or isinstance(value[1], bool) or not isinstance(value[1], int):
        raise InvalidInput(f'key_concurrency must be a key and a number, such as ("tenant-7", 2), not {value!r}')
    check_name("key", value[0])
    if value[1] < 1:
        raise InvalidInput(f"key_concurrency must allow at least 1, not {value[1]}")


def _check_attributes(value: object) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidInput("attributes must be a mapping from text to JSON values")
    try:
        size = len(json.dumps(dict(value), allow_nan=False, ensure_ascii=False).encode())
    except (TypeError, ValueError) as error:  # which a lone surrogate is too
        raise InvalidInput(f"attributes must be JSON values: {error}") from error
    try:
        json.dumps(dict(value), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"attributes must be text that Postgres can store: {error}") from error
    if "\\u0000" in json.dumps(dict(value)):
        raise InvalidInput("attributes must not contain a NUL character, which Postgres cannot store")
    if size > MAX_ATTRIBUTES:
        raise InvalidInput(f"attributes may have {MAX_ATTRIBUTES:,} bytes as JSON, not {size:,}")
