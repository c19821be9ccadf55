"""Topics and checkpoint names that shardflow uses itself; a user's topic never begins with their prefix."""

from __future__ import annotations

from ..errors import InvalidInput
from .routing import check_name

PREFIX = "shardflow."

#: A child's end, for its parent; the key is the child's id.
CHILD = "shardflow.child"
#: The end of a workflow that another one is to run after.
AFTER = "shardflow.after"
#: To the shard of the target: tell the workflow named by the key when the target ends.
WATCH = "shardflow.watch"
#: To the shard of the target: cancel it.
CANCEL = "shardflow.cancel"
#: To the shard of the target: a submission that was made in a transaction elsewhere.
SUBMIT = "shardflow.submit"

#: Joins topics where SQL is given several as one text.
SEPARATOR = "\x1f"


def check_topic(value: object) -> str:
    """`value` where it can be a user's topic. Raises InvalidInput."""
    topic = check_name("topic", value)
    if topic.startswith(PREFIX) or SEPARATOR in topic:
        raise InvalidInput(f"the topic {topic!r} is not allowed: it begins with {PREFIX!r} or contains U+001F")
    return topic
