"""All moves of the lease model."""

from __future__ import annotations

from collections.abc import Iterator

from .change import Move
from .leases import connection_moves, ends
from .state import Rules, State
from .turns import old_turns, start_steps, turn_moves, wake


def moves(state: State, rules: Rules) -> Iterator[Move]:
    """All that may happen next."""
    for x, worker in enumerate(state.workers):
        yield from start_steps(state, rules, x, worker)
        yield from turn_moves(state, rules, x, worker)
        yield from connection_moves(state, rules, x, worker)
        if worker.lease:
            yield from old_turns(state, rules, x, worker.lease)
        yield from wake(state, x, worker)
        yield from ends(state, rules, x, worker)
    for k, orphan in enumerate(state.orphans):
        yield from old_turns(state, rules, 2 + k, orphan)
