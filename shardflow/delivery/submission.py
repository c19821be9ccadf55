"""Makes submissions out of calls: named, routed, encoded, checked."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from ..core.codec import CallCodec
from ..core.codecs import Codecs
from ..core.options import Options
from ..core.routing import check_name, new_id, slot_of
from ..definitions import Call, Workflow
from ..errors import InvalidInput
from ..model import DEFAULT_QUEUE, PayloadConfig
from ..storage.submissions import More
from .sender import Item


class _Untyped:
    """Stands for the function of a workflow that is known by name only."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


_UNTYPED = CallCodec(_Untyped())


def untyped(codecs: Codecs) -> CallCodec:
    """For workflows that are known by name only."""
    return CallCodec(_Untyped(), codecs=codecs)


def make_item(
    call: Call[Any],
    slots: int,
    draw: Callable[[], str] | None,
    *,
    parent: str | None = None,
    by_name: CallCodec = _UNTYPED,
    limits: PayloadConfig | None = None,
) -> Item:
    """The submission of a call.

    Arguments: `slots` of the cluster; `draw` gives an id where the call has none; `parent`, whose child it is;
    `by_name` encodes the arguments of workflows that are known by name only; `limits`, of payloads.
    Raises InvalidInput, or SerializationError for arguments that have no stored form.
    """
    options = call.options
    name, queue, codec, defaults = _described(call.workflow, by_name)
    given = options.id is not None
    if options.id is not None:
        id = options.id
    elif options.routing is not None:
        id, given = tagged_id(options.routing), True
    elif draw is not None:
        id = draw()
    else:
        raise InvalidInput("a call needs an id here")
    payload = codec.encode_call(call.args, call.kwargs, limits=limits)
    queue = queue if options.queue is None else options.queue
    priority = options.priority or (call.workflow.priority if isinstance(call.workflow, Workflow) else 0)
    made = Item(id, name, queue, slot_of(id, slots), payload, None if given else draw, priority, codecs=codec.codecs)
    if parent is not None or defaults or not options.plain:
        made.more = _more(options, defaults, parent)
    return made


def pack(item: Item) -> bytes:
    """A submission for an outbox: JSON, a NUL, the input as it is."""
    more = None if item.more is None else asdict(item.more)
    head = [item.id, item.name, item.queue, item.slot, item.priority, more]
    return json.dumps(head).encode() + b"\0" + item.input


def unpack(packed: bytes) -> Item:
    """The inverse of `pack`."""
    head, _, input = packed.partition(b"\0")
    id, name, queue, slot, priority, given = json.loads(head)
    more = None if given is None else More(**(given | {"after": tuple(given["after"])}))
    return Item(id, name, queue, slot, input, priority=priority, more=more)


def tagged_id(key: str) -> str:
    """A new id that belongs to the shard of this key."""
    return f"{{{key}}}/{new_id(time.time_ns() // 1_000_000, secrets.randbits(74))}"


def _described(workflow: object, by_name: CallCodec) -> tuple[str, str, CallCodec, Mapping[str, Any]]:
    """Name, queue, codec, and options that come with the definition."""
    if isinstance(workflow, Workflow):
        defaults: dict[str, Any] = {}
        if workflow.version is not None:
            defaults["version"] = workflow.version
        if workflow.timeout is not None:
            defaults["timeout"] = workflow.timeout
        return workflow.name, workflow.queue, workflow.codec, defaults
    if isinstance(workflow, str):
        return check_name("workflow", workflow), DEFAULT_QUEUE, by_name, {}
    raise InvalidInput(
        f"submit takes a workflow (a function with @app.workflow) or its name, not {type(workflow).__name__}"
    )


def _more(options: Options, defaults: Mapping[str, Any], parent: str | None) -> More:
    record = dict(defaults)
    if options.version is not None:
        record["version"] = options.version
    if options.timeout is not None:
        record["timeout"] = options.timeout
    if options.after:
        record["on_failure"] = options.on_failure
    if parent is not None:
        record["parent"] = parent
    key, most = options.key_concurrency or (None, None)
    if key is not None:
        record |= {"key": key, "most": most}
    if options.dedup_key is not None:
        record["dedup"] = options.dedup_key
    return More(
        json.dumps(record) if record else None,
        None if options.attributes is None else json.dumps(dict(options.attributes)),
        options.delay if options.delay else None,  # type: ignore[arg-type]  # a number since it was checked
        tuple(options.after),
        parent,
        options.dedup_key,
        options.on_duplicate == "reject",
        key,
        most,
    )
