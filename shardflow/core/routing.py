"""Ids, names, and the way from a workflow id to its slot.

An id alone says where its workflow is: `slot_of` is a function of the id and the number of slots and of
nothing else, and can never change, because it decides where the stored workflows are looked for.
"""

from __future__ import annotations

from collections.abc import Callable

import mmh3

from shardflow.errors import InvalidInput, InvalidWorkflowId, ShardUnavailable

MAX_ID_BYTES = 512
MAX_NAME_BYTES = 256

_hash = mmh3.hash


def routing_key(workflow_id: str) -> str:
    """The part of an id that chooses its slot.

    The text between the first `{` and the next `}` where that is not empty, else the whole id: ids with the
    same routing key share a slot, and so a shard. Source: the hash-tag rule of the Redis Cluster
    specification, "Hash tags".
    """
    start = workflow_id.find("{")
    if start < 0:
        return workflow_id
    end = workflow_id.find("}", start + 1)
    return workflow_id[start + 1 : end] if end > start + 1 else workflow_id


def slot_of(workflow_id: str, slots: int) -> int:
    """The slot of an id, 0 to `slots` - 1.

    MurmurHash3 x86 32-bit (Appleby, SMHasher), seed 0, of the routing key in UTF-8, taken as unsigned, modulo
    `slots`. `workflow_id` has passed `check_id`; `slots` is at least 1.
    """
    if "{" in workflow_id:
        workflow_id = routing_key(workflow_id)
    return _hash(workflow_id, 0, False) % slots


def check_id(workflow_id: object) -> str:
    """Return `workflow_id` where it is 1 to 512 bytes of Unicode text without NUL.

    Raises `InvalidWorkflowId`, which says what is wrong and what to do.
    """
    if not isinstance(workflow_id, str):
        raise InvalidWorkflowId(
            f"a workflow id must be a str, not {type(workflow_id).__name__}: pass str(...) of it, or no id"
        )
    if not workflow_id:
        raise InvalidWorkflowId("a workflow id must not be empty: pass None to have one made")
    problem = _text_problem(workflow_id, MAX_ID_BYTES)
    if problem:
        raise InvalidWorkflowId(f"the workflow id {_shown(workflow_id)} {problem}")
    return workflow_id


def check_name(kind: str, value: object, limit: int = MAX_NAME_BYTES) -> str:
    """Return `value` where it is a name: 1 to `limit` bytes of Unicode text without NUL.

    `kind` is what is named, for the message: "workflow name", "queue", "step name". Raises `InvalidInput`.
    """
    if not isinstance(value, str):
        raise InvalidInput(f"a {kind} must be a str, not {type(value).__name__}")
    if not value:
        raise InvalidInput(f"a {kind} must not be empty")
    problem = _text_problem(value, limit)
    if problem:
        raise InvalidInput(f"the {kind} {_shown(value)} {problem}")
    return value


def new_id(unix_ms: int, random_bits: int) -> str:
    """A version 7 UUID as text: it sorts by time.

    `unix_ms` is milliseconds since 1970, 48 bits; `random_bits` an integer of 74 random bits. Raises
    `InvalidInput` where either does not fit. Source: RFC 9562, section 5.7.
    """
    if not 0 <= unix_ms < 1 << 48:
        raise InvalidInput(f"unix_ms must fit 48 bits, not {unix_ms}: pass milliseconds since 1970")
    if not 0 <= random_bits < 1 << 74:
        raise InvalidInput("random_bits must be an integer of 74 bits")
    number = unix_ms << 80 | 0x7 << 76 | random_bits >> 62 << 64 | 0b10 << 62 | random_bits & 0x3FFF_FFFF_FFFF_FFFF
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def draw_id(
    unix_ms: int,
    randbits: Callable[[int], int],
    accept: Callable[[str], bool],
    attempts: int = 10_000,
) -> str:
    """Draw ids until one is accepted; a client accepts those whose shard answers.

    `randbits(n)` gives n random bits. Raises `ShardUnavailable` after `attempts` refused ids.
    """
    for _ in range(attempts):
        drawn = new_id(unix_ms, randbits(74))
        if accept(drawn):
            return drawn
    raise ShardUnavailable(
        f"none of {attempts} generated workflow ids belongs to a shard that answers: "
        "see `shardflow cluster status`, and submit again when a shard is back"
    )


def _text_problem(text: str, limit: int) -> str:
    if "\0" in text:
        return "contains a NUL character, which Postgres cannot store: remove it"
    if len(text) <= limit and text.isascii():
        return ""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        return (
            f"contains the lone surrogate U+{ord(text[error.start]):04X} at position {error.start}, "
            "which is no character: decode the bytes it came from with the right encoding"
        )
    if size > limit:
        return f"is {size} bytes of UTF-8, more than {limit}: shorten it, or use a hash of it"
    return ""


def _shown(text: str) -> str:
    return ascii(text) if len(text) <= 60 else ascii(text[:57]) + "..."
