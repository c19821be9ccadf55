"""Claims that commit before they are on the server's disk, so that a workflow begins that much sooner.

A crash of the server can take such a claim back; then nothing that was committed behind it is there either, so what
ran by it has written nothing, and is begun again by whoever claims it next.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..storage.turn import Claimed, Turn


def may_be_light(turn: Turn) -> bool:
    """Whether a turn that writes nothing of any run does nothing that must not be taken back: a claim under a limit,
    or of a suspect, counts."""
    limited = turn.claim is None or turn.claim.limited
    return not (limited or turn.begun or turn.adopt or turn.suspects)


class Light:
    """The claims of one lease that may not be on the disk yet."""

    def __init__(self) -> None:
        self._claims: set[int] = set()

    def committed(self, turn: Turn, claimed: Iterable[Claimed]) -> None:
        """A turn has committed."""
        if turn.light:
            self._claims.update(row.wf for row in claimed)
        elif self._claims and (turn.steps or turn.outcomes):  # which is on the disk, with all that was before it
            self._claims.clear()

    def taken_back(self, held: Collection[int]) -> list[int]:
        """Those of them that a lease which holds only these has lost; all others are on the disk."""
        lost = [wf for wf in self._claims if wf not in held]
        self._claims.clear()
        return lost

    def forget(self) -> None:
        """The lease is not held any more."""
        self._claims.clear()
