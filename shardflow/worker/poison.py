"""A batch that the server refuses: finds the rows, fails their workflows, commits the others.

Every part that commits is settled at once, and what was not tried is put back if the connection fails, so that a turn
in doubt is always one transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from ..core.failure import to_json
from ..errors import LeaseLost
from ..model import ErrorInfo, Status
from ..storage.turn import Refused, Turn
from .gather import Gathered
from .run import Run

log = logging.getLogger("shardflow.worker")


class Isolation:
    """One refused batch.

    Arguments: `shard`, its name; `send`, which commits and settles a part, and raises Refused; `put_back`, called
    with what is neither committed nor in doubt when the connection fails; `resolve`, told of workflows that failed.
    """

    def __init__(
        self,
        shard: str,
        send: Callable[[Gathered, Turn], Awaitable[None]],
        put_back: Callable[[Gathered], None],
        resolve: Callable[[int], object],
    ) -> None:
        self._shard = shard
        self._send = send
        self._put_back = put_back
        self._resolve = resolve
        self._failed: set[Run] = set()

    async def isolate(self, gathered: Gathered, turn: Turn) -> int:
        """Answers how many workflows failed; none means that it was the claim, which is left out here."""
        rest = gathered.rest()
        parts = [gathered.pieces()]
        try:
            while parts:
                part = [piece for piece in parts.pop() if _run_of(piece[0]) not in self._failed]
                if part and not await self._accepted(part):
                    half = len(part) // 2
                    parts += [part[half:], part[:half]]
            last = rest.turn()
            last.dropped, last.kept = turn.dropped, turn.kept
            await self._send(rest, last)
        except BaseException:
            for piece, _ in (piece for part in parts for piece in part):
                if _run_of(piece) not in self._failed:
                    rest.absorb(piece)
            self._put_back(rest)
            raise
        return len(self._failed)

    async def _accepted(self, part: list[tuple[Gathered, str]]) -> bool:
        """Commits the part; a single piece that is refused fails its workflow, which settles it too."""
        whole = Gathered()
        for piece, _ in part:
            whole.absorb(piece)
        try:
            await self._send(whole, whole.turn())
        except Refused as error:
            if len(part) > 1:
                return False
            self._failed.add(_run_of(part[0][0]))
            await self._fail(*part[0], error)
        return True

    async def _fail(self, piece: Gathered, what: str, refused: Refused) -> None:
        run = _run_of(piece)
        if refused.duplicate:
            raise LeaseLost(
                f"shard {self._shard!r}: {what} of workflow {run.id!r} is recorded already; starting over from"
                " what the shard has"
            )
        message = f"shard {self._shard!r} refused {what}: {refused}"
        log.error("a row was refused; its workflow fails", extra={"workflow": run.id, "error": message})
        run.close()
        piece.cancel()
        failed = Gathered()
        error = ErrorInfo("shardflow.errors.Refused", message.replace("\0", "\\0"))
        failed.add_outcome(run, (run.wf, Status.FAILED.value, None, to_json(error)))
        try:
            await self._send(failed, failed.turn())
        except Refused as again:
            raise LeaseLost(
                f"shard {self._shard!r} refuses even the failure of workflow {run.id!r}: {again}"
            ) from again
        self._resolve(run.wf)


def _run_of(piece: Gathered) -> Run:
    """The run of a single piece."""
    return piece.waiting[0][0] if piece.waiting else piece.ended[0]
