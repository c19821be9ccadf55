"""What is asked before and after a user's function in its transaction, and what the answers mean; no connection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg
from psycopg import pq

from ..errors import LeaseLost, ShardflowError, ShardUnavailable, UsageError
from .leases import Checkpoint
from .shard import Shard
from .turn import Fence

READ_COMMITTED = "read committed"
_BEGIN = {
    READ_COMMITTED: b"BEGIN ISOLATION LEVEL READ COMMITTED",
    "repeatable read": b"BEGIN ISOLATION LEVEL REPEATABLE READ",
    "serializable": b"BEGIN ISOLATION LEVEL SERIALIZABLE",
}
_CONFLICTS = ("40001", "40P01")
#: What ends a session for its own idleness or length: the function's doing, not the server's.
_OWN_FAULT = ("25P03", "25P04")
Ask = tuple[bytes, Sequence[Any]]


class Conflict(ShardflowError):
    """The transaction met another one (a deadlock, or it could not be serialised): nothing was written, try again."""

    retryable = True


class ConnectionLost(ShardUnavailable):
    """The connection of a transaction was lost while its function ran: nothing was written."""


@dataclass(frozen=True, slots=True)
class Work:
    """A try of a transactional step: under which lease, of which workflow, the how manieth; `tried`, whether failed
    tries are recorded, which are to be forgotten with the checkpoint."""

    fence: Fence
    wf: int
    seq: int
    name: str
    attempts: int
    isolation: str = READ_COMMITTED
    tried: bool = False

    @property
    def step(self) -> str:
        return f"{self.wf}:{self.seq}"


class Done(NamedTuple):
    """How a try ended: it has committed; or with the function's `failure`, and nothing was written; or with what was
    `recorded` of the step before."""

    failure: BaseException | None = None
    recorded: Checkpoint | None = None


class Talk:
    """Questions and answers, for one shard."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.sql = shard.statements("transaction")

    def opening(self, work: Work) -> list[Ask]:
        """BEGIN, `take`, and the checkpoint where the transaction sees what had committed when it had `take`n."""
        fence = work.fence
        asks: list[Ask] = [
            (_BEGIN[work.isolation], ()),
            (self.sql["take"], (fence.lease, fence.epoch, str(fence.lease), work.step)),
        ]
        return [*asks, self.lookup(work)] if work.isolation == READ_COMMITTED else asks

    def lookup(self, work: Work) -> Ask:
        return self.sql["recorded"], (work.wf, work.seq)

    def taken(self, work: Work, taken: Any) -> bool:
        """Whether the step is this transaction's, from the answer to `take`. Raises LeaseLost."""
        if not taken[1]:
            lease, epoch = work.fence.lease, work.fence.epoch
            raise LeaseLost(f"shard {self.shard.name!r}: lease {lease} at epoch {epoch} is not held any more")
        return bool(taken[0])

    def end_former(self, work: Work) -> Ask:
        return self.sql["end_former"], (work.step,)

    def closing(self, work: Work, output: bytes | None, error: str | None) -> list[Ask]:
        """Constraints, fence, checkpoint, COMMIT (the last but one), and the session as it was."""
        lease, epoch, generation = work.fence.lease, work.fence.epoch, work.fence.generation
        row = (work.step, work.wf, work.wf, work.seq, min(work.attempts, 32767), work.name, output, error)
        asks: list[Ask] = [(self.sql["now_or_never"], ())]
        if work.isolation == READ_COMMITTED:
            asks.append((self.shard.statements("turn")["fence"], (lease, epoch, generation)))
        else:
            asks.append((self.shard.statements("submit")["admit"], (generation,)))
            asks.append((self.sql["unmoved"], ()))
            asks.append((self.sql["hold"], (lease, epoch)))
        asks.append((self.sql["record"], row))
        if work.tried:
            asks.append((self.sql["tried"], (work.wf, work.seq)))
        return [*asks, (b"COMMIT", ()), (b"RESET ALL", ())]

    def checkpoint(self, work: Work, row: Any) -> Checkpoint | None:
        return None if row is None else Checkpoint(work.seq, *row)

    def status(self, conn: Any, work: Work) -> None:
        """Raises UsageError where the function has not left its transaction as it should."""
        status = conn.info.transaction_status
        if status == pq.TransactionStatus.IDLE:
            raise UsageError(_ENDED.format(work.name))
        if status == pq.TransactionStatus.INERROR:
            raise UsageError(
                f"transaction {work.name!r}: a statement has failed, and so the transaction, but the function went on"
                " and returned: put what may fail into `with conn.transaction():`, or let the error out"
            )

    def failed(self, conn: Any, work: Work, error: BaseException) -> Done:
        """What the function's exception means. Raises Conflict or ShardUnavailable where it is not the function's."""
        for cause in _causes(error):
            if isinstance(cause, psycopg.Error):
                if cause.sqlstate in _CONFLICTS:
                    raise Conflict(f"transaction {work.name!r}: {cause}") from error
                if conn.pgconn.status != pq.ConnStatus.OK and cause.sqlstate not in _OWN_FAULT:
                    raise ConnectionLost(self._lost(cause), shard=self.shard.name) from error
        return Done(failure=error)

    def refused(self, conn: Any, work: Work, error: psycopg.Error) -> Done | None:
        """What an error at the closing means; None: the step is recorded already. Raises what is not about the
        function."""
        state = error.sqlstate or ""
        if state in _CONFLICTS:
            raise Conflict(f"transaction {work.name!r}: {error}") from error
        if conn.pgconn.status != pq.ConnStatus.OK:
            raise ShardUnavailable(self._lost(error), shard=self.shard.name) from error
        explained = self.shard.explain(error)
        if isinstance(explained, ShardflowError) and state[:2] not in ("25", "42"):
            raise explained from error
        diag = error.diag
        if diag.schema_name == self.shard.config.schema and diag.table_name == "step":
            if state == "23505":
                return None
            if state == "23502" and diag.column_name == "wf":
                return Done(failure=UsageError(_ENDED.format(work.name)))
            if state == "23502" and diag.column_name == "seq":
                raise LeaseLost(f"shard {self.shard.name!r}: the workflow of {work.name!r} has ended") from error
        return Done(failure=error)

    def clean(self, conn: Any, done: Done | None) -> bool:
        """Whether a rollback, at the most, makes the connection what it was."""
        failed = done is not None and done.failure is not None
        status = conn.info.transaction_status
        if status == pq.TransactionStatus.IDLE:
            return not failed  # the function has ended its transaction, and may have set anything behind that
        ended = done is not None and isinstance(done.failure, UsageError)
        return not ended and status in (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)

    def _lost(self, error: psycopg.Error) -> str:
        return f"shard {self.shard.name!r}: the connection of a transaction was lost: {error}"

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turns errors of our own statements into ours; conflicts into Conflict."""
        with self.shard.translate():
            try:
                yield
            except psycopg.Error as error:
                if error.sqlstate in _CONFLICTS:
                    raise Conflict(str(error)) from error
                raise


_ENDED = (
    "transaction {!r}: the function has ended its transaction itself, so what it wrote until then is there without"
    " the checkpoint: leave COMMIT and ROLLBACK to shardflow"
)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(16):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
