"""What this worker's lease holds, receipt by receipt, as the shard's `claim` table has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..storage.turn import Receipt

#: From this many receipts on, those that are nearly empty are merged, so that stragglers do not pile up.
MANY = 32


class Receipts:
    """Receipt number → workflows still held by it → attempt.

    Changes here are composed into a turn and so become true with its commit; after a turn whose answer was lost the
    whole is read again with `replace`.
    """

    def __init__(self) -> None:
        self.held: dict[int, dict[int, int]] = {}
        self._sizes: dict[int, int] = {}
        self._of: dict[int, int] = {}
        self._next = 1

    def number(self) -> int:
        """The number of a new receipt; never used before under this lease."""
        self._next += 1
        return self._next - 1

    def add(self, batch: int, held: Mapping[int, int]) -> None:
        """A receipt that has been written."""
        self.held[batch] = dict(held)
        self._sizes[batch] = len(held)
        self._of.update(dict.fromkeys(held, batch))

    def replace(self, held: Mapping[int, Mapping[int, int]], batches: Iterable[int]) -> None:
        """What the shard says the lease holds; `batches` are all its receipts, also empty ones."""
        self.held, self._sizes, self._of = {}, {}, {}
        for batch in batches:
            self.add(batch, held.get(batch, {}))
        self._next = max([self._next - 1, *self.held]) + 1

    def resolve(self, wf: int) -> int | None:
        """A workflow has ended; answers the receipt that named it."""
        batch = self._of.pop(wf, None)
        if batch is not None:
            del self.held[batch][wf]
        return batch

    def settle(self, leaving: Iterable[int]) -> tuple[list[int], Receipt | None]:
        """Receipts to drop, and one to write for what is left of those dropped while something was left.

        Arguments: `leaving`, workflows that are suspended: they must be in no receipt then.
        """
        rewritten = {self.resolve(wf) for wf in leaving}
        if len(self.held) > MANY:
            rewritten.update(b for b, rows in self.held.items() if len(rows) * 4 <= self._sizes[b])
        dropped = [batch for batch, rows in self.held.items() if not rows or batch in rewritten]
        rest: dict[int, int] = {}
        for batch in dropped:
            rest.update(self.held.pop(batch))
            del self._sizes[batch]
        if not rest:
            return dropped, None
        kept = Receipt(self.number(), list(rest), list(rest.values()))
        self.add(kept.batch, rest)
        return dropped, kept
