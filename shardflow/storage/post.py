"""What a turn brings and reads for others: entries of the outbox, messages; and how much of it at a time.

Pages end after so many bytes, but never before the first row, so that any row is read in the end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .arrays import Int8s, Texts

#: Entries of the outbox that are read or taken over in one turn at the most; bytes after which there is no further
#: one.
PAGE = 1_000
PAGE_BYTES = 8 << 20
#: Messages on one topic of one workflow that are read in one turn at the most; bytes of all messages after which
#: there is no further one.
MAIL = 1_000
MAIL_BYTES = 8 << 20


class Told(NamedTuple):
    """A row of the outbox: what follows elsewhere from a commit; `error` is JSON text."""

    entry: int
    target: str
    topic: str
    key: str | None
    value: bytes | None
    error: str | None

    @property
    def size(self) -> int:
        """As the statement `outbox` counts it."""
        return _size(self.value, self.error)


class Message(NamedTuple):
    """What has arrived for a workflow, in the order of `seq`; `error` is JSON text. In a turn's answer the first one
    of each workflow that was asked for says only, by its number, which was the last of all."""

    wf: int
    seq: int
    topic: str
    key: str | None
    value: bytes | None
    error: str | None

    @property
    def size(self) -> int:
        """As the statement `mail` counts it."""
        return _size(self.value, self.error)


class MailWanted(NamedTuple):
    """Messages to ask for: of which workflows; on which topics, with the last one that was read; ends of these
    children, by parent and id."""

    wfs: list[int]
    topics: list[tuple[int, str, int]]
    ends: list[tuple[int, str]]


def mail_parameters(wanted: MailWanted) -> tuple[Any, ...]:
    """What the statement `mail` takes."""
    wfs, topics, reads = zip(*wanted.topics, strict=True) if wanted.topics else ((), (), ())
    parents, children = zip(*wanted.ends, strict=True) if wanted.ends else ((), ())
    return (
        *(Int8s(wanted.wfs), Int8s(wfs), Texts(topics), Int8s(reads), MAIL),
        *(Int8s(parents), Texts(children), MAIL_BYTES),
    )


def _size(value: bytes | None, error: str | None) -> int:
    return len(value or b"") + len((error or "").encode())
